"""The fault proxy and a node behind it: clients that it doesn't cut off get exact streams; nobody feels the others."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import uvloop

from tests.support.fault_proxy import Faults, fault_proxy
from tests.support.raw_client import RawClient, Stage, stage

LOOPS = {"uvloop": uvloop.new_event_loop}  # as in production

N_CLIENTS, N_MESSAGES = 12, 150


async def talk(on_stage: Stage, port: int, i: int, protocols: str) -> list[Any]:
    """Log in and join through the proxy; the data of all that comes, up to the last number or the end."""
    client = on_stage.keep(await RawClient.login(port, f"p{i}", protocols))
    await client.ask("join", channel="c") if not protocols else await client.say("join", channel="c")
    heard: list[Any] = []
    while not heard or heard[-1]["n"] != N_MESSAGES - 1:
        _, payload = await client.next_frame()
        told = [json.loads(line) for line in payload.split(b"\n")]
        heard += [item["data"] for item in told if item["type"] == "publication"]
    return heard


async def tell(on_stage: Stage, members: int) -> list[Any]:
    """Publish once all have joined."""
    while on_stage.counters()["memberships"] < 2 + 2 * members:
        await asyncio.sleep(0.01)
    wanted = [{"n": n, "x": "y" * (n * 37 % 900)} for n in range(N_MESSAGES)]
    for item in wanted:
        on_stage.node.hub.push_to_channel("c", json.dumps(item).encode())
        await asyncio.sleep(0.001)
    return wanted


@pytest.mark.parametrize("seed", range(2))
async def test_through_delays_chops_and_stalls_every_stream_is_exact(seed: int):
    async with (
        stage(evict_after_s=20, outbox_bytes=1 << 24) as on_stage,
        fault_proxy(on_stage.port, Faults(), seed) as proxy,
    ):
        talking = [
            asyncio.create_task(talk(on_stage, proxy.port, i, ["", "starlight.v1.lines"][i % 2]))
            for i in range(N_CLIENTS)
        ]
        wanted = await tell(on_stage, N_CLIENTS)
        for heard in await asyncio.wait_for(asyncio.gather(*talking), 20):
            assert heard == wanted
        assert {step.kind for _, _, step in proxy.log} == {"pass", "chop", "delay", "stall"}


async def test_with_resets_and_half_closes_those_that_stay_get_all_and_no_other_is_left_behind():
    faults = Faults(passes=60, stalls=0, resets=1, half_closes=1)
    async with stage(evict_after_s=20) as on_stage, fault_proxy(on_stage.port, faults, seed=3) as proxy:
        steady = [asyncio.create_task(talk(on_stage, on_stage.port, i, "")) for i in range(3)]
        shaky = [asyncio.create_task(talk(on_stage, proxy.port, 100 + i, "")) for i in range(20)]
        wanted = await tell(on_stage, 3)
        for heard in await asyncio.wait_for(asyncio.gather(*steady), 20):
            assert heard == wanted
        while not all(task.done() for task in shaky):  # some joined too late to hear the last one
            on_stage.node.hub.push_to_channel("c", json.dumps(wanted[-1]).encode())
            await asyncio.sleep(0.02)
        ends = await asyncio.wait_for(asyncio.gather(*shaky, return_exceptions=True), 20)
        assert all(isinstance(end, (list, OSError, EOFError, AssertionError)) for end in ends)
        assert {"reset", "half-close"} & {step.kind for _, _, step in proxy.log}
        for client in on_stage.clients:
            client.close()
        await proxy.close()
        await on_stage.alone()


async def test_the_same_seed_is_the_same_schedule():
    faults = Faults(resets=1)
    chances = [faults.plan(5, 1, "up") for _ in range(2)]
    draws = [[faults.step(chance) for _ in range(200)] for chance in chances]
    assert draws[0] == draws[1]
    other = faults.plan(6, 1, "up")
    assert [faults.step(other) for _ in range(200)] != draws[0]
