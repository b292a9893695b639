"""starlight.ops.http: who may use the internal port, and what its answers look like."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
from pathlib import Path
from typing import Any

import pytest

import starlight
from starlight.config.settings import Settings
from starlight.errors import ConfigError, ListenFailed
from starlight.ops.http import REQUESTS_LIMIT
from starlight.server.node import Node
from tests.support.fakes import eventually
from tests.support.inside import KEY, Inside, inside

READING = ("/varz", "/connz", "/channelz", "/metrics")
OPEN = ("/healthz", "/readyz", "/openapi.json")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def status(on: Inside, path: str, method: str = "GET", **headers: str) -> int:
    """The status of a request; whatever it is, nothing lets a page of another origin read it."""
    async with on.http.request(method, path, headers=headers) as response:
        assert not [name for name in response.headers if name.lower().startswith("access-control")]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-store"
        if response.status >= 400 and response.status != 503:
            error = (await response.json())["error"]
            assert error["code"] == response.status and error["message"]
        return response.status


# --- the port itself -------------------------------------------------------------------------------------------------


async def test_there_is_no_port_unless_one_is_wanted():
    async with Node(Settings(port=0)) as node:
        assert node.internal_url is None


async def test_health_and_readiness(tmp_path: Path):
    async with inside(tmp_path, send_buffer_bytes=4096, drain_timeout_s=2) as on:
        async with on.http.get("/healthz") as response:
            assert (response.status, await response.text()) == (200, "ok\n")
        assert await on.get("/readyz") == {"ready": True}
        await on.stalled("slow", "c")
        on.node.hub.push_to_channel("c", b'"%b"' % (b"x" * 900_000))  # so that the drain takes a moment
        draining = asyncio.create_task(on.node.drain())
        await eventually(lambda: not on.node.is_listening)
        assert await on.get("/readyz", 503) == {"ready": False, "reasons": ["draining", "not listening"]}
        assert (await on.get("/varz"))["state"] == "draining"
        await on.post("/api/publish", {"channel": "c", "data": 1}, 503)
        await asyncio.wait_for(draining, 10)
        assert on.node.internal_url is None


async def test_a_port_in_use_keeps_the_node_from_starting():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node = Node(Settings(port=0, internal_port=port))
        with pytest.raises(ListenFailed, match=rf"{port} \(internal port\): address already in use") as failure:
            await node.start()
        assert failure.value.setting == "internal_port"
        assert not node.is_serving


async def test_a_node_that_can_not_listen_gives_the_internal_port_back():
    with socket.socket() as taken, socket.socket() as free:
        for one in (taken, free):
            one.bind(("127.0.0.1", 0))
        taken.listen()
        port, internal_port = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        with pytest.raises(ListenFailed):
            await Node(Settings(port=port, internal_port=internal_port)).start()
        with socket.create_server(("127.0.0.1", internal_port)):
            pass


def test_where_others_can_connect_a_key_is_needed(tmp_path: Path):
    with pytest.raises(ConfigError, match="internal_host"):
        Node(Settings(internal_host="0.0.0.0", internal_port=0))
    short = tmp_path / "short"
    short.write_text("short")
    with pytest.raises(ConfigError, match="internal_key_file"):
        Node(Settings(internal_port=0, internal_key_file=str(short)))


# --- who may use it --------------------------------------------------------------------------------------------------


async def test_on_loopback_reading_needs_no_key_and_changing_does(tmp_path: Path):
    async with inside(tmp_path) as on:
        for path in (*READING, *OPEN):
            assert await status(on, path) == 200
        for given in ({}, bearer(KEY[:-1]), bearer(KEY + "x"), bearer(""), {"Authorization": f"Basic {KEY}"}):
            assert await status(on, "/api/channels", "POST", **given) == 401
        async with on.http.post("/api/channels", data=b"{}") as response:
            assert response.headers["WWW-Authenticate"] == "Bearer"
        async with on.http.post("/api/channels", data=b"{}", headers={"Authorization": f"bearer {KEY}"}) as response:
            assert response.status == 200


async def test_without_a_key_file_nothing_can_be_changed(tmp_path: Path):
    async with inside(tmp_path, key=None) as on:
        assert await status(on, "/varz") == 200
        for given in ({}, bearer(KEY), bearer("")):
            assert await status(on, "/api/drain", "POST", **given) == 403
        assert not on.node.is_draining


async def test_elsewhere_reading_needs_the_key_as_well(tmp_path: Path):
    async with inside(tmp_path, internal_host="0.0.0.0") as on:
        for path in READING:
            assert await status(on, path) == 401
            assert await status(on, path, **bearer(KEY)) == 200
            assert await status(on, path, Host="starlight-0.internal:9000", **bearer(KEY)) == 200
        for path in OPEN:
            assert await status(on, path) == 200
            assert await status(on, path, Host="starlight-0.internal:9000") == 200


@pytest.mark.parametrize(
    "host", ["attacker.example", "attacker.example:80", "localhost.attacker.example", "[a.example]:1", ""]
)
async def test_a_name_that_somebody_else_could_have_bound_here_is_refused(tmp_path: Path, host: str):
    async with inside(tmp_path) as on:
        for path in (*READING, *OPEN):
            assert await status(on, path, Host=host) == 403
        assert await status(on, "/varz", Host="localhost:1") == 200
        assert await status(on, "/varz", Host="[::1]:1") == 200


async def test_a_page_of_another_origin_is_refused(tmp_path: Path):
    async with inside(tmp_path) as on:
        own = f"127.0.0.1:{on.port.port}"
        for origin in ("https://attacker.example", "null", f"https://{own}", "http://127.0.0.1:1", ""):
            assert await status(on, "/varz", Origin=origin) == 403
            assert await status(on, "/api/channels", "POST", Origin=origin, **bearer(KEY)) == 403
            assert await status(on, "/api/channels", "OPTIONS", Origin=origin) == 403
        assert await status(on, "/varz", Origin=f"http://{own}") == 200


async def test_requests_that_are_under_way_are_bounded(tmp_path: Path):
    async with inside(tmp_path) as on:
        on.port._under_way = REQUESTS_LIMIT
        assert await status(on, "/varz") == 429
        assert await status(on, "/healthz") == 200
        on.port._under_way = REQUESTS_LIMIT - 1
        assert await status(on, "/varz") == 200
        on.port._under_way = 0


async def test_of_many_who_read_at_once_a_turn_of_the_loop_answers_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A scrape takes milliseconds: forty of them in one turn would keep all clients waiting for forty."""
    async with inside(tmp_path) as on:
        loop, turns, answered = asyncio.get_running_loop(), [0], []

        def turn() -> None:
            turns[0] += 1
            loop.call_soon(turn)

        varz = on.stats.varz
        monkeypatch.setattr(on.stats, "varz", lambda: (answered.append(turns[0]), varz())[1])
        many = [socket.create_connection(("127.0.0.1", on.port.port)) for _ in range(40)]
        for one in many:
            one.sendall(b"GET /varz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        turn()
        await eventually(lambda: len(answered) == len(many))
        assert len(set(answered)) == len(many)
        for one in many:
            one.close()


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_what_is_not_there_or_wrong_is_refused_in_one_shape(tmp_path: Path):
    async with inside(tmp_path) as on:
        assert await status(on, "/nothing") == 404
        assert await status(on, "/api/nothing", "POST", **bearer(KEY)) == 404
        assert await status(on, "/varz", "POST") == 405
        assert await status(on, "/api/drain", "GET") == 405
        for query in (
            "sort=size", "limit=0", "limit=1001", "limit=-1", "limit=x", "limit=", "limit=%2B1", "limit=1_0",
            "offset=-1", "offset=1000001", "user=", "user=" + "u" * 256,
        ):  # fmt: skip
            assert await status(on, f"/connz?{query}") == 400, query
        assert await status(on, "/channelz?sort=outbox") == 400
        too_large = b'{"channel":"c","data":"%b"}' % (b"x" * 2**20)
        assert "too large" in (await on.post("/api/publish", io.BytesIO(too_large), 413))["error"]["message"]


async def test_a_bug_is_a_500_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with inside(tmp_path) as on:
        monkeypatch.setattr(on.stats, "varz", lambda: 1 // 0)
        assert await status(on, "/varz") == 500
        assert await status(on, "/connz") == 200


async def test_the_console_is_served(tmp_path: Path):
    async with inside(tmp_path) as on:
        assert await status(on, "/") == 200


async def test_ten_thousand_bytes_of_garbage_do_not_hurt_and_are_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with inside(tmp_path) as on:
        for garbage in (
            b"\x16\x03\x01" + b"\xff" * 10_000,
            b"GET " + b"/" * 10_000 + b" HTTP/1.1\r\n\r\n",
            b"\r\n" * 99,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", on.port.port)
            writer.write(garbage)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 10)
            writer.close()
        assert await status(on, "/varz") == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# --- the description -------------------------------------------------------------------------------------------------


def description() -> dict[str, Any]:
    """The file as it is in the package."""
    document: dict[str, Any] = json.loads((Path(starlight.__file__).parent / "ops" / "openapi.json").read_text())
    return document


async def test_the_routes_are_those_of_the_description(tmp_path: Path):
    async with inside(tmp_path) as on:
        all_routes = {(route.method, route.resource.canonical) for route in on.port.make_app().router.routes()}
        routes = {(method, path) for method, path in all_routes if method != "HEAD"}
        assert all_routes - routes == {("HEAD", path) for method, path in routes if method == "GET"}
        assert await on.get("/openapi.json") == description()
    described = {(method.upper(), path) for path, item in description()["paths"].items() for method in item}
    assert routes == described
    text = (Path(__file__).parents[2] / "docs" / "internal.md").read_text()
    assert not [path for _, path in routes if f"`{path}" not in text and f" {path}" not in text]
