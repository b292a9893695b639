"""What a service manager hands to a process, and what it wants to hear: systemd's protocols, without its library.

Sockets: `LISTEN_FDS` descriptors from 3 on, meant for the process `LISTEN_PID` (sd_listen_fds(3)). They outlive the
process, so nobody who connects during a restart is refused. State: datagrams to `NOTIFY_SOCKET` (sd_notify(3)). Without
these variables nothing here does anything. Any program that speaks the protocols can be the manager, a test for one.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Final

from starlight.errors import ListenFailed

__all__ = ["listening_sockets", "notify", "reloading", "stopping", "watchdog_interval_s"]

log = logging.getLogger(__name__)

FIRST_FD: Final = 3
"""Behind the standard streams: the protocol's constant."""

SOCKETS_LIMIT: Final = 64
"""Sockets that are taken: far more than a node has addresses. What is more is a variable that nobody meant."""

NOTIFY_TIMEOUT_S: Final = 0.5
"""A manager that doesn't read doesn't hold up the clients any longer."""

WATCHDOG_MIN_S: Final = 0.05
"""Never more often, whatever `WATCHDOG_USEC` says."""

STOP_RESERVE_S: Final = 5
"""Asked for beyond the drain time before the manager kills: the application's own end takes some of it."""


def listening_sockets() -> list[socket.socket]:
    """The sockets that the manager listens on for this process; none if there is no manager.

    The variables are taken out of the environment, so that neither a second call nor a child finds them.
    Raises `ListenFailed` if what was passed is not sockets of TCP that listen.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    if int(count) > SOCKETS_LIMIT:
        raise ListenFailed(0, f"LISTEN_FDS={count}: expected at most {SOCKETS_LIMIT} sockets")
    return [_adopt(FIRST_FD + index) for index in range(int(count))]


def _adopt(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
        is_listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ListenFailed(error.errno, f"LISTEN_FDS: descriptor {fd}: {(error.strerror or '').lower()}") from None
    if not is_tcp or not is_listening:
        raise ListenFailed(0, f"LISTEN_FDS: descriptor {fd} is not a TCP socket that listens (Accept=no)")
    return sock


def notify(*lines: str) -> bool:
    """Tell the manager, such as ``notify("READY=1")``; whether there is one and it took it. Never raises."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(NOTIFY_TIMEOUT_S)
            sock.sendto("\n".join(lines).encode(), address)
    except OSError as error:
        log.debug("the service manager did not take %s: %s", lines[0], error)
        return False
    return True


def reloading() -> None:
    """Say that the configuration is being read again; `notify("READY=1")` says that it was."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")


def stopping(within_s: float) -> None:
    """Say that the process ends, and ask for the time that it takes."""
    notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round((within_s + STOP_RESERVE_S) * 1e6)}")


def watchdog_interval_s() -> float | None:
    """How often the manager wants a ``WATCHDOG=1``: half of what it waits; None if it doesn't watch this process."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or pid not in ("", str(os.getpid())):
        return None
    return max(WATCHDOG_MIN_S, int(usec) / 2e6)
