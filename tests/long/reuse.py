"""Descriptors that are used again at once, while messages to their last owners are under way: none may get them.

Connections close and come back as fast as asked, half of them by a reset. Publishers write to users by name and to
everyone meanwhile; what each message carries names its stream, and so its user: a message of one user at another is
`misdelivered`. How often descriptors were used again follows from two numbers that can't be wrong: the connections that
were accepted, and the server's limit of open files.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter

from starlight.loadtest import Target, run_scenario
from starlight.loadtest.result import FAULTS
from starlight.loadtest.scenario import Scenario, build
from tests.long.outcome import Outcome
from tests.support.server_process import server_process

MESSAGES = 1_000_000
CHURN_PER_S = 2_000.0
FILES = 700
CONNECTIONS = 500
BROADCAST_SHARE = 0.01
MOST_PARTS = 40


def scenario_of(seed: int, seconds: float, churn_per_s: float, rate: float) -> Scenario:
    """One part of the run."""
    return build(
        "direct",
        {
            "traffic": {"direct": 1 - BROADCAST_SHARE, "broadcast": BROADCAST_SHARE},
            "connections": CONNECTIONS,
            "publishers": 25,
            "targets": 40,
            "rate": rate,
            "size": "uniform:16-400",
            "churn_per_s": churn_per_s,
            "churn_reset_share": 0.5,
            "connecting": 128,
            "warmup_s": 0.0,
            "duration_s": seconds,
            "settle_s": 5.0,
            "check": 1.0,
            "seed": seed,
        },
    )


async def run(
    messages: int = MESSAGES,
    churn_per_s: float = CHURN_PER_S,
    seed: int = 1,
    seconds: float = 20.0,
    rate: float = 6_000,
) -> Outcome:
    """Parts of `seconds` each until so many messages reached their user."""
    outcome = Outcome("reuse")
    began_s = time.monotonic()
    counts: Counter[str] = Counter()
    measured_s = 0.0
    highest = 0
    async with server_process(files=FILES, max_connections=CONNECTIONS + 100) as server:
        target = Target(f"ws://127.0.0.1:{server.port}/ws")
        loop = asyncio.get_running_loop()
        for part in range(MOST_PARTS):
            scenario = scenario_of(seed + part, seconds, churn_per_s, rate)
            running = loop.run_in_executor(None, run_scenario, scenario, target)
            while not running.done():
                await asyncio.wait([running], timeout=0.5)
                highest = max(highest, highest_descriptor(server.pid))
            result = running.result()
            measured_s += result.duration_s
            counts.update({name: getattr(result.check, name) for name in ("deliveries", "checked", *FAULTS)})
            counts["churned"] += result.churned
            counts["reached"] += round(result.counters["sent"] * (1 - BROADCAST_SHARE)) - result.errors
            counts["away"] += result.errors
            outcome.require("not_connected" in (result.first_error or "not_connected"), result.first_error)
            await server.until(connections=0)
            if counts["reached"] >= messages:
                break
        status = await server.ask("status")
    outcome.seconds = time.monotonic() - began_s
    for name in FAULTS:
        outcome.require(not counts[name], f"{counts[name]} {name}")
    outcome.expect(counts["reached"] >= messages, f"only {counts['reached']:,} messages reached their user")
    outcome.expect(counts["churned"] >= 0.9 * churn_per_s * measured_s, "fewer connects than asked for: a busy machine")
    outcome.require(status["live"] == 0 and not status["log"], f"left behind {status['live']}, logged {status['log']}")
    outcome.figures = {
        "connects and disconnects a second": counts["churned"] / measured_s,
        "messages that reached their user": counts["reached"],
        "to users who were away": counts["away"],
        "deliveries with broadcasts": counts["deliveries"],
        "misdelivered": counts["misdelivered"],
        "other violations": sum(counts[name] for name in FAULTS) - counts["misdelivered"],
        "connections accepted": status["accepted"],
        "highest descriptor": highest,
        "descriptors used again at least": status["accepted"] - FILES,
    }
    return outcome


def highest_descriptor(pid: int) -> int:
    """The highest that is open now."""
    return max((int(name) for name in os.listdir(f"/proc/{pid}/fd")), default=0)
