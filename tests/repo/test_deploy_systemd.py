"""deploy/starlight.service and starlight.socket: valid for systemd, hardened, and what they start does what they say.

systemd itself does not run here; a test holds the socket and the notify socket as it does.
"""

from __future__ import annotations

import asyncio
import configparser
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from starlight.config.settings import Settings
from starlight.config.units import parse_duration
from starlight.server.node import RESERVED_FILES
from tests.support.manager import Manager, listening_socket
from tests.support.wire_client import WireClient

DEPLOY = Path(__file__).parents[2] / "deploy"
INSTALLED = "/opt/starlight/bin/starlight"
CONFIG = "/etc/starlight/starlight.toml"
MOST_EXPOSURE = 2.0
"""Of 10, by `systemd-analyze security`: 2 is what it calls OK with little to add; an empty unit has 9.6."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


class Unit(configparser.RawConfigParser):
    """A unit file; of names that are given twice, the last."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, delimiters=("=",), comment_prefixes=("#",), interpolation=None)
        self.read_string(path.read_text())

    def optionxform(self, optionstr: str) -> str:
        return optionstr


SERVICE = Unit(DEPLOY / "starlight.service")["Service"]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units in a directory, with a program in place of ours, which is not installed where they say."""
    for name in ("starlight.service", "starlight.socket"):
        (tmp_path / name).write_text((DEPLOY / name).read_text().replace(INSTALLED, shutil.which("true") or ""))
    return tmp_path


@needs_systemd
def test_the_units_are_valid(installed: Path):
    run = subprocess.run(
        ["systemd-analyze", "verify", installed / "starlight.service", installed / "starlight.socket"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


@needs_systemd
def test_a_mistake_in_a_unit_is_seen(installed: Path):
    unit = installed / "starlight.service"
    unit.write_text(unit.read_text().replace("LimitNOFILE=65536", "LimitNOFILE=many\nProtectNothing=yes"))
    run = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert "Failed to parse resource value" in run.stderr and "ProtectNothing" in run.stderr


@needs_systemd
def test_the_service_is_hardened(installed: Path):
    run = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", installed / "starlight.service"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r"exposure level for starlight\.service: ([\d.]+)", run.stdout)
    assert found, run.stdout + run.stderr
    assert float(found[1]) <= MOST_EXPOSURE


def test_the_limits_of_the_service_fit_the_defaults():
    settings = Settings()
    assert int(SERVICE["LimitNOFILE"]) >= settings.max_connections + RESERVED_FILES
    assert int(SERVICE["TimeoutStopSec"]) >= settings.drain_timeout_s + 5
    assert SERVICE["Type"] == "notify"
    assert SERVICE["Restart"] == "on-failure" and parse_duration(SERVICE["RestartSec"]) < 0.5
    assert SERVICE["ExecReload"] == "/bin/kill -HUP $MAINPID"


async def test_what_the_service_starts_is_ready_reloads_and_stops_as_it_says(tmp_path: Path):
    (tmp_path / "starlight.toml").write_text("")
    words = shlex.split(SERVICE["ExecStart"])
    assert words[0] == INSTALLED and CONFIG in words
    words = [str(tmp_path / "starlight.toml") if word == CONFIG else word for word in words]
    with listening_socket() as sock:
        async with Manager(tmp_path) as manager:
            process = await manager.start(
                *(sys.executable, "-m", "starlight"), *words[1:], listening=sock, WATCHDOG_USEC=str(20_000_000)
            )
            await manager.hear("READY=1")
            ann = await WireClient.login(f"ws://127.0.0.1:{sock.getsockname()[1]}/ws", "ann")
            process.send_signal(signal.SIGHUP)
            await manager.hear("RELOADING=1")
            await manager.hear("READY=1")
            assert (await ann.ask("ping"))["type"] == "pong"
            ended = asyncio.ensure_future(manager.end(process, signal.SIGTERM))
            await manager.hear("STOPPING=1")
            assert (await ann.closed())[0] == 1001
            assert (await ended)[0] == 0
