"""What a run gave: plain data, to and from JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from starlight.loadtest.errors import BadScenario

FORMAT = "starlight-bench-1"
HIGHEST_NS = 3600 * 10**9
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)
FAULTS = ("lost", "duplicates", "reordered", "misdelivered", "damaged", "disordered")
SATURATED_SHARE = 0.9
"""A generator busier than this may itself be the limit."""


class Latency(msgspec.Struct, kw_only=True, frozen=True):
    """Milliseconds. `curve` is (percentile, ms) for the plot, `hdr` the whole histogram (ns) in HdrHistogram's own
    encoding, for merging."""

    count: int = 0
    mean_ms: float = 0.0
    p50_ms: float = 0.0
    p90_ms: float = 0.0
    p99_ms: float = 0.0
    p99_9_ms: float = 0.0
    p99_99_ms: float = 0.0
    max_ms: float = 0.0
    curve: list[tuple[float, float]] = []
    hdr: str = ""

    @classmethod
    def of(cls, slots: list[tuple[int, int]]) -> Latency:
        """From an engine histogram (`Arena.histogram`)."""
        total = sum(count for _, count in slots)
        if not total:
            return cls()
        histogram = histogram_of(slots)
        curve = _curve_percentiles(total)
        values = _percentiles(slots, histogram, sorted({*PERCENTILES, *curve}))
        return cls(
            count=total,
            mean_ms=sum(histogram.get_value_from_index(slot) * count for slot, count in slots) / total / 1e6,
            p50_ms=values[50.0],
            p90_ms=values[90.0],
            p99_ms=values[99.0],
            p99_9_ms=values[99.9],
            p99_99_ms=values[99.99],
            max_ms=values[100.0],
            curve=[(percentile, values[percentile]) for percentile in curve],
            hdr=histogram.encode().decode(),
        )


def _percentiles(slots: list[tuple[int, int]], histogram: HdrHistogram, asked: list[float]) -> dict[float, float]:
    """The values in ms at ascending percentiles, by HdrHistogram's rules, in one pass over the used slots."""
    total = sum(count for _, count in slots)
    values: dict[float, float] = {}
    place, seen = -1, 0
    for percentile in asked:
        wanted = max(int(percentile * total / 100 + 0.5), 1)
        while seen < wanted:
            place += 1
            seen += slots[place][1]
        lowest = histogram.get_value_from_index(slots[place][0])
        values[percentile] = (histogram.get_highest_equivalent_value(lowest) if percentile else lowest) / 1e6
    return values


def histogram_of(slots: list[tuple[int, int]]) -> HdrHistogram:
    """An HdrHistogram (1 ns to an hour, three digits) with an engine histogram's content; the slots are the same."""
    histogram = HdrHistogram(1, HIGHEST_NS, 3)
    for slot, count in slots:
        histogram.record_value(histogram.get_value_from_index(slot), count)
    return histogram


def _curve_percentiles(total: int) -> list[float]:
    """Ten a decade of 1 / (1 - percentile), as far as the count of values carries, and 100."""
    points: list[float] = []
    share = 1.0
    while share * total >= 1 and len(points) < 80:
        points.append(round(100 * (1 - share), 6))
        share /= 10**0.1
    return [*points, 100.0]


class DeliveryCheck(msgspec.Struct, kw_only=True, frozen=True):
    """The delivery checker's verdict. `checked` deliveries were looked at one by one, the others of `deliveries`
    counted. `disordered` messages came in different orders to different receivers (looked for with `order` only)."""

    deliveries: int = 0
    checked: int = 0
    lost: int = 0
    duplicates: int = 0
    reordered: int = 0
    misdelivered: int = 0
    damaged: int = 0
    disordered: int = 0

    @property
    def faults(self) -> int:
        """All violations together."""
        return sum(getattr(self, name) for name in FAULTS)

    @property
    def share(self) -> float:
        """Share of the deliveries that were checked one by one."""
        return self.checked / self.deliveries if self.deliveries else 1.0

    def __str__(self) -> str:
        if self.faults:
            return "FAULTS: " + ", ".join(f"{getattr(self, name):,} {name}" for name in FAULTS if getattr(self, name))
        if not self.deliveries:
            return "nothing was delivered, so nothing could be checked"
        how = "all checked" if self.share > 0.999 else f"{self.share:.1%} checked one by one, the rest counted"
        return f"nothing lost, doubled, reordered, damaged or misdelivered ({self.deliveries:,} deliveries, {how})"


class ServerUse(msgspec.Struct, kw_only=True, frozen=True):
    """The server's side, from /proc. CPU is of the measured time, `connect_us` of the ramp."""

    cpu_s: float = 0.0
    cpu_share: float = 0.0
    cpu_us_per_delivery: float | None = None
    connect_us: float | None = None
    rss_bytes: int = 0
    pss_bytes: int = 0
    connection_bytes: float | None = None
    """Growth of Pss over the ramp per connection."""


class Generator(msgspec.Struct, kw_only=True, frozen=True):
    """Ourselves. `useful_share` is the busiest process's share of the time not spent in empty polls or asleep."""

    useful_share: float = 0.0
    cpu_s: float = 0.0
    preempted_share: float = 0.0
    processes: int = 1
    spin: bool = False

    @property
    def is_saturated(self) -> bool:
        """Whether the rate and latency may be ours rather than the server's."""
        return self.useful_share > SATURATED_SHARE


class MachineUse(msgspec.Struct, kw_only=True, frozen=True):
    """Where it ran, and what else ran. Shares are of one core."""

    cpu: str = ""
    cores: int = 0
    kernel: str = ""
    python: str = ""
    steal_share: float = 0.0
    foreign_share: float | None = None
    """CPU of others; unknown when the server is not ours to see (no `server_pids`)."""


class Point(msgspec.Struct, kw_only=True, frozen=True):
    """One interval of the measured time."""

    time_s: float
    rate: float
    sent_rate: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    ready: int
    errors: int
    useful_share: float
    server_cpu_share: float | None = None


class Result(msgspec.Struct, kw_only=True, frozen=True):
    """One run. Rates are a second over `duration_s`; `latency` counts from the intended time of sending,
    `latency_actual` from when the message was really written (the same in the closed model)."""

    scenario: dict[str, Any]
    url: str
    dialect: str
    started: str
    duration_s: float
    interrupted: bool = False
    connections: int = 0
    sent: int = 0
    deliveries: int = 0
    rate: float = 0.0
    sent_rate: float = 0.0
    overdue: int = 0
    latency: Latency = Latency()
    latency_actual: Latency = Latency()
    connect: Latency = Latency()
    connects: int = 0
    connects_per_s: float = 0.0
    ack: Latency = Latency()
    acks: int = 0
    errors: int = 0
    first_error: str = ""
    disconnects: int = 0
    first_disconnect: str = ""
    connect_failures: int = 0
    close_codes: dict[str, int] = {}
    protocol_errors: dict[str, int] = {}
    """How often the server broke the protocol, by kind; each ended a connection."""
    churned: int = 0
    rejoins: int = 0
    slow_deliveries: int = 0
    check: DeliveryCheck = DeliveryCheck()
    server: ServerUse | None = None
    generator: Generator = Generator()
    machine: MachineUse = MachineUse()
    series: list[Point] = []
    counters: dict[str, int] = {}
    notices: list[str] = []


class Recording(msgspec.Struct, kw_only=True, frozen=True):
    """A file of results: several when the run was repeated."""

    format: str = FORMAT
    runs: list[Result]


def write_json(path: Path, runs: list[Result]) -> None:
    """Write results for `read_json`, `compare` and whoever reads JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(Recording(runs=runs)), indent=1))


def read_json(path: Path) -> list[Result]:
    """Read what `write_json` wrote.

    Raises:
        BadScenario: the file can't be read or is something else.
    """
    try:
        recording = msgspec.json.decode(path.read_bytes(), type=Recording)
    except (OSError, msgspec.MsgspecError) as error:
        raise BadScenario(
            f"{path}: not a result of `starlight bench --json`: {getattr(error, 'strerror', None) or error}"
        ) from error
    if recording.format != FORMAT or not recording.runs:
        raise BadScenario(f"{path}: format {recording.format!r}, expected {FORMAT!r} with at least one run")
    return recording.runs
