"""What one run gives, and how two runs are compared. Pure data and arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.quiet import Noise
from harness.rows import CPU, RATE, Bar
from harness.stats import Estimate, estimate

SATURATED_SHARE = 0.9
"""Above this useful share the generator may be the limit: its rate says nothing about the server, CPU per delivery
does."""


@dataclass(frozen=True)
class Sample:
    """One run of one cell. A figure that the run doesn't give is None.

    rate: deliveries a second. server_us: server CPU per delivery (µs). generator_share: the generator's useful CPU
    share. p50_ms, p99_ms: delivery latency. memory_kib: server memory per connection. connect_us: server CPU per
    connect and login. deliveries: how many were counted. faults: what was lost, doubled, swapped, damaged or
    misdelivered.
    """

    rate: float | None = None
    server_us: float | None = None
    generator_share: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    memory_kib: float | None = None
    connect_us: float | None = None
    deliveries: int = 0
    faults: int = 0
    checked_share: float = 1.0
    disconnects: int = 0
    noise: Noise = field(default_factory=lambda: Noise(0.0, 0.0))

    @property
    def is_saturated(self) -> bool:
        return (self.generator_share or 0.0) > SATURATED_SHARE

    def figure(self, metric: str) -> float | None:
        value = getattr(self, metric)
        return None if value is None else float(value)


Repetition = Mapping[str, Sample]
"""The kept runs of one repetition, by cell key; a cell whose runs were all discarded is absent."""


@dataclass(frozen=True)
class Verdict:
    """A bar with its measured value: a ratio, or the figure itself if the bar has a number only.

    by_cpu: the same ratio in deliveries per second of server CPU, which the generator's own speed does not touch.
    """

    bar: Bar
    value: Estimate
    metric: str
    is_met: bool
    by_cpu: Estimate | None = None


def ratio(bar: Bar, repetition: Repetition) -> tuple[float, str] | None:
    """Return the bar's value in one repetition and the metric it was taken from; None if a run or figure is missing.

    A rate whose generator was saturated on either side becomes deliveries per second of server CPU on both.
    """
    if any(key not in repetition for key in (bar.key, *bar.against)):
        return None
    samples = [repetition[key] for key in (bar.key, *bar.against)]
    metric = bar.metric
    if metric == RATE and any(sample.is_saturated for sample in samples):
        metric = "1/server_us"
    figures = [1 / value if metric.startswith("1/") and value else value for value in _figures(samples, metric)]
    if any(not figure for figure in figures):
        return None
    own, others = figures[0] or 0.0, [figure or 0.0 for figure in figures[1:]]
    if not others:
        return own, metric
    best = max(others) if bar.at_least is not None else min(others)
    return own / best, metric


def _figures(samples: Sequence[Sample], metric: str) -> list[float | None]:
    return [sample.figure(metric.removeprefix("1/")) for sample in samples]


def judge(bar: Bar, repetitions: Sequence[Repetition]) -> Verdict | None:
    """Return the bar's verdict over all repetitions that have both sides; None if there is none.

    If the generator was saturated in some repetitions only, all are compared by CPU, so that like goes with like.
    """
    found = [pair for repetition in repetitions if (pair := ratio(bar, repetition)) is not None]
    if not found:
        return None
    metric = found[0][1]
    by_cpu = _by_cpu(bar, repetitions) if bar.metric == RATE else []
    if len({name for _, name in found}) > 1 and by_cpu:
        metric, found = "1/server_us", [(value, "1/server_us") for value in by_cpu]
    value = estimate([pair[0] for pair in found])
    return Verdict(bar, value, metric, bar.is_met(value.low, value.high), estimate(by_cpu) if by_cpu else None)


def _by_cpu(bar: Bar, repetitions: Sequence[Repetition]) -> list[float]:
    """The bar's ratios turned into CPU: what the others' cheapest delivery costs, over what the bar's cell pays."""
    cheap = Bar(CPU, bar.key, bar.against, at_most=1.0)
    return [1 / pair[0] for repetition in repetitions if (pair := ratio(cheap, repetition)) is not None]


def summary(key: str, metric: str, repetitions: Sequence[Repetition]) -> Estimate | None:
    """Return the median of a cell's figure over the repetitions that have it."""
    figures = [repetition[key].figure(metric) for repetition in repetitions if key in repetition]
    present = [figure for figure in figures if figure is not None]
    return estimate(present) if present else None
