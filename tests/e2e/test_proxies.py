"""docs/proxies: the files are run as they stand, with names and ports of the test, where the program is installed."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from starlight.channels.client import Client
from starlight.channels.handlers import Handlers
from starlight.config.settings import Settings
from starlight.server.node import Node
from tests.support.tls import write_certificate
from tests.support.tokens import SECRET, token
from tests.support.wire_client import WireClient

PROXIES = Path(__file__).parents[2] / "docs" / "proxies"
ORIGIN = "https://app.example.com"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def adapted(name: str, changes: dict[str, str]) -> str:
    """A file of docs/proxies with a test's names; each change must be there to be made."""
    text = (PROXIES / name).read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@asynccontextmanager
async def running(*words: str, port: int) -> AsyncIterator[None]:
    """A proxy that has begun to listen; ended by its process id."""
    child = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except ConnectionRefusedError:
                    if child.returncode is not None:
                        assert child.stderr is not None
                        raise AssertionError((await child.stderr.read()).decode()) from None
                    await asyncio.sleep(0.05)
        yield
    finally:
        if child.returncode is None:
            child.terminate()
        await asyncio.wait_for(child.communicate(), 20)


async def through(url: str, seen: list[str]) -> None:
    """What has to work behind any proxy: login, messages, frames of every size, the client's address, the page."""
    options: dict[str, Any] = {"compression": None, "server_hostname": "localhost", "origin": ORIGIN}
    ann = WireClient(await connect(url, additional_headers={"X-Forwarded-For": "6.6.6.6"}, **options))
    assert (await ann.ask("login", token=token(iss=None, aud=None)))["user"] == "ann"
    for size in (1, 1_000, 60_000):
        await ann.say("direct", to="ann", data="x" * size)
        assert len((await ann.hear())["data"]) == size
    assert seen == ["127.0.0.1"]  # whom the proxy saw, and not what the client said
    await ann.close()
    with pytest.raises(InvalidStatus) as refusal:
        await connect(url, **{**options, "origin": "https://evil.test"})
    assert refusal.value.response.status_code == 403
    with pytest.raises(InvalidStatus) as refusal:
        await connect(url + "other", **options)
    assert refusal.value.response.status_code == 404


@asynccontextmanager
async def node(seen: list[str]) -> AsyncIterator[Node]:
    handlers = Handlers()

    @handlers.on_login
    def look(client: Client, login: dict[str, Any]) -> None:
        assert client.connection.peername is not None
        seen.append(client.connection.peername[0])
        assert client.connection.peername[1] == 0  # a proxy's word has no port

    settings = Settings(
        port=0, drain_timeout_s=2, auth="jwt", jwt_secret=SECRET, trusted_proxies="127.0.0.1", allowed_origins=ORIGIN
    )
    async with Node(settings, handlers=handlers) as made:
        yield made


def trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    certificate, key = write_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    return certificate, key


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
async def test_nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    certificate, key = trust(tmp_path, monkeypatch)
    port, seen = free_port(), list[str]()
    async with node(seen) as made:
        text = adapted(
            "nginx.conf",
            {
                "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
                "server 127.0.0.1:8765": f"server 127.0.0.1:{made.port}",
                "/etc/starlight/cert.pem": certificate,
                "/etc/starlight/key.pem": key,
                "proxy_set_header Host $host;": "proxy_set_header Host app.example.com;",
                "worker_processes auto;": f"daemon off; master_process off; pid {tmp_path}/pid; error_log stderr;",
                "access_log off;": " ".join(
                    f"{name}_temp_path {tmp_path}/{name};"
                    for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
                )
                + " access_log off;",
            },
        )
        (tmp_path / "nginx.conf").write_text(text)
        async with running("nginx", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), port=port):
            await through(f"wss://127.0.0.1:{port}/ws", seen)


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
async def test_haproxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    certificate, key = trust(tmp_path, monkeypatch)
    both = tmp_path / "both.pem"
    both.write_text(Path(certificate).read_text() + Path(key).read_text())
    port, seen = free_port(), list[str]()
    async with node(seen) as made:
        text = adapted(
            "haproxy.cfg",
            {
                "maxconn 20000": "maxconn 200",
                "bind :443": f"bind 127.0.0.1:{port}",
                "127.0.0.1:8765": f"127.0.0.1:{made.port}",
                "/etc/starlight/cert-and-key.pem": str(both),
            },
        )
        (tmp_path / "haproxy.cfg").write_text(text)
        async with running("haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg"), port=port):
            await through(f"wss://127.0.0.1:{port}/ws", seen)


@pytest.mark.skipif(shutil.which("caddy") is None, reason="caddy is not installed")
async def test_caddy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    certificate, key = trust(tmp_path, monkeypatch)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    port, seen = free_port(), list[str]()
    async with node(seen) as made:
        text = adapted(
            "Caddyfile",
            {
                # what it does by itself on a public machine: a certificate of a public authority
                "app.example.com {": "{\n\tadmin off\n\tauto_https off\n}\n\n"
                f"https://localhost:{port}, https://127.0.0.1:{port} {{\n\tbind 127.0.0.1\n"
                f"\ttls {certificate} {key}\n",
                "127.0.0.1:8765": f"127.0.0.1:{made.port}",
            },
        )
        (tmp_path / "Caddyfile").write_text(text)
        words = ("caddy", "run", "--adapter", "caddyfile", "--config", str(tmp_path / "Caddyfile"))
        async with running(*words, port=port):
            await through(f"wss://127.0.0.1:{port}/ws", seen)
