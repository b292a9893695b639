"""The contract by the delivery checker: under churn, stalls, resets and evictions nothing is lost that is owed.

For each seed a server with limits drawn from it, and at the same time: the engine's connections (acknowledged
publications, directs and broadcasts, leaves and joins, reconnects by close and by reset, slow readers), mutes that
stall until they are evicted and come back, readers behind the fault proxy, and publishers behind one that resets.

    C1, C4   order and no duplicates per stream     the engine's checker, every delivery
    C3       one order for all receivers            `checker.count_disorder` over every delivery
    C5       an acknowledged publish was accepted   the engine's acknowledgements; `judge_publishers`
    C6       how an evicted client's bytes end      `Stream`
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from starlight.loadtest import Result, Target, run_scenario
from starlight.loadtest.result import FAULTS
from starlight.loadtest.scenario import Scenario, build
from tests.long.outcome import Outcome
from tests.long.streams import Listener, Mute, Publisher, Tally, judge_publishers
from tests.support.fault_proxy import Faults, fault_proxy
from tests.support.server_process import ServerProcess, server_process

DELIVERIES = 10_000_000
SEEDS = 20
MORE_SEEDS = 40
"""At most so many more where the machine was too busy for the wanted number in `SEEDS`."""
CHANNELS = 10
SIZES = "choice:64x0.9,2000x0.08,16384x0.02"
SHAKY = Faults(resets=1, half_closes=1, passes=60, stalls=0, chops=2, delay_s=0.002)
SLOWING = Faults(stall_s=0.3)


def settings_of(chance: random.Random) -> dict[str, Any]:
    """The limits of one seed's server."""
    return {
        "outbox_messages": chance.choice([64, 256]),
        "outbox_bytes": chance.choice([128, 512, 1024]) * 1024,
        "evict_after_s": chance.choice([0.5, 1.0]),
        "send_buffer_bytes": chance.choice([4, 16, 64]) * 1024,
        "write_timeout_s": chance.choice([1.0, 10.0]),
        "coalesce_delay_s": chance.choice([0.0, 0.0, 0.002]),
    }


def scenario_of(chance: random.Random, seed: int, seconds: float, rate: float) -> Scenario:
    """The engine's part of a seed."""
    return build(
        "mixed",
        {
            "traffic": {"channels": 0.85, "direct": 0.1, "broadcast": 0.05},
            "connections": 100,
            "channels": CHANNELS,
            "members": 50,
            "publishers": 20,
            "channel_publishers": 4,
            "targets": 5,
            "rate": rate,
            "arrival": "poisson",
            "size": SIZES,
            "acks": True,
            "slow_share": 0.1,
            "slow_kind": chance.choice(["stall", "rate"]),
            "slow_receive_buffer_bytes": 4_096,
            "churn_per_s": 60.0,
            "churn_reset_share": 0.5,
            "rejoins_per_s": 100.0,
            "order": True,
            "check": 1.0,
            "warmup_s": 0.0,
            "duration_s": seconds,
            "settle_s": 10.0,
            "seed": seed,
        },
    )


class Sums:
    """What all seeds together came to."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.tally = Tally()
        self.faults: list[str] = []

    def add(self, seed: int, result: Result) -> None:
        """The engine's part of a seed."""
        check = result.check
        self.counts["deliveries"] += check.deliveries
        for name in FAULTS:
            if getattr(check, name):
                self.faults.append(f"seed {seed}: {getattr(check, name)} {name}")
        unexpected = result.counters["unexpected"]
        if unexpected:
            self.faults.append(f"seed {seed}: {unexpected} acknowledgements out of order")
        owed = result.counters["sent"] - result.errors
        if result.acks > owed or (result.acks < owed and not result.disconnects):
            self.faults.append(f"seed {seed}: {result.acks} acknowledgements for {owed} messages")
        if result.counters["unlogged"]:
            self.faults.append(f"seed {seed}: the order of {result.counters['unlogged']} deliveries wasn't looked at")
        self.counts["reconnects"] += result.churned
        self.counts["rejoins"] += result.rejoins
        self.counts["acknowledged"] += result.acks
        self.counts["sent away"] += result.disconnects


async def run(
    deliveries: int = DELIVERIES, seeds: int = SEEDS, seed: int = 1, seconds: float = 10.0, rate: float = 1_200.0
) -> Outcome:
    """All seeds, one after the other; further ones while deliveries are missing."""
    outcome = Outcome("contract")
    began_s = time.monotonic()
    sums = Sums()
    done = 0
    while done < seeds or (sums.counts["deliveries"] < deliveries and done < seeds + MORE_SEEDS):
        await one_seed(seed + done, seconds, rate, sums)
        done += 1
    outcome.seconds = time.monotonic() - began_s
    outcome.faults = sums.faults + sums.tally.faults
    total = sums.counts["deliveries"]
    outcome.expect(total >= deliveries, f"only {total:,} deliveries")
    evictions = sums.counts["evicted_slow_total"] + sums.counts["evicted_timeout_total"]
    outcome.expect(evictions > 0, "nobody was evicted")
    outcome.figures = {
        "seeds": done,
        "checked deliveries": total + sums.tally.deliveries,
        "violations": len(outcome.faults),
        "acknowledged": sums.counts["acknowledged"] + sums.counts["acked"],
        "reconnects": sums.counts["reconnects"],
        "rejoins": sums.counts["rejoins"],
        "evicted": evictions,
        "lives of publishers that were reset": sums.counts["lives"],
        "streams of those who stall ended": dict(sums.tally.ends.most_common()),
    }
    return outcome


async def one_seed(seed: int, seconds: float, rate: float, sums: Sums) -> None:
    """A server and all its clients, once."""
    chance = random.Random(seed)
    async with server_process(**settings_of(chance)) as server, company(server, chance, seed, sums):
        target = Target(f"ws://127.0.0.1:{server.port}/ws", chance.choice(["native", "lines"]))
        scenario = scenario_of(chance, seed, seconds, rate)
        result = await asyncio.get_running_loop().run_in_executor(None, lambda: run_scenario(scenario, target))
        sums.add(seed, result)


@asynccontextmanager
async def company(server: ServerProcess, chance: random.Random, seed: int, sums: Sums) -> AsyncIterator[None]:
    """Mutes, slow roads and publishers that are reset, until the block ends; then they are judged."""
    channels = [f"c{n}" for n in range(1, CHANNELS + 1)]
    async with fault_proxy(server.port, SLOWING, seed) as slowing, fault_proxy(server.port, SHAKY, seed) as shaky:

        def draw() -> random.Random:
            return random.Random(chance.random())

        mutes = [Mute(server.port, f"mute{n}", channels[:3], draw(), sums.tally, 3.0) for n in range(6)]
        mutes += [Mute(slowing.port, f"slow{n}", channels[n : n + 2], draw(), sums.tally, 0.0) for n in range(3)]
        publishers = [Publisher(shaky.port, f"p{n}", draw(), 0.01) for n in range(4)]
        listeners = [await Listener.join(server.port, f"listener{n}") for n in range(2)]
        listening = [asyncio.create_task(listener.listen()) for listener in listeners]
        async with living([client.live() for client in (*mutes, *publishers)]):
            yield
            for client in (*mutes, *publishers):
                client.is_stopping = True
        for listener in listeners:
            await listener.sync()
        await close_listeners(listeners, listening, sums, seed)
        verdict = judge_publishers(publishers, listeners)
        if verdict.faults:
            sums.faults.append(f"seed {seed}: publishers that were reset: {verdict.faults} faults: {verdict.examples}")
        sums.counts["acked"] += sum(len(acked) for one in publishers for acked in one.acked.values())
        sums.counts["lives"] += sum(len(one.sent) for one in publishers)
        sums.tally.deliveries += verdict.deliveries
    status = await server.until(connections=0, timeout_s=20)
    for name in ("evicted_slow_total", "evicted_timeout_total", "evicted_budget_total"):
        sums.counts[name] += status[name]
    if status["live"] or status["log"]:
        sums.faults.append(f"seed {seed}: left behind {status['live']}, logged {status['log']}")


@asynccontextmanager
async def living(lives: list[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run them; the block has to tell them to stop. Whatever they raise is raised."""
    tasks = [asyncio.create_task(life) for life in lives]
    try:
        yield
        done, late = await asyncio.wait(tasks, timeout=30)
        assert not late, f"{len(late)} clients did not stop"
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def close_listeners(
    listeners: list[Listener], listening: list[asyncio.Task[None]], sums: Sums, seed: int
) -> None:
    """They must have been there all the time, and have heard the same."""
    for listener, task in zip(listeners, listening, strict=True):
        if task.done():
            sums.faults.append(f"seed {seed}: {listener.name} was hurt: {task!r}")
        task.cancel()
    await asyncio.wait(listening)
    if listeners[0].heard != listeners[1].heard:
        sums.faults.append(f"seed {seed}: the two listeners heard different orders")
    for listener in listeners:
        listener.client.close()
