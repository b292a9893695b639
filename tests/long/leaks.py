"""Connections that do everything a client can do, and of which nothing is left.

Each guest draws from a seed how far it gets, what it does there and how it ends. Half of the memory's growth is allowed
for: what counts is that the second half of the guests costs no more than the first.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import tempfile
import time
from collections import Counter
from contextlib import suppress
from heapq import heappop, heappush
from pathlib import Path

from tests.long.outcome import Outcome
from tests.support.raw_client import CONTINUATION, PING, PONG, TEXT, close_frame, frame, message, request, set_reset
from tests.support.server_process import ServerProcess, server_process
from tests.support.tls import write_certificate

CONNECTIONS = 100_000
TLS_SHARE = 0.05
AT_ONCE = 100
USERS = 5_000
CHANNELS = 50
TIMEOUT_S = 20.0
EVICTED_AFTER_S = 2.0
"""One that stalls and reads nothing is evicted after `evict_after`, half a second; more on a busy machine."""
RESET_AFTER_S = 3.5
"""An evicted client that doesn't read is reset after a second more."""
GROWTH_LIMIT_BYTES = 4 << 20
SETTINGS = {"outbox_bytes": 65_536, "send_buffer_bytes": 4_096, "application": True}
"""Small, so that one who stalls is evicted by a few hundred kilobytes."""

STAGES = {
    "connect": 2,
    "half a request": 4,
    "bad request": 3,
    "upgraded": 5,
    "bad login": 3,
    "refused login": 4,
    "logged in": 74,
    "stalled": 5,
}
"""How far a guest gets, with weights."""

ENDINGS = ("close frame", "close", "reset", "half-close", "bad frame", "half a frame", "fragment")
NEED_FRAMES = {"close frame", "bad frame", "half a frame", "fragment"}

IP_BIND_ADDRESS_NO_PORT = 24


def connect(port: int, n: int, receive_buffer_bytes: int = 0) -> socket.socket:
    """From one of many addresses, so that ports don't run out while closed ones wait."""
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    if receive_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    sock.settimeout(TIMEOUT_S)
    sock.bind((f"127.0.1.{1 + n % 250}", 0))
    sock.connect(("127.0.0.1", port))
    return sock


class Guest:
    """One short life. `tls`: how it shakes hands, None without."""

    def __init__(self, port: int, n: int, seed: int, tls: ssl.SSLContext | None) -> None:
        self.chance = random.Random(f"{seed}/{n}")
        self.n = n
        self.is_tls = tls is not None
        stages = {name: weight for name, weight in STAGES.items() if tls is None or name != "stalled"}
        self.stage = self.chance.choices(list(stages), list(stages.values()))[0]
        endings = [ending for ending in ENDINGS if self.speaks_frames or ending not in NEED_FRAMES]
        if tls is not None:  # a half-close has no counterpart in TLS
            endings.remove("half-close")
        self.ending = self.chance.choice(endings)
        self.sock = connect(port, n, 4_096 if self.stage == "stalled" else 0)
        if tls is not None and self.stage != "connect":
            self.sock = tls.wrap_socket(self.sock, server_hostname="127.0.0.1")
        wire = self.wire()
        if wire:
            self.sock.sendall(wire)

    @property
    def speaks_frames(self) -> bool:
        """Whether it is behind the upgrade, and not sent away."""
        return self.stage in ("upgraded", "logged in")

    def wire(self) -> bytes:
        """All it says before its end."""
        upgrade = request(protocols=self.chance.choice(["", "", "starlight.v1.lines"]))
        if self.stage == "connect":
            return b""
        if self.stage == "half a request":
            return upgrade[: self.chance.randrange(1, len(upgrade))]
        if self.stage == "bad request":
            bad = [
                request(method="POST"),
                request(target="/other"),
                request(drop=("upgrade",)),
                b"\x16\x03garbage\r\n\r\n",
            ]
            return self.chance.choice(bad)
        if self.stage == "upgraded":
            return upgrade
        if self.stage == "bad login":
            return upgrade + self.chance.choice([message("join", channel="all"), frame(TEXT, b"{"), message("login")])
        user = f"{'refused' if self.stage == 'refused login' else 'u'}{self.n % USERS}"
        upgrade += message("login", user=user)
        if self.stage == "stalled":
            return upgrade + message("join", channel="all") + 30 * message("direct", to=user, data="x" * 10_000)
        if self.stage == "logged in":
            upgrade += b"".join(self.does() for _ in range(self.chance.randrange(2, 9)))
            upgrade += message("ping", id="last")
        return upgrade

    def does(self) -> bytes:
        """One thing that a client can do."""
        channel = f"c{self.chance.randrange(CHANNELS)}"
        what = self.chance.randrange(16)
        if what == 0:
            return message("join", channel=channel) + message("join", channel=channel, id=1)  # 105
        if what == 1:
            return message("join", channel=channel, id=2) + message("leave", channel=channel, id=3)
        if what == 2:
            return message("join", channel="all") + message("publish", channel="all", data=self.n, id=4)
        if what == 3:
            return message("publish", channel=channel, data={"n": self.n, "text": "x" * self.chance.randrange(3_000)})
        if what in (4, 5):
            return message("direct", to=f"u{self.chance.randrange(USERS)}", data=self.n, id=5)
        if what == 6:
            return (
                message("broadcast", data=self.n)
                if self.n % 4 == 0
                else message("direct", to=f"u{self.n % USERS}", data=1)
            )
        if what == 7:
            return message("presence", channel="all", id=6)
        if what == 8:
            return message(self.chance.choice(["double", "later", "threaded"]), data=[self.n], id=7)
        if what == 9:
            return message("nobody knows this", id=8) + message("join", channel="*", id=9)  # 104, 107
        if what == 10:
            return frame(PING, b"p" * self.chance.randrange(126)) + frame(PONG, b"unasked")
        if what == 11:
            return frame(TEXT, b'{"type":', fin=False) + frame(PING) + frame(CONTINUATION, b'"ping"}')
        if what == 12:
            return message("history", channel=channel, id=10) + message("refresh", token="none", id=11)
        if what == 13:
            return frame(TEXT, b"[]") + message("leave", channel=channel)
        if what == 14:
            return message("join", channel=f"own{self.n}") + message("publish", channel=f"own{self.n}", data=None)
        return message("ping")

    def wait(self) -> None:
        """Until it is where it ends from."""
        wanted = {"upgraded": b"\r\n\r\n", "logged in": b'"last"'}.get(self.stage)
        heard = b""
        while wanted is not None and wanted not in heard:
            some = self.sock.recv(65_536)
            if not some:
                raise AssertionError(f"guest {self.n} ({self.stage}): EOF behind {heard[-300:]!r}")
            heard = heard[-20:] + some

    def end(self) -> None:
        """End as drawn. What the server has to end first is left to `leave`."""
        if self.stage in ("bad login", "refused login", "stalled") and self.ending != "reset":
            if self.is_tls:  # there the server waits for our answer to its close frame
                self.sock.close()
            return
        if self.ending == "close frame":
            self.sock.sendall(close_frame(self.chance.choice([None, 1000, 1001, 3000])))
        elif self.ending == "bad frame":
            self.sock.sendall(self.chance.choice([frame(3), frame(TEXT, b"\xff"), b"\x81\x00", close_frame(999)]))
        elif self.ending == "half a frame":
            self.sock.sendall(frame(TEXT, b"x" * 1_000)[: self.chance.randrange(1, 1_000)])
        elif self.ending == "fragment":
            self.sock.sendall(frame(TEXT, b"x" * 1_000, fin=False))
        elif self.ending == "half-close":
            self.sock.shutdown(socket.SHUT_WR)
        elif self.ending == "reset":
            set_reset(self.sock)
        if self.is_tls or self.ending not in ("close frame", "bad frame", "half-close"):
            self.sock.close()

    def leave(self) -> None:
        """Read until the server has ended it."""
        if self.sock.fileno() >= 0:
            with suppress(ConnectionError):
                if self.stage == "stalled":  # on a busy machine it may not be evicted yet, and is not once it reads
                    self.sock.sendall(close_frame(1000))
                while self.sock.recv(65_536):
                    pass
            self.sock.close()


class Crowd:
    """Guests, a hundred at a time, which end in no particular order."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.kinds: Counter[str] = Counter()
        self._stalled: list[tuple[float, int, Guest]] = []  # a heap: when to read, the guest's number, the guest

    def live(self, port: int, n: int, count: int, tls: ssl.SSLContext | None = None) -> None:
        """Let the guests from number `n` on come and go; of those that stall, half stay until reset."""
        guests = [Guest(port, i, self.seed, tls) for i in range(n, n + count)]
        for guest in guests:
            guest.wait()
            self.kinds[guest.stage] += 1
            self.kinds[guest.ending] += 1
        random.Random(f"{self.seed}/{n}").shuffle(guests)
        for guest in guests:
            guest.end()
        now_s = time.monotonic()
        for guest in guests:
            if guest.stage == "stalled":
                self.kinds["to be evicted"] += guest.ending != "reset"
                after_s = RESET_AFTER_S if guest.n % 2 else EVICTED_AFTER_S
                heappush(self._stalled, (now_s + after_s, guest.n, guest))
            else:
                guest.leave()
        while self._stalled and self._stalled[0][0] < now_s:
            heappop(self._stalled)[2].leave()

    def last(self) -> None:
        """Those that still stall."""
        while self._stalled:
            time.sleep(max(0.0, self._stalled[0][0] - time.monotonic()))
            heappop(self._stalled)[2].leave()


async def run(connections: int = CONNECTIONS, seed: int = 1, tls_share: float = TLS_SHARE) -> Outcome:
    """All guests against one server, and some against one behind TLS."""
    outcome = Outcome("leaks")
    began_s = time.monotonic()
    n_tls = int(connections * tls_share)
    async with server_process(**SETTINGS) as server:
        await half_and_half(server, "plain", connections - n_tls, seed, None, outcome)
    with tempfile.TemporaryDirectory() as directory:
        certificate, key = write_certificate(Path(directory))
        if n_tls:
            context = ssl.create_default_context(cafile=certificate)
            async with server_process(tls_cert=certificate, tls_key=key, **SETTINGS) as server:
                await half_and_half(server, "TLS", n_tls, seed + 1, context, outcome)
    outcome.seconds = time.monotonic() - began_s
    outcome.figures = {"connects": connections, "a second": connections / outcome.seconds, **outcome.figures}
    return outcome


async def half_and_half(
    server: ServerProcess, name: str, count: int, seed: int, tls: ssl.SSLContext | None, outcome: Outcome
) -> None:
    """Half of the guests, what the server holds then, the other half, and what it holds in the end."""
    loop = asyncio.get_running_loop()
    crowd = Crowd(seed)
    start = await server.ask("status")
    ends = []
    for first, last in ((0, count // 2), (count // 2, count)):
        for n in range(first, last, AT_ONCE):
            await loop.run_in_executor(None, crowd.live, server.port, n, min(AT_ONCE, last - n), tls)
        await loop.run_in_executor(None, crowd.last)
        ends.append(await server.until(connections=0, objects=0, timeout_s=30))
    half, end = ends
    grown = end["resident_bytes"] - half["resident_bytes"]
    outcome.require(end["live"] == 0 and end["chunk_bytes"] == 0, f"{name}: live counters are not zero: {end}")
    outcome.require(
        end["files"] == start["files"], f"{name}: {end['files']} descriptors, {start['files']} at the start"
    )
    outcome.expect(grown <= GROWTH_LIMIT_BYTES, f"{name}: the second half took {grown:,} bytes more")
    outcome.require(not end["log"], f"{name}: the log has {end['log']}")
    stalled = crowd.kinds["stalled"]
    evicted = end["evicted_slow_total"]
    outcome.require(evicted <= stalled, f"{name}: {evicted} evicted, {stalled} stalled")
    waited = crowd.kinds["to be evicted"]
    outcome.require(
        tls is not None or evicted > 0.7 * waited, f"{name}: {evicted} evicted of {waited} that waited for it"
    )
    outcome.figures[name] = {
        "guests": count,
        "logged in": crowd.kinds["logged in"],
        "evicted": evicted,
        "reset": crowd.kinds["reset"],
        "left alive": end["live"],
        "descriptors at start": start["files"],
        "descriptors at end": end["files"],
        "MiB at half": half["resident_bytes"] / 2**20,
        "MiB more at the end": round(grown / 2**20, 2),
    }
