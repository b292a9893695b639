"""The table as data: what each row measures, on which servers, and which bar it has to meet.

A row has cells; a cell is one piece of work on one server; a bar compares two cells, or one with a number. All cells
of a row are measured in turn within each repetition, so that a ratio always compares neighbours in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

PAYLOAD_BYTES = 128
"""Application data of a message; the envelope around it is the server's own (the floor writes Starlight's)."""

RATE = "rate"
"""Deliveries a second; where the generator was saturated, deliveries per second of server CPU."""
CPU = "server_us"
"""Microseconds of server CPU per delivery."""
P99 = "p99_ms"
"""Delivery latency; in the paced rows from the intended time of sending."""
MEMORY = "memory_kib"
"""Server memory per connection."""
CONNECT = "connect_us"
"""Microseconds of server CPU per connect and login."""

SUBJECT = "starlight"
FLOOR = "floor"
BROADCASTERS = ("starlight", "floor", "floor-message", "socketify", "gorilla", "gorilla-64k", "nats", "picows", "ws",
                "websockets", "aiohttp", "fastapi", "socketio")  # fmt: skip
DIRECTORS = ("starlight", "floor", "socketify", "gorilla", "picows", "ws")
RIVALS = ("starlight", "floor", "socketify", "gorilla")


@dataclass(frozen=True)
class Work:
    """What the generator does.

    kind: ``broadcast``, ``publish`` (one channel, with ``id``, the sender joined), ``channels``, ``direct``,
        ``idle`` or ``connect``.
    window: messages of each publisher under way at once (closed model); None with ``rate_per_s``.
    publishers: how many connections publish; 0 means all.
    rate_per_s: messages sent a second whatever happens (open model).
    stalled_share, slow_share: the share of readers that never read after login, and of those that read only just fast
        enough to survive.
    lifted: flags for Starlight where its defaults don't fit the work; they are named in the table.
    """

    kind: str
    connections: int = 1000
    window: int | None = 1
    rate_per_s: float | None = None
    payload_bytes: int = PAYLOAD_BYTES
    publishers: int = 1
    channels: int = 0
    members: int = 0
    direct_share: float = 0.0
    stalled_share: float = 0.0
    slow_share: float = 0.0
    lifted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One server doing one piece of work; ``key`` names it within its row."""

    key: str
    server: str
    work: Work


@dataclass(frozen=True)
class Bar:
    """``metric`` of cell ``key``, divided by the best of ``against`` (or as it is if that is empty), ``at_least`` or
    ``at_most`` a limit. A bar is met when the 90% interval reaches the limit."""

    metric: str
    key: str
    against: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None

    @property
    def limit(self) -> float:
        return self.at_least if self.at_least is not None else self.at_most or 0.0

    def is_met(self, low: float, high: float) -> bool:
        return high >= self.limit if self.at_least is not None else low <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.at_least is not None else "≤"
        return f"{sign} {self.limit:g}" + (f" × {_joined(self.against)}" if self.against else "")


def _joined(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"best of {keys[0]} … {keys[-1]}"


@dataclass(frozen=True)
class Row:
    """One line of the table (or several that belong together): its cells and its bars."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    bars: tuple[Bar, ...] = ()


def same_work(work: Work, servers: Iterable[str]) -> tuple[Cell, ...]:
    return tuple(Cell(server, server, work) for server in servers)


def at_least(metric: str, **limits: float) -> tuple[Bar, ...]:
    """Bars of the subject against other servers; underscores in the names stand for hyphens."""
    return tuple(Bar(metric, SUBJECT, (name.replace("_", "-"),), at_least=limit) for name, limit in limits.items())


def at_most(metric: str, **limits: float) -> tuple[Bar, ...]:
    return tuple(Bar(metric, SUBJECT, (name.replace("_", "-"),), at_most=limit) for name, limit in limits.items())


def broadcast_rows() -> list[Row]:
    """Windows 64, 16 and 1 at 100, 1,000 and 5,000 subscribers; every peer at 1,000, the fast ones elsewhere."""
    every_peer = {peer.replace("-", "_"): 1.0 for peer in BROADCASTERS if peer not in (SUBJECT, FLOOR)}
    rivals = {peer: 1.0 for peer in RIVALS if peer not in (SUBJECT, FLOOR)}
    rows = []
    for connections in (100, 1000, 5000):
        servers = BROADCASTERS if connections == 1000 else RIVALS
        bars = {
            64: at_least(RATE, floor=0.75 if connections == 100 else 0.92, socketify=5.0, gorilla=5.0),
            16: at_least(RATE, floor=0.95, socketify=1.0),
            1: at_least(RATE, floor=0.97, **(every_peer if connections == 1000 else rivals)),
        }
        for window in (64, 16, 1):
            work = Work("broadcast", connections, window)
            title = f"broadcast, window {window}, {connections:,} subscribers"
            rows.append(Row(f"broadcast-w{window}-n{connections}", title, same_work(work, servers), bars[window]))
    return rows


def windows_row() -> Row:
    """No cliff from window 1 to 512, and near the floor at 256. Gorilla isn't here: its channel holds 256 messages."""
    windows = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    cells = [Cell(f"{SUBJECT}-w{w}", SUBJECT, Work("broadcast", 1000, w)) for w in windows]
    cells += [Cell(f"{name}-w256", name, Work("broadcast", 1000, 256)) for name in (FLOOR, "socketify")]
    bars = [
        Bar(RATE, f"{SUBJECT}-w{w}", tuple(f"{SUBJECT}-w{smaller}" for smaller in windows[:number]), at_least=0.85)
        for number, w in enumerate(windows)
        if number
    ]
    bars.append(Bar(RATE, f"{SUBJECT}-w256", (f"{FLOOR}-w256",), at_least=0.85))
    return Row("windows", "windows 1 to 512, 1,000 subscribers", tuple(cells), tuple(bars))


def channel_rows() -> list[Row]:
    publish = Work("publish", 1000, 64)
    mixed = Work("channels", 1000, 1, publishers=100, channels=100, members=50, direct_share=0.1)
    return [
        Row("publish-ok", "publish with id to one channel of 1,000, the sender joined, window 64",
            same_work(publish, RIVALS), at_least(RATE, floor=0.80)),
        Row("channels", "100 channels × 50 members, everyone in 5, 10% direct, 100 publishers",
            same_work(mixed, ("starlight", "socketify", "gorilla")), at_least(RATE, gorilla=3.0)),
    ]  # fmt: skip


def direct_rows() -> list[Row]:
    return [
        Row(
            f"direct-w{window}-n{connections}",
            f"direct, {connections:,} clients, all sending, window {window} each",
            same_work(Work("direct", connections, window, publishers=0), DIRECTORS),
            at_most(CPU, socketify=1.0, gorilla=0.5),
        )
        for connections in (100, 1000)
        for window in (1, 16)
    ]


def paced_rows() -> list[Row]:
    return [
        Row(
            f"paced-{rate}",
            f"{rate} broadcasts/s to 1,000, latency",
            same_work(Work("broadcast", 1000, None, rate_per_s=rate), RIVALS),
            at_most(P99, floor=1.3) if rate == 100 else (),
        )
        for rate in (100, 200)
    ]


def payload_rows() -> list[Row]:
    """From 16 B to 64 KiB. 1,000 subscribers up to 1 KiB, 200 above, so that a run holds enough publications."""
    rows = []
    for payload_bytes in (16, 1024, 16384, 65536):
        for window in (1, 4):
            work = Work("broadcast", 1000 if payload_bytes <= 1024 else 200, window, payload_bytes=payload_bytes)
            if payload_bytes == 65536:
                work = replace(work, lifted=("--outbox-bytes", "16MiB", "--read-limit", "256KiB"))
            rows.append(
                Row(f"payload-{payload_bytes}-w{window}",
                    f"payload {payload_bytes:,} B, window {window}, {work.connections:,} subscribers",
                    same_work(work, (SUBJECT, FLOOR, "socketify")), at_least(RATE, floor=0.85))
            )  # fmt: skip
    return rows


def slow_row() -> Row:
    """The slow ones read four times a second what came meanwhile: more than the buffers hold, less than evicts them."""
    fine = Work("broadcast", 1000, None, rate_per_s=100, payload_bytes=2048, lifted=("--send-buffer", "16KiB"))
    works = {"fine": fine, "stalled": replace(fine, stalled_share=0.1), "slow": replace(fine, slow_share=0.1)}
    cells = tuple(Cell(f"{SUBJECT}-{name}", SUBJECT, work) for name, work in works.items())
    bars = tuple(Bar(P99, f"{SUBJECT}-{name}", (f"{SUBJECT}-fine",), at_most=1.2) for name in ("stalled", "slow"))
    title = "100 × 2 KiB/s to 1,000, of whom 10% stalled or only just fast enough: the others' p99"
    return Row("slow-readers", title, cells, bars)


def size_row() -> Row:
    """The floor stands beside it: what of the growth is the kernel's, whose sockets no longer fit into the caches."""
    lifted = ("--max-connections", "20000")
    cells = tuple(
        Cell(f"{server}-n{n}", server, Work("broadcast", n, 16, lifted=lifted))
        for n in (1000, 15000)
        for server in (SUBJECT, FLOOR)
    )
    bar = Bar(CPU, f"{SUBJECT}-n15000", (f"{SUBJECT}-n1000",), at_most=1.2)
    return Row("size", "cost against size: window 16, 1,000 and 15,000 subscribers", cells, (bar,))


def connection_rows() -> list[Row]:
    return [
        Row("idle", "5,000 idle connections, logged in: server memory each",
            same_work(Work("idle", 5000, None), BROADCASTERS), (Bar(MEMORY, SUBJECT, at_most=10.0),)),
        Row("connect", "connect and login: server CPU each",
            same_work(Work("connect", 2000, None), DIRECTORS), (Bar(CONNECT, SUBJECT, at_most=250.0),)),
    ]  # fmt: skip


def all_rows() -> list[Row]:
    """Every row, in the order of the table."""
    return [
        *broadcast_rows(), windows_row(), *channel_rows(), *direct_rows(), *paced_rows(), *payload_rows(),
        slow_row(), size_row(), *connection_rows(),
    ]  # fmt: skip


def selected(patterns: Sequence[str], servers: Sequence[str]) -> list[Row]:
    """Return the rows whose name is, begins with or matches one of the patterns, with only the named servers' cells.

    Empty sequences select everything. Bars whose cells were left out go with them.

    Raises:
        ValueError: a pattern that no row has.
    """
    rows = all_rows()
    for pattern in patterns:
        if not any(_matches(row.name, pattern) for row in rows):
            raise ValueError(f"no row {pattern!r}; there are: {', '.join(row.name for row in rows)}")
    chosen = [row for row in rows if not patterns or any(_matches(row.name, pattern) for pattern in patterns)]
    return [kept for row in chosen if (kept := with_servers(row, servers)).cells]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(pattern + "-") or fnmatch(name, pattern)


def with_servers(row: Row, servers: Sequence[str]) -> Row:
    cells = tuple(cell for cell in row.cells if not servers or cell.server in servers)
    keys = {cell.key for cell in cells}
    return replace(row, cells=cells, bars=tuple(bar for bar in row.bars if {bar.key, *bar.against} <= keys))
