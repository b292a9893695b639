"""Rows 24 and 57-64 of the fault table: what networks and kernels do to connections. (59 is in test_connection, 65 in
test_faults_process.)
"""

from __future__ import annotations

import array
import asyncio
import errno
import json
import random
import time
from typing import Any

import pytest
import uvloop

from tests.support.fakes import eventually
from tests.support.raw_client import CLOSE, TEXT, RawClient, header, message, stage, vanish
from tests.support.server_process import server_process
from tests.support.witness import witness

WIRES = ("ws", "wss")
WS_ONLY = {
    "test_57_without_file_descriptors_clients_live_on_and_it_goes_on_when_there_are_some": "nobody answers who knocks",
    "test_63_whatever_the_kernel_takes_of_each_write_the_streams_are_intact": "the core itself writes only without TLS",
    "test_63_a_broken_write_ends_the_connection_and_nothing_follows": "the core itself writes only without TLS",
    "test_24_frames_in_packets_of_one_byte_on_many_connections_take_little_memory": "one byte is a record of 23",
}
LOOPS = {"uvloop": uvloop.new_event_loop}  # as in production


async def hear_numbers(client: RawClient, upto: int) -> list[int]:
    """The data of publications until this number."""
    numbers: list[int] = []
    while not numbers or numbers[-1] < upto:
        told = await client.hear()
        if told["type"] == "publication":
            numbers.append(told["data"])
    return numbers


async def test_57_without_file_descriptors_clients_live_on_and_it_goes_on_when_there_are_some():
    async with server_process(files=120) as server, witness(server.port):
        ann = await RawClient.login(server.port, "ann")
        assert (await server.ask("eat"))["eaten"] > 10
        idle_s = (await server.ask("cpu"))["cpu_s"]
        knocking = []
        for _ in range(30):
            knocking.append(await RawClient.connect(server.port))
            await ann.say("direct", to="ann", data=1, id=1)
            assert [(await ann.hear())["type"] for _ in range(2)] == ["direct", "ok"]
        await asyncio.sleep(1)
        status = await server.ask("cpu")
        assert status["connections"] == 2
        assert status["cpu_s"] - idle_s < 0.6  # a busy loop would take more than the second
        await server.ask("spit")
        deadline_s = time.monotonic() + 10
        while True:
            try:
                bob = await RawClient.login(server.port, "bob")
                break
            except (OSError, AssertionError):
                assert time.monotonic() < deadline_s, "it never accepted again"
                await asyncio.sleep(0.1)
        await bob.say("direct", to="ann", data="back")
        assert (await ann.hear())["data"] == "back"
        for client in [ann, bob, *knocking]:
            client.close()


async def test_58_resets_inside_of_frames_in_both_directions(wire: str):
    # over TLS on uvloop a reset right behind data is not told to the protocol: the next ping finds it
    pings = {"ping_interval_s": 0.5, "pong_timeout_s": 0.5} if wire == "wss" else {}
    async with stage(send_buffer_bytes=4096, **pings) as on_stage:
        for cut in (1, 2, 5, 6, 50):
            client = await on_stage.login()
            await client.send(message("broadcast", data="x" * 100)[:cut])
            client.reset()
        for _ in range(10):
            client = await on_stage.login(receive_buffer_bytes=4096)
            await client.ask("join", channel="c")
            on_stage.node.hub.push_to_channel("c", b'"' + b"x" * 100_000 + b'"')
            await asyncio.sleep(0)
            client.reset()
            on_stage.node.hub.push_to_channel("c", b'"' + b"x" * 100_000 + b'"')
        await on_stage.alone()


async def test_60_a_peer_that_vanishes_is_removed_by_ping_and_pong_timeout():
    """Its kernel acknowledges nothing any more: neither the ping, nor the close frame, nor what was under way."""
    async with stage(ping_interval_s=0.3, pong_timeout_s=0.3, send_buffer_bytes=4096, write_timeout_s=60) as on_stage:
        idle, talking = await on_stage.login("idle"), await on_stage.login("talking")
        owed = await on_stage.login("owed", receive_buffer_bytes=4096)
        stranger = await on_stage.upgraded()
        await talking.send(message("broadcast", data="x" * 100)[:50])
        on_stage.node.hub.push_to_user("owed", b'"' + b"x" * 500_000 + b'"')
        for client in (idle, talking, owed):
            vanish(client.sock)
        await eventually(lambda: on_stage.node.hub.counters()["clients"] == 1, 20)
        await eventually(lambda: on_stage.node.connections == 2, 20)
        counts = on_stage.node.acceptor.counts
        assert counts.closed[4012] == 3
        stranger.close()


async def test_61_a_thousand_killed_during_a_broadcast():
    async with server_process() as server:
        survivors = [await RawClient.login(server.port, f"s{i}") for i in range(20)]
        victims = [await RawClient.login(server.port, f"v{i}") for i in range(1_000)]
        for client in survivors + victims:
            await client.say("join", channel="storm")
        for client in survivors:
            await client.ask("ping")
        await server.until(memberships=2 * 1_020)  # everyone, and the channel
        heard = [asyncio.create_task(hear_numbers(client, 999)) for client in survivors]
        await server.ask("storm")
        await asyncio.sleep(0.05)
        for i, client in enumerate(victims):
            client.reset() if i % 2 else client.close()
        for numbers in await asyncio.gather(*heard):
            assert numbers == list(range(1_000))
        status = await server.until(subscribers=20)
        assert status["connections"] == 20 and status["evicted_slow_total"] == 0
        for client in survivors:
            client.close()


async def test_62_a_reader_of_a_kilobyte_a_second_is_evicted_and_nobody_else():
    async with stage(send_buffer_bytes=4096, evict_after_s=0.1) as on_stage:
        slow = await on_stage.login("slow", receive_buffer_bytes=4096)
        fast = await on_stage.login("fast")
        for client in (slow, fast):
            await client.ask("join", channel="c")
        n_messages = 600
        hearing = asyncio.create_task(hear_numbers(fast, n_messages - 1))
        reading = asyncio.create_task(read_slowly(slow))
        for i in range(n_messages):
            on_stage.node.hub.push_to_channel("c", b"%d" % i + b" " * 500)
            await asyncio.sleep(0.0005)
        assert await hearing == list(range(n_messages))
        await eventually(lambda: len(list(on_stage.node.hub.clients())) == 2)
        reading.cancel()
        await asyncio.wait([reading])
        frames, _ = await slow.to_the_end()
        assert frames[-1] == (CLOSE, (4008).to_bytes(2, "big") + b"slow consumer")


async def read_slowly(client: RawClient) -> None:
    while True:
        client.rest += await client.receive(20)
        await asyncio.sleep(0.02)


def script(chance: random.Random, n: int) -> bytes:
    """What the kernel takes of each write to come: mostly a little, often nothing."""
    entries: list[int] = []
    for _ in range(n):
        refused = chance.choice([0, -errno.EAGAIN, -errno.ENOBUFS, -errno.EINTR])
        entries.append(chance.choice([refused, refused, 1, 2, 3, chance.randrange(1, 60), chance.randrange(1, 900)]))
    return array.array("i", entries).tobytes()


@pytest.mark.parametrize("protocols", ["", "starlight.v1.lines"])
@pytest.mark.parametrize("seed", range(3))
async def test_63_whatever_the_kernel_takes_of_each_write_the_streams_are_intact(protocols: str, seed: int):
    async with stage(evict_after_s=30, write_timeout_s=60) as on_stage:
        clients = [await on_stage.login(f"u{i}", protocols=protocols) for i in range(3)]
        for client in clients:
            await client.ask("join", channel="c")
        on_stage.node.core.script_sends(script(random.Random(seed), 4_000))
        wanted: list[Any] = []
        for i in range(400):
            data = {"n": i, "x": "y" * (i % 70)}
            on_stage.node.hub.push_to_channel("c", json.dumps(data).encode())
            wanted.append(data)
            if i % 7 == 0:
                on_stage.node.hub.push_to_user("u1", b"%d" % i)
            if i % 3 == 0:
                await asyncio.sleep(0)
        for client in clients:
            assert await hear_data(client, 400) == wanted
        assert on_stage.counters()["short_sends_total"] > 100


@pytest.mark.parametrize("protocols", ["", "starlight.v1.lines"])
async def test_63_a_write_may_be_cut_at_every_byte(protocols: str, wire: str):
    """The same outbox of a direct and two publications, with the first write cut at each place."""
    async with stage(evict_after_s=30, write_timeout_s=60) as on_stage:
        client = await on_stage.login("cut", protocols=protocols)
        await client.ask("join", channel="c")
        hub, core = on_stage.node.hub, on_stage.node.core
        whole: list[Any] = []
        for taken in range(400):
            core.flush()
            hub.push_to_user("cut", b'"direct"')
            hub.push_to_channel("c", b'"' + b"x" * 200 + b'"')
            hub.push_to_channel("c", b"%d" % taken)
            core.script_sends(array.array("i", [-errno.EINTR, taken, -errno.EAGAIN]).tobytes())
            core.flush()
            core.script_sends(b"")
            heard: list[Any] = []
            while not heard or heard[-1] != taken:
                opcode, payload = await client.next_frame()
                assert opcode == TEXT
                heard += [json.loads(line)["data"] for line in payload.split(b"\n")]
            whole = heard[:-1]
            assert whole == ["direct", "x" * 200]
        assert wire == "wss" or on_stage.counters()["short_sends_total"] >= 200
        assert not client.rest


async def hear_data(client: RawClient, n: int) -> list[Any]:
    """The data of so many publications, in either subprotocol."""
    heard: list[Any] = []
    while len(heard) < n:
        opcode, payload = await client.next_frame()
        assert opcode == TEXT
        messages = [json.loads(line) for line in payload.split(b"\n")]
        heard += [told["data"] for told in messages if told["type"] == "publication"]
    return heard


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.EBADF])
@pytest.mark.parametrize("before", [0, 1, 10])
async def test_63_a_broken_write_ends_the_connection_and_nothing_follows(number: int, before: int):
    async with stage() as on_stage:
        client = await on_stage.login("torn")
        on_stage.node.core.flush()
        on_stage.node.core.script_sends(array.array("i", [before, -number] if before else [-number]).tobytes())
        on_stage.node.hub.push_to_user("torn", b'"' + b"x" * 1_000 + b'"')
        on_stage.node.core.flush()
        frames, _ = await client.to_the_end()
        assert frames == [] and len(client.rest) == before
        client.close()
        await on_stage.alone()


async def test_64_descriptors_used_again_never_carry_anothers_messages():
    """Each connection takes the lowest descriptor, which has just been another's; the long form is by hand."""
    async with stage() as on_stage:
        stop = False

        async def tell_everyone() -> None:
            while not stop:
                for client in list(on_stage.node.hub.clients()):
                    if client.user != "witness":
                        on_stage.node.hub.push_to_user(client.user, json.dumps(client.user).encode())
                await asyncio.sleep(0)

        telling = asyncio.create_task(tell_everyone())
        for i in range(400):
            client = await RawClient.login(on_stage.port, f"u{i}")
            for _ in range(5):
                assert (await client.hear())["data"] == f"u{i}"
            (client.reset, client.close)[i % 2]()
        stop = True
        await telling
        await on_stage.alone()


async def test_the_parts_of_a_frame_may_come_one_by_one():
    async with stage() as on_stage:
        client = await on_stage.login()
        text = b'{"type":"ping","id":1}'
        for part in (header(TEXT, len(text))[:3], header(TEXT, len(text))[3:], text[:5]):
            await client.send(part)
            await asyncio.sleep(0.1)
        await client.send(text[5:])
        assert (await client.hear())["id"] == 1


@pytest.mark.parametrize("who", ["clients", "strangers"])
async def test_24_frames_in_packets_of_one_byte_on_many_connections_take_little_memory(who: str):
    async with server_process(login_timeout_s=60) as server, witness(server.port):
        open_one = RawClient.login if who == "clients" else RawClient.upgraded
        clients = [await open_one(server.port) for _ in range(1_000)]
        wire = message("ping", id="x") if who == "clients" else message("login", user="late")
        before = (await server.ask("memory"))["resident_bytes"]
        for byte in wire:
            for client in clients:
                client.sock.send(bytes((byte,)))
            await asyncio.sleep(0)
        for client in clients:
            assert (await client.hear())["type"] == ("pong" if who == "clients" else "welcome")
        assert (await server.ask("memory"))["resident_bytes"] - before < 16 << 20
        for client in clients:
            client.close()
