"""The client of the internal port: against a node that runs, and against answers that no node gives."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from starlight.errors import ConfigError, NodeRefused, NodeUnreachable
from starlight.ops import client as _internal_client
from starlight.ops.client import NodeClient, clients, read_key
from tests.support.internal import KEY, serving, traffic

VARZ = b'{"node":"n","now":1,"surprise":true}'


@contextmanager
def answering(*answers: bytes, keep_open: bool = False) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers its requests with these bytes, one connection each; its URL, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)

        def serve() -> None:
            for answer in answers:
                connection, _ = listening.accept()
                with connection:
                    connection.settimeout(10)
                    asked.append(connection.recv(65_536))
                    connection.sendall(answer)
                    if keep_open:
                        connection.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        thread.join(10)


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def test_a_node_that_runs() -> None:
    async with serving() as node, node.client("ada") as ada, node.client("bob") as bob, bob.join("news"):
        await traffic(ada, "news", 0.2)
        client = NodeClient(node.internal_url)
        varz = await asyncio.to_thread(client.varz)
        assert (varz.state, varz.url, varz.connections, varz.clients, varz.users) == ("serving", node.url, 2, 2, 2)
        assert varz.totals.publications == 10
        assert varz.totals.deliveries >= 10  # replies count, too
        assert varz.now >= varz.started > 0
        assert varz.memory.budget_bytes == 512 << 20
        page = await asyncio.to_thread(client.connections, "messages_in", None, 1)
        assert (page.total, [row.user for row in page.connections]) == (2, ["ada"])
        page = await asyncio.to_thread(client.connections, "messages_in", None, 1, 1)
        assert [row.user for row in page.connections] == ["bob"]
        page = await asyncio.to_thread(client.connections, "outbox", "nobody & co/ä")
        assert (page.total, page.connections) == (0, [])
        channels = (await asyncio.to_thread(client.channels)).channels
        assert [(row.channel, row.subscribers, row.publications, row.deliveries) for row in channels] == [
            ("news", 1, 10, 10)
        ]
        with pytest.raises(NodeRefused) as refused:
            await asyncio.to_thread(client.disconnect, "ada")
        assert refused.value.status in (401, 403)
        client.close()


async def test_a_node_that_restarts_between_two_requests() -> None:
    async with serving() as node:
        client = NodeClient(node.internal_url)
        before = await asyncio.to_thread(client.varz)
        await node.end()
        with pytest.raises(NodeUnreachable, match=r"connection (refused|closed)"):
            await asyncio.to_thread(client.varz)
        async with serving(None, int(node.internal_url.rsplit(":", 1)[1])):
            assert (await asyncio.to_thread(client.varz)).pid != before.pid
        client.close()


def test_the_key_goes_with_every_request() -> None:
    with answering(http(VARZ)) as (url, asked):
        assert NodeClient(url + "/behind/a/proxy/", KEY).varz().node == "n"
    assert asked[0].startswith(b"GET /behind/a/proxy/varz HTTP/1.1\r\n")
    assert f"Authorization: Bearer {KEY}\r\n".encode() in asked[0]


def test_an_idle_connection_that_was_closed_is_opened_again_but_no_change_is_sent_twice() -> None:
    with answering(http(VARZ), http(VARZ), b"", http(VARZ)) as (url, asked):
        client = NodeClient(url, KEY)
        client.varz()
        client.varz()
        with pytest.raises(NodeUnreachable, match=r"connection (closed|reset by peer)"):
            client.disconnect("ada")
        client.varz()
        client.close()
    assert [line.split()[0] for line in asked] == [b"GET", b"GET", b"POST", b"GET"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.9\r\n", "the answer is not HTTP"),
        (b"", "connection (closed|reset by peer)"),
        (http(b"<html>\x1b[2J</html>"), "not that of a Starlight node"),
        (http(b"[]"), "not that of a Starlight node"),
        (http(b'{"node":"n","now":"soon"}'), "not that of a Starlight node"),
        (http(b'{"now":1}'), "not that of a Starlight node"),
        (http(b"[" * 100_000), "not that of a Starlight node"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", "not that of a Starlight node"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "the answer is not HTTP"),
    ],
)
def test_answers_that_no_node_gives(answer: bytes, reason: str) -> None:
    with answering(answer) as (url, _), pytest.raises(NodeUnreachable, match=reason) as raised:
        NodeClient(url).varz()
    assert raised.value.url == url
    assert str(raised.value).isprintable()


def test_an_answer_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_internal_client, "ANSWER_LIMIT_BYTES", 1_000)
    with answering(http(b" " * 2_000)) as (url, _), pytest.raises(NodeUnreachable, match="more than 1000 bytes"):
        NodeClient(url).varz()


def test_no_answer_in_time() -> None:
    with (
        answering(b"", keep_open=True) as (url, _),
        pytest.raises(NodeUnreachable, match=r"no complete answer within 0\.1 s"),
    ):
        NodeClient(url, answer_s=0.1).varz()


@contextmanager
def dripping(head: bytes, drip: bytes) -> Iterator[str]:
    """A node that answers with a head and then sends some bytes again and again, without end."""
    stop = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65_536)
            connection.sendall(head)
            while not stop.wait(0.01):
                connection.sendall(drip)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        stop.set()
        thread.join(10)
        listening.close()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("head", "drip"),
    [
        (b"", b"H"),
        (OK, b"X: y\r\n"),
        (OK + b"X: ", b"y"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK + b"\r\n", b" "),
        (OK + b"Connection: close\r\n\r\n", b" "),
        (OK + b"Content-Length: 1000000\r\n\r\n", b" "),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
    ],
)
def test_an_answer_that_drips_is_given_up(head: bytes, drip: bytes) -> None:
    for ask in (lambda node: node.connections(), lambda node: node.disconnect("ann")):
        with dripping(head, drip) as url, pytest.raises(NodeUnreachable) as failure:
            ask(NodeClient(url, answer_s=0.4))
        assert "no complete answer within 0.4 s" in str(failure.value) or "not HTTP" in str(failure.value)


def test_a_redirect_is_not_followed() -> None:
    answer = http(b"", "302 Found", "Location: http://evil.test/")
    with answering(answer) as (url, asked), pytest.raises(NodeRefused) as refused:
        NodeClient(url, KEY).varz()
    assert (refused.value.status, len(asked)) == (302, 1)


def test_a_refusal_says_why() -> None:
    body = b'{"error":{"code":"draining","message":"it drains already"}}'
    with answering(http(body, "409 Conflict")) as (url, _), pytest.raises(NodeRefused) as refused:
        NodeClient(url, KEY).drain()
    assert str(refused.value) == f"{url}: 409 it drains already"


@pytest.mark.parametrize(
    "url", ["", "x", "http://", "ftp://h", "http://h:x", "http://u@h", "http://h/?q", "http://h/\r\nX: y", "http://ä"]
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="expected the URL of an internal port"):
        NodeClient(url)


def test_each_node_once() -> None:
    assert [client.url for client in clients(["http://a:1", "http://b:1/", "http://a:1/"])] == [
        "http://a:1",
        "http://b:1",
    ]


@pytest.mark.parametrize("content", [b"", b" \n", b"a b", b"a\nb", "ä".encode(), b"\xff", b"a\x00", b"k" * 5_000])
def test_a_file_without_a_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigError, match="one key of printable ASCII"):
        read_key(str(tmp_path / "key"))


def test_a_key() -> None:
    with pytest.raises(ConfigError, match="can be read"):
        read_key("/nowhere/at/all")


def test_white_space_around_a_key_is_not_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f" {KEY}\n")
    assert read_key(str(tmp_path / "key")) == KEY
