"""Nobody is refused while a node restarts: the short form of `python -m tests.restarts`, 10 under 1,000 a second."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.restarts import KILLED, restarts
from tests.support.fakes import needs_speed
from tests.support.manager import ROOT

RESTARTS = 2
RATE = 200

MIGRATING = (
    "unshare",
    "--net",
    "sh",
    "-c",
    'ip link set lo up && echo 1 >/proc/sys/net/ipv4/tcp_migrate_req && exec "$@"',
    "sh",
)
"""Runs a command with a loopback of its own, where the kernel hands on what is queued in a closing socket."""


def can_migrate() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*MIGRATING, "true"], stderr=subprocess.DEVNULL, timeout=30, check=False).returncode == 0


async def test_no_connect_is_refused_while_the_manager_holds_the_socket():
    result = await restarts("socket", RESTARTS, RATE)
    assert not result.failures, result
    assert result.answered == result.connects > RATE
    assert result.told == result.stayed > 0


async def test_no_connect_is_refused_when_the_next_process_takes_the_socket_over():
    result = await restarts("handover", RESTARTS, RATE)
    assert not result.failures, result
    assert result.answered == result.connects > RATE
    assert result.told == result.stayed > 0


async def test_67_no_connect_is_refused_when_a_process_is_killed_and_started_again():
    """Only what it had accepted is lost."""
    result = await restarts("kill", RESTARTS, RATE)
    assert set(result.failures) <= KILLED, result
    assert result.answered > RATE
    assert result.stayed > 0


@needs_speed
async def test_hardly_a_connect_is_reset_between_two_processes_of_one_port():
    """SO_REUSEPORT: a connection that the kernel puts into the closing socket after the last accept is reset."""
    result = await restarts("reuse-port", RESTARTS, RATE)
    assert set(result.failures) <= {"reset", "refused"}, result
    assert result.failures.total() <= RESTARTS, result
    assert result.told > 0


@pytest.mark.skipif(not can_migrate(), reason="no right to make a network namespace, or no tcp_migrate_req in it")
def test_no_connect_is_reset_between_two_processes_of_one_port_if_the_kernel_migrates():
    words = ("-m", "tests.restarts", "reuse-port", "--restarts", str(RESTARTS), "--rate", str(RATE))
    run = subprocess.run(
        [*MIGRATING, sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
