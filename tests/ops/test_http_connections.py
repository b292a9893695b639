"""starlight.ops.http_connections: a full internal port takes nothing from others, and every request has an end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from starlight.ops.http_connections import HEAD_S, IDLE_S, REQUEST_S, WRITING_S, HttpConnections
from tests.support.fakes import eventually
from tests.support.inside import KEY, Inside, inside
from tests.support.raw_client import RawClient

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
LIMIT = 8
ASKING = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few connections, so that few fill the port."""
    monkeypatch.setattr("starlight.ops.http.internal_connections", lambda open_files: LIMIT)


class Skew:
    """How far the clock of the port is ahead, in seconds."""

    s = 0.0


@pytest.fixture
def skew(monkeypatch: pytest.MonkeyPatch) -> Iterator[Skew]:
    made = Skew()
    monkeypatch.setattr(HttpConnections, "now_s", lambda self: asyncio.get_running_loop().time() + made.s)
    yield made


async def connect(on: Inside, *, receive_buffer_bytes: int = 0) -> RawClient:
    """A connection to the internal port."""
    return await RawClient.connect(on.port.port, receive_buffer_bytes=receive_buffer_bytes)


async def all_of(client: RawClient) -> bytes:
    """All that comes until the end, whichever that is."""
    data = b""
    try:
        while some := await client.receive():
            data += some
    except ConnectionError:
        pass
    return data


async def asks(client: RawClient) -> bool:
    """Whether a request on this connection is answered with 200."""
    await client.send(ASKING)
    answered = await client.head()
    while len(client.rest) < len(b'{"ready":true}'):
        client.rest += await client.receive()
    client.rest = b""
    return answered.startswith(b"HTTP/1.1 200 ")


def held(on: Inside) -> int:
    """Connections that the port has."""
    assert on.port._connections is not None
    return len(on.port._connections)


async def test_idle_sockets_keep_nobody_out(tmp_path: Path):
    async with inside(tmp_path) as on:
        faithful = await connect(on)
        assert await asks(faithful)
        idle = []
        for _ in range(5 * LIMIT):
            idle.append(await connect(on))
            await eventually(lambda: held(on) <= LIMIT)
        assert await asks(await connect(on)), "a new one makes room for itself"
        assert await asks(faithful), "who has asked before goes behind those that never did"
        assert (await on.login("ann")) is not None
        for client in idle:
            client.close()


async def test_of_those_that_come_in_one_turn_the_first_make_room(tmp_path: Path):
    async with inside(tmp_path) as on:
        clients = []
        for _ in range(2 * LIMIT):  # without a turn between them
            sock = socket.create_connection(("127.0.0.1", on.port.port))
            sock.setblocking(False)
            clients.append(RawClient(sock))
        for client in clients[-LIMIT:]:
            assert await asks(client)
        for client in clients[:LIMIT]:
            assert await all_of(client) == b""
            client.close()


@pytest.mark.parametrize(
    "begun", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", b"G", ASKING], ids=["idle", "slow", "byte", "keep"]
)
async def test_whatever_sockets_do_before_a_request_is_whole_they_make_room(tmp_path: Path, begun: bytes):
    async with inside(tmp_path) as on:
        clients = []
        for _ in range(3 * LIMIT):
            client = await connect(on)
            clients.append(client)
            try:
                await client.send(begun)
                if begun == ASKING:
                    await client.head()
            except (ConnectionError, AssertionError):
                continue
        await eventually(lambda: held(on) <= LIMIT)
        assert await asks(await connect(on))
        for client in clients:
            client.close()
        await eventually(lambda: held(on) <= 1)


async def test_requests_that_are_under_way_are_not_thrown_out_for_a_new_one(tmp_path: Path):
    head = f"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 24\r\n\r\n"
    async with inside(tmp_path) as on:
        asking = [await connect(on) for _ in range(LIMIT)]
        for client in asking:
            await client.send(head.encode() + b'{"channel":"c",')
        await eventually(lambda: on.port._under_way == LIMIT)
        assert await all_of(await connect(on)) == b""
        for client in asking:
            await client.send(b'"data":1}')
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("drip", [b"", b"GET /healthz HTTP/1.1\r\nX: ", b"\r\n"])
async def test_a_head_has_its_time_however_it_drips(tmp_path: Path, skew: Skew, drip: bytes):
    async with inside(tmp_path) as on:
        client = await connect(on)
        await client.send(drip)
        await eventually(lambda: held(on) == 1)
        skew.s = HEAD_S - 2
        await client.send(drip[-1:])
        assert held(on) == 1
        skew.s = HEAD_S + 1
        assert await all_of(client) == b""
        assert held(on) == 0


async def test_a_connection_may_be_kept_for_a_while(tmp_path: Path, skew: Skew):
    async with inside(tmp_path) as on:
        client = await connect(on)
        for _ in range(3):
            assert await asks(client)
            skew.s += IDLE_S - 5
            await asyncio.sleep(0)
        assert await asks(client)
        skew.s += IDLE_S + 1
        assert await all_of(client) == b""


async def test_a_body_has_its_time(tmp_path: Path, skew: Skew, caplog: pytest.LogCaptureFixture):
    async with inside(tmp_path) as on:
        client = await connect(on)
        head = f"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        await client.send(head.encode() + b"Content-Length: 1000\r\n\r\n{")
        await eventually(lambda: on.port._under_way == 1)
        skew.s = REQUEST_S + 1
        assert await all_of(client) == b""
        await eventually(lambda: on.port._under_way == 0)
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_reader_of_nothing_has_its_time_and_makes_room_before(tmp_path: Path, skew: Skew):
    async with inside(tmp_path) as on:
        connections = on.port._connections
        assert connections is not None
        stalled = [await connect(on, receive_buffer_bytes=4096) for _ in range(LIMIT)]
        for client in stalled:  # far more answers than the kernel holds
            await client.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        await eventually(lambda: all(connection.writing_bytes for connection in connections._open))
        skew.s = WRITING_S + 1
        assert await asks(await connect(on))
        skew.s = REQUEST_S + WRITING_S + 2
        await eventually(lambda: not any(connection.writing_bytes for connection in connections._open))
        for client in stalled:
            client.close()


@pytest.mark.parametrize("length", ["Content-Length: 4000000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("key", [None, KEY])
async def test_a_body_that_is_refused_is_not_read_on(tmp_path: Path, length: str, key: str | None):
    """Without the key it is refused by its head; with it where it passes the limit."""
    given = f"Authorization: Bearer {key}\r\n" if key else ""
    async with inside(tmp_path) as on:
        client = await connect(on)
        await client.send(f"POST /api/publish HTTP/1.1\r\nHost: localhost\r\n{given}{length}\r\n\r\n".encode())
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n" if "chunked" in length else b"x" * 65_536
        sent = 0
        try:
            while sent < 64 << 20:
                async with asyncio.timeout(8):
                    await client.loop.sock_sendall(client.sock, chunk)
                sent += len(chunk)
        except (ConnectionError, TimeoutError):
            pass
        assert sent < 16 << 20, "no more than the limit and what the kernel holds"
        client.close()
        await eventually(lambda: held(on) == 0)


async def test_the_refusal_of_a_body_arrives(tmp_path: Path):
    async with inside(tmp_path) as on:
        client = await connect(on)
        await client.send(
            b"POST /api/drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40000\r\n\r\n" + b"x" * 20_000
        )
        told = await all_of(client)
        assert told.startswith(b"HTTP/1.1 401 ") and b"\r\nConnection: close\r\n" in told
        assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"] == 401
        client.half_close()
        await eventually(lambda: held(on) == 0)


async def test_a_client_that_waits_to_be_asked_for_its_body_is_told_first(tmp_path: Path):
    head = "POST /api/channels HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
    async with inside(tmp_path) as on:
        client = await connect(on)
        await client.send(f"{head}\r\n".encode())
        assert (await client.head()).startswith(b"HTTP/1.1 401 ")
        client = await connect(on)
        await client.send(f"{head}Authorization: Bearer {KEY}\r\n\r\n".encode())
        assert await client.head() == b"HTTP/1.1 100 Continue"
        await client.send(b"{}")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


# --- errors are ours -------------------------------------------------------------------------------------------------

DRAIN = b"POST /api/drain HTTP/1.1\r\nHost: localhost\r\n"
WRONG = {
    "a method": b"S3CRET /varz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no method": b"s3cret\r\n\r\n",
    "a version": b"GET /varz S3CRET/1.1\r\nHost: localhost\r\n\r\n",
    "a target": b"GET s3cret\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a header": b"GET /varz HTTP/1.1\r\nHost: localhost\r\ns3cret\r\n\r\n",
    "a name": b"GET /varz HTTP/1.1\r\nHost: localhost\r\ns3 cret: s3cret\r\n\r\n",
    "a value": b"GET /varz HTTP/1.1\r\nHost: localhost\r\nX: s3cret\x00\r\n\r\n",
    "a long line": b"GET /s3cret" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a long header": b"GET /varz HTTP/1.1\r\nHost: localhost\r\nX: s3cret" + b"x" * 99_000 + b"\r\n\r\n",
    "many headers": b"GET /varz HTTP/1.1\r\nHost: localhost\r\n" + b"X: s3cret\r\n" * 9_000 + b"\r\n",
    "a length": b"POST /api/drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: s3cret\r\n\r\n",
    "two lengths": DRAIN + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\ns3cret",
    "both lengths": DRAIN + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a coding": b"POST /api/drain HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: s3cret\r\n\r\n",
    "a chunk": f"POST /api/drain HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    "Transfer-Encoding: chunked\r\n\r\ns3cret\r\n".encode(),
    "gzip": f"POST /api/drain HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    "Content-Encoding: gzip\r\nContent-Length: 6\r\n\r\ns3cret".encode(),
    "an expectation": b"POST /api/drain HTTP/1.1\r\nHost: localhost\r\nExpect: s3cret\r\n\r\n",
    "one elsewhere": b"GET /varz HTTP/1.1\r\nHost: localhost\r\nExpect: s3cret\r\n\r\n",
    "a path": b"GET /s3cret HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a known path": b"S3CRET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a query": b"GET /connz?sort=s3cret HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a host": b"GET /varz HTTP/1.1\r\nHost: s3cret\r\n\r\n",
    "no host": b"GET /varz HTTP/1.1\r\nX: s3cret\r\n\r\n",
    "garbage": b"\x16\x03\x01s3cret\xff\xfe\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
async def test_every_error_is_ours_and_quotes_nothing(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture):
    async with inside(tmp_path) as on:
        client = await connect(on)
        with contextlib.suppress(ConnectionError):  # it may be refused before all of it was sent
            await client.send(WRONG[name])
        head = await client.head()
        (length,) = re.findall(rb"\r\nContent-Length: (\d+)", head)
        while len(client.rest) < int(length):
            client.rest += await client.receive()
        client.close()
        told, status = head + client.rest, int(head.split()[1])
        assert 400 <= status < 500, told
        error = json.loads(client.rest)["error"]
        assert error["code"] == status and error["message"]
        for word in (b"s3cret", b"aiohttp", b"python", b"traceback", KEY.encode()):
            assert word not in told.lower()
        assert b"\r\nServer: starlight\r\n" in head + b"\r\n"
        assert b"\r\nX-Content-Type-Options: nosniff" in head
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/varz", "/connz", "/metrics", "/openapi.json", "/none"])
async def test_head_is_get_without_the_body(tmp_path: Path, path: str):
    async with inside(tmp_path) as on, on.http.get(path) as got, on.http.head(path) as headed:
        assert headed.status == got.status == (404 if path == "/none" else 200)
        assert await headed.read() == b""
        assert headed.headers["Content-Type"] == got.headers["Content-Type"]
        assert headed.headers["Server"] == got.headers["Server"] == "starlight"
