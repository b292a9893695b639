"""Rows 1-13 of the fault table (8 belongs to the login): requests that are not what a WebSocket client sends."""

from __future__ import annotations

import asyncio
import base64
import logging
import os

import pytest
import uvloop

from starlight.config.settings import Settings
from starlight.server.node import Node
from tests.support.fakes import eventually
from tests.support.raw_client import KEY, RawClient, message, request, stage

WIRES = ("ws", "wss")
WS_ONLY = {
    "test_13_garbage_and_tls_on_the_plain_port_are_closed_with_one_line_of_log": "a plain port; test_tls has the other",
}
LOOPS = {"uvloop": uvloop.new_event_loop}  # as in production

LONG = "x" * 4_000
REFUSED = {
    "1 POST": (request(method="POST"), b"400"),
    "1 HEAD": (request(method="HEAD"), b"405"),
    "1 HTTP/1.0": (request(version="HTTP/1.0"), b"400"),
    "1 HTTP/2.0": (request(version="HTTP/2.0"), b"400"),
    "1 a request line of two words": (b"GET /ws\r\nHost: x\r\n\r\n", b"400"),
    "1 another path": (request(target="/other"), b"404"),
    "1 a plain GET": (request(drop=("upgrade", "connection")), b"426"),
    "1 Upgrade: h2c": (request("Upgrade: h2c", drop=("upgrade",)), b"426"),
    "1 Connection: close": (request("Connection: close", drop=("connection",)), b"400"),
    "2 no Host": (request(drop=("host",)), b"400"),
    "2 two Hosts": (request("Host: y"), b"400"),
    "4 version 8": (request("Sec-WebSocket-Version: 8", drop=("sec-websocket-version",)), b"426"),
    "4 version 12": (request("Sec-WebSocket-Version: 12", drop=("sec-websocket-version",)), b"426"),
    "4 version \\xff": (request("Sec-WebSocket-Version: \xff", drop=("sec-websocket-version",)), b"426"),
    "4 no version": (request(drop=("sec-websocket-version",)), b"426"),
    "4 two versions": (request("Sec-WebSocket-Version: 8"), b"426"),
    "5 no key": (request(drop=("sec-websocket-key",)), b"400"),
    "5 a short key": (request("Sec-WebSocket-Key: AAAA", drop=("sec-websocket-key",)), b"400"),
    "5 a key of 17 bytes": (
        request(f"Sec-WebSocket-Key: {base64.b64encode(bytes(17)).decode()}", drop=("sec-websocket-key",)),
        b"400",
    ),
    "5 a key that is not base64": (request("Sec-WebSocket-Key: " + "\xff" * 24, drop=("sec-websocket-key",)), b"400"),
    "5 two keys": (request(f"Sec-WebSocket-Key: {KEY}"), b"400"),
    "6 129 headers": (request(*(f"X-{i}: y" for i in range(124))), b"431"),
    "6 over 16 KiB in five headers": (request(*(f"X-{i}: {LONG}" for i in range(5))), b"431"),
    "6 over 16 KiB without an end": (b"GET /ws HTTP/1.1\r\nX: " + b"x" * 20_000, b"431"),
    "7 LF in the subprotocol": (request(protocols="starlight.v1\nX: evil"), b"400"),
    "7 CR in the subprotocol": (request(protocols="starlight.v1\rX: evil"), b"400"),
    "7 NUL in the subprotocol": (request(protocols="starlight.v1\0evil"), b"400"),
    "7 LF in a value": (request("X: a\nSec-WebSocket-Protocol: evil"), b"400"),
    "7 CR in a value": (request("X: a\rSec-WebSocket-Protocol: evil"), b"400"),
    "7 NUL in a value": (request("X: a\0"), b"400"),
    "7 a header without a colon": (request("evil"), b"400"),
    "7 a folded header": (request("X: a", " evil"), b"400"),
    "7 only unknown subprotocols": (request(protocols="evil, starlight.v2, STARLIGHT.V1"), b"400"),
    "7 an empty subprotocol": (request("Sec-WebSocket-Protocol: "), b"400"),
    "10 a body": (request("Content-Length: 4") + b"evil", b"400"),
    "10 a large body": (request("Content-Length: 200000") + b"evil" * 50_000, b"400"),
    "10 a chunked body": (request("Transfer-Encoding: chunked") + b"4\r\nevil\r\n0\r\n\r\n", b"400"),
    "10 two lengths": (request("Content-Length: 0", "Content-Length: 0"), b"400"),
    "12 a token in the query": (request(target="/ws?token=evil"), b"400"),
    "13 garbage with an end": (b"\x00\xff evil \r\n\r\n", b"400"),
}


async def answer(client: RawClient) -> bytes:
    """All that comes until the end, which must not be a reset: that might destroy it."""
    data = b""
    while some := await client.receive():
        data += some
    return data


async def test_refused_requests_get_their_status_and_nothing_of_them_comes_back():
    async with stage() as on_stage:
        for name, (wire, status) in REFUSED.items():
            client = await on_stage.connect()
            await client.send(wire)
            told = await answer(client)
            assert told.startswith(b"HTTP/1.1 " + status + b" "), f"{name}: {told!r}"
            assert b"evil" not in told and LONG.encode() not in told, f"{name}: {told!r}"
            assert told.count(b"HTTP/1.1") == 1
            if status == b"426" and name.startswith("4"):
                assert b"Sec-WebSocket-Version: 13\r\n" in told
            client.close()
        await on_stage.alone()


async def test_refused_requests_in_packets_of_one_byte():
    async with stage() as on_stage:
        for name, (wire, status) in REFUSED.items():
            if len(wire) < 300:
                client = await on_stage.connect()
                for i in range(len(wire)):
                    await client.send(wire[i : i + 1])
                    await asyncio.sleep(0)
                told = await answer(client)
                assert told.startswith(b"HTTP/1.1 " + status + b" "), f"{name}: {told!r}"
                client.close()
        await on_stage.alone()


@pytest.mark.parametrize(
    "connection", ["keep-alive, Upgrade", "Upgrade, keep-alive", "upgrade", "keep-alive,UPGRADE ,x"]
)
async def test_3_connection_may_name_more_than_upgrade(connection: str):
    async with stage() as on_stage:
        client = await on_stage.connect()
        await client.send(request(f"Connection: {connection}", drop=("connection",)))
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")
        await client.send(message("login", user="fox"))
        assert (await client.hear())["type"] == "welcome"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("", b""),
        ("starlight.v1", b"starlight.v1"),
        ("evil, starlight.v1.lines, starlight.v1", b"starlight.v1.lines"),
        ("starlight.v1,starlight.v1.lines", b"starlight.v1"),
        ("starlight.v1\r\nX: evil", b"starlight.v1"),
        ("evil\r\nSec-WebSocket-Protocol: starlight.v1", b"starlight.v1"),
    ],
)
async def test_7_the_first_offer_that_we_know_is_chosen_and_no_other_is_reflected(offered: str, chosen: bytes):
    async with stage() as on_stage:
        client = await on_stage.connect()
        await client.send(request(protocols=offered))
        head = await client.head()
        assert b"evil" not in head
        lines = [line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-protocol:")]
        assert lines == ([b"Sec-WebSocket-Protocol: " + chosen] if chosen else [])


async def test_9_a_slow_loris_is_closed_at_the_handshake_timeout():
    """However many bytes it sends: the request would be whole after 7 s."""
    assert Settings().handshake_timeout_s == 5
    async with stage(handshake_timeout_s=0.3) as on_stage:
        silent, slow = await on_stage.connect(), await on_stage.connect()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for byte in request():
                await slow.send(bytes((byte,)))
                await asyncio.sleep(0.05)
        assert await silent.receive() == b""
        await on_stage.alone()


async def test_11_the_first_frame_in_the_packet_of_the_handshake_is_processed_once():
    async with stage() as on_stage:
        client = await on_stage.connect()
        await client.send(request() + message("login", user="eager") + message("direct", to="eager", data=1, id=1))
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")
        heard = [await client.hear() for _ in range(3)]
        assert [told["type"] for told in heard] == ["welcome", "direct", "ok"]
        await client.say("ping")
        assert (await client.hear())["type"] == "pong"
        # and with half of a frame in it
        half = message("login", user="half")
        other = await on_stage.connect()
        await other.send(request() + half[:20])
        await other.head()
        await other.send(half[20:])
        assert (await other.hear())["type"] == "welcome"


async def test_12_a_query_is_never_logged(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG):
        async with stage() as on_stage:
            for target in ("/ws?token=s3cret", "/s3cret", "/ws?s3cret"):
                client = await on_stage.connect()
                await client.send(request(target=target))
                await answer(client)
                client.close()
            await on_stage.alone()
    assert "s3cret" not in caplog.text


async def test_13_garbage_and_tls_on_the_plain_port_are_closed_with_one_line_of_log(caplog: pytest.LogCaptureFixture):
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(506)
    with caplog.at_level(logging.INFO, "starlight"):
        async with stage(handshake_timeout_s=0.2) as on_stage:
            began_s = asyncio.get_running_loop().time()
            clients = [await on_stage.connect() for _ in range(40)]
            for i, client in enumerate(clients):
                await client.send(hello if i % 2 else os.urandom(1_000).replace(b"\r", b"") + b"\r\n\r\n")
            for client in clients:
                told = await answer(client)
                assert told == b"" or told.startswith(b"HTTP/1.1 400 ")
            await on_stage.alone()
            await eventually(lambda: sum(told_of(caplog)) == 40)
            took_s = asyncio.get_running_loop().time() - began_s
    assert len(told_of(caplog)) <= took_s + 1, "more than a line a second"


def told_of(caplog: pytest.LogCaptureFixture) -> list[int]:
    """How many failed handshakes each line of the log tells of."""
    lines = [record.getMessage() for record in caplog.records]
    return [int(line.split()[0]) for line in lines if " handshakes failed: " in line]


async def test_a_client_that_goes_away_during_the_handshake_leaves_nothing():
    async with stage() as on_stage:
        for cut in (0, 1, 30, len(request())):
            for leave in (RawClient.close, RawClient.reset, RawClient.half_close):
                client = await on_stage.connect()
                await client.send(request()[:cut])
                leave(client)
        await on_stage.alone()


async def test_more_connections_than_allowed_are_refused_and_the_others_stay():
    async with stage(max_connections=3) as on_stage:
        first, second = await on_stage.login("a"), await on_stage.connect()
        with pytest.raises((ConnectionResetError, BrokenPipeError, AssertionError)):
            third = await on_stage.connect()
            await third.send(request())
            await third.head()
        second.close()
        await eventually(lambda: on_stage.node.connections == 2)
        again = await on_stage.login("b")
        await again.say("direct", to="a", data="in")
        assert (await first.hear())["data"] == "in"


async def test_a_drain_does_not_wait_for_those_in_the_handshake():
    loop = asyncio.get_running_loop()
    node = Node(Settings(port=0, drain_timeout_s=30, handshake_timeout_s=60))
    await node.start()
    silent = await RawClient.connect(node.port)
    await eventually(lambda: node.connections == 1)
    started_s = loop.time()
    await node.drain()
    assert loop.time() - started_s < 5
    assert node.connections == 0
    silent.close()
