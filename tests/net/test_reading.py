"""How much a client may make a node do: what its meter counts, its share of a turn, and what deadlines forgive."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from starlight.auth.limits import PAUSE_S
from starlight.channels.client import Client
from starlight.channels.handlers import Handlers
from starlight.server.node import Node
from starlight.session.session import Session
from tests.support.fakes import eventually
from tests.support.raw_client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawClient,
    Stage,
    close_frame,
    frame,
    message,
    stage,
)
from tests.support.server_process import server_process
from tests.support.wire_client import WireClient

WIRES = ("ws", "wss")
LOOPS = {"uvloop": uvloop.new_event_loop}  # as in production
WS_ONLY = {
    "test_30_one_clients_messages_do_not_keep_the_others_waiting": "what a socket holds is what was written to it",
    "test_30_messages_that_ask_for_much_do_not_keep_the_others_waiting": "a socket holds what was written to it",
    "test_who_publishes_waits_while_the_node_is_behind_with_writing_that_out": "it is about the core's own writing",
    "test_68_our_own_work_stops_no_deadline_and_sockets_are_read_before_they_are_judged": "it has a process of its own",
}
LINES = "starlight.v1.lines"

BRACKETS = b'{"type":"publish","channel":"c","data":[' + b"[]," * 20_000 + b"1]}"
FLOODS = {
    "empty lines": (LINES, frame(TEXT, b"\n" * 65_000)),
    "empty lines of Windows": (LINES, frame(TEXT, b"\r\n" * 32_000)),
    "a line among empty ones": (LINES, frame(TEXT, b"\n" * 60_000 + b'{"type":"ping"}')),
    "empty frames of lines": (LINES, frame(TEXT) * 1_000),
    "short lines": (LINES, frame(TEXT, b'{"type":"ping"}\n' * 4_000)),
    "messages": ("", message("ping") * 1_000),
    "one byte at a time": ("", frame(TEXT, b"1") * 1_000),
    "brackets": ("", frame(TEXT, BRACKETS)),
    "pings": ("", frame(PING) * 1_000),
    "pings in full": ("", frame(PING, b"x" * 125) * 500),
    "pongs": ("", frame(PONG) * 1_000),
    "fragments of a byte": (
        "",
        frame(TEXT, b" ", fin=False) + frame(CONTINUATION, b" ", fin=False) * 50 + frame(CONTINUATION, b"1"),
    ),
    "empty fragments": ("", frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 40 + frame(CONTINUATION)),
}
"""By name: the subprotocol, and what is sent again and again."""


async def flood(client: RawClient, data: bytes) -> None:
    """Send it until the other side has enough."""
    with contextlib.suppress(OSError):
        for _ in range(100_000):
            await client.send(data)


async def ends_with(on_stage: Stage, subprotocol: str, data: bytes) -> int:
    """Flood as a client that reads; the close code."""
    client = await on_stage.login("flood", subprotocol)
    flooding = asyncio.create_task(flood(client, data))
    try:
        frames, _ = await client.to_the_end()
    finally:
        flooding.cancel()
        await asyncio.wait([flooding])
        client.close()
    closes = [payload for opcode, payload in frames if opcode == CLOSE]
    return int.from_bytes(closes[0][:2], "big") if closes else 0


async def test_55_whatever_a_client_floods_with_it_is_slowed_and_ended_with_4013():
    """All kinds at once; the witness hears everything meanwhile."""
    async with stage(message_rate=2, byte_rate_bytes="64KiB") as on_stage:
        started_s = asyncio.get_running_loop().time()
        codes = await asyncio.gather(*(ends_with(on_stage, *kind) for kind in FLOODS.values()))
        assert dict(zip(FLOODS, codes, strict=True)) == dict.fromkeys(FLOODS, 4013)
        assert asyncio.get_running_loop().time() - started_s > PAUSE_S  # not at once: reading stopped before


async def test_55_bytes_that_make_no_message_yet_count_as_well():
    """Most of a large message, which comes slowly: when it is whole, its client has sent enough."""
    async with stage(byte_rate_bytes="1KiB", read_limit_bytes="64KiB") as on_stage:
        client = await on_stage.login()
        text = json.dumps({"type": "ping", "id": "large", "x": "x" * 60_000}).encode()
        large = frame(TEXT, text)
        for _ in range(2):  # the burst is twice the read limit
            await client.send(large)
            assert (await client.hear())["type"] == "pong"
        for start in range(0, len(large), 1_000):
            await client.send(large[start : start + 1_000])
        assert (await client.hear())["code"] == 111


async def test_55_what_is_no_request_gets_no_answer_beyond_the_rate():
    """Pings get no pong, and nobody is told 111 for an empty line; requests are told, with their id."""
    async with stage(message_rate=1) as on_stage:
        client = await on_stage.login("flood", LINES)
        await client.send(frame(PING, b"1") + frame(PING, b"2") + frame(PING, b"3"))
        await client.send(frame(TEXT, b'\n\n\n\n{"type":"ping","id":"asked"}\n'))
        frames = []
        while not frames or frames[-1][0] != TEXT:
            frames.append(await client.next_frame())
        assert [payload for opcode, payload in frames if opcode == PONG] in ([b"1", b"2"], [b"2"])
        told = [json.loads(payload) for opcode, payload in frames if opcode == TEXT]
        assert [(answer["id"], answer["code"]) for answer in told] == [("asked", 111)]


async def test_55_the_pong_that_is_owed_is_free():
    """A client that has used up its rate, and is not read for it, isn't ended for the pong that is behind that."""
    async with stage(message_rate=1, ping_interval_s=0.5, pong_timeout_s=2) as on_stage:
        client = await on_stage.login()
        while (await client.next_frame())[0] != PING:
            pass
        await client.send(message("ping") * 30 + frame(PONG))
        pings = 0
        while pings < 2:
            opcode, payload = await client.next_frame()
            assert opcode != CLOSE, payload
            if opcode == PING:
                pings += 1
                await client.send(frame(PONG))


async def test_55_a_strangers_flood_waits_while_its_login_is_checked():
    handlers, may_enter = Handlers(), asyncio.Event()

    @handlers.on_login
    async def check(client: Client, login: dict[str, Any]) -> None:
        if client.user != "witness":
            await may_enter.wait()

    async with stage(node=lambda settings: Node(settings, handlers=handlers)) as on_stage:
        client = await on_stage.upgraded()
        flooding = asyncio.create_task(client.send(message("login", user="ann") + frame(PING, b"x" * 100) * 10_000))
        await eventually(lambda: any(owner.is_paused for owner in connections(on_stage)))
        may_enter.set()
        assert (await client.hear())["type"] == "welcome"
        assert await client.ask("ping") is not None
        await flooding


def connections(on_stage: Stage) -> list[Session]:
    return [owner for owner in on_stage.node.core.owners() if isinstance(owner, Session)]


# --- a share of each turn ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subprotocol", ["", LINES])
async def test_30_one_clients_messages_do_not_keep_the_others_waiting(subprotocol: str):
    """Both have something to read at the same moment; the one that comes second has much less of it."""
    heard: list[str] = []
    handlers = Handlers()

    @handlers.on("mark")
    def mark(client: Client, data: Any) -> None:
        heard.append(client.user)

    async with stage(node=lambda settings: Node(settings, handlers=handlers)) as on_stage:
        many, one = await on_stage.login("many", subprotocol), await on_stage.login("one")
        text, n_many = b'{"type":"mark"}', 3_900
        data = frame(TEXT, b"\n".join([text] * n_many)) if subprotocol else frame(TEXT, text) * n_many
        assert many.sock.send(data) == len(data)  # nothing of the node runs between the two
        one.sock.send(frame(TEXT, text))
        await eventually(lambda: len(heard) == n_many + 1)
        assert heard.index("one") < n_many - 1_000


def join_of_many(n: int = 256) -> bytes:
    """A small message that asks for much."""
    return message("join", channels=[{"channel": f"c{number}"} for number in range(n)])


async def test_30_messages_that_ask_for_much_do_not_keep_the_others_waiting():
    """By their size, all of them are within the share of one turn; by their time, they are many turns' worth."""
    heard: list[str] = []
    handlers = Handlers()

    @handlers.on("mark")
    def mark(client: Client, data: Any) -> None:
        heard.append(client.user)

    async with stage(node=lambda settings: Node(settings, handlers=handlers)) as on_stage:
        many, one = await on_stage.login("many"), await on_stage.login("one")
        n_many = 60
        data = (join_of_many() + message("mark")) * n_many
        assert many.sock.send(data) == len(data)  # nothing of the node runs between the two
        one.sock.send(message("mark"))
        await eventually(lambda: len(heard) == n_many + 1)
        assert heard.index("one") < n_many - 20


async def test_clients_whose_messages_ask_for_much_take_turns():
    """However many of them there are, a turn has room for few of their messages."""
    heard: list[str] = []
    handlers = Handlers()

    @handlers.on("mark")
    def mark(client: Client, data: Any) -> None:
        heard.append(client.user)

    async with stage(node=lambda settings: Node(settings, handlers=handlers)) as on_stage:
        many = [await on_stage.login(f"many{number}") for number in range(20)]
        one = await on_stage.login("one")
        flooding = [asyncio.create_task(flood(client, join_of_many() + message("mark"))) for client in many]
        await eventually(lambda: len(heard) > 5 * len(many))
        between = []
        for _ in range(30):
            before = len(heard)
            await one.ask("ping")
            between.append(len(heard) - before)
        for task in flooding:
            task.cancel()
        await asyncio.wait(flooding)
        assert sorted(between)[len(between) // 2] < len(many)
        for client in (*many, one):
            client.reset()
        await on_stage.alone()


async def test_who_publishes_waits_while_the_node_is_behind_with_writing_that_out():
    """A flood of large publications to many: between two of its messages all the others are served."""
    async with stage() as on_stage:
        loop = asyncio.get_running_loop()
        members = [await on_stage.login(f"member{number}") for number in range(120)]
        for member in members:
            assert (await member.ask("join", channel="large"))["type"] == "ok"
            loop.add_reader(member.sock, discard, member)
        many, one = await on_stage.login("many"), await on_stage.login("one")
        flooding = asyncio.create_task(flood(many, message("publish", channel="large", data="x" * 50_000)))
        await eventually(lambda: on_stage.counters()["publications_total"] > 100)
        between = []
        for _ in range(30):
            before = on_stage.counters()["sent_bytes_total"]
            await one.ask("ping")
            between.append(on_stage.counters()["sent_bytes_total"] - before)
        flooding.cancel()
        await asyncio.wait([flooding])
        for member in members:
            loop.remove_reader(member.sock)
        assert sorted(between)[len(between) // 2] < 32 << 20
        assert on_stage.counters()["evicted_slow_total"] == 0
        for client in (*members, many, one):
            client.reset()
        await on_stage.alone()


def discard(client: RawClient) -> None:
    """Read what is there, whatever it is."""
    with contextlib.suppress(OSError):
        client.sock.recv(1 << 20)


ASKED = 3_000
"""Pings at once: three turns of one client."""


def in_frames(subprotocol: str, rng: random.Random) -> bytes:
    """Pings with their number, each in a frame, or many in each, with empty lines between them."""
    texts = [b'{"type":"ping","id":%d}' % number for number in range(ASKED)]
    if not subprotocol:
        return b"".join(frame(TEXT, text) for text in texts)
    data, i = b"", 0
    while i < ASKED:
        n = rng.choice((1, 1, 2, 5, 500, 1_500))
        separator = rng.choice((b"\n", b"\r\n", b"\n\n", b"\n\r\n\n"))
        end = rng.choice((b"", b"\n", b"\r\n\n"))
        data += frame(TEXT, separator.join(texts[i : i + n]) + end)
        i += n
    return data


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (close_frame(1000), 1000),
        (frame(BINARY, b"x"), 1003),
        (frame(TEXT, b"\xff"), 1007),
        (frame(3), 1002),
        (frame(TEXT, b"x", rsv=4), 1002),
        (frame(TEXT, b"x" * 70_000), 1009),
    ],
    ids=["close", "binary", "no UTF-8", "no opcode", "a reserved bit", "too large"],
)
@pytest.mark.parametrize("subprotocol", ["", LINES])
async def test_29_all_that_stands_before_the_end_is_answered_in_order(subprotocol: str, end: bytes, code: int):
    """However many turns it takes."""
    async with stage() as on_stage:
        client = await on_stage.login("raw", subprotocol)
        sending = asyncio.create_task(client.send(in_frames(subprotocol, random.Random(code)) + end + message("ping")))
        frames, _ = await client.to_the_end()
        await asyncio.wait([sending])
        told = b"\n".join(payload for opcode, payload in frames if opcode == TEXT)
        answers = [json.loads(line) for line in told.split(b"\n")]
        assert [answer["id"] for answer in answers if answer["type"] == "pong"] == list(range(ASKED))
        assert int.from_bytes(frames[-1][1][:2], "big") == code


@pytest.mark.parametrize("subprotocol", ["", LINES])
async def test_lines_and_messages_wait_for_a_handler_in_order(subprotocol: str):
    """Every tenth message has an async handler; what is behind it waits, and reading goes on after it."""
    handlers = Handlers()

    @handlers.on("later")
    async def later(client: Client, data: Any) -> Any:
        await asyncio.sleep(0)
        return data

    async with stage(node=lambda settings: Node(settings, handlers=handlers)) as on_stage:
        client = await on_stage.login("raw", subprotocol)
        texts = [
            b'{"type":"%b","id":%d}' % (b"later" if number % 10 == 0 else b"ping", number) for number in range(2_000)
        ]
        frames = [frame(TEXT, b"\n".join(texts[i : i + 100])) for i in range(0, 2_000, 100)]
        data = b"".join(frames) if subprotocol else b"".join(frame(TEXT, text) for text in texts)
        sending = asyncio.create_task(client.send(data))
        told: list[int] = []
        while len(told) < 2_000:
            _, payload = await client.next_frame()
            told += [json.loads(line)["id"] for line in payload.split(b"\n")]
        await sending
        assert told == list(range(2_000))


async def test_ten_who_flood_without_a_rate_share_the_turns_and_all_are_answered():
    async with stage() as on_stage:
        clients = [await on_stage.login(f"u{number}") for number in range(10)]

        async def play(client: RawClient) -> list[Any]:
            data = b"".join(message("ping", id=number) for number in range(2_000))
            _, told = await asyncio.gather(client.send(data), hear(client, 2_000))
            return told

        for told in await asyncio.gather(*map(play, clients)):
            assert told == list(range(2_000))


async def hear(client: RawClient, messages: int) -> list[Any]:
    return [(await client.hear())["id"] for _ in range(messages)]


async def test_a_flood_that_is_paused_ends_with_its_connection():
    """Whichever way it ends while it waits for its turn or for its rate."""
    ends: list[Callable[[RawClient], Any]] = [RawClient.reset, RawClient.close]
    async with stage(message_rate=50) as on_stage:
        for number in range(20):
            client = await on_stage.login(f"u{number}", LINES)
            flooding = asyncio.create_task(flood(client, frame(TEXT, b'{"type":"ping"}\n' * 3_000)))
            await eventually(lambda: any(owner.is_paused for owner in connections(on_stage)))
            flooding.cancel()
            await asyncio.wait([flooding])
            ends[number % 2](client)
        await on_stage.alone()


# --- only time in which the process did not run is forgiven -----------------------------------------------------------


async def test_68_our_own_work_stops_no_deadline_and_sockets_are_read_before_they_are_judged():
    """Turns longer than the pong timeout: who is silent goes, and who answers stays, though its pong waited."""
    async with server_process(application=True, ping_interval_s=0.5, pong_timeout_s=1) as server:
        url = f"ws://127.0.0.1:{server.port}/ws"
        silent = await RawClient.login(server.port, "silent")
        honest, working = await WireClient.login(url, "honest"), await WireClient.login(url, "working")
        for _ in range(8):
            assert (await working.ask("burn", data=1.2))["type"] == "ok"
            if (await server.ask("status"))["clients"] < 3:
                break
        assert (await server.ask("status")).get("closed_4012") == 1
        assert (await honest.ask("ping"))["type"] == "pong"
        assert await silent.close_code() == 4012
        silent.close()
        for client in (honest, working):
            await client.close()
