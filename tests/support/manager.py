"""What systemd does for a service, as a test does it: the notify socket, the listening socket, start and stop."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
READY_TIMEOUT_S = 60.0


class Manager:
    """Starts processes and hears what they say of themselves.

    Attributes:
        heard: every notification so far, as a dict of its lines.
    """

    def __init__(self, directory: Path) -> None:
        self.heard: list[dict[str, str]] = []
        self.path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(self.path))
        self._started: list[asyncio.subprocess.Process] = []

    async def start(
        self, *command: str, listening: socket.socket | None = None, **environment: str
    ) -> asyncio.subprocess.Process:
        """Start a process, with the listening socket as its descriptor 3 if there is one; its log goes to a pipe."""
        process = await asyncio.create_subprocess_exec(
            *(command if listening is None else activated(listening, *command)),
            pass_fds=() if listening is None else (listening.fileno(),),
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(self.path), **environment},
        )
        self._started.append(process)
        return process

    async def hear(self, line: str, timeout_s: float = READY_TIMEOUT_S) -> dict[str, str]:
        """The next notification that has this line, such as ``READY=1``."""
        loop = asyncio.get_running_loop()
        name, _, value = line.partition("=")
        async with asyncio.timeout(timeout_s):
            while True:
                datagram = await loop.sock_recv(self._socket, 4096)
                self.heard.append(dict(row.split("=", 1) for row in datagram.decode().split("\n")))
                if self.heard[-1].get(name) == value:
                    return self.heard[-1]

    async def end(self, process: asyncio.subprocess.Process, number: int, timeout_s: float = 30.0) -> tuple[int, str]:
        """Send a signal and wait: exit status and what it wrote to its log."""
        process.send_signal(number)
        async with asyncio.timeout(timeout_s):
            _, log = await process.communicate()
        assert process.returncode is not None
        return process.returncode, log.decode()

    async def __aenter__(self) -> Manager:
        return self

    async def __aexit__(self, *_: Any) -> None:
        for process in self._started:
            if process.returncode is None:
                process.kill()
                await process.communicate()
        self._socket.close()


_HAND_OVER = """
import os, sys
fd, fds, pid, *command = sys.argv[1:]
os.dup2(int(fd), 3)
os.environ.update(LISTEN_FDS=fds, LISTEN_PID=pid or str(os.getpid()), LISTEN_FDNAMES="x")
os.execvp(command[0], command)
"""


def activated(listening: socket.socket, *command: str, fds: str = "1", pid: str = "") -> tuple[str, ...]:
    """The command with a socket as its descriptor 3; `pass_fds` has to keep it. No pid: its own."""
    return (sys.executable, "-SEc", _HAND_OVER, str(listening.fileno()), fds, pid, *command)


def listening_socket(host: str = "127.0.0.1") -> socket.socket:
    """A socket that listens on a port of the kernel's choice, as systemd makes it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, 0))
    sock.listen(4096)
    return sock
