"""starlight.app: an application on a real node, spoken to by clients of the `websockets` library."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from starlight.app import Starlight
from starlight.channels.client import Client
from starlight.errors import ConfigError, NotServing, RequestError, WrongThread
from starlight.server.node import Node
from tests.support.fakes import eventually
from tests.support.wire_client import WireClient

WIRES = ("ws", "wss")


@pytest.fixture
def app() -> Starlight:
    return Starlight(port=0, drain_timeout_s=5)


@pytest.fixture
async def node(app: Starlight) -> AsyncIterator[Node]:
    async with app.serve() as node:
        yield node


def test_sending_before_it_serves_says_so(app: Starlight):
    for send in (lambda: app.send("ann", 1), lambda: app.publish("c", 1), lambda: app.broadcast(1)):
        with pytest.raises(NotServing, match="does not serve"):
            send()
    with pytest.raises(NotServing):
        app.publish_threadsafe("c", 1)


def test_settings_of_the_call_go_before_those_of_the_application(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STARLIGHT_OUTBOX_MESSAGES", "7")
    app = Starlight(outbox_bytes="2MiB", port=1)
    settings = app.settings(port=2)
    assert (settings.outbox_bytes, settings.outbox_messages, settings.port) == (2 << 20, 7, 2)
    with pytest.raises(ConfigError, match="prot"):
        Starlight(prot=1).settings()


async def test_jwt_with_nothing_to_verify_tokens_with_is_refused_at_start():
    with pytest.raises(ConfigError, match="something to verify tokens with"):
        await Starlight(auth="jwt", port=0).serve()


async def test_awaiting_serve_gives_the_running_node(app: Starlight):
    node = await app.serve()
    ann = await WireClient.login(node.url, "ann")
    assert app.broadcast(1) == 1
    with pytest.raises(RuntimeError, match="already serves"):
        await app.serve()
    await node.drain()
    assert (await ann.closed())[0] == 1001
    with pytest.raises(NotServing):
        app.broadcast(1)


async def test_an_application_may_serve_again_after_its_drain(app: Starlight):
    for _ in range(2):
        async with app.serve() as node:
            ann = await WireClient.login(node.url, "ann")
            assert (await ann.ask("ping"))["type"] == "pong"


async def test_pushes_reach_whom_they_should(app: Starlight, node: Node):
    ann, bob = await WireClient.login(node.url, "ann"), await WireClient.login(node.url, "bob")
    await bob.ask("join", channel="c")
    assert (app.send("ann", {"n": 1}), app.send("nobody", 0)) == (1, 0)
    assert (app.publish("c", [2]), app.publish("empty", 0)) == (1, 0)
    assert app.broadcast(None) == 2
    everyone = {"type": "broadcast", "from": None, "data": None}
    assert [await ann.hear() for _ in range(2)] == [{"type": "server", "data": {"n": 1}}, everyone]
    publication = {"type": "publication", "channel": "c", "from": None, "data": [2]}
    assert [await bob.hear() for _ in range(2)] == [publication, everyone]
    with pytest.raises(TypeError):
        app.broadcast({1, 2})
    with pytest.raises(ValueError, match="channel name"):
        app.publish("a b", 1)


async def test_handlers_sync_async_and_threaded_answer_and_keep_the_order_of_their_client(app: Starlight):
    @app.on("sync")
    def sync(client: Client, data: Any) -> Any:
        return data

    @app.on("async")
    async def later(client: Client, data: Any) -> Any:
        await asyncio.sleep(0.01)
        return data

    @app.on("thread", thread=True)
    def thread(client: Client, data: Any) -> Any:
        time.sleep(0.01)
        return data

    async with app.serve() as node:
        ann = await WireClient.login(node.url, "ann")
        for number in range(30):
            await ann.say(("async", "sync", "thread")[number % 3], id=number, data=number)
        await ann.say("ping")
        heard = await ann.hear_until("pong")
        assert [message["data"] for message in heard[:-1]] == list(range(30))


async def test_a_slow_handler_of_one_client_does_not_hold_up_another(app: Starlight):
    go_on = asyncio.Event()

    @app.on("wait")
    async def wait(client: Client, data: Any) -> None:
        await go_on.wait()

    async with app.serve() as node:
        ann, bob = await WireClient.login(node.url, "ann"), await WireClient.login(node.url, "bob")
        await ann.say("wait", id=1)
        assert (await bob.ask("direct", to="ann", data="hi"))["clients"] == 1
        assert (await ann.hear())["type"] == "direct"
        go_on.set()
        assert (await ann.hear())["type"] == "ok"


async def test_failures_of_handlers_are_replies_and_the_connection_stays(app: Starlight):
    @app.on("fail")
    def fail(client: Client, data: Any) -> None:
        raise RuntimeError("inside")

    @app.on("refuse")
    async def refuse(client: Client, data: Any) -> None:
        raise RequestError(103, "not you")

    async with app.serve() as node:
        ann = await WireClient.login(node.url, "ann")
        assert (await ann.ask("fail"))["code"] == 100
        assert (await ann.ask("refuse"))["message"] == "not you"
        assert (await ann.ask("unknown"))["code"] == 104
        assert (await ann.ask("ping"))["type"] == "pong"


async def test_login_connect_and_disconnect_hooks(app: Starlight):
    events: list[str] = []

    @app.on_login
    async def check(client: Client, login: dict[str, Any]) -> bool:
        await asyncio.sleep(0)
        return login.get("password") == "pw"

    @app.on_connect
    def connected(client: Client) -> None:
        events.append(f"in {client.user}")
        client.send("hello")

    @app.on_disconnect
    async def disconnected(client: Client) -> None:
        events.append(f"out {client.user}")

    async with app.serve() as node:
        with pytest.raises((AssertionError, ConnectionClosed)):
            await WireClient.login(node.url, "eve", password="guess")
        ann = await WireClient.login(node.url, "ann", password="pw")
        assert await ann.hear() == {"type": "server", "data": "hello"}
        await ann.close()
        await eventually(lambda: events == ["in ann", "out ann"])


async def test_a_refused_login_is_closed_with_4500_after_a_bye(app: Starlight):
    app.on_login(lambda client, login: False)
    async with app.serve() as node:
        from websockets.asyncio.client import connect

        async with connect(node.url) as socket:
            client = WireClient(socket)
            await client.say("login", user="eve")
            bye = await client.hear()
            assert (bye["type"], bye["code"]) == ("bye", 4500)
            assert (await client.closed())[0] == 4500


async def test_other_threads_use_publish_threadsafe(app: Starlight, node: Node):
    ann = await WireClient.login(node.url, "ann")
    await ann.ask("join", channel="c")
    wrong: list[Exception] = []

    def work() -> None:
        try:
            app.publish("c", "wrong")
        except WrongThread as error:
            wrong.append(error)
        for number in range(100):
            app.publish_threadsafe("c", number)
        for data, channel in ((object(), "c"), (1, "a b")):
            try:
                app.publish_threadsafe(channel, data)
            except (TypeError, ValueError) as error:
                wrong.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert [(await ann.hear())["data"] for _ in range(100)] == list(range(100))
    thread.join(10)
    assert len(wrong) == 3


async def test_timers_run_sync_and_async_and_survive_failures(app: Starlight):
    calls = {"sync": 0, "async": 0}

    @app.every(0.01)
    def tick() -> None:
        calls["sync"] += 1
        if calls["sync"] == 2:
            raise RuntimeError("once")

    @app.every(0.01)
    async def tick_later() -> None:
        await asyncio.sleep(0)
        calls["async"] += 1
        app.broadcast(calls["async"])

    async with app.serve() as node:
        ann = await WireClient.login(node.url, "ann")
        for _ in range(3):
            assert (await ann.hear())["type"] == "broadcast"
        await eventually(lambda: min(calls.values()) >= 5)
    await asyncio.sleep(0)
    after = dict(calls)
    await asyncio.sleep(0.05)
    assert calls == after


async def test_on_disconnect_of_the_drain_may_still_publish(app: Starlight):
    counts: list[int] = []
    app.on_disconnect(lambda client: counts.append(app.publish("c", client.user)))
    async with app.serve() as node:
        ann = await WireClient.login(node.url, "ann")
        await ann.ask("join", channel="c")
    assert counts == [0]
