"""Half an hour of what a node does all day: channels, directs, broadcasts, people who come and go, and some who stall.

Three parts of equal length against one server, each a run of the engine with its own verdict and its own latencies, so
that the first ten minutes can be compared with the last. The load is moderate: about a quarter of a core.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlight.loadtest import Result, Target, procstat, run_scenario
from starlight.loadtest.result import FAULTS
from starlight.loadtest.scenario import Scenario, build
from tests.long.contract import living
from tests.long.outcome import Outcome
from tests.long.streams import Mute, Tally
from tests.support.server_process import ServerProcess, server_process

MINUTES = 30.0
PARTS = 3
RATE = 300.0
MUTES = 20
STALL_S = 12.0
SAMPLE_S = 5.0
GROWTH_LIMIT_BYTES = 4 << 20
"""From the end of the first part to the end of the last."""


def scenario_of(seed: int, seconds: float, rate: float) -> Scenario:
    """One part: with 500 connections in 20 channels of 50, 40 to 50 deliveries for each message."""
    return build(
        "mixed",
        {
            "traffic": {"channels": 0.9, "direct": 0.09, "broadcast": 0.01},
            "connections": 500,
            "channels": 20,
            "members": 50,
            "publishers": 40,
            "channel_publishers": 2,
            "targets": 5,
            "rate": rate,
            "arrival": "poisson",
            "size": "lognormal:200,1.0",
            "acks": True,
            "churn_per_s": 20.0,
            "churn_reset_share": 0.3,
            "rejoins_per_s": 20.0,
            "check": 1.0,
            "warmup_s": min(2.0, seconds / 10),
            "duration_s": seconds,
            "settle_s": 10.0,
            "seed": seed,
        },
    )


async def run(minutes: float = MINUTES, seed: int = 1, rate: float = RATE) -> Outcome:
    """All parts."""
    outcome = Outcome("soak")
    began_s = time.monotonic()
    tally = Tally()
    results: list[Result] = []
    growths: list[int] = []
    async with server_process(evict_after_s=1.0) as server, memory_of(server) as samples:
        target = Target(f"ws://127.0.0.1:{server.port}/ws")
        chance = random.Random(seed)
        seconds = minutes * 60 / PARTS
        stall_s = min(STALL_S, seconds)
        for part in range(PARTS):  # the engine counts its messages anew in each, so the mutes begin anew as well
            mutes = [
                Mute(server.port, f"mute{n}", channels_of(n), random.Random(chance.random()), tally, stall_s)
                for n in range(MUTES)
            ]
            scenario = scenario_of(seed + part, seconds, rate)
            async with living([mute.live() for mute in mutes]):
                results.append(await run_engine(scenario, target, server.pid))
                growths.append(samples[-1][1] if samples else 0)
                for mute in mutes:
                    mute.is_stopping = True
        end = await server.until(connections=0, objects=0, timeout_s=30)
    outcome.seconds = time.monotonic() - began_s
    judge(outcome, results, tally, end)
    slope = slope_of([sample for sample in samples if sample[0] > outcome.seconds / PARTS])
    grown = growths[-1] - growths[0]
    outcome.expect(grown <= GROWTH_LIMIT_BYTES, f"memory grew by {grown:,} bytes")
    outcome.figures |= {
        "resident MiB after the first part": round(growths[0] / 2**20, 1),
        "MiB more after the last": round(grown / 2**20, 2),
        "slope of memory in MiB an hour": round(slope * 3600 / 2**20, 2),
    }
    return outcome


def channels_of(mute: int) -> list[str]:
    """Five of the twenty."""
    return [f"c{1 + (mute + n) % 20}" for n in range(5)]


async def run_engine(scenario: Scenario, target: Target, pid: int) -> Result:
    """One part, in a thread."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, lambda: run_scenario(scenario, target, server_pids=[pid]))


def judge(outcome: Outcome, results: list[Result], tally: Tally, end: dict[str, Any]) -> None:
    """Errors of every kind, and the figures."""
    outcome.faults += tally.faults
    for number, result in enumerate(results, 1):
        faults = {name: getattr(result.check, name) for name in FAULTS if getattr(result.check, name)}
        outcome.require(not faults, f"part {number}: {faults}")
        outcome.expect(not result.disconnects, f"part {number}: {result.disconnects} sent away: {result.close_codes}")
        outcome.expect(
            not result.connect_failures,
            f"part {number}: {result.connect_failures} could not connect, such as: {result.first_disconnect}",
        )
        known = "not_connected" in (result.first_error or "not_connected")
        outcome.require(known, f"part {number}: {result.first_error}")
    outcome.require(end["live"] == 0 and not end["log"], f"left behind {end['live']}, logged {end['log']}")
    first, last = results[0], results[-1]
    outcome.figures = {
        "checked deliveries": sum(result.check.checked for result in results) + tally.deliveries,
        "a second": sum(result.rate for result in results) / len(results),
        "errors": len(outcome.faults) + len(outcome.shortfalls),
        "reconnects": sum(result.churned for result in results),
        "evicted": end["evicted_slow_total"] + end["evicted_timeout_total"] + end["evicted_budget_total"],
        "server CPU share": round(sum(r.server.cpu_share for r in results if r.server) / len(results), 2),
        "p50 ms first and last part": f"{first.latency.p50_ms:.2f} and {last.latency.p50_ms:.2f}",
        "p99 ms first and last part": f"{first.latency.p99_ms:.2f} and {last.latency.p99_ms:.2f}",
        "cores taken by others": round(sum(r.machine.foreign_share or 0.0 for r in results) / len(results), 2),
    }


@asynccontextmanager
async def memory_of(server: ServerProcess) -> AsyncIterator[list[tuple[float, int]]]:
    """Samples of (seconds, resident bytes), growing while the block runs."""
    samples: list[tuple[float, int]] = []
    began_s = time.monotonic()

    async def watch() -> None:
        while True:
            samples.append((time.monotonic() - began_s, procstat.usage([server.pid]).rss_bytes))
            await asyncio.sleep(SAMPLE_S)

    watching = asyncio.create_task(watch())
    try:
        yield samples
    finally:
        watching.cancel()
        await asyncio.wait([watching])


def slope_of(samples: list[tuple[float, int]]) -> float:
    """Bytes a second, by least squares; 0 for fewer than three samples."""
    if len(samples) < 3:
        return 0.0
    mean_s = sum(at for at, _ in samples) / len(samples)
    mean = sum(held for _, held in samples) / len(samples)
    spread = sum((at - mean_s) ** 2 for at, _ in samples)
    return sum((at - mean_s) * (held - mean) for at, held in samples) / spread if spread else 0.0
