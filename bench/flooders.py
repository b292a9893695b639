"""What others wait while ten clients flood: the round trip of their ping beside each kind of flood, and without one.

    PYTHONPATH=. python bench/flooders.py                          # every kind, 10 s each: about 3 minutes
    PYTHONPATH=. python bench/flooders.py --kinds pings,pongs --seconds 4
    PYTHONPATH=. python bench/flooders.py --python ../other/.venv/bin/python   # the package of another checkout

The node is `starlight serve --auth jwt` with its default limits, on core 0, a fresh one for each kind; only the ping
interval and the time for a pong are short (2 s each), so that a run of seconds sees them. The flooders are one process
on core 1: each of them is logged in with a token and sends what fits into its socket, over and over, and reads what
comes. One that is closed logs in again after a quarter of a second. Two others share core 1 with them and go first: the
victim, who sends a `ping` every 20 ms and times the reply, and the silent one, who never answers a ping of the node and
has to be closed with 4012 within ping interval and pong timeout (and a second).

The table has the victim's p50, p99 and maximum, how often it got no answer, what the flooders got rid of in bytes a
second each, with which codes they were closed and how often, and when the silent one was. Figures of one run on one
machine say what is possible; compare two packages in turns, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jwt

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH))

from harness.node import Node, node, version_of  # noqa: E402
from harness.wire import (  # noqa: E402
    CLOSE,
    CONTINUATION,
    NO_CLOSE_FRAME,
    PING,
    PONG,
    TEXT,
    Ended,
    Wire,
    frame,
    upgrade_request,
)

SERVER_CPU, CLIENT_CPU = 0, 1
FLOODERS = 10
PING_EVERY_S = 0.02
PING_INTERVAL_S, PONG_TIMEOUT_S = 2.0, 2.0
GRACE_S = 1.0
"""What a silent client may get beyond its deadline before that counts as missed."""
LOST_AFTER_S = 30.0
LINES, MESSAGES = "starlight.v1.lines", "starlight.v1"
FRAGMENTS = 60
"""Of one message; more than 64 are refused."""
NICENESS = 10
AGAIN_AFTER_S = 0.25
"""A flooder that was closed; at once, and it would be a flood of connects instead."""


class Flood(NamedTuple):
    """A kind: what is sent over and over, in which subprotocol."""

    title: str
    subprotocol: str
    payload: bytes


def one_byte_fragments() -> bytes:
    """A good message of 60 bytes, each of them a frame."""
    message = b'{"type":"ping"}'.ljust(FRAGMENTS)
    middle = b"".join(frame(CONTINUATION, message[i : i + 1], first=0) for i in range(1, FRAGMENTS - 1))
    return frame(TEXT, message[:1], first=0) + middle + frame(CONTINUATION, message[-1:])


FLOODS = {
    "empty-lines": Flood("empty lines, 64 KiB a frame", LINES, frame(TEXT, b"\n" * 65_536)),
    "crlf-lines": Flood(r"\r\n lines, 64 KiB a frame", LINES, frame(TEXT, b"\r\n" * 32_768)),
    "one-byte": Flood("messages of one byte", MESSAGES, frame(TEXT, b"1") * 9_000),
    "brackets": Flood("64 KiB of [", MESSAGES, frame(TEXT, b"[" * 65_536)),
    "pings": Flood("empty pings", MESSAGES, frame(PING) * 10_000),
    "pongs": Flood("empty pongs", MESSAGES, frame(PONG) * 10_000),
    "fragments": Flood("fragments of one byte", MESSAGES, one_byte_fragments() * 150),
}


def token(user: str, secret: str) -> str:
    """A token for an hour."""
    now = int(time.time())
    return jwt.encode({"sub": user, "iat": now, "exp": now + 3_600}, secret, "HS256")


# ---- the flooders: a process of their own


class Flooder:
    """One of them: connects, logs in, floods, and begins again when it is closed."""

    def __init__(self, port: int, login: bytes, flood: Flood) -> None:
        self.port, self.login, self.flood = port, login, flood
        self.sent_bytes = 0
        self.ends: Counter[int] = Counter()
        self.open()

    def open(self) -> None:
        """Connect; what is to be written first is the handshake and the login."""
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.connect_ex(("127.0.0.1", self.port))
        self.first = upgrade_request(self.port, self.flood.subprotocol) + self.login
        self.at = 0
        self.unread = b""
        self.has_upgraded = False

    def write(self) -> None:
        """As much as the kernel takes at once."""
        data = self.first or self.flood.payload
        n = self.sock.send(memoryview(data)[self.at :])
        self.at += n
        self.sent_bytes += 0 if self.first else n
        if self.at == len(data):
            self.first, self.at = b"", 0

    def read(self) -> int | None:
        """Take what came; the close code if that was the end."""
        some = self.sock.recv(1 << 18)
        if not some:
            return NO_CLOSE_FRAME
        self.unread += some
        if not self.has_upgraded:
            head, found, rest = self.unread.partition(b"\r\n\r\n")
            if not found:
                return None
            self.has_upgraded, self.unread = True, rest
            if b" 101 " not in head:
                return int(head.split()[1])
        return self.take_frames()

    def take_frames(self) -> int | None:
        """Pass over the whole frames that are there."""
        at, data = 0, self.unread
        while len(data) - at >= 2:
            size, start = data[at + 1] & 0x7F, at + 2
            if size > 125:
                width = 2 if size == 126 else 8
                size, start = int.from_bytes(data[start : start + width], "big"), start + width
            if len(data) < start + size:
                break
            if data[at] & 15 == CLOSE:
                return int.from_bytes(data[start : start + 2], "big") if size else 1005
            at = start + size
        self.unread = data[at:]
        return None


def flood(port: int, kind: str, seconds: float, count: int) -> int:
    """Flood until a line comes on stdin, at most so long; print what became of it."""
    os.sched_setaffinity(0, {CLIENT_CPU})
    os.nice(NICENESS)
    secret = os.environ["FLOOD_SECRET"]
    logins = [
        frame(TEXT, json.dumps({"type": "login", "id": 1, "token": token(f"evil{i}", secret)}).encode())
        for i in range(count)
    ]
    flooders = [Flooder(port, login, FLOODS[kind]) for login in logins]
    poll = selectors.DefaultSelector()
    both = selectors.EVENT_READ | selectors.EVENT_WRITE
    for one in flooders:
        poll.register(one.sock, both, one)
    poll.register(sys.stdin, selectors.EVENT_READ, None)
    print("flooding", flush=True)
    began_s = time.monotonic()
    waiting: list[tuple[float, Flooder]] = []
    while (now_s := time.monotonic()) - began_s < seconds:
        while waiting and waiting[0][0] <= now_s:
            again = waiting.pop(0)[1]
            again.open()
            poll.register(again.sock, both, again)
        for key, events in poll.select(0.05):
            if key.data is None:
                seconds = 0.0
            elif (code := turn(key.data, events)) is not None:
                poll.unregister(key.data.sock)
                key.data.sock.close()
                key.data.ends[code] += 1
                waiting.append((time.monotonic() + AGAIN_AFTER_S, key.data))
    elapsed_s = time.monotonic() - began_s
    ends: Counter[int] = sum((one.ends for one in flooders), Counter())
    rates = sorted(one.sent_bytes / elapsed_s for one in flooders)
    print(json.dumps({"bytes_per_s_each": rates, "ends": {str(code): n for code, n in sorted(ends.items())}}))
    return 0


def turn(one: Flooder, events: int) -> int | None:
    """Read and write what goes; the close code (or HTTP status) if the connection has ended."""
    try:
        if events & selectors.EVENT_READ and (code := one.read()) is not None:
            return code
        if events & selectors.EVENT_WRITE:
            one.write()
    except BlockingIOError:
        return None
    except OSError:
        return NO_CLOSE_FRAME
    return None


# ---- the others


def go_first() -> None:
    """Have this process served before the flooders of its core, as far as that is allowed."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))


class Silent:
    """A client that never answers a ping; `closed` is (code, seconds after its login) once it was."""

    def __init__(self, port: int, secret: str) -> None:
        self.closed: tuple[int, float] | None = None
        self.wire = Wire(("127.0.0.1", port), timeout_s=300)
        self.wire.answers_pings = False
        self.wire.ask(type="login", id=1, token=token("silent", secret))
        self.since_s = time.monotonic()
        self.thread = threading.Thread(target=self.wait, daemon=True)
        self.thread.start()

    def wait(self) -> None:
        try:
            while True:
                self.wire.read_frame()
        except Ended as end:
            self.closed = end.code, time.monotonic() - self.since_s
        except OSError:
            pass

    def end(self) -> None:
        """Give up; what was not closed by now never was."""
        with contextlib.suppress(OSError):
            self.wire.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)


def round_trips(port: int, secret: str, seconds: float) -> tuple[list[float], int]:
    """The victim's round trips in ms, and how many pings got no answer or the victim's connection no longer."""
    wire = Wire(("127.0.0.1", port), timeout_s=LOST_AFTER_S)
    wire.ask(type="login", id=1, token=token("victim", secret))
    found: list[float] = []
    number, until_s = 1, time.monotonic() + seconds
    try:
        while time.monotonic() < until_s:
            number += 1
            began_s = time.perf_counter()
            wire.ask(type="ping", id=number)
            found.append((time.perf_counter() - began_s) * 1_000)
            time.sleep(PING_EVERY_S)
    except (Ended, OSError):
        return found, 1
    finally:
        wire.close()
    return found, 0


def percentile(values: list[float], share: float) -> float | None:
    """The smallest value that so large a share is not above; None without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def measure(server: Node, kind: str, secret: str, seconds: float, count: int) -> dict[str, Any]:
    """One row: the victim beside one kind of flood, `idle` for none."""
    flooders = None
    found: dict[str, Any] = {"bytes_per_s_each": [], "ends": {}}
    silent = Silent(server.port, secret)
    if kind != "idle":
        flooders = subprocess.Popen(
            [sys.executable, __file__, "--flood", kind, "--port", str(server.port), "--flooders", str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "FLOOD_SECRET": secret},
        )  # fmt: skip
        assert flooders.stdout is not None
        if flooders.stdout.readline() != "flooding\n":
            raise SystemExit("flooders: they did not start")
    try:
        times, lost = round_trips(server.port, secret, seconds)
    finally:
        if flooders is not None:
            said, _ = flooders.communicate("stop\n", timeout=60)
            found = json.loads(said)
    # The node may still have much of the flood to read: the silent one gets all the time of its deadline.
    silent.thread.join(max(0.0, silent.since_s + PING_INTERVAL_S + PONG_TIMEOUT_S + GRACE_S - time.monotonic()))
    silent.end()
    code, after_s = silent.closed or (None, None)
    return {
        "kind": kind,
        "p50_ms": percentile(times, 0.5),
        "p99_ms": percentile(times, 0.99),
        "max_ms": max(times, default=None),
        "count": len(times),
        "lost": lost,
        **found,
        "silent_code": code,
        "silent_s": after_s,
        "is_deadline_kept": code == 4012 and after_s <= PING_INTERVAL_S + PONG_TIMEOUT_S + GRACE_S,
        "rss_peak_bytes": server.status("VmHWM"),
    }


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each kind, each with a node of its own."""
    secret = secrets.token_urlsafe(48)
    flags = ["--auth", "jwt", "--ping-interval", f"{PING_INTERVAL_S:g}s", "--pong-timeout", f"{PONG_TIMEOUT_S:g}s"]
    flags += ["--log-level", "warning"] if options.quiet_log else []
    for kind in options.kinds.split(","):
        if kind != "idle" and kind not in FLOODS:
            raise SystemExit(f"--kinds {kind}: expected idle, {', '.join(FLOODS)}")
        with node(flags, python=options.python, cpu=SERVER_CPU, environment={"STARLIGHT_JWT_SECRET": secret}) as server:
            found = measure(server, kind, secret, options.seconds, options.flooders)
        print(f"{kind}: p99 {_ms(found['p99_ms'])} ms", file=sys.stderr, flush=True)
        yield found


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def line(found: dict[str, Any]) -> str:
    """A line of the table."""
    rates = found["bytes_per_s_each"]
    speed = f"{rates[len(rates) // 2] / 1e6:.2f} MB/s" if rates else "-"
    ends = ", ".join(f"{count} x {code}" for code, count in found["ends"].items()) or "-"
    code, after_s = found["silent_code"], found["silent_s"]
    silent = "never" if code is None else f"{code} after {after_s:.1f} s"
    title = FLOODS[found["kind"]].title if found["kind"] in FLOODS else "none"
    return (
        f"| {title} | {_ms(found['p50_ms'])} | {_ms(found['p99_ms'])} | {_ms(found['max_ms'])} | {found['count']} "
        f"| {found['lost']} | {speed} | {ends} | {silent} | {'yes' if found['is_deadline_kept'] else 'NO'} "
        f"| {found['rss_peak_bytes'] / 1e6:.0f} MB |"
    )


COLUMNS = (
    "flood", "p50 ms", "p99 ms", "max ms", "round trips", "victim lost", "a flooder's speed", "flooders ended",
    "silent client", "in time", "peak memory",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="whose package is served (this one's)")
    parser.add_argument("--kinds", default=",".join(["idle", *FLOODS]), help="which, with commas between")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each kind (10)")
    parser.add_argument("--flooders", type=int, default=FLOODERS, help=f"how many ({FLOODERS})")
    parser.add_argument("--json", type=Path, help="where the rows go (bench/results/<date>-flooders.json)")
    parser.add_argument("--quiet-log", action="store_true", help="the node logs warnings only")
    parser.add_argument("--flood", default="", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flood:
        return flood(options.port, options.flood, 3_600.0, options.flooders)
    os.sched_setaffinity(0, {CLIENT_CPU})
    version = version_of(options.python)
    go_first()
    found = list(rows(options))
    today = datetime.now(UTC).date().isoformat()
    path = options.json or BENCH / "results" / f"{today}-flooders.json"
    record = {"script": "flooders", "date": today, "version": version, "seconds": options.seconds}
    path.write_text(json.dumps({**record, "flooders": options.flooders, "rows": found}, indent=1) + "\n")
    print(f"{options.flooders} flooders, {options.seconds:g} s a kind, {version}\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    print("\n".join(line(one) for one in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
