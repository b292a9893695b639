"""starlight.net.tls: versions, certificates and their renewal, and strangers who never finish a handshake."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvloop

from starlight.config.settings import Settings
from starlight.errors import ConfigError
from starlight.net.accept import BATCH
from starlight.server.node import Node
from tests.support.fakes import eventually
from tests.support.raw_client import TEXT, frame, message, request, set_reset
from tests.support.tls import write_certificate
from tests.support.wire_client import WireClient

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    certificate, key = write_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    return certificate, key


def tls_node(files: tuple[str, str], **settings: object) -> Node:
    defaults = {"port": 0, "drain_timeout_s": 2, "tls_cert": files[0], "tls_key": files[1]}
    return Node(Settings(**{**defaults, **settings}))


async def handshake(port: int, version: ssl.TLSVersion) -> str | None:
    """The version that a client gets which speaks only this one."""
    context = ssl.create_default_context()
    context.minimum_version = context.maximum_version = version
    if version < ssl.TLSVersion.TLSv1_2:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    spoken: str | None = writer.get_extra_info("ssl_object").version()
    writer.transport.abort()
    return spoken


async def test_versions(files: tuple[str, str]):
    async with tls_node(files) as node:
        assert await handshake(node.port, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        assert await handshake(node.port, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1):
            with pytest.warns(DeprecationWarning), pytest.raises((ssl.SSLError, ConnectionError)):
                await handshake(node.port, version)
        await eventually(lambda: node.connections == 0)


async def test_13_what_is_no_tls_is_closed_and_forgotten(files: tuple[str, str]):
    async with tls_node(files) as node:
        ann = await WireClient.login(node.url, "ann")
        opened = len(os.listdir("/proc/self/fd"))
        for garbage in (b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(300), b"\0" * 600):
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
                writer.write(garbage)
                writer.write_eof()
                await asyncio.wait_for(reader.read(), 10)
                writer.close()
        await eventually(lambda: node.connections == 1)
        await eventually(lambda: len(os.listdir("/proc/self/fd")) <= opened)
        assert (await ann.ask("ping"))["type"] == "pong"
        await ann.close()


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"])
@pytest.mark.parametrize("ends", ["close", "half-close", "reset"])
async def test_13_who_goes_before_the_handshake_is_done_writes_no_log(
    files: tuple[str, str], said: bytes, ends: str, caplog: pytest.LogCaptureFixture
):
    """As health checks do that only connect."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with tls_node(files) as node:
        for _ in range(5):
            sock = socket.create_connection(("127.0.0.1", node.port))
            sock.sendall(said)
            await eventually(lambda: node.connections == 1)
            if ends == "half-close":
                sock.shutdown(socket.SHUT_WR)
                await eventually(lambda: node.connections == 0)
            elif ends == "reset":
                set_reset(sock)
            sock.close()
            await eventually(lambda: node.connections == 0)
    assert not reported
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("cut", [1, 7, 500])
async def test_58_a_reset_right_behind_some_bytes_is_noticed_at_once(files: tuple[str, str], cut: int):
    """Not with the next ping: uvloop tells of an error once, together with what can be read."""
    context = ssl.create_default_context(cafile=files[0])

    def login(port: int) -> ssl.SSLSocket:
        sock = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="127.0.0.1")
        sock.sendall(request() + message("login", user="ann"))
        while b"welcome" not in sock.recv(65_536):
            pass
        return sock

    async with tls_node(files) as node:
        for _ in range(5):
            sock = await asyncio.get_running_loop().run_in_executor(None, login, node.port)
            sock.sendall(frame(TEXT, b"x" * 1_000)[:cut])  # from the loop's own thread: it sees both at once
            set_reset(sock)
            sock.close()
            await eventually(lambda: node.connections == 0)
            assert node.core.counters()["subscribers"] == 0


async def test_who_never_finishes_the_handshake_is_counted_and_ended(files: tuple[str, str]):
    async with tls_node(files, handshake_timeout_s=0.3, max_connections=10) as node:
        silent = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(10)]
        await eventually(lambda: node.connections == 10)
        with pytest.raises((OSError, EOFError)):  # one too many is closed before it costs a handshake
            await WireClient.login(node.url, "ann")
        await eventually(lambda: node.connections == 0)
        ann = await WireClient.login(node.url, "ann")
        await ann.close()
        for one in silent:
            one.close()


async def test_52_of_many_strangers_at_once_a_turn_of_the_loop_accepts_few(files: tuple[str, str]):
    """A handshake costs a millisecond: all of them in one turn would keep every client waiting for all of them."""
    async with tls_node(files) as node:
        strangers = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(40)]  # no turn between them
        seen = [node.connections]
        while seen[-1] < len(strangers):
            await asyncio.sleep(0)
            seen.append(node.connections)
        assert max(after - before for before, after in pairwise(seen)) <= BATCH < len(strangers) / 4
        for one in strangers:
            one.close()
        await eventually(lambda: node.connections == 0)


async def test_54_one_too_many_of_an_address_is_refused_before_the_handshake(files: tuple[str, str]):
    async with tls_node(files, connections_per_address=2) as node:
        clients = [await WireClient.login(node.url, "ann") for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""  # not a byte of a handshake was sent
        writer.close()
        await clients[0].close()
        await eventually(lambda: node.connections == 1)
        await (await WireClient.login(node.url, "ann")).close()
        await clients[1].close()


async def test_a_drain_drops_who_is_still_in_the_handshake(files: tuple[str, str]):
    node = tls_node(files)
    await node.start()
    silent = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(5)]
    ann = await WireClient.login(node.url, "ann")
    await eventually(lambda: node.connections == 6)
    draining = asyncio.ensure_future(node.drain())
    assert (await ann.closed())[0] == 1001
    await asyncio.wait_for(draining, 10)
    assert node.connections == 0
    for one in silent:
        one.close()


async def test_large_messages_arrive(files: tuple[str, str]):
    async with tls_node(files, read_limit_bytes="2MiB", outbox_bytes="8MiB") as node:
        ann, bob = await WireClient.login(node.url, "ann"), await WireClient.login(node.url, "bob")
        texts = [letter * 500_000 for letter in "abcd"]
        for text in texts:
            await ann.say("direct", to="bob", data=text)
        assert [(await bob.hear())["data"] for _ in texts] == texts
        await ann.close()
        await bob.close()


def serial(port: int) -> int:
    """Of the certificate that a new connection is shown."""
    from cryptography import x509

    pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=10)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def test_reload(files: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture):
    loop = asyncio.get_running_loop()
    async with tls_node(files) as node:
        ann = await WireClient.login(node.url, "ann")
        assert await loop.run_in_executor(None, serial, node.port) == 1
        write_certificate(tmp_path, 1)
        assert await node.reload()
        assert await loop.run_in_executor(None, serial, node.port) == 2
        Path(files[0]).write_text("nonsense")
        assert not await node.reload()
        assert "stays as it was" in caplog.text
        assert await loop.run_in_executor(None, serial, node.port) == 2
        assert (await ann.ask("ping"))["type"] == "pong"  # open connections don't notice
        await ann.close()


async def test_sighup_reloads_and_does_not_end_the_process(files: tuple[str, str], tmp_path: Path):
    loop = asyncio.get_running_loop()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "starlight", "serve", "--port", "0", "--tls-cert", files[0], "--tls-key", files[1]),
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stderr is not None
    try:
        line = (await asyncio.wait_for(child.stderr.readline(), 30)).decode()
        port = int(line.split("wss://127.0.0.1:")[1].split("/")[0])
        assert await loop.run_in_executor(None, serial, port) == 1
        write_certificate(tmp_path, 1)
        child.send_signal(signal.SIGHUP)
        while b"read again" not in await asyncio.wait_for(child.stderr.readline(), 30):
            pass
        assert await loop.run_in_executor(None, serial, port) == 2
    finally:
        child.send_signal(signal.SIGTERM)
        await asyncio.wait_for(child.communicate(), 30)
    assert child.returncode == 0


def test_files_that_are_no_certificate(files: tuple[str, str], tmp_path: Path):
    (tmp_path / "other").mkdir()
    _, other_key = write_certificate(tmp_path / "other", 1)
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", files[1], "-aes256", "-passout", "pass:word", "-out", str(locked)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    for certificate, key, expected in (
        (files[0], "", "both are needed"),
        ("", files[1], "both are needed"),
        (files[0], "/nowhere/key.pem", "no such file"),
        (files[0], other_key, "fits the key"),
        (files[0], str(locked), "fits the key"),
        (files[1], files[1], "fits the key"),
    ):
        with pytest.raises(ConfigError, match=expected):
            tls_node((certificate, key))


async def test_a_listener_that_ends_before_a_handshake_began_keeps_no_socket(files: tuple[str, str]):
    async with tls_node(files) as node:
        client = socket.create_connection(("127.0.0.1", node.port))
        listener, transports = node._listener, node._transports
        assert listener is not None and transports is not None
        listener._accept(listener.sockets[0])
        assert node.connections == 1
        transports.drop_handshakes()  # in the same turn
        await eventually(lambda: node.connections == 0)
        client.settimeout(5)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
        client.close()
