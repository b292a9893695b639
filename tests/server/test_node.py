"""starlight.server.node: listening, limits, drain and signals of real nodes."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import re
import resource
import socket
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from starlight.app import Starlight
from starlight.auth.limits import internal_connections
from starlight.config.settings import Settings
from starlight.errors import ConfigError, ListenFailed
from starlight.server.node import Node, _within_open_files, raise_open_files_limit
from tests.support.fakes import eventually
from tests.support.wire_client import WireClient

WIRES = ("ws", "wss")

ROOT = Path(__file__).parents[2]


def small(**settings: object) -> Settings:
    return Settings(**{"port": 0, "drain_timeout_s": 5, **settings})


# --- start -----------------------------------------------------------------------------------------------------------


async def test_the_kernel_picks_a_port_and_the_start_line_tells_it_with_the_limits(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        async with Node(small(outbox_bytes="2MiB", evict_after_s="100ms", node_name="here")) as node:
            assert node.port > 0
            assert node.url.removeprefix("wss").removeprefix("ws") == f"://127.0.0.1:{node.port}/ws"
            line = next(record.getMessage() for record in caplog.records if "listens on" in record.getMessage())
            for part in (node.url, "node here run ", "auth=none", "outbox=256/2MiB", "evict_after=100ms"):
                assert part in line


async def test_welcome_tells_a_name_of_this_run_and_pings():
    """Names of clients are not given again after a restart, and strangers don't learn what the host is called."""
    settings = small(ping_interval_s=7, pong_timeout_s=2.5)
    async with Node(settings) as node, Node(settings) as other, connect(node.url) as connection:
        assert node.name == f"{socket.gethostname()}:{node.port}" != other.name
        client = WireClient(connection)
        await client.say("login", user="ann")
        welcome = await client.hear()
        assert (welcome["client"], welcome["ping"], welcome["pong"]) == (f"{welcome['node']}-1", 7, 2.5)
        assert welcome["node"] not in (node.name, other.hub.node)


async def test_a_port_in_use_is_a_clear_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenFailed, match=rf"127\.0\.0\.1:{port}: address already in use"):
            await Node(small(port=port)).start()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
async def test_a_host_that_is_not_ours_is_a_clear_error(host: str):
    with pytest.raises(ListenFailed, match=re.escape(host)):
        await Node(small(host=host, insecure_no_auth=True)).start()


async def test_ipv6_loopback():
    try:
        async with Node(small(host="::1")) as node:
            assert node.url.endswith(f"://[::1]:{node.port}/ws")
            assert (await (await WireClient.login(node.url, "ann")).ask("ping"))["type"] == "pong"
    except ListenFailed:
        pytest.skip("no IPv6 here")


@pytest.mark.parametrize("host", ["::", "[::]"])
async def test_all_addresses_of_ipv6_are_those_of_ipv4_too(host: str):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with Node(small(host=host, insecure_no_auth=True)) as node:
        scheme = node.url.partition(":")[0]
        assert node.url == f"{scheme}://[::]:{node.port}/ws"
        for address in ("127.0.0.1", "[::1]"):
            client = await WireClient.login(f"{scheme}://{address}:{node.port}/ws", "ann")
            assert (await client.ask("ping"))["type"] == "pong"
            await client.close()


@pytest.mark.parametrize(
    ("host", "meant"),
    [("[::1]", "::1"), ("::ffff:127.0.0.1", "127.0.0.1"), ("[::ffff:127.0.0.1]", "127.0.0.1"), ("localhost", None)],
)
async def test_hosts_as_people_write_them(host: str, meant: str | None):
    try:
        async with Node(small(host=host)) as node:
            assert node.settings.host == (meant or host)
            assert (await (await WireClient.login(node.url, "ann")).ask("ping"))["type"] == "pong"
    except ListenFailed:
        pytest.skip("no IPv6 here")


@pytest.mark.parametrize("host", ["/run/x.sock", "./x.sock", "unix:/run/x.sock", "127.0.0.1,::1", "[::1", "", "a b"])
@pytest.mark.parametrize("field", ["host", "internal_host"])
def test_what_is_no_address_says_what_is(field: str, host: str):
    with pytest.raises(ConfigError, match=rf"{field}=.*: expected one address such as 127\.0\.0\.1 or ::1"):
        small(**{field: host})


async def test_an_internal_port_on_all_addresses(tmp_path: Path):
    key = tmp_path / "key"
    key.write_text("k" * 40)
    key.chmod(0o600)
    settings = small(internal_host="::", internal_port=0, internal_key_file=str(key))
    try:
        async with Node(settings) as node:
            port = int((node.internal_url or "").rpartition(":")[2])
            for address in ("127.0.0.1", "::1"):
                reader, writer = await asyncio.open_connection(address, port)
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 200")
                writer.close()
    except ListenFailed:
        pytest.skip("no IPv6 here")


def test_jwt_with_nothing_to_verify_tokens_with_is_refused():
    with pytest.raises(ConfigError, match="jwt_secret_file, jwt_key_file, jwt_jwks_url, jwt_secret"):
        Node(small(auth="jwt"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_without_auth_a_node_listens_to_strangers_only_if_told_to(host: str, caplog: pytest.LogCaptureFixture):
    with pytest.raises(ConfigError, match="insecure-no-auth"):
        Node(small(host=host))
    Node(small(host=host, insecure_no_auth=True))
    assert "can be any user" in caplog.text


async def test_a_node_is_started_once_and_a_drain_before_it_does_nothing():
    node = Node(small())
    await node.drain()
    with pytest.raises(RuntimeError):
        _ = node.port
    async with node:
        with pytest.raises(RuntimeError, match="once"):
            await node.start()


def open_files() -> int:
    """How many the process has, without those that only the garbage collector still knows."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def test_a_start_that_is_cancelled_at_any_step_leaves_nothing():
    async with Starlight().serve(port=0, internal_port=0):
        pass  # what is imported is imported
    before = open_files()
    cancelled = 0
    for turns in range(10_000):
        app = Starlight()
        starting = asyncio.ensure_future(app._start({"port": 0, "internal_port": 0, "drain_timeout_s": 1}))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        try:
            node = await starting
        except asyncio.CancelledError:
            cancelled += 1
            node = app._node
            if node is not None:
                assert not node.is_serving and not node.is_listening and node.internal_url is None
                assert node.core.counters()["subscribers"] == 0
        else:
            await node.drain()
            break
    assert cancelled > 3
    assert asyncio.all_tasks() == {asyncio.current_task()}
    del starting, app, node
    await eventually(lambda: open_files() == before)


async def test_a_start_whose_last_step_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    async with Node(small(internal_port=0)):
        pass
    before = open_files()

    def fail() -> None:
        raise ImportError("on purpose")

    monkeypatch.setattr("starlight.ops.internal_port._import_http", fail)
    node = Node(small(internal_port=0))
    with pytest.raises(ImportError, match="on purpose"):
        await node.start()
    assert not node.is_serving and not node.is_listening
    with pytest.raises(RuntimeError, match="does not listen"):
        _ = node.port
    await node.drain()
    del node
    await eventually(lambda: open_files() == before)


async def test_the_internal_port_in_use_leaves_nothing():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = open_files()
        node = Node(small(internal_port=taken.getsockname()[1]))
        with pytest.raises(ListenFailed, match="internal port"):
            await node.start()
        assert not node.is_serving
        del node
        await eventually(lambda: open_files() == before)


def test_the_soft_limit_of_open_files_is_raised_and_bounds_the_connections(caplog: pytest.LogCaptureFixture):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        limit = raise_open_files_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == limit == hard
        if hard == resource.RLIM_INFINITY:
            return
        assert _within_open_files(small(max_connections=1)).max_connections == 1
        internal = _within_open_files(small(max_connections=1_000_000, internal_port=0)).max_connections
        if hard < 1_000_000:
            plain = _within_open_files(small(max_connections=1_000_000)).max_connections
            assert plain - internal == internal_connections(hard), "the internal port has descriptors of its own"
            assert _within_open_files(small(max_connections=1_000_000)).max_connections < hard
            assert "max_connections=1000000" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- serving ---------------------------------------------------------------------------------------------------------


async def test_everything_returns_to_zero_when_clients_have_gone():
    async with Node(small()) as node:
        for _ in range(3):
            clients = [await WireClient.login(node.url, f"user{number % 5}") for number in range(20)]
            for number, client in enumerate(clients):
                await client.ask("join", channel=f"c{number % 3}")
                await client.ask("publish", channel="c0", data=number)
            for client in clients:
                await client.close()
            await eventually(lambda: node.connections == 0)
            assert node.hub.counters() == {"users": 0, "clients": 0, "channels": 0}
            counters = node.core.counters()
            assert (counters["subscribers"], counters["channels"], counters["memberships"]) == (0, 0, 0)


async def test_both_subprotocols_get_the_same_messages():
    frame = '{"type":"login","user":"ann"}\n{"type":"join","channel":"c","id":1}\r\n\n{"type":"ping"}'
    async with Node(small()) as node, connect(node.url, subprotocols=["starlight.v1.lines"]) as socket:
        await socket.send(frame)
        lines: list[str] = []
        while len(lines) < 3:
            lines += str(await asyncio.wait_for(socket.recv(), 10)).split("\n")
    async with Node(small()) as node:
        client = WireClient(await connect(node.url))
        for line in filter(None, frame.splitlines()):
            await client.socket.send(line)
        frames = [await client.hear() for _ in range(3)]
    assert [json.loads(line)["type"] for line in lines] == ["welcome", "ok", "pong"]
    assert [json.loads(line) for line in lines][1:] == frames[1:]


async def test_too_many_errors_end_with_4509():
    async with Node(small()) as node:
        ann = await WireClient.login(node.url, "ann")
        for number in range(21):
            await ann.say("nonsense", id=number)
        assert (await ann.closed())[0] == 4509
