"""Slow consumers: who can't keep up is out within a second, hears why if it still listens, and nobody else is hurt.

Each case runs over the descriptor (as in production), over TLS, and over a transport whose descriptor can't be used.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from starlight.server.node import Node
from tests.support.fakes import IS_SANITIZED, eventually, needs_speed
from tests.support.raw_client import (
    CLOSE,
    TEXT,
    RawClient,
    Stage,
    TlsClient,
    close_frame,
    frame,
    message,
    resident_bytes,
    socket_of,
    stage,
)
from tests.support.server_process import server_process
from tests.support.tls import speak_tls
from tests.support.transports import HidingNode

LOOPS = {"uvloop": uvloop.new_event_loop}  # as in production

SLOW, TIMEOUT = (4008).to_bytes(2, "big") + b"slow consumer", (4009).to_bytes(2, "big") + b"write timeout"


class Play:
    """A stage whose clients join at once, or never read."""

    def __init__(self, on_stage: Stage) -> None:
        self.stage = on_stage
        self.node = on_stage.node
        self.is_direct = type(self.node) is Node and not self.node.url.startswith("wss")

    async def login(self, user: str, channel: str | None = None, receive_buffer_bytes: int = 0) -> RawClient:
        client = await self.stage.login(user, receive_buffer_bytes=receive_buffer_bytes)
        if channel is not None:
            assert (await client.ask("join", channel=channel))["type"] == "ok"
        return client

    async def stalled(self, user: str, channel: str | None = None) -> RawClient:
        """A client whose kernel takes little; it reads no more from here on."""
        return await self.login(user, channel, receive_buffer_bytes=4096)

    def totals(self) -> dict[str, int]:
        return self.node.core.counters()

    def is_there(self, user: str) -> bool:
        return any(client.user == user for client in self.node.hub.clients())


Opening = Callable[..., AbstractAsyncContextManager[Play]]


@pytest.fixture(params=["descriptor", "tls", "no descriptor"])
def play(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Opening:
    if request.param == "tls":
        speak_tls(monkeypatch, tmp_path)

    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[Play]:
        node = HidingNode if request.param == "no descriptor" else Node
        async with stage(node=node, **{"send_buffer_bytes": 4096, **settings}) as on_stage:
            yield Play(on_stage)

    return opened


def text(n_bytes: int) -> bytes:
    return b'"' + b"x" * n_bytes + b'"'


@needs_speed
async def test_one_that_stalls_among_two_hundred(play: Opening):
    async with play(evict_after_s=0.5) as on:  # the others are slow themselves on a busy machine, but not so slow
        n_others = (199 if on.is_direct else 19) // (4 if IS_SANITIZED else 1)  # they read on the node's own loop
        others = [await on.login(f"u{i}", "c") for i in range(n_others)]
        stalled = await on.stalled("stalled", "c")
        n_messages = 400 if on.is_direct else 1_000  # a transport takes 64 KiB before it is full
        heard = [asyncio.create_task(hear_all(client, n_messages)) for client in others]
        for i in range(n_messages):
            on.node.hub.push_to_channel("c", b'{"n":%d,"x":%b}' % (i, text(400)))
            if i % 4 == 3:
                await asyncio.sleep(0)
        await eventually(lambda: not on.is_there("stalled"), 8.0)  # TLS by hand is slow
        frames, _ = await stalled.to_the_end()  # at once: after a second it is reset
        for task in heard:
            assert await task == list(range(n_messages))
        assert frames[-1] == (CLOSE, SLOW)
        assert all(opcode == TEXT for opcode, _ in frames[:-1])
        numbers = [json.loads(payload)["data"]["n"] for _, payload in frames[:-1]]
        assert numbers == list(range(len(numbers))) and len(numbers) < n_messages
        assert on.totals()["evicted_slow_total"] == 1


async def hear_all(client: RawClient, n_messages: int) -> list[int]:
    return [(await client.hear())["data"]["n"] for _ in range(n_messages)]


async def test_over_the_byte_limit_one_that_takes_nothing_goes_after_evict_after(play: Opening):
    async with play(outbox_bytes=65_536, evict_after_s=0.1, write_timeout_s=60) as on:
        stalled = await on.stalled("stalled", "c")
        for _ in range(40):
            on.node.hub.push_to_channel("c", text(10_000))
            await asyncio.sleep(0)
        await eventually(lambda: not on.is_there("stalled"), 5.0)
        frames, _ = await stalled.to_the_end()
        assert frames[-1] == (CLOSE, SLOW)


async def test_who_asks_for_more_than_it_reads_is_let_go_of_within_the_turn_that_passes_the_budget(play: Opening):
    """A read buffer full of small requests with large answers: three times the budget, if all of it were kept."""
    budget = 8 << 20
    async with play(memory_budget_bytes=budget, evict_after_s=60) as on:
        held = []

        @on.node.handlers.on("much")
        def much(client: Any, data: Any) -> str:
            held.append(on.totals()["chunk_bytes"])
            return "x" * 50_000

        greedy = await on.stalled("greedy")
        other = await on.login("other", "c")
        await greedy.send(message("much", id=1) * 500)
        await eventually(lambda: not on.is_there("greedy"))
        totals = on.totals()
        assert totals["evicted_budget_total"] == 1 and max(held) <= budget + (2 << 20)
        assert totals["dropped_budget_bytes_total"] > budget // 2
        on.node.hub.push_to_channel("c", b"1")
        assert (await other.hear())["data"] == 1


async def test_a_burst_that_the_line_carries_evicts_nobody(play: Opening):
    """One user's 33 directs of 60 kB, twice the byte limit, and a reader of 20 Mbit/s: it gets them all."""
    async with play(send_buffer_bytes=65_536) as on:
        reader = await on.login("reader", receive_buffer_bytes=65_536)
        sender = await on.login("sender")
        await sender.send(b"".join(message("direct", to="reader", data=f"{i:05}" + "x" * 60_000) for i in range(33)))
        heard = []
        while len(heard) < 33 and on.is_there("reader"):
            heard.append((await paced(reader, 2_500_000))["data"][:5])
        assert heard == [f"{i:05}" for i in range(33)]
        assert on.totals()["evicted_slow_total"] == 0


async def paced(client: RawClient, bytes_per_s: float) -> Any:
    """The next message of a client whose line is so fast."""
    began_s = time.monotonic()
    found = await client.hear()
    size = len(json.dumps(found))
    await asyncio.sleep(max(0.0, began_s + size / bytes_per_s - time.monotonic()))
    return found


async def test_many_publishers_in_one_turn_evict_nobody_who_reads(play: Opening):
    """40 publications of 60 kB that were read in one turn, as something held the loop."""
    async with play(send_buffer_bytes=65_536) as on:
        readers = [await on.login(f"reader{i}", "c") for i in range(3)]
        for i in range(40):
            on.node.hub.push_to_channel("c", b'{"n":%d,"x":%b}' % (i, text(60_000)))
        for numbers in await asyncio.gather(*(hear_all(reader, 40) for reader in readers)):
            assert numbers == list(range(40))
        assert on.totals()["evicted_slow_total"] == 0


@pytest.mark.parametrize("wire", ["plain", "tls"])
async def test_a_standstill_of_three_seconds_evicts_nobody_who_reads(
    wire: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """What was sent to the node meanwhile, more than the limits of an outbox, comes to its readers all at once."""
    if wire == "tls":
        speak_tls(monkeypatch, tmp_path)
    async with server_process() as server:
        readers = [await RawClient.login(server.port, f"reader{i}") for i in range(3)]
        publishers = [await RawClient.login(server.port, f"publisher{i}") for i in range(30)]
        for reader in readers:
            assert (await reader.ask("join", channel="c"))["type"] == "ok"
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for i, publisher in enumerate(publishers):
                await publisher.send(message("publish", channel="c", data={"n": i, "x": "x" * 60_000}))
            await asyncio.sleep(3)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        for numbers in await asyncio.gather(*(hear_all(reader, 30) for reader in readers)):
            assert sorted(numbers) == list(range(30))
        status = await server.ask("status")
        assert status["evicted_slow_total"] == status["evicted_timeout_total"] == 0
        for client in readers + publishers:
            client.close()


async def test_one_that_takes_a_byte_now_and_then_is_ended_by_the_age_of_its_oldest_message(play: Opening):
    async with play(outbox_messages=50, evict_after_s=60, write_timeout_s=1) as on:
        stalled = await on.stalled("stalled", "c")
        for i in range(400):
            on.node.hub.push_to_channel("c", b'{"n":%d,"x":%b}' % (i, text(1_000)))
            if i % 20 == 0:
                await asyncio.sleep(0)
        trickling = asyncio.create_task(trickle(stalled))
        await eventually(lambda: not on.is_there("stalled"), 20.0)
        trickling.cancel()
        await asyncio.wait([trickling])
        assert on.totals()["evicted_slow_total"] == 1 and on.totals()["evicted_timeout_total"] == 0


async def trickle(client: RawClient) -> None:
    """Take a few bytes and then again a few."""
    while True:
        client.rest += await client.receive(8)
        await asyncio.sleep(0.01)


async def test_what_an_evicted_client_never_got_is_counted_to_the_message(play: Opening):
    async with play(outbox_bytes=65_536, evict_after_s=0.1) as on:
        stalled = await on.stalled("stalled", "c")
        delivered = 0
        for i in range(100):
            delivered += on.node.hub.push_to_channel("c", b'{"n":%d,"x":%b}' % (i, text(20_000)))
            await asyncio.sleep(0)
        await eventually(lambda: not on.is_there("stalled"), 5.0)
        frames, _ = await stalled.to_the_end()
        assert frames[-1] == (CLOSE, SLOW)
        totals = on.totals()
        assert len(frames) - 1 + totals["dropped_slow_messages_total"] == delivered
        assert totals["dropped_slow_bytes_total"] > 20_000 * totals["dropped_slow_messages_total"] > 0


async def test_one_that_never_reads_is_reset_with_nothing_behind_the_torn_frame(play: Opening):
    async with play(outbox_bytes=65_536) as on:
        stalled = await on.stalled("stalled", "c")
        for i in range(60):
            on.node.hub.push_to_channel("c", b'{"n":%d,"x":%b}' % (i, text(10_000)))
            await asyncio.sleep(0)
        await eventually(lambda: on.node.connections == 1)  # a second after the eviction
        frames, end = await stalled.to_the_end()
        assert end == "reset"
        assert all(opcode == TEXT for opcode, _ in frames)
        assert stalled.rest == b"" or b"x" * min(100, len(stalled.rest) - 80) in stalled.rest
        assert (4008).to_bytes(2, "big") not in stalled.rest


@needs_speed
async def test_ten_thousand_messages_in_one_turn_evict_nobody_who_reads(play: Opening):
    async with play(send_buffer_bytes=65_536) as on:
        client = await on.login("healthy", "c")
        reading = asyncio.create_task(hear_all(client, 10_000))
        for i in range(10_000):
            on.node.hub.push_to_channel("c", b'{"n":%d,"x":"012345678901"}' % i)
        assert await asyncio.wait_for(reading, 20) == list(range(10_000))
        assert on.totals()["evicted_slow_total"] == 0


async def test_a_write_timeout_is_4009(play: Opening):
    async with play(write_timeout_s=0.4) as on:
        stalled = await on.stalled("stalled", "c")
        for _ in range(12):  # below all limits
            on.node.hub.push_to_channel("c", text(50_000))
        await asyncio.sleep(0.2)
        assert on.is_there("stalled")
        await eventually(lambda: not on.is_there("stalled"))
        frames, _ = await stalled.to_the_end()
        assert frames[-1] == (CLOSE, TIMEOUT)
        assert on.totals()["evicted_timeout_total"] == 1


BAD = [frame(3, b""), b"\x81\x00", frame(TEXT, b"\xff"), frame(TEXT, b"", rsv=4)]


async def test_a_protocol_error_behind_a_torn_frame_puts_no_close_inside_of_it(play: Opening):
    async with play() as on:
        clients = [await on.stalled(f"torn{i}") for i in range(len(BAD))]
        for i in range(len(clients)):
            on.node.hub.push_to_user(f"torn{i}", text(600_000))
        await asyncio.sleep(0.05)
        for client, bad in zip(clients, BAD, strict=True):
            await client.send(bad)
        await asyncio.sleep(0.05)
        for frames, _ in await asyncio.gather(*(client.to_the_end() for client in clients)):
            assert [opcode for opcode, _ in frames] == [TEXT, CLOSE]
            assert frames[0][1] == b'{"type":"server","data":' + text(600_000) + b"}"
            assert frames[1][1][:2] in ((1002).to_bytes(2, "big"), (1007).to_bytes(2, "big"))


async def test_a_ping_and_a_close_of_the_peer_behind_a_torn_frame(play: Opening):
    async with play() as on:
        client = await on.stalled("torn")
        on.node.hub.push_to_user("torn", text(600_000))
        await asyncio.sleep(0.05)
        await client.send(frame(9, b"first") + frame(9, b"last") + close_frame(1000))
        frames, _ = await client.to_the_end()
        assert [(opcode, payload[:40] if opcode != TEXT else len(payload)) for opcode, payload in frames] == [
            (TEXT, 600_027), (10, b"last"), (CLOSE, b"\x03\xe8")
        ]  # fmt: skip


async def test_an_eviction_while_the_peer_resets_and_while_it_closes(play: Opening):
    async with play(outbox_bytes=65_536, write_timeout_s=0.2) as on:
        for end in ("reset", "close", "half", "frame"):
            stalled = await on.stalled("stalled", "c")
            for _ in range(5):
                on.node.hub.push_to_channel("c", text(10_000))
            await asyncio.sleep(0.02)
            if end == "reset":
                stalled.reset()
            elif end == "close":
                stalled.close()
            elif end == "frame":
                await stalled.send(close_frame(1001))
            elif not isinstance(stalled, TlsClient):
                stalled.half_close()
            for _ in range(50):
                on.node.hub.push_to_channel("c", text(10_000))
            await eventually(lambda: not on.is_there("stalled"), 2.0)
        await eventually(lambda: on.node.connections == 1)


async def test_a_handler_that_fails_when_an_evicted_client_leaves_hurts_nobody(caplog: pytest.LogCaptureFixture):
    def node(settings: Any) -> HidingNode:
        made = HidingNode(settings)

        @made.handlers.on_disconnect
        def fail(client: Any) -> None:
            made.hub.push_to_channel("c", b'"left"')
            for other in list(made.hub.clients()):
                if other.user.startswith("stalled"):
                    other.connection.close(4503)
            raise RuntimeError("on purpose")

        return made

    caplog.set_level(logging.CRITICAL, "starlight.channels.handlers")  # a logged traceback holds channels
    async with stage(node=node, outbox_bytes=65_536, send_buffer_bytes=4096) as on_stage:
        play_ = Play(on_stage)
        for i in range(5):
            await play_.stalled(f"stalled{i}", "c")
        for _ in range(60):
            play_.node.hub.push_to_channel("c", text(10_000))
            await asyncio.sleep(0)
        await eventually(
            lambda: on_stage.node.connections == 1, 15.0
        )  # the write timeout, if closed before it was over the limit
        assert play_.totals()["evicted_slow_total"] >= 1


@pytest.mark.parametrize("end", ["reset", "close", "evicted"])
async def test_a_handler_that_leaves_the_program_when_a_client_goes_leaves_no_connection_half_way(
    end: str, caplog: pytest.LogCaptureFixture
):
    """Its descriptor is soon another client's: a subscriber that stayed would write to that one."""

    def node(settings: Any) -> Node:
        made = Node(settings)
        made.handlers.on_disconnect(lambda client: sys.exit(1) if client.user != "witness" else None)
        return made

    caplog.set_level(logging.CRITICAL, "starlight")  # a logged traceback holds channels
    async with stage(node=node, quiet=False, outbox_bytes=65_536, send_buffer_bytes=4096) as on_stage:
        play_ = Play(on_stage)
        for i in range(3):
            client = await play_.stalled(f"u{i}", "c")
            if end == "reset":
                client.reset()
            elif end == "close":
                await client.send(close_frame(1000))
                await client.to_the_end()
                client.close()
        for _ in range(60):
            play_.node.hub.push_to_channel("c", text(10_000))
            await asyncio.sleep(0)
        await eventually(lambda: on_stage.node.connections == 1)
        assert play_.totals()["subscribers"] == 1 and play_.totals()["full"] == 0
        assert [client.user for client in on_stage.node.hub.clients()] == ["witness"]


async def test_a_thousand_that_stall_on_quiet_channels_stay_within_the_memory_budget():
    """What each has waiting lies in chunks that heavy traffic fills: uncopied, 200 of them would hold 50 MiB."""
    budget = 24 << 20
    async with stage(send_buffer_bytes=4096, memory_budget_bytes=budget, write_timeout_s=60) as on_stage:
        play_ = Play(on_stage)
        for i in range(1_000):
            await play_.stalled(f"quiet{i}", f"q{i}")
        loud = await play_.login("loud", "loud")
        socket_of(loud.sock.getsockname()).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for i in range(1_000):  # more than the kernel takes of each
            play_.node.hub.push_to_channel(f"q{i}", text(16_000))
            if i % 50 == 0:
                await asyncio.sleep(0)
        await eventually(lambda: play_.totals()["full"] >= 1_000)
        before, held = resident_bytes(), [play_.totals()["chunk_bytes"]]
        for turn in range(200):
            for i in range(5):
                play_.node.hub.push_to_channel(f"q{5 * turn + i}", text(200))
                play_.node.hub.push_to_channel("loud", text(50_000))
            for _ in range(5):
                await loud.next_frame()
            held.append(play_.totals()["chunk_bytes"])
        totals = play_.totals()
        assert max(held) <= budget
        assert resident_bytes() - before < budget
        assert totals["compacted_bytes_total"] > 0
        assert totals["evicted_budget_total"] + totals["evicted_slow_total"] == 0
        assert totals["full"] >= 1_000
