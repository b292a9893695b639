"""starlight.net.refusals on a real node: why a handshake was refused stands in log and metrics; and health routes."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from starlight.config.settings import Settings
from starlight.net.refusals import CAUSES, SUMMARY_S, TELL_AGAIN_S, Refusals
from starlight.ops.metrics import exposition, make_registry
from starlight.ops.stats import Stats
from tests.support.fakes import eventually
from tests.support.raw_client import Stage, request, stage

WIRES = ("ws", "wss")
WS_ONLY = {
    "test_tls_on_a_port_without_it": "a plain port",
    "test_each_cause_is_counted_and_the_first_warns": "the same",
}

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506)

PLAIN = request(drop=("upgrade", "connection"))
NOT_HTTP = b"\x00 s3cret\r\n\r\n"
BAD_KEY = request("Sec-WebSocket-Key: s3cret", drop=("sec-websocket-key",))
MANY_HEADERS = request(*(f"X-{i}: y" for i in range(200)))
LARGE_HEADER = b"GET /ws HTTP/1.1\r\nX: " + b"x" * 20_000

CAUSED: dict[str, tuple[list[bytes], str, int]] = {
    "origin": ([request("Origin: https://a.test", "Host: back", drop=("host",))], "--allowed-origins", 403),
    "host": ([request("Origin: http://evil.test", "Host: evil.test", drop=("host",))], "DNS rebinding", 403),
    "path": ([request(target="/s3cret")], "--path=/ws", 404),
    "query": ([request(target="/ws?token=s3cret")], "login message", 400),
    "no_upgrade": ([PLAIN, request("Connection: close", drop=("connection",))], "proxy_http_version", 426),
    "version": ([request("Sec-WebSocket-Version: 8", drop=("sec-websocket-version",))], "13", 426),
    "bad_request": ([request(method="POST"), NOT_HTTP, BAD_KEY], "HTTP/1.1 GET", 400),
    "too_large": ([MANY_HEADERS, LARGE_HEADER], "16 KiB", 431),
    "subprotocol": ([request(protocols="s3cret")], "starlight.v1", 400),
    "no_tls": ([HELLO], "--tls-cert", 400),
}
"""By cause: what is sent, a part of the advice, the status of the first answer."""


async def send(on_stage: Stage, wire: bytes) -> int:
    """The status that some bytes are answered."""
    client = await on_stage.connect()
    await client.send(wire)
    head = await client.head()
    while await client.receive():
        pass
    client.close()
    return int(head.split()[1])


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning about refusals."""
    found = [record for record in caplog.records if record.name == "starlight.net.refusals"]
    return [record.getMessage() for record in found if record.levelno == logging.WARNING]


def exported(on_stage: Stage) -> dict[str, int]:
    """The metric, by cause."""
    text = exposition(make_registry(Stats(on_stage.node))).decode()
    found = re.findall(r'^starlight_handshakes_refused_total\{cause="(\w+)"\} ([\d.]+)$', text, re.MULTILINE)
    return {cause: int(float(count)) for cause, count in found}


async def test_each_cause_is_counted_and_the_first_warns(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    async with stage() as on_stage:
        for cause, (wires, advice, status) in CAUSED.items():
            caplog.clear()
            before = exported(on_stage)[cause]
            answers = [await send(on_stage, wire) for wire in (*wires, *wires)]
            assert answers[0] == status, cause
            assert exported(on_stage)[cause] == before + 2 * len(wires)
            assert len(warnings(caplog)) == 1, "the first alone"
            assert f"({cause})" in warnings(caplog)[0] and advice in warnings(caplog)[0]
            assert "s3cret" not in caplog.text
        await eventually(lambda: any("handshakes failed: " in record.getMessage() for record in caplog.records))
        counts = exported(on_stage)
        assert sum(counts.values()) == on_stage.node.acceptor.counts.handshakes_failed
        assert set(counts) == set(CAUSES)


async def test_a_page_that_was_refused_is_named_with_the_host_that_it_asked_for(caplog: pytest.LogCaptureFixture):
    async with stage() as on_stage:
        wire = request("Origin: https://app.example.com", "Host: starlight_backend", drop=("host",))
        assert await send(on_stage, wire) == 403
        (line,) = warnings(caplog)
        assert "https://app.example.com" in line and "starlight_backend" in line and "proxy_set_header Host" in line


@pytest.mark.parametrize("evil", ["http://a\x1b[31m", "http://\xff\xfe", "http://" + "a" * 3000, "http://a b", "%s%n"])
async def test_nothing_of_a_client_stands_in_the_log_as_it_came(evil: str, caplog: pytest.LogCaptureFixture):
    async with stage() as on_stage:
        assert await send(on_stage, request(f"Origin: {evil}", f"Host: {evil}", drop=("host",))) in (400, 403)
        for line in warnings(caplog):
            assert line.isascii() and line.isprintable() and len(line) < 600
            assert evil not in line


async def test_a_timeout_and_a_client_that_went(caplog: pytest.LogCaptureFixture):
    async with stage(handshake_timeout_s=0.3) as on_stage:
        going = await on_stage.connect()
        going.close()
        await eventually(lambda: exported(on_stage)["gone"] == 1)
        assert not warnings(caplog), "probes do that"
        silent = await on_stage.connect()
        await eventually(lambda: exported(on_stage)["timeout"] == 1)
        assert "--handshake-timeout=0.3s" in warnings(caplog)[0]
        silent.close()


@pytest.mark.parametrize(
    ("settings", "cause", "advice"),
    [
        ({"max_connections": 1}, "full", "--max-connections"),
        ({"connections_per_address": 1}, "address_connections", "--connections-per-address=1"),
        ({"connection_rate": 1, "connections_per_address": 9}, "address_rate", "--connection-rate=1"),
    ],
)
async def test_one_too_many(settings: dict[str, Any], cause: str, advice: str, caplog: pytest.LogCaptureFixture):
    async with stage(**settings) as on_stage:
        for _ in range(4):
            try:
                client = await on_stage.connect()
                await client.send(request())
                assert not await client.receive()
            except (AssertionError, ConnectionError):
                continue
        await eventually(lambda: exported(on_stage)[cause] > 0)
        assert len(warnings(caplog)) == 1 and advice in warnings(caplog)[0]
        if cause != "full":
            assert "--trusted-proxies" in warnings(caplog)[0] and "127.0.0.1" in warnings(caplog)[0]


async def test_behind_a_proxy_it_is_the_clients_address(caplog: pytest.LogCaptureFixture):
    async with stage(connections_per_address=1, trusted_proxies="127.0.0.1") as on_stage:
        first = await on_stage.connect()
        await first.send(request("X-Forwarded-For: 203.0.113.7"))
        await first.head()
        assert await send(on_stage, request("X-Forwarded-For: 203.0.113.7")) == 429
        assert exported(on_stage)["address_connections"] == 1
        assert "203.0.113.7" in warnings(caplog)[0]


async def test_tls_on_a_port_without_it(caplog: pytest.LogCaptureFixture):
    """In pieces, too; and the client need not wait for the handshake timeout."""
    async with stage(handshake_timeout_s=60) as on_stage:
        client = await on_stage.connect()
        await client.send(HELLO[:1])
        assert (await client.head()).startswith(b"HTTP/1.1 400 ")
        await client.send(HELLO[1:])
        assert not await client.receive()
        assert "wss" not in warnings(caplog)[0] and "ws://" in warnings(caplog)[0]


async def test_no_tls_on_a_port_with_it(wire: str, caplog: pytest.LogCaptureFixture):
    if wire == "ws":
        pytest.skip("a port with TLS")
    async with stage() as on_stage:
        reader, writer = await asyncio.open_connection("127.0.0.1", on_stage.node.port)
        writer.write(request())
        while await reader.read(1024):
            pass
        writer.close()
        await eventually(lambda: exported(on_stage)["tls"] == 1)
        assert "wss://" in warnings(caplog)[0]


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level("INFO")
    yield caplog


def test_a_flood_is_a_line_a_second_and_the_advice_comes_again(logged: pytest.LogCaptureFixture):
    clock = Clock()
    refusals = Refusals(Settings(), clock)
    for _ in range(1_000):
        refusals.note("path", "192.0.2.1")
        refusals.note("gone", "192.0.2.2")
        refusals.tell()
    assert [record.levelname for record in logged.records] == ["WARNING", "INFO"]
    clock.now_s += SUMMARY_S
    refusals.tell()
    assert logged.records[-1].getMessage().endswith("handshakes failed: gone 999, path 999; the last from 192.0.2.2")
    clock.now_s += TELL_AGAIN_S
    refusals.note("path", "192.0.2.1")
    assert [record.levelname for record in logged.records].count("WARNING") == 2
    assert refusals.counts == {"path": 1_001, "gone": 1_000}


# --- health routes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 3, 1000])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_health_routes_at_the_port_of_the_clients(method: str, piece: int):
    async with stage() as on_stage:
        for path in ("/healthz", "/readyz"):
            client = await on_stage.connect()
            wire = f"{method} {path} HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n".encode()
            for at in range(0, len(wire), piece):
                await client.send(wire[at : at + piece])
                await asyncio.sleep(0)
            head = await client.head()
            assert head.startswith(b"HTTP/1.1 200 "), head
            assert b"content-length: 3" in head.lower()
            body = client.rest
            while some := await client.receive():
                body += some
            assert body == (b"ok\n" if method == "GET" else b"")
            client.close()
        await eventually(lambda: on_stage.node.connections == 1)
        assert not on_stage.node.acceptor.gate.refusals.counts
        assert not on_stage.node.acceptor.counts.handshakes_failed


async def test_a_head_request_elsewhere_has_no_body_and_upgrades_nothing():
    async with stage() as on_stage:
        for wire, status in (
            (request(method="HEAD"), 405),
            (b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
            (b"HEAD /ws HTTP/1.1\r\nHost: x\r\n\r\n", 426),
            (b"HEAD http://x/healthz HTTP/1.1\r\nHost: x\r\n\r\n", 404),
            (b"HEADER /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            (b"GET //healthz HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ):
            client = await on_stage.connect()
            await client.send(wire)
            head = await client.head()
            assert int(head.split()[1]) == status, (wire, head)
            body = client.rest + await client.receive()
            assert not body or not wire.startswith(b"HEAD ")
            client.close()


async def test_a_node_that_drains_is_alive_and_not_ready():
    async with stage() as on_stage:
        on_stage.node.is_draining = True
        try:
            assert await send(on_stage, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n") == 503
            assert await send(on_stage, b"HEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\n") == 503
            assert await send(on_stage, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") == 200
        finally:
            on_stage.node.is_draining = False
