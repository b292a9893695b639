"""net.connection: whole messages out of frames, one after the other; every way to end. On both kinds of loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import pytest
import uvloop
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK

from starlight.channels.client import Client
from starlight.config.settings import Settings
from starlight.errors import CloseConnection
from starlight.server.node import Node
from tests.support.fakes import IS_SANITIZED, eventually
from tests.support.raw_client import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    close_frame,
    frame,
    header,
    message,
    request,
    resident_bytes,
    socket_of,
    stage,
)
from tests.support.wire_client import WireClient

WIRES = ("ws", "wss")
WS_ONLY = {
    "test_a_peer_that_says_eof_behind_its_close_still_gets_all": "TLS has no EOF in one direction",
    "test_a_reset_is_a_clean_removal": "on uvloop a reset behind data is found by the next ping: test_58 plays it",
}
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
on_uvloop = pytest.mark.asyncio(loop_factories=["uvloop"])  # for what takes more than a second
SUBPROTOCOLS = ["", "starlight.v1", "starlight.v1.lines"]


class Gate:
    """An application whose `slow` handler waits until the gate opens; `steps` is what was handled, in order."""

    def __init__(self, settings: Settings) -> None:
        self.open = asyncio.Event()
        self.steps: list[Any] = []
        self.left: list[str] = []
        self.node = Node(settings)
        handlers = self.node.handlers

        @handlers.on("slow")
        async def slow(client: Client, data: Any) -> Any:
            await self.open.wait()
            self.steps.append(data)
            return data

        @handlers.on("fast")
        def fast(client: Client, data: Any) -> Any:
            self.steps.append(data)
            return data

        @handlers.on("end")
        def end(client: Client, data: Any) -> None:
            client.connection.close(4503)

        @handlers.on("raise_end")
        async def raise_end(client: Client, data: Any) -> None:
            raise CloseConnection(4503)

        @handlers.on("cancel")
        async def cancel(client: Client, data: Any) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        @handlers.on_disconnect
        def left(client: Client) -> None:
            self.left.append(client.user)


gates: list[Gate] = []


def gated(settings: Settings) -> Node:
    gates.append(Gate(settings))
    return gates[-1].node


# --- messages out of frames ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocols", SUBPROTOCOLS)
async def test_every_subprotocol_carries_the_same_messages(protocols: str):
    async with stage() as on_stage:
        heard: list[dict[str, Any]] = []
        options = {"subprotocols": protocols.split(",")} if protocols else {}
        async with connect(on_stage.node.url, compression=None, **options) as client:  # type: ignore[arg-type]
            assert client.subprotocol == (protocols or None)
            await client.send(json.dumps({"type": "login", "user": "ann", "id": 0}))
            await client.send(json.dumps({"type": "join", "channel": "c", "id": 1}))
            for i in range(300):
                await client.send(json.dumps({"type": "publish", "channel": "c", "data": {"n": i, "text": "é" * i}}))
                await client.send(json.dumps({"type": "direct", "to": "ann", "data": i}))
            await client.send(json.dumps({"type": "ping", "id": "end"}))
            while not heard or heard[-1].get("id") != "end":
                frame_text = await asyncio.wait_for(client.recv(), 5)
                assert isinstance(frame_text, str)
                heard += map(json.loads, frame_text.split("\n") if "lines" in protocols else [frame_text])
        assert [told["type"] for told in heard[:2]] == ["welcome", "ok"]
        wanted: list[Any] = []
        for i in range(300):
            wanted += [{"n": i, "text": "é" * i}, i]
        assert [told["data"] for told in heard[2:-1]] == wanted


async def test_a_message_may_come_in_any_fragments_with_control_frames_between():
    async with stage() as on_stage:
        client = await on_stage.login()
        text = json.dumps({"type": "direct", "to": "raw", "data": "x" * 1_000}).encode()
        for size in (1, 7, 100, 1_000, 5_000):
            if len(text) // size > 60:
                size = len(text) // 60 + 1
            pieces = [text[i : i + size] for i in range(0, len(text), size)]
            for i, piece in enumerate(pieces):
                await client.send(frame(CONTINUATION if i else TEXT, piece, fin=i == len(pieces) - 1))
                await client.send(frame(PING, b"%d" % i))
            pongs, told = 0, None
            while told is None or pongs == 0:
                opcode, payload = await client.next_frame()
                if opcode == PONG:
                    pongs += 1
                else:
                    told = json.loads(payload)
            assert told["data"] == "x" * 1_000
            client.rest = b""
            await client.ask("ping")


@pytest.mark.parametrize("n_pieces", [1, 2, 63])
async def test_the_read_limit_holds_for_the_whole_message(n_pieces: int):
    async with stage(read_limit_bytes=4096) as on_stage:
        client = await on_stage.login()
        for size, fits in ((4096, True), (4097, False)):
            start = b'{"type":"ping","x":"'
            text = start + b"x" * (size - len(start) - 2) + b'"}'
            step = -(-len(text) // n_pieces)
            pieces = [text[i : i + step] for i in range(0, len(text), step)]
            wire = [
                frame(CONTINUATION if i else TEXT, piece, fin=i == len(pieces) - 1) for i, piece in enumerate(pieces)
            ]
            await client.send(b"".join(wire))
            if fits:
                assert (await client.hear())["type"] == "pong"
            else:
                assert await client.close_code() == 1009


async def test_before_the_login_a_message_has_16_kib_at_most():
    async with stage() as on_stage:
        for size, fits in ((16_384, True), (16_385, False)):
            client = await on_stage.upgraded()
            start = b'{"type":"login","user":"u","x":"'
            await client.send(frame(TEXT, start + b"x" * (size - len(start) - 2) + b'"}'))
            if fits:
                assert (await client.hear())["type"] == "welcome"
            else:
                assert await client.close_code() == 1009
        parts = await on_stage.upgraded()
        await parts.send(frame(TEXT, b" " * 10_000, fin=False) + frame(CONTINUATION, b" " * 10_000, fin=False))
        assert await parts.close_code() == 1009


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1_400])
async def test_packets_may_be_cut_anywhere(size: int):
    async with stage() as on_stage:
        client = await on_stage.connect()
        wire = (
            request() + message("login", user="cut") + message("direct", to="cut", data="y" * 300) + close_frame(1000)
        )
        for i in range(0, len(wire), size):
            await client.send(wire[i : i + size])
            await asyncio.sleep(0)
        await client.head()
        frames, end = await client.to_the_end()
        assert [opcode for opcode, _ in frames] == [TEXT, TEXT, CLOSE] and end == "eof"


# --- control frames --------------------------------------------------------------------------------------------------


async def test_a_ping_is_answered_with_its_payload_also_before_the_login():
    async with stage() as on_stage:
        client = await on_stage.upgraded()
        for payload in (b"", b"x", bytes(range(125))):
            await client.send(frame(PING, payload, mask=b"mask"))
            assert await client.next_frame() == (PONG, payload)


async def test_of_pings_in_one_packet_the_last_one_is_answered():
    async with stage() as on_stage:
        client = await on_stage.login()
        await client.send(b"".join(frame(PING, b"%d" % i) for i in range(50)))
        pongs = [await client.next_frame()]
        while pongs[-1] != (PONG, b"49"):
            pongs.append(await client.next_frame())
        assert sum(2 + len(payload) for _, payload in pongs) <= 3 * 127  # the room of one for each read of the server's


async def test_a_few_pings_in_one_packet_are_all_answered_in_order():
    async with stage() as on_stage:
        client = await on_stage.login()
        await client.send(b"".join(frame(PING, b"payload-%d" % i) for i in range(10)))
        assert [await client.next_frame() for _ in range(10)] == [(PONG, b"payload-%d" % i) for i in range(10)]


# --- the close handshake ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999])
async def test_the_peers_close_is_answered_with_its_code_and_then_eof(code: int):
    async with stage() as on_stage:
        client = await on_stage.login()
        await client.send(close_frame(code, "Zoë".encode()))
        assert await client.close_code() == code
        client.close()
        await on_stage.alone()


async def test_an_empty_close_is_answered_with_1000():
    async with stage() as on_stage:
        for client in (await on_stage.login(), await on_stage.upgraded()):
            await client.send(close_frame())
            assert await client.close_code() == 1000
            client.close()
        await on_stage.alone()


async def test_a_client_of_others_closes_in_good_order():
    async with stage() as on_stage:
        client = await WireClient.login(on_stage.node.url, "ws")
        await asyncio.wait_for(client.socket.close(1000, "done"), 3)
        with pytest.raises(ConnectionClosedOK) as end:
            await client.socket.recv()
        assert end.value.rcvd is not None and end.value.rcvd.code == 1000


async def test_our_close_comes_behind_all_that_was_sent_and_a_bye():
    gates.clear()
    async with stage(node=gated) as on_stage:
        client = await on_stage.login()
        await client.send(message("direct", to="raw", data=1) + message("end") + message("direct", to="raw", data=2))
        frames, end = await client.to_the_end()
        told = [json.loads(payload) for opcode, payload in frames if opcode == TEXT]
        assert [(item["type"], item.get("data")) for item in told] == [("direct", 1), ("bye", None)]
        assert told[1]["code"] == 4503
        assert frames[-1] == (CLOSE, (4503).to_bytes(2, "big") + b"disconnected by the operator")
        assert end == "eof"
        assert gates[0].left == ["raw"]


@on_uvloop
async def test_a_peer_that_ignores_our_close_is_cut_off_a_second_later():
    gates.clear()
    async with stage(node=gated) as on_stage:
        client = await on_stage.login()
        await client.send(message("end"))
        assert (await client.to_the_end())[1] == "eof"
        assert on_stage.node.connections == 2
        started_s = asyncio.get_running_loop().time()
        with pytest.raises(OSError):
            while asyncio.get_running_loop().time() - started_s < 6:
                await client.send(b"\xff" * 10_000)  # nobody parses it
                await asyncio.sleep(0.01)
        await on_stage.alone()


async def test_a_peer_that_says_eof_behind_its_close_still_gets_all():
    """Half-closed at once, with more to come than the kernel takes: what is left is written, then the close frame."""
    async with stage(send_buffer_bytes=4096, outbox_bytes=1 << 24) as on_stage:
        client = await on_stage.login(receive_buffer_bytes=4096)
        on_stage.node.hub.push_to_user("raw", b'"' + b"x" * 2_000_000 + b'"')
        await asyncio.sleep(0.1)
        await client.send(close_frame(1000))
        client.half_close()
        await asyncio.sleep(0.1)
        assert on_stage.node.hub.counters()["clients"] == 1  # it has left the hub
        frames, end = await client.to_the_end()
        assert [opcode for opcode, _ in frames] == [TEXT, CLOSE] and end == "eof"
        assert len(frames[0][1]) > 2_000_000
        client.close()
        await on_stage.alone()


@on_uvloop
async def test_a_slow_reader_gets_all_that_was_in_its_outbox_before_our_close():
    """Slower than the second that a peer has for its own close: it is the writing that has the write timeout."""
    gates.clear()
    async with stage(send_buffer_bytes=4096, outbox_bytes=1 << 24, node=gated) as on_stage:
        client = await on_stage.login(receive_buffer_bytes=4096)
        on_stage.node.hub.push_to_user("raw", b'"' + b"x" * 500_000 + b'"')
        await client.send(message("end"))
        await asyncio.sleep(1.2)
        frames, end = await client.to_the_end()
        assert [opcode for opcode, _ in frames] == [TEXT, TEXT, CLOSE] and end == "eof"
        client.close()
        await on_stage.alone()


@on_uvloop
async def test_a_peer_that_never_reads_cannot_stay_in_the_close():
    gates.clear()
    async with stage(send_buffer_bytes=4096, outbox_bytes=1 << 24, write_timeout_s=0.4, node=gated) as on_stage:
        client = await on_stage.login(receive_buffer_bytes=4096)
        on_stage.node.hub.push_to_user("raw", b'"' + b"x" * 2_000_000 + b'"')
        await client.send(message("end"))
        await on_stage.alone()
        frames, end = await client.to_the_end()
        assert (frames, end) == ([], "reset")


async def test_59_a_half_close_is_a_clean_removal():
    async with stage() as on_stage:
        for client in (await on_stage.login(), await on_stage.upgraded(), await on_stage.connect()):
            client.half_close()
            assert (await client.to_the_end()) == ([], "eof")
        await on_stage.alone()


async def test_a_reset_is_a_clean_removal():
    async with stage() as on_stage:
        for client in (await on_stage.login(), await on_stage.upgraded(), await on_stage.connect()):
            await client.send(b"\x81")
            client.reset()
        await on_stage.alone()


async def test_close_may_be_called_in_any_state_and_twice():
    gates.clear()
    async with stage(node=gated) as on_stage:
        client = await on_stage.login()
        (found,) = [found for found in on_stage.node.hub.clients() if found.user == "raw"]
        connection: Any = found.connection
        assert connection.is_open and connection.peername[0] == "127.0.0.1"
        client.half_close()  # the transport closes in the turn in which we close
        client.sock.close()
        for _ in range(20):
            connection.close(4503)
            connection.abort()
            connection.close(1000)
            await asyncio.sleep(0)
        await eventually(lambda: connection.peername is None)
        connection.close(4503)
        connection.abort()
        connection.on_evicted("slow", 0, 0, 0)
        assert not connection.is_open
        await on_stage.alone()
        assert gates[0].left == ["raw"]


async def test_both_sides_close_promptly():
    async with stage(node=gated) as on_stage:
        started_s = asyncio.get_running_loop().time()
        for _ in range(6):
            ours, theirs = [await WireClient.login(on_stage.node.url, user) for user in ("ours", "theirs")]
            await ours.socket.close(1000)
            await theirs.say("end")
            assert (await theirs.closed())[0] == 4503
            await theirs.socket.wait_closed()
            await on_stage.alone()
        assert asyncio.get_running_loop().time() - started_s < 6 or IS_SANITIZED  # each linger would be a second


# --- handlers: one after the other -----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocols", ["", "starlight.v1.lines"])
async def test_while_an_async_handler_runs_later_messages_wait_in_order(protocols: str):
    gates.clear()
    async with stage(node=gated) as on_stage:
        client = await on_stage.login(protocols=protocols)
        texts = [json.dumps({"type": "slow" if i % 5 == 0 else "fast", "data": i}) for i in range(40)]
        await client.send(frame(TEXT, "\n".join(texts).encode()) if protocols else b"".join(
            frame(TEXT, text.encode()) for text in texts))  # fmt: skip
        await client.send(frame(PING, b"between"))
        assert await client.next_frame() == (PONG, b"between")
        assert gates[0].steps == []
        gates[0].open.set()
        await eventually(lambda: len(gates[0].steps) == 40)
        assert gates[0].steps == list(range(40))


async def test_what_was_received_before_a_pause_is_handled_after_it_without_another_byte_of_the_peer():
    gates.clear()
    async with stage(node=gated) as on_stage:
        client = await on_stage.login()
        total = 300  # more than may wait, and than a read takes: TLS holds the rest
        await client.send(b"".join(message("slow" if i == 0 else "fast", data=i) for i in range(total)))
        await client.send(frame(PING, b"seen"))
        await eventually(lambda: any(one.is_paused for one in gates[0].node.core.owners()))
        gates[0].open.set()
        await eventually(lambda: len(gates[0].steps) == total)
        assert gates[0].steps == list(range(total))
        assert await client.next_frame() == (PONG, b"seen")


@on_uvloop
async def test_reading_pauses_when_too_much_waits_and_the_pong_deadline_with_it():
    gates.clear()
    async with stage(node=gated, ping_interval_s=0.1, pong_timeout_s=0.8) as on_stage:
        client = await on_stage.login()
        sent, total = 0, 600

        async def send_all() -> None:
            nonlocal sent
            for i in range(total):
                await client.send(message("slow" if i == 0 else "fast", data=i, padding="x" * 30_000))
                sent = i + 1
            await client.send(frame(PONG))

        sending = asyncio.create_task(send_all())
        await eventually(lambda: sent > 20)
        await asyncio.sleep(1.5)  # beyond the pong deadline
        before = sent
        await asyncio.sleep(0.2)
        assert sent == before < total  # the kernel's buffers are full: nobody reads
        gates[0].open.set()
        await asyncio.wait_for(sending, 10)
        await eventually(lambda: len(gates[0].steps) == total)
        assert gates[0].steps == list(range(total))
        assert await client.next_frame() == (PING, b"")


async def test_messages_before_a_close_are_handled_though_a_handler_was_still_busy():
    gates.clear()
    async with stage(node=gated) as on_stage:
        client = await on_stage.login()
        await client.send(message("slow", data=0) + message("fast", data=1) + message("slow", data=2))
        await client.send(close_frame(1000) + message("fast", data=3))
        await asyncio.sleep(0.1)
        assert gates[0].steps == [] and on_stage.node.connections == 2
        gates[0].open.set()
        assert await client.close_code() == 1000
        assert gates[0].steps == [0, 1, 2]


async def test_a_client_that_goes_while_its_handler_runs_leaves_once_the_handler_is_done():
    gates.clear()
    async with stage(node=gated) as on_stage:
        client = await on_stage.login()
        await client.send(message("slow", data=0) + message("fast", data=1))
        await asyncio.sleep(0.05)
        client.reset()
        await on_stage.alone()
        assert gates[0].left == []
        gates[0].open.set()
        await eventually(lambda: gates[0].left == ["raw"])
        assert gates[0].steps == [0]


@pytest.mark.parametrize("type", ["end", "raise_end"])
@pytest.mark.parametrize("protocols", ["", "starlight.v1.lines"])
async def test_nothing_behind_a_close_by_a_handler_is_handled(type: str, protocols: str):
    gates.clear()
    async with stage(node=gated) as on_stage:
        client = await on_stage.login(protocols=protocols)
        texts = [json.dumps({"type": kind, "data": kind}).encode() for kind in ("fast", type, "fast", "slow", "fast")]
        await client.send(frame(TEXT, b"\n".join(texts)) if protocols else b"".join(frame(TEXT, t) for t in texts))
        assert await client.close_code() == 4503
        await asyncio.sleep(0.05)
        assert gates[0].steps == ["fast"] and gates[0].left == ["raw"]


async def test_a_handler_whose_task_is_cancelled_does_not_leave_the_connection_stuck():
    gates.clear()
    async with stage(node=gated) as on_stage:
        client = await on_stage.login()
        await client.send(message("cancel") + message("fast", data=1))
        assert await client.close_code() == 1011
        assert gates[0].steps == []
        client.close()
        await on_stage.alone()


async def test_what_a_stranger_sends_while_its_login_is_checked_waits_and_is_bounded():
    opened = asyncio.Event()

    def slow_login(settings: Settings) -> Node:
        node = Node(settings)

        @node.handlers.on_login
        async def check(client: Client, login: Any) -> None:
            if client.user != "witness":
                await opened.wait()

        return node

    async with stage(node=slow_login) as on_stage:
        client = await on_stage.upgraded()
        await client.send(message("login", user="slow") + message("ping", id=1) + message("ping", id=2))
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for _ in range(1_000):
                await client.send(message("ping", padding="x" * 10_000))
                sent += 1

        flooding = asyncio.create_task(flood())
        await asyncio.sleep(0.3)
        before = sent
        await asyncio.sleep(0.1)
        assert sent == before < 1_000
        opened.set()
        assert [(await client.hear()).get("id") for _ in range(3)] == [None, 1, 2]
        flooding.cancel()
        await asyncio.wait([flooding])


# --- the socket ------------------------------------------------------------------------------------------------------


async def test_the_send_buffer_is_set():
    async with stage(send_buffer_bytes=20_000) as on_stage:
        await on_stage.login()
        mine = on_stage.clients[-1].sock.getsockname()
        assert socket_of(mine).getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 40_000  # the kernel doubles it


@on_uvloop
async def test_a_flood_does_not_make_the_read_buffers_grow():
    """A read that fills picows' buffer doubles it, whatever is in it; only a large frame may do that here."""
    async with stage() as on_stage:
        clients = [await on_stage.login(f"u{i}") for i in range(20)]
        flood = frame(PONG, b"x" * 100) * 20_000  # 2 MB, more than a receive buffer
        before = resident_bytes()
        for client in clients:
            await client.send(flood)
            assert (await client.ask("ping"))["type"] == "pong"
        assert resident_bytes() - before < 20 * 128 * 1024 + 4 * 1024 * 1024


@on_uvloop
@pytest.mark.parametrize("end", [frame(3, b""), close_frame(1000), b"\x81\x00"])
async def test_what_floods_a_closing_connection_is_thrown_away(end: bytes):
    async with stage() as on_stage:
        client = await on_stage.login()
        before = resident_bytes()
        await client.send(end)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 32 << 20:
                await client.send(header(TEXT, 2**40) + b"x" * 1_000_000)
                sent += 1_000_000
        assert sent > 4 << 20
        assert resident_bytes() - before < 4 << 20


@pytest.mark.parametrize(
    "data",
    [
        request()[:-2] + b"X: " + b"x" * 15_000,
        request() + frame(TEXT, b" " * 16_384)[:-1],
        request() + frame(TEXT, b" " * 8_000, fin=False) + frame(CONTINUATION, b" " * 8_384)[:-1],
    ],
    ids=["half a request", "half a message", "half a fragment behind another"],
)
async def test_a_stranger_can_make_us_hold_64_kib_at_most(data: bytes):
    async with stage() as on_stage:
        strangers = [await on_stage.connect() for _ in range(200)]
        before = resident_bytes()
        for client in strangers:
            await client.send(data)
        await eventually(lambda: on_stage.node.connections == len(strangers) + 1)
        await asyncio.sleep(0.2)
        assert (resident_bytes() - before) / len(strangers) < 56 * 1024


async def test_a_stranger_that_sends_more_than_a_login_takes_is_closed():
    async with stage() as on_stage:
        for wire in (frame(TEXT, b" " * 65_000)[:-1], frame(PING, b"x" * 100) * 600):
            client = await on_stage.upgraded()
            await client.send(wire)
            assert await client.close_code() == 1009
