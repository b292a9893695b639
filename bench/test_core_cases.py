"""Benches of the core and the hub, in seconds: `python -m pytest bench --benchmark-columns=median,iqr,rounds`.

Figures are per run of a case; `extra_info` has the nanoseconds of one unit, and for the core's counters what one send
carried. Compare a change with `--benchmark-save=before`, then `--benchmark-compare`.
"""

from __future__ import annotations

import pytest
from core_cases import Case, World, cases, has_null_sinks
from hub_cases import hub_cases
from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 40
WARM_UP_ROUNDS = 3


@pytest.mark.parametrize("case", [*cases(), *hub_cases()], ids=lambda case: case.name)
def test_core(case: Case, benchmark: BenchmarkFixture) -> None:
    world = case.build()

    def setup() -> tuple[tuple[World], dict[str, object]]:
        nonlocal world
        if case.is_once:
            world.close()
            world = case.build()
        elif case.after is not None:
            case.after(world)
        return (world,), {}

    warm_up = 0 if case.is_once else WARM_UP_ROUNDS
    benchmark.pedantic(case.run, setup=setup, rounds=ROUNDS, warmup_rounds=warm_up)  # type: ignore[no-untyped-call]
    note(case, world, benchmark, 1 if case.is_once else ROUNDS + warm_up)
    world.close()


def note(case: Case, world: World, benchmark: BenchmarkFixture, runs: int) -> None:
    """Put the figures of one unit, and what one send carried, beside the times."""
    counters = world.core.counters()
    sends = counters["sends_total"] or 1
    benchmark.extra_info |= {
        "sink": "null" if has_null_sinks() else "udp",
        f"ns_per_{case.unit}": benchmark.stats.stats.median / case.units * 1e9 if benchmark.stats else None,
        f"sends_per_{case.unit}": round(counters["sends_total"] / (case.units * runs), 4),
        "spans_per_send": round(counters["sent_spans_total"] / sends, 2),
        "deliveries_per_send": round(counters["deliveries_total"] / sends, 2),
        "bytes_per_send": round(counters["sent_bytes_total"] / sends),
    }
