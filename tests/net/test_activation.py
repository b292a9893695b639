"""starlight.net.activation: sockets from a manager and words to it, without a process around them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from starlight.net import activation
from tests.support.manager import ROOT, activated, listening_socket


@pytest.fixture
def notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The manager's end of a notify socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


# --- words -----------------------------------------------------------------------------------------------------------


def test_states_are_datagrams_of_lines(notified: socket.socket):
    assert activation.notify("READY=1", "STATUS=serving")
    assert notified.recv(4096) == b"READY=1\nSTATUS=serving"
    activation.stopping(10)
    assert notified.recv(4096) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=15000000"


def test_a_reload_says_when_it_began(notified: socket.socket):
    before = time.monotonic_ns() // 1_000
    activation.reloading()
    found = re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=(\d+)", notified.recv(4096))
    assert found is not None
    assert before <= int(found[1]) <= time.monotonic_ns() // 1_000


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"starlight-test-{os.getpid()}"
        sock.bind("\0" + name)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert activation.notify("READY=1")
        assert sock.recv(4096) == b"READY=1"


@pytest.mark.parametrize("path", ["", "relative", "vsock:2:1234", "/nowhere/notify"])
def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, path: str):
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    assert not activation.notify("READY=1")


def test_a_manager_that_does_not_read_does_not_stop_us(notified: socket.socket):
    for _ in range(100_000):
        if not activation.notify("STATUS=" + "x" * 60_000):
            return
    raise AssertionError("its queue has no end")


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        ("20000000", "", 10.0),
        ("20000000", "own", 10.0),
        ("20000000", "1234567", None),
        ("1", "", activation.WATCHDOG_MIN_S),
        ("", "", None),
        ("0", "", None),
        ("soon", "", None),
    ],
)
def test_the_watchdog_is_told_at_half_of_its_time(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, interval_s: float | None
):
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert activation.watchdog_interval_s() == interval_s


# --- sockets: descriptor 3 is somebody's here, so each case is a process of its own ----------------------------------

PROGRAM = """
import os
from starlight import errors
from starlight.net import activation
try:
    sockets = activation.listening_sockets()
    print([(sock.getsockname(), sock.get_inheritable()) for sock in sockets], activation.listening_sockets(),
          sorted(name for name in os.environ if name.startswith("LISTEN_")))
except errors.ListenFailed as error:
    print("refused:", error)
"""


def passed(sock: socket.socket, fds: str = "1", pid: str = "") -> str:
    """What a process prints that got this socket."""
    run = subprocess.run(
        activated(sock, sys.executable, "-c", PROGRAM, fds=fds, pid=pid),
        pass_fds=(sock.fileno(),),
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=True,
    )
    return run.stdout.strip()


def test_a_socket_that_listens_is_taken_once_and_the_variables_with_it():
    with listening_socket() as sock:
        assert passed(sock) == f"[({sock.getsockname()}, False)] [] []"


def test_sockets_for_another_process_are_not_ours():
    with listening_socket() as sock:
        for pid, fds in (("1", "1"), ("x", "1"), ("", ""), ("", "x"), ("", "0")):
            assert passed(sock, fds, pid) == "[] [] []"


def test_what_is_no_listening_socket_of_tcp_is_refused():
    with socket.socket() as silent, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for sock in (silent, datagrams):
            assert (
                passed(sock)
                == "refused: [Errno 0] LISTEN_FDS: descriptor 3 is not a TCP socket that listens (Accept=no)"
            )


def test_more_sockets_than_were_passed_are_refused():
    with listening_socket() as sock:
        assert passed(sock, fds="60").startswith("refused: [Errno 9] LISTEN_FDS: descriptor ")
        assert "expected at most 64" in passed(sock, fds="65")
