"""starlight.node: listening, limits, drain and signals of real nodes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from starlight.config import Settings
from starlight.errors import ConfigError, ListenFailed
from starlight.handlers import Handlers
from starlight.hub import Client
from starlight.node import RETRY_MAX_MS, RETRY_MIN_MS, Node, _within_open_files, raise_open_files_limit
from tests.support import eventually
from tests.wire_client import WireClient

WIRES = ("ws", "wss")

ROOT = Path(__file__).parent.parent


def small(**settings: object) -> Settings:
    return Settings(**{"port": 0, "drain_timeout_s": 5, **settings})


# --- start -----------------------------------------------------------------------------------------------------------


async def test_the_kernel_picks_a_port_and_the_start_line_tells_it_with_the_limits(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        async with Node(small(outbox_bytes="2MiB", evict_after_s="100ms"), name="here") as node:
            assert node.port > 0
            assert node.url.removeprefix("wss").removeprefix("ws") == f"://127.0.0.1:{node.port}/ws"
            line = next(record.getMessage() for record in caplog.records if "listens on" in record.getMessage())
            for part in (node.url, "node here", "auth=none", "outbox=256/2MiB", "evict_after=100ms"):
                assert part in line


async def test_welcome_tells_the_nodes_name_and_pings():
    async with Node(small(ping_interval_s=7, pong_timeout_s=2.5), name="here") as node, connect(node.url) as socket:
        client = WireClient(socket)
        await client.say("login", user="ann")
        welcome = await client.hear()
        assert (welcome["node"], welcome["client"], welcome["ping"], welcome["pong"]) == ("here", "here-1", 7, 2.5)


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


def test_the_soft_limit_of_open_files_is_raised_and_bounds_the_connections(caplog: pytest.LogCaptureFixture):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        limit = raise_open_files_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == limit == hard
        if hard == resource.RLIM_INFINITY:
            return
        assert _within_open_files(small(max_connections=1)).max_connections == 1
        if hard < 1_000_000:
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
                await client.ask("ping")  # which reads all before it: a client that doesn't read can't close quickly
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


# --- drain -----------------------------------------------------------------------------------------------------------


async def test_drain_says_bye_closes_with_1001_and_ends():
    node = Node(small())
    await node.start()
    clients = [await WireClient.login(node.url, f"user{number}") for number in range(20)]
    silent = await connect(node.url)  # connected, never logged in
    url = node.url
    ends = [asyncio.create_task(client.hear_until("bye")) for client in clients]
    await asyncio.wait_for(asyncio.gather(node.drain(), node.drain()), 10)
    retries = []
    for client, end in zip(clients, ends, strict=True):
        bye = (await end)[-1]
        code, reason = await client.closed()
        assert (code, reason) == (1001, f"drain;retry={bye['retry_ms']}")
        assert RETRY_MIN_MS <= bye["retry_ms"] <= RETRY_MAX_MS
        retries.append(bye["retry_ms"])
    assert len(set(retries)) > 1  # they don't all come back at once
    assert (await WireClient(silent).closed())[0] == 1001
    assert not node.is_serving
    with pytest.raises(OSError):
        await connect(url)


async def test_drain_flushes_what_was_sent_before_it():
    async with Node(small()) as node:
        ann, bob = await WireClient.login(node.url, "ann"), await WireClient.login(node.url, "bob")
        for number in range(500):
            await ann.say("direct", to="bob", data=number)
        assert (await ann.ask("ping"))["type"] == "pong"
    heard = await bob.hear_until("bye")
    assert [message["data"] for message in heard[:-1]] == list(range(500))


async def test_drain_waits_for_handlers_and_hooks_that_are_under_way():
    events: list[str] = []
    handlers = Handlers()

    @handlers.on_disconnect
    async def out(client: Client) -> None:
        await asyncio.sleep(0.05)
        events.append(client.user)

    async with Node(small(), handlers=handlers) as node:
        await WireClient.login(node.url, "ann")
    assert events == ["ann"]


async def test_drain_cuts_off_who_does_not_end_in_time(wire: str):
    if wire == "wss":
        pytest.skip("its client doesn't speak TLS")
    async with Node(small(drain_timeout_s=0.1)) as node:
        loop = asyncio.get_running_loop()
        raw = socket.create_connection(("127.0.0.1", node.port))
        raw.setblocking(False)
        request = (
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{node.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await loop.sock_sendall(raw, request.encode())
        assert b"101" in await asyncio.wait_for(loop.sock_recv(raw, 4096), 10)
    await eventually(lambda: node.connections == 0)
    raw.close()


# --- a process of its own --------------------------------------------------------------------------------------------

PROGRAM = """
import time
from starlight import Starlight
app = Starlight(port=0, drain_timeout_s={drain_timeout_s})

@app.on("block", thread=True)
def block(client, data):
    time.sleep(data)

app.run()
print("left in good order")
"""


class Process:
    """A node in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    async def end(self) -> tuple[int, str]:
        """Wait for its end: exit status and standard output."""
        out, _ = await asyncio.wait_for(self.process.communicate(), 15)
        assert self.process.returncode is not None
        return self.process.returncode, out.decode()


@asynccontextmanager
async def process(drain_timeout_s: float = 5) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM.format(drain_timeout_s=drain_timeout_s),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert child.stderr is not None
        line = (await asyncio.wait_for(child.stderr.readline(), 30)).decode()
        found = re.search(r"listens on (wss?://\S+)", line)
        assert found, line + (await child.stderr.read()).decode()
        yield Process(child, found[1])
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_exits_with_0(number: signal.Signals):
    async with process() as node:
        ann = await WireClient.login(node.url, "ann")
        node.process.send_signal(number)
        assert (await ann.hear())["type"] == "bye"
        assert (await ann.closed())[0] == 1001
        assert await node.end() == (0, "left in good order\n")


async def test_a_second_signal_leaves_at_once():
    async with process(drain_timeout_s=600) as node:
        _, writer = await asyncio.open_connection("127.0.0.1", int(node.url.split(":")[2].split("/")[0]))
        writer.write(b"GET /ws HTTP/1.1\r\n")  # a handshake that doesn't end: the drain would wait for it
        await asyncio.sleep(0.1)
        ann = await WireClient.login(node.url, "ann")
        node.process.send_signal(signal.SIGTERM)
        assert (await ann.hear())["type"] == "bye"
        node.process.send_signal(signal.SIGTERM)
        assert await node.end() == (128 + signal.SIGTERM, "")
        writer.close()


async def test_a_thread_that_never_ends_does_not_keep_the_process():
    async with process(drain_timeout_s=0.5) as node:
        ann = await WireClient.login(node.url, "ann")
        await ann.say("block", data=600)
        await asyncio.sleep(0.2)
        node.process.send_signal(signal.SIGTERM)
        assert (await node.end())[0] == 0
