"""Service levels: `--assert 'p99<20ms'`.

    assertion = metric operator value          operator = < <= > >= ==
    value     = number [unit]                  unit = ns us µs ms s (times) | k M (counts and rates, /s may follow) | %
    |
                                                      B KiB MiB GiB (memory)

Metrics are in METRICS below. Rate and latency say nothing about the server once the generator is saturated: such a
verdict is refused, while faults, errors and CPU per delivery stay valid.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from starlight.loadtest.errors import BadScenario
from starlight.loadtest.result import Latency, Result

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_REFUSED = 3

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
}
_UNITS = {
    "time": {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3},
    "count": {"": 1.0, "k": 1e3, "m": 1e6, "/s": 1.0, "k/s": 1e3, "m/s": 1e6},
    "share": {"": 1.0, "%": 0.01},
    "bytes": {"": 1.0, "b": 1.0, "kib": 1024.0, "mib": 1024.0**2, "gib": 1024.0**3},
}
_SYNTAX = re.compile(
    r"\s*([a-z][a-z0-9_.]*)\s*(<=|>=|==|<|>)\s*([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*(\S*)\s*", re.I
)


@dataclass(frozen=True)
class Metric:
    """A figure of a result: its unit (`time` in ms, `count`, `share` or `bytes`) and whether a saturated generator
    spoils it."""

    unit: str
    spoiled: bool
    read: Callable[[Result], float | None]


def _latency(field: str, spoiled: bool = True) -> dict[str, Metric]:
    def of(figure: str) -> Metric:
        def read(result: Result) -> float | None:
            latency: Latency = getattr(result, field)
            return float(getattr(latency, figure)) if latency.count else None

        return Metric("time", spoiled, read)

    names = {"mean": "mean_ms", "p50": "p50_ms", "p90": "p90_ms", "p99": "p99_ms", "p99.9": "p99_9_ms"}
    return {name: of(figure) for name, figure in (names | {"p99.99": "p99_99_ms", "max": "max_ms"}).items()}


def _count(read: Callable[[Result], float | None], spoiled: bool = False, unit: str = "count") -> Metric:
    return Metric(unit, spoiled, read)


METRICS: dict[str, Metric] = {
    **_latency("latency"),
    **{f"actual_{name}": metric for name, metric in _latency("latency_actual").items()},
    **{f"connect_{name}": metric for name, metric in _latency("connect").items()},
    **{f"ack_{name}": metric for name, metric in _latency("ack").items()},
    "rate": _count(lambda r: r.rate, spoiled=True),
    "sent_rate": _count(lambda r: r.sent_rate, spoiled=True),
    "connects_per_s": _count(lambda r: r.connects_per_s, spoiled=True),
    "overdue": _count(lambda r: r.overdue, spoiled=True),
    "deliveries": _count(lambda r: r.deliveries),
    "loss": _count(lambda r: r.check.lost),
    "duplicates": _count(lambda r: r.check.duplicates),
    "reordered": _count(lambda r: r.check.reordered),
    "misdelivered": _count(lambda r: r.check.misdelivered),
    "damaged": _count(lambda r: r.check.damaged),
    "faults": _count(lambda r: r.check.faults),
    "checked": _count(lambda r: r.check.share, unit="share"),
    "errors": _count(lambda r: r.errors),
    "disconnects": _count(lambda r: r.disconnects),
    "protocol_errors": _count(lambda r: sum(r.protocol_errors.values())),
    "connect_failures": _count(lambda r: r.connect_failures),
    "cpu": _count(lambda r: r.server.cpu_share if r.server else None, unit="share"),
    "cpu_per_delivery": Metric("time", False, lambda r: _us_to_ms(r.server.cpu_us_per_delivery) if r.server else None),
    "connect_cpu": Metric("time", False, lambda r: _us_to_ms(r.server.connect_us) if r.server else None),
    "rss": _count(lambda r: r.server.rss_bytes if r.server else None, unit="bytes"),
    "connection_memory": _count(lambda r: r.server.connection_bytes if r.server else None, unit="bytes"),
    "useful_share": _count(lambda r: r.generator.useful_share, unit="share"),
}


def _us_to_ms(value: float | None) -> float | None:
    return None if value is None else value / 1000


@dataclass(frozen=True)
class Assertion:
    """One service level: `value` is in the metric's own unit (ms for times)."""

    text: str
    metric: str
    operator: str
    value: float

    def holds(self, result: Result) -> bool | None:
        """Whether it holds; None if the run has no such figure (it then counts as failed)."""
        found = METRICS[self.metric].read(result)
        return None if found is None else _OPERATORS[self.operator](found, self.value)

    def is_spoiled_by(self, result: Result) -> bool:
        """Whether a saturated generator forbids a verdict."""
        return METRICS[self.metric].spoiled and result.generator.is_saturated


def parse(text: str) -> Assertion:
    """Read one assertion.

    Raises:
        BadScenario: it can't be read, or names an unknown metric or unit.
    """
    match = _SYNTAX.fullmatch(text)
    if not match:
        raise BadScenario(f"assertion {text!r}: expected METRIC OPERATOR VALUE, as in 'p99<20ms'")
    name, operator, number, unit = match[1].lower(), match[2], match[3], match[4].lower()
    metric = METRICS.get(name)
    if metric is None:
        raise BadScenario(f"assertion {text!r}: unknown metric {name!r}; known are {', '.join(METRICS)}")
    factor = _UNITS[metric.unit].get(unit)
    if factor is None and not (unit == "" and float(number) == 0):
        known = ", ".join(known or "no unit" for known in _UNITS[metric.unit])
        raise BadScenario(f"assertion {text!r}: {name} is measured in {known}, not {unit or 'a bare number'}")
    return Assertion(text, name, operator, float(number) * (factor or 0.0))


@dataclass(frozen=True)
class AssertionVerdict:
    """What became of an assertion: `held`, `failed` or `refused`, with a line that says why."""

    assertion: Assertion
    outcome: str
    line: str


def judge(assertions: Iterable[Assertion], result: Result) -> list[AssertionVerdict]:
    """Judge every assertion."""
    verdicts = []
    for assertion in assertions:
        found = METRICS[assertion.metric].read(result)
        shown = "not measured" if found is None else f"{assertion.metric} = {_shown(assertion.metric, found)}"
        if assertion.is_spoiled_by(result):
            share = result.generator.useful_share
            line = f"refused: {assertion.text}: the generator was saturated (useful share {share:.2f}), {shown}"
            verdicts.append(AssertionVerdict(assertion, "refused", line))
        elif assertion.holds(result):
            verdicts.append(AssertionVerdict(assertion, "held", f"held: {assertion.text} ({shown})"))
        else:
            verdicts.append(AssertionVerdict(assertion, "failed", f"FAILED: {assertion.text} ({shown})"))
    return verdicts


def _shown(name: str, value: float) -> str:
    unit = METRICS[name].unit
    return f"{value:.4g} ms" if unit == "time" else f"{value:,.4g}" if unit == "share" else f"{value:,.10g}"


def is_void(result: Result) -> bool:
    """Whether messages were to be sent, and none arrived: a server that closes on the first one proves nothing."""
    scenario = result.scenario
    sends = any(scenario["traffic"].values()) and (scenario["model"] == "closed" or scenario["rate"] > 0)
    return sends and not result.check.deliveries and not result.interrupted


def exit_code(verdicts: Iterable[AssertionVerdict], result: Result) -> int:
    """0; 1 if an assertion failed, the checker found faults, the server broke the protocol or nothing arrived; 3 if a
    verdict was refused and nothing failed."""
    outcomes = {verdict.outcome for verdict in verdicts}
    if "failed" in outcomes or result.check.faults or result.protocol_errors or is_void(result):
        return EXIT_FAILED
    return EXIT_REFUSED if "refused" in outcomes else 0
