"""starlight.core.wire through the connection: headers, and the UTF-8 check against Python's decoder at every split."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
import uvloop

from starlight._fanout import Core
from starlight.config.settings import Settings
from starlight.net.connection import Endpoint
from tests.support.fakes import is_utf8
from tests.support.raw_client import BINARY, CLOSE, CONTINUATION, TEXT, RawClient, close_frame, frame

LOOPS = {"uvloop": uvloop.new_event_loop}  # as in production


class Echo:
    """An acceptor that sends every message back, as the conformance server does: the whole frame path and no hub."""

    def __init__(self, core: Core, server: asyncio.Server) -> None:
        self.core = core
        self.port: int = server.sockets[0].getsockname()[1]

    async def client(self) -> RawClient:
        return await RawClient.upgraded(self.port)


@pytest.fixture
async def echo():
    loop = asyncio.get_running_loop()
    core = Core()
    core.bind(loop)
    settings = Settings(port=0, path="/ws", read_limit_bytes=1 << 20)
    acceptor = Endpoint(core, None, settings, echoes=True, fragments_limit=1_000)
    server = await loop.create_server(acceptor.protocol, "127.0.0.1", 0)
    acceptor.start()
    yield Echo(core, server)
    server.close()
    acceptor.stop()
    await asyncio.sleep(0.01)
    assert acceptor.connections == 0
    core.unbind()


def splits(text: bytes, at: tuple[int, ...]) -> bytes:
    """A text message in fragments cut at these places."""
    pieces = [text[i:j] for i, j in zip((0, *at), (*at, len(text)), strict=True)]
    last = len(pieces) - 1
    return b"".join(frame(TEXT if i == 0 else CONTINUATION, piece, fin=i == last) for i, piece in enumerate(pieces))


class Checker:
    """Sends texts over one connection for as long as they are valid; a new one behind each that is not."""

    def __init__(self, echo: Echo) -> None:
        self.echo = echo
        self.client: RawClient | None = None

    async def valid(self, wires: list[tuple[bytes, bytes]]) -> None:
        """Each wire comes back as its text."""
        client = self.client = self.client or await self.echo.client()
        for some in itertools.batched(wires, 200) if hasattr(itertools, "batched") else chunks(wires, 200):
            await client.send(b"".join(wire for wire, _ in some))
            for _, text in some:
                assert await client.next_frame() == (TEXT, text)

    async def invalid(self, wire: bytes) -> None:
        client = await self.echo.client()
        await client.send(wire)
        frames, end = await client.to_the_end()
        assert (frames, end) == ([(CLOSE, (1007).to_bytes(2, "big") + b"text is not UTF-8")], "eof"), wire
        client.close()


def chunks(items: list[tuple[bytes, bytes]], size: int) -> list[list[tuple[bytes, bytes]]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


EDGES = [
    *("\0", "\x7f", "\x80", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff"),
    *("aé€🦊", "ascii only, and more than eight bytes", "12345678é", "1234567é", "é12345678"),
]
BAD = [
    b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc2", b"\xc2\x7f", b"\xc2\xc0", b"\xe0\x80\x80", b"\xe0\x9f\xbf",
    b"\xe1\x80",
    b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xef\xbf\xc0", b"\xf0\x80\x80\x80", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80", b"\xff", b"\xfe", b"\xf0\x9f\xa6", b"\xf0\x9f\xa6\x28", b"\xe2\x28\xa1",
]  # fmt: skip


async def test_valid_texts_at_every_split_into_two_and_three_fragments(echo: Echo):
    checker = Checker(echo)
    wires = []
    for text in (edge.encode() for edge in EDGES):
        places = range(len(text) + 1)
        for at in [(), *((i,) for i in places), *itertools.combinations_with_replacement(places, 2)]:
            wires.append((splits(text, at), text))
    await checker.valid(wires)


async def test_invalid_texts_at_every_split(echo: Echo):
    checker = Checker(echo)
    for bad in BAD:
        for text in (bad, b"12345678" + bad + b"x"):
            assert not is_utf8(text)
            places = range(len(text) + 1) if text == bad else (4, 8, 9, len(text) - 1)
            for at in [(), *((i,) for i in places)]:
                await checker.invalid(splits(text, at))


async def test_random_bytes_get_pythons_verdict(echo: Echo):
    checker = Checker(echo)
    chance = random.Random(7)
    pieces = [edge.encode() for edge in EDGES] + BAD
    valid = []
    for _ in range(1_500):
        text = b"".join(chance.choice(pieces[: len(EDGES)]) for _ in range(chance.randrange(6)))
        if chance.random() < 0.25:
            text = text[: chance.randrange(len(text) + 1)] + chance.choice(BAD)[: chance.randrange(1, 5)]
        at = tuple(sorted(chance.randrange(len(text) + 1) for _ in range(chance.randrange(4))))
        if is_utf8(text):
            valid.append((splits(text, at), text))
        else:
            await checker.invalid(splits(text, at))
    assert 800 < len(valid) < 1_400
    await checker.valid(valid)


async def test_every_length_gets_the_shortest_header_and_every_payload_comes_back_unmasked(echo: Echo):
    client = await echo.client()
    chance = random.Random(1)
    sizes = [*range(260), 4_095, 4_096, *range(65_530, 65_540), 200_000, 1 << 20]
    for size in sizes:
        payload = chance.randbytes(size)
        await client.send(frame(BINARY, payload, mask=chance.randbytes(4)) if size < 5_000 else frame(BINARY, payload))
        while len(client.rest) < size:
            client.rest += await client.receive(1 << 20)
        wanted = b"\x82\x7f" + size.to_bytes(8, "big")
        if size < 65_536:
            wanted = bytes((0x82, size)) if size < 126 else b"\x82\x7e" + size.to_bytes(2, "big")
        while len(client.rest) < len(wanted) + size:
            client.rest += await client.receive(1 << 20)
        assert client.rest == wanted + payload
        client.rest = b""
    await client.send(close_frame(1001, b"bye"))
    assert await client.close_code() == 1001
