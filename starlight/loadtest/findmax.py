"""The highest rate at which given service levels hold: double until they fail, then bisect.

Every probe is a run of its own in the open model, with fresh connections, so that one that went over the edge doesn't
spoil the next. A probe whose generator was saturated proves nothing about the server: the search goes no higher and
says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from starlight.loadtest.assertions import Assertion, judge
from starlight.loadtest.result import Result
from starlight.loadtest.scenario import Scenario

KEPT_SHARE = 0.98
"""A probe holds only if at least this share of the asked rate was really sent."""

HELD, FAILED, REFUSED = "held", "failed", "saturated"


@dataclass(frozen=True)
class Probe:
    """One point of the curve."""

    rate: float
    outcome: str
    reasons: tuple[str, ...]
    result: Result


@dataclass(frozen=True)
class Maximum:
    """What the search found: the highest rate that held (None: not even the first), whether the generator was what
    stopped it, every probe by rate, and whether it was interrupted; that probe then counts for nothing."""

    rate: float | None
    is_generator_limit: bool
    probes: tuple[Probe, ...]
    is_interrupted: bool = False


def find_max(
    scenario: Scenario,
    assertions: Sequence[Assertion],
    run: Callable[[Scenario], Result],
    *,
    start: float,
    most: float = math.inf,
    precision: float = 0.05,
    max_probes: int = 16,
    on_probe: Callable[[Probe], None] = lambda probe: None,
) -> Maximum:
    """Search between `start` and `most` messages a second until the bracket is within `precision`.

    Args:
        scenario: what is run; its model becomes `open` and its rate the probed one.
        assertions: the service levels; that nothing is lost or wrong is always one of them.
        run: runs a scenario (`run_scenario` with its target).
        max_probes: bounds the time: the search ends after this many runs.
        on_probe: told after each.
    """
    probes: list[Probe] = []
    good, bad = 0.0, math.inf
    rate, is_interrupted = start, False
    while len(probes) < max_probes:
        probe = _probe(scenario, assertions, run, rate)
        if probe.result.interrupted:
            is_interrupted = True
            break
        probes.append(probe)
        on_probe(probe)
        if probe.outcome == HELD:
            good = max(good, rate)
        else:
            bad = min(bad, rate)
        if good >= most or (bad < math.inf and bad - good <= precision * bad):
            break
        rate = min(good * 2, most) if bad == math.inf else math.sqrt(good * bad) if good else bad / 4
        if rate < 1:
            break
    limit = [probe for probe in probes if probe.rate == bad]
    by_rate = tuple(sorted(probes, key=lambda probe: probe.rate))
    return Maximum(good or None, bool(limit) and limit[0].outcome == REFUSED, by_rate, is_interrupted)


def _probe(
    scenario: Scenario, assertions: Sequence[Assertion], run: Callable[[Scenario], Result], rate: float
) -> Probe:
    result = run(msgspec.structs.replace(scenario, model="open", rate=rate))
    verdicts = judge(assertions, result)
    reasons = [verdict.line for verdict in verdicts if verdict.outcome == "failed"]
    if result.check.faults:
        reasons.append(str(result.check))
    if result.sent_rate < KEPT_SHARE * rate:
        reasons.append(f"only {result.sent_rate:,.0f} of {rate:,.0f} messages/s could be sent")
    if result.generator.is_saturated:
        return Probe(rate, REFUSED, (f"generator saturated ({result.generator.useful_share:.2f})",), result)
    return Probe(rate, FAILED if reasons else HELD, tuple(reasons), result)
