"""Two recordings side by side: ratios with their spread.

Each recording has one or more runs (`--repeat`). A ratio is the median over all pairs of a run of B and a run of A;
its spread is the lowest and the highest of them. With one run each, rate and p99 are compared by their intervals
within the run, and other figures have no spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from starlight.loadtest.assertions import METRICS
from starlight.loadtest.result import Point, Result

COMPARED = (
    "rate",
    "sent_rate",
    "p50",
    "p90",
    "p99",
    "p99.9",
    "max",
    "connect_p99",
    "cpu_per_delivery",
    "connect_cpu",
    "rss",
    "connection_memory",
    "useful_share",
)
_SERIES: dict[str, Callable[[Point], float]] = {
    "rate": lambda point: point.rate,
    "sent_rate": lambda point: point.sent_rate,
    "p99": lambda point: point.p99_ms,
}


@dataclass(frozen=True)
class Ratio:
    """B divided by A. `low` and `high` are None where nothing says how much it varies."""

    metric: str
    a: float
    b: float
    ratio: float
    low: float | None
    high: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the whole spread is on one side of 1."""
        return self.low is not None and self.high is not None and (self.low > 1 or self.high < 1)


def compare(a: list[Result], b: list[Result]) -> list[Ratio]:
    """Compare two recordings; figures that one of them lacks (or that are zero) are left out."""
    found = []
    for name in COMPARED:
        left, right = _figures(name, a), _figures(name, b)
        if not left or not right:
            continue
        low = high = None
        pairs = [y / x for x in left for y in right]
        if len(left) > 1 or len(right) > 1:
            low, high = min(pairs), max(pairs)
        elif name in _SERIES:
            low, high = _interval_spread(_SERIES[name], a[0].series, b[0].series)
        centre = statistics.median(pairs)
        found.append(Ratio(name, statistics.median(left), statistics.median(right), centre, low, high))
    return found


def _figures(name: str, runs: list[Result]) -> list[float]:
    return [value for run in runs if (value := METRICS[name].read(run))]


def _interval_spread(
    read: Callable[[Point], float], a: list[Point], b: list[Point]
) -> tuple[float | None, float | None]:
    """10th to 90th percentile of the ratios of any interval of B to any of A."""
    ratios = sorted(read(y) / read(x) for x in a for y in b if read(x) > 0)
    if len(ratios) < 4:
        return None, None
    return ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]


def notes(a: list[Result], b: list[Result]) -> list[str]:
    """What forbids a comparison or makes it doubtful."""
    lines = []
    for name in ("connections", "traffic", "model", "rate", "window", "size", "slow_share"):
        values = {str(run.scenario.get(name)) for run in a}, {str(run.scenario.get(name)) for run in b}
        if values[0] != values[1]:
            lines.append(f"not the same work: {name} is {', '.join(values[0])} in A and {', '.join(values[1])} in B")
    for label, runs in (("A", a), ("B", b)):
        if any(run.generator.is_saturated for run in runs):
            lines.append(f"the generator was saturated in {label}: compare CPU per delivery, not rate or latency")
        if any(run.check.faults for run in runs):
            lines.append(f"deliveries were not right in {label}: {next(str(r.check) for r in runs if r.check.faults)}")
        lines += sorted({f"{label}: {notice}" for run in runs for notice in run.notices if "noisy" in notice})
    return lines
