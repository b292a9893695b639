"""session.deadlines through a node with short timeouts: who is silent is pinged, and ended when it stays silent."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop

from starlight.channels.client import Client
from starlight.channels.handlers import Handlers
from starlight.config.settings import Settings
from starlight.server.node import Node
from tests.support.fakes import eventually
from tests.support.raw_client import CLOSE, PING, PONG, TEXT, RawClient, frame, header, message, stage

WIRES = ("ws", "wss")
LOOPS = {"uvloop": uvloop.new_event_loop}  # as in production


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def test_silence_before_the_login_is_4015():
    async with stage(login_timeout_s=0.3) as on_stage:
        client = await on_stage.upgraded()
        await client.send(frame(PING, b"not a login") + frame(PONG) + message("login", user="late")[:12])
        assert await client.next_frame() == (PONG, b"not a login")
        assert await client.close_code() == 4015


async def test_a_login_in_time_is_not_closed_by_the_login_timeout():
    async with stage(login_timeout_s=0.2) as on_stage:
        client = await on_stage.login()
        await asyncio.sleep(0.5)
        assert (await client.ask("ping"))["type"] == "pong"


async def test_a_login_check_that_never_returns_is_1013_and_is_not_kept():
    handlers, checks = Handlers(), []

    @handlers.on_login
    async def check(client: Client, login: dict[str, Any]) -> None:
        if client.user != "witness":
            checks.append(asyncio.current_task())
            await asyncio.Event().wait()

    def made(settings: Settings) -> Node:
        return Node(settings, handlers=handlers)

    async with stage(quiet=False, node=made, login_timeout_s=0.3) as on_stage:
        client = await on_stage.upgraded()
        await client.send(message("login", user="ann"))
        assert await client.close_code() == 1013
        gone = await on_stage.upgraded()
        await gone.send(message("login", user="bob"))
        await eventually(lambda: len(checks) == 2)
        gone.reset()
        await eventually(lambda: all(task is not None and task.done() for task in checks))
        await on_stage.alone()


async def test_an_on_connect_that_never_returns_is_1013_and_is_not_kept():
    handlers, ended = Handlers(), []

    @handlers.on_connect
    async def greet(client: Client) -> None:
        if client.user != "witness":
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(client.user)

    def made(settings: Settings) -> Node:
        return Node(settings, handlers=handlers)

    async with stage(quiet=False, node=made, login_timeout_s=0.3) as on_stage:
        client = await on_stage.login("ann")
        assert await client.close_code() == 1013
        await eventually(lambda: ended == ["ann"])
        await on_stage.alone()


async def test_pings_come_again_and_again_and_a_pong_keeps_it_open():
    async with stage(ping_interval_s=0.1, pong_timeout_s=0.3) as on_stage:
        client = await on_stage.login()
        for _ in range(5):
            assert await client.next_frame() == (PING, b"")
            await client.send(frame(PONG))
        assert (await client.ask("ping"))["type"] == "pong"


async def test_60_without_a_pong_it_is_4012_and_out_of_the_hub_at_once():
    async with stage(ping_interval_s=0.2, pong_timeout_s=0.2) as on_stage:
        client = await on_stage.login()
        frames, end = await client.to_the_end()
        assert end == "eof"
        assert [opcode for opcode, _ in frames] == [PING, TEXT, CLOSE]
        assert frames[-1][1][:2] == (4012).to_bytes(2, "big")
        client.close()
        await on_stage.alone()


async def test_other_frames_are_no_pong():
    async with stage(ping_interval_s=0.2, pong_timeout_s=0.3) as on_stage:
        client = await on_stage.login()

        async def chatter() -> None:
            while True:
                await client.send(frame(PING, b"x") + message("ping"))
                await asyncio.sleep(0.02)

        chatting = asyncio.create_task(chatter())
        frames, _ = await client.to_the_end()
        chatting.cancel()
        await asyncio.wait([chatting])
        if not chatting.cancelled():
            assert isinstance(chatting.exception(), OSError)
        assert frames[-1] == (CLOSE, (4012).to_bytes(2, "big") + b"no pong")


async def test_25_a_frame_that_is_declared_and_never_comes_ends_with_the_pong_timeout():
    """No pong can come inside of a frame, so ping interval and pong timeout are its read deadline."""
    async with stage(ping_interval_s=0.3, pong_timeout_s=0.3) as on_stage:
        stalled, trickling = await on_stage.login("stalled"), await on_stage.login("trickling")
        await stalled.send(header(TEXT, 64 * 1024 - 1) + b'{"type":"b')
        await trickling.send(header(TEXT, 64 * 1024 - 1))

        async def trickle() -> None:
            while True:
                await trickling.send(frame(PONG))
                await asyncio.sleep(0.02)

        task = asyncio.create_task(trickle())
        assert await stalled.close_code() == 4012
        frames, _ = await trickling.to_the_end()
        assert frames[-1][1][:2] == (4012).to_bytes(2, "big")
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            assert isinstance(task.exception(), OSError)


async def test_25_before_the_login_it_is_the_login_timeout():
    async with stage(login_timeout_s=0.3) as on_stage:
        client = await on_stage.upgraded()
        await client.send(header(TEXT, 10_000) + b'{"type":"l')
        assert await client.close_code() == 4015


async def test_the_pings_of_many_that_come_at_once_are_spread():
    node = Node(Settings(port=0, ping_interval_s=1, pong_timeout_s=5, drain_timeout_s=2))
    async with node:
        clients = [await RawClient.login(node.port, f"u{i}") for i in range(200)]
        started_s = now_s()
        pinged_s: list[float] = []

        async def pinged(client: RawClient) -> None:
            assert await client.next_frame() == (PING, b"")
            pinged_s.append(now_s() - started_s)

        await asyncio.gather(*map(pinged, clients))
        ticks = {int(at_s / 0.05) for at_s in pinged_s}
        assert len(ticks) >= 5  # half a second of 50-ms ticks; all at once would be one or two
        for client in clients:
            client.close()
        await eventually(lambda: node.connections == 0)


async def test_31_unsolicited_pongs_are_ignored_and_counted():
    async with stage() as on_stage:
        client = await on_stage.login()
        await client.send(frame(PONG, b"x" * 125) * 1_000)
        assert (await client.ask("ping"))["type"] == "pong"
        assert on_stage.node.acceptor.counts.unsolicited_pongs == 1_000
