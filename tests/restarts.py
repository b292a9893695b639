"""Restarts of a node under a rain of connects, of which none may be refused.

As a program it is the long form of `test_restarts.py`:

    python -m tests.restarts socket            the service manager holds the socket; end, then start, as systemd does it
    python -m tests.restarts handover          the same, but the next process is ready before this one ends
    python -m tests.restarts reuse-port        no manager: both processes listen on the port with SO_REUSEPORT
    python -m tests.restarts kill              the manager holds the socket; SIGKILL, then start, as systemd does it

with --restarts 10 --rate 1000. It prints what it counted, and fails if a connect was refused or an accepted connection
got no answer (of a process that was killed: if a connect was refused or is never answered). Each connect is a socket,
an upgrade request, and the 101; every 50th stays, logs in, and must be told 1001.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import selectors
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from tests.support.manager import Manager, listening_socket
from tests.support.raw_client import message, request, set_reset

Way = Literal["socket", "handover", "reuse-port", "kill"]

KILLED: Final = {"reset", "reset while they stayed", "closed while they stayed", "closed before the answer"}
"""What becomes of connections that a killed process had accepted."""

STAYS_EVERY: Final = 50
ANSWER_TIMEOUT_S: Final = 15.0
"""A connect that falls into a restart waits for the drain and the start; one whose SYN was dropped, another second."""

SERVE: Final = (sys.executable, "-m", "starlight", "serve", "--drain-timeout", "3s", "--log-level", "warning")
UPGRADE: Final = request()
CLOSE_1001: Final = struct.pack("!H", 1001)


@dataclass
class Result:
    """What became of the connects."""

    connects: int = 0
    answered: int = 0
    slowest_s: float = 0.0
    stayed: int = 0
    told: int = 0
    failures: collections.Counter[str] = field(default_factory=collections.Counter)
    seconds: float = 0.0
    ready_s: float = 0.0
    """The longest time from the end of a process to the next one being ready; 0 where that was ready before."""

    def __str__(self) -> str:
        failures = ", ".join(f"{count} {name}" for name, count in self.failures.items()) or "none refused"
        return (
            f"{self.connects} connects in {self.seconds:.1f} s ({self.connects / max(self.seconds, 1e-9):.0f}/s), "
            f"{self.answered} answered, {failures}; slowest answer {self.slowest_s:.2f} s; "
            f"{self.told} of {self.stayed} that stayed were told to go; "
            f"the next process was ready after {self.ready_s:.2f} s"
        )


class Attempt:
    """One connect."""

    def __init__(self, port: int, stays: bool) -> None:
        self.began_s = time.monotonic()
        self.stays = stays
        self.is_answered = False
        self.is_sent = False
        self.received = b""
        self.sock = socket.socket()
        self.sock.setblocking(False)
        set_reset(self.sock)  # no TIME_WAIT, of which a port range has room for some 400 a second
        self.sock.connect_ex(("127.0.0.1", port))


class Rain:
    """Connects at a fixed rate, in a thread, from `start` to `stop`."""

    def __init__(self, port: int, rate: int) -> None:
        self.result = Result()
        self._port = port
        self._rate = rate
        self._selector = selectors.EpollSelector()
        self._open: set[Attempt] = set()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> Result:
        """No more connects; returns when those under way have been answered."""
        self._is_stopping = True
        self._thread.join(ANSWER_TIMEOUT_S + 30)
        assert not self._thread.is_alive()
        return self.result

    def _run(self) -> None:
        began_s = time.monotonic()
        while not self._is_stopping:
            due = int((time.monotonic() - began_s) * self._rate) - self.result.connects
            for _ in range(min(due, 100)):
                self._connect()
            self._step(0.001)
        self.result.seconds = time.monotonic() - began_s
        end_s = time.monotonic() + ANSWER_TIMEOUT_S
        while any(not attempt.is_answered for attempt in self._open) and time.monotonic() < end_s:
            self._step(0.05)
        for attempt in list(self._open):
            self.result.stayed -= attempt.is_answered  # the last node still runs
            self._end(attempt, None if attempt.is_answered else "without an answer")
        self._selector.close()

    def _connect(self) -> None:
        self.result.connects += 1
        attempt = Attempt(self._port, self.result.connects % STAYS_EVERY == 0)
        self._open.add(attempt)
        self._selector.register(attempt.sock, selectors.EVENT_WRITE, attempt)

    def _step(self, timeout_s: float) -> None:
        for key, events in self._selector.select(timeout_s):
            attempt: Attempt = key.data
            try:
                self._send(attempt) if events & selectors.EVENT_WRITE else self._receive(attempt)
            except OSError as error:
                what = "refused" if isinstance(error, ConnectionRefusedError) else "reset"
                self._end(attempt, "reset while they stayed" if attempt.is_answered else what)

    def _send(self, attempt: Attempt) -> None:
        error = attempt.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise ConnectionRefusedError(error) if error == 111 else OSError(error, "connect")
        attempt.sock.send(UPGRADE)
        self._selector.modify(attempt.sock, selectors.EVENT_READ, attempt)

    def _receive(self, attempt: Attempt) -> None:
        some = attempt.sock.recv(65_536)
        attempt.received += some
        if not attempt.is_answered and b"\r\n\r\n" in attempt.received:
            self._answered(attempt)
        if not some:
            self._end(attempt, "closed while they stayed" if attempt.is_answered else "closed before the answer")
        elif attempt in self._open and attempt.is_answered and CLOSE_1001 + b"drain;" in attempt.received:
            self.result.told += 1
            self._end(attempt, None)

    def _answered(self, attempt: Attempt) -> None:
        attempt.is_answered = True
        self.result.answered += attempt.received.startswith(b"HTTP/1.1 101 ")
        self.result.slowest_s = max(self.result.slowest_s, time.monotonic() - attempt.began_s)
        if attempt.stays:
            self.result.stayed += 1
            attempt.sock.send(message("login", user="stays"))
        else:
            self._end(attempt, None)

    def _end(self, attempt: Attempt, failure: str | None) -> None:
        if attempt in self._open:
            self._open.discard(attempt)
            self._selector.unregister(attempt.sock)
            attempt.sock.close()
            if failure is not None:
                self.result.failures[failure] += 1


async def restarts(way: Way, n_restarts: int, rate: int, between_s: float = 0.5) -> Result:
    """Restart a node so many times while it rains; raises AssertionError if a process ends otherwise than with 0."""
    with tempfile.TemporaryDirectory() as directory, listening_socket() as sock:
        port = sock.getsockname()[1]
        words: tuple[str, ...] = SERVE
        options: dict[str, Any] = {"listening": sock}
        if way == "reuse-port":
            sock.close()
            words, options = (*SERVE, "--port", str(port), "--reuse-port"), {}
        async with Manager(Path(directory)) as manager:
            process = await manager.start(*words, **options)
            await manager.hear("READY=1")
            rain = Rain(port, rate)
            rain.start()
            try:
                for _ in range(n_restarts):
                    await asyncio.sleep(between_s)
                    following = None
                    if way in ("handover", "reuse-port"):
                        following = await manager.start(*words, **options)
                        await manager.hear("READY=1")
                    number, wanted = (signal.SIGKILL, -signal.SIGKILL) if way == "kill" else (signal.SIGTERM, 0)
                    status, log = await manager.end(process, number)
                    assert status == wanted, log
                    if following is None:
                        ended_s = time.monotonic()
                        following = await manager.start(*words, **options)
                        await manager.hear("READY=1")
                        rain.result.ready_s = max(rain.result.ready_s, time.monotonic() - ended_s)
                    process = following
                await asyncio.sleep(between_s)
            finally:
                result = await asyncio.to_thread(rain.stop)
            status, log = await manager.end(process, signal.SIGTERM)
            assert status == 0, log
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="Restart a node under a rain of connects.")
    parser.add_argument("way", choices=get_args(Way))
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--rate", type=int, default=1_000, help="connects a second")
    given = parser.parse_args()
    result = asyncio.run(restarts(given.way, given.restarts, given.rate))
    print(f"{given.way}, {given.restarts} restarts: {result}")
    return 1 if set(result.failures) - (KILLED if given.way == "kill" else set()) else 0


if __name__ == "__main__":
    sys.exit(main())
