"""starlight.net.gate on a real node: pages, proxies, too many of an address; and what a client behind a proxy is."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest

from starlight.auth.limits import BURST_S
from starlight.channels.client import Client
from starlight.channels.handlers import Handlers
from starlight.config.settings import Settings
from starlight.errors import ConfigError
from starlight.server.node import Node
from tests.support.fakes import eventually
from tests.support.raw_client import RawClient, Stage, message, request, stage

WIRES = ("ws", "wss")


async def status(on_stage: Stage, *lines: str, target: str = "/ws", host: str = "x") -> int:
    """What a request with these header lines is answered."""
    client = await on_stage.connect()
    await client.send(request(f"Host: {host}", *lines, target=target, drop=("host",)))
    head = await client.head()
    client.close()
    return int(head.split()[1])


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("https://app.test", 101), ("https://a.b.test", 101), ("https://evil.test", 403), ("null", 403),
        ("https://app.test.evil.test", 403), ("https://evilb.test", 403), ("http://app.test", 403),
    ],
)  # fmt: skip
async def test_8_pages_against_an_allow_list(origin: str, expected: int):
    async with stage(allowed_origins="https://app.test, https://*.b.test") as on_stage:
        assert await status(on_stage, f"Origin: {origin}") == expected


async def test_8_pages_of_the_same_host_by_default():
    async with stage() as on_stage:
        assert await status(on_stage) == 101
        assert await status(on_stage, "Origin: http://localhost:3000", host="localhost:8765") == 101
        assert await status(on_stage, "Origin: http://127.0.0.1", host="127.0.0.1:8765") == 101
        assert await status(on_stage, "Origin: http://y", host="localhost") == 403
        assert await status(on_stage, "Origin: capacitor://localhost", host="localhost") == 403
        assert await status(on_stage, "Origin: http://localhost", "Origin: http://localhost", host="localhost") == 403


@pytest.mark.parametrize(
    "name", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost.", "x"]
)
async def test_8_a_page_that_has_bound_its_own_name_to_loopback_is_refused(name: str):
    async with stage() as on_stage:
        for host in (name, f"{name}:{on_stage.node.port}"):
            assert await status(on_stage, f"Origin: http://{name}", host=host) == 403
        assert await status(on_stage, host=name) == 101  # a program
        counts = on_stage.node.acceptor.gate.refusals.counts
        assert counts == {"host": 2}


async def test_8_on_loopback_a_page_that_is_named_may_ask_for_any_host():
    async with stage(allowed_origins="https://app.example.com") as on_stage:
        assert await status(on_stage, "Origin: https://app.example.com", host="app.example.com") == 101
        assert await status(on_stage, "Origin: https://evil.example", host="evil.example") == 403


async def test_8_applications_that_are_named_may_connect():
    apps = [
        "capacitor://localhost",
        "tauri://localhost",
        "ionic://localhost",
        "file://",
        "null",
        "chrome-extension://ab",
    ]
    async with stage(allowed_origins=",".join(apps)) as on_stage:
        for origin in apps:
            assert await status(on_stage, f"Origin: {origin}") == 101
        for origin in ("capacitor://other", "chrome-extension://abc", "moz-extension://ab", "http://localhost"):
            assert await status(on_stage, f"Origin: {origin}") == 403


async def test_12_a_token_in_the_query_is_refused_and_never_logged(caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    async with stage() as on_stage:
        for target in ("/ws?token=canary-1", "/ws?access_token=canary-2", "/canary-3?x"):
            assert await status(on_stage, target=target) in (400, 404)
        assert await status(on_stage, "Authorization: Bearer canary-4", "Cookie: session=canary-5") == 101
    assert "canary" not in caplog.text


async def open_until_refused(on_stage: Stage, most: int) -> int:
    """How many connections are let in before one is closed without an answer."""
    for number in range(most):
        try:
            client = await on_stage.connect()  # over TLS it is noticed here
            await client.send(request())
            if not await client.receive():
                return number
        except (ConnectionResetError, BrokenPipeError):
            return number
    return most


async def test_54_too_many_connections_of_an_address_are_refused_at_accept():
    async with stage(connections_per_address=5) as on_stage:
        assert await open_until_refused(on_stage, 10) == 4  # the witness has one
        on_stage.clients[0].close()
        await eventually(lambda: on_stage.node.connections == 4)
        assert await open_until_refused(on_stage, 10) == 1
        assert on_stage.node.acceptor.counts.refused_address == 2


async def test_54_too_many_connections_a_second_of_an_address_are_refused_at_accept():
    async with stage(connection_rate=1) as on_stage:
        assert await open_until_refused(on_stage, 10) in (BURST_S - 1, BURST_S)


async def test_54_another_address_is_not_hurt():
    async with stage(connections_per_address=1, trusted_proxies="127.0.0.1") as on_stage:
        first, second = "X-Forwarded-For: 203.0.113.1", "X-Forwarded-For: 203.0.113.2"
        client = await on_stage.connect()
        await client.send(request(first))
        assert b" 101 " in await client.head()
        assert await status(on_stage, first) == 429
        assert await status(on_stage, second) == 101
        client.close()
        await eventually(lambda: on_stage.node.connections == 1)
        assert await status(on_stage, first) == 101


@pytest.mark.parametrize(
    ("trusted", "line", "peer"),
    [
        ("", "X-Forwarded-For: 203.0.113.1", "127.0.0.1"),
        ("10.0.0.0/8", "X-Forwarded-For: 203.0.113.1", "127.0.0.1"),
        ("127.0.0.1", "X-Forwarded-For: 6.6.6.6, 203.0.113.1", "203.0.113.1"),
        ("127.0.0.0/8", "X-Other: 1", "127.0.0.1"),
    ],
)
async def test_the_address_of_a_client_is_a_proxys_word_only_if_it_is_one_of_ours(trusted: str, line: str, peer: str):
    handlers, seen = Handlers(), []

    @handlers.on_login
    def look(client: Client, login: dict[str, Any]) -> None:
        if client.user == "ann":
            assert client.connection.peername is not None
            seen.append(client.connection.peername[0])

    async with stage(node=lambda settings: Node(settings, handlers=handlers), trusted_proxies=trusted) as on_stage:
        client = await on_stage.connect()
        await client.send(request(line))
        await client.head()
        await client.say("login", user="ann")
        await client.hear()
    assert seen == [peer]


@pytest.mark.parametrize(
    ("word", "peer"),
    [
        ("203.0.113.9:51008", "203.0.113.9"), ("[2001:db8::1]:443", "2001:db8::1"), ("[2001:db8::1]", "2001:db8::1"),
        ("unknown", "127.0.0.1"), ("_hidden", "127.0.0.1"), ("", "127.0.0.1"), ("6.6.6.6, unknown", "127.0.0.1"),
    ],
)  # fmt: skip
async def test_an_x_forwarded_for_as_proxies_write_it_refuses_nobody(word: str, peer: str):
    """What is no address counts as the proxy, which has no limit: else one odd header would refuse all its clients."""
    seen = []
    handlers = Handlers()

    @handlers.on_login
    def look(client: Client, login: dict[str, Any]) -> None:
        if client.user != "witness":
            assert client.connection.peername is not None
            seen.append(client.connection.peername[0])

    settings = {"trusted_proxies": "127.0.0.1", "connections_per_address": 3, "quiet": peer != "127.0.0.1"}
    async with stage(node=lambda settings: Node(settings, handlers=handlers), **settings) as on_stage:
        statuses = []
        for number in range(5):
            client = await on_stage.connect()
            await client.send(request(f"X-Forwarded-For: {word}"))
            statuses.append((await client.head()).split()[1])
            if statuses[-1] == b"101":
                await client.say("login", user=f"u{number}")
                await client.hear()
        assert set(seen) == {peer}
        assert statuses == [b"101"] * (5 if peer == "127.0.0.1" else 3) + [b"429"] * (0 if peer == "127.0.0.1" else 2)


@pytest.mark.parametrize("settings", [{"allowed_origins": "x"}, {"trusted_proxies": "x"}])
def test_wrong_settings_are_refused_at_start(settings: dict[str, Any]):
    with pytest.raises(ConfigError):
        Node(Settings(**settings))


async def test_55_over_the_rate_it_is_111_then_reading_stops_for_a_moment_and_goes_on():
    async with stage(message_rate=5) as on_stage:
        client: RawClient = await on_stage.login()
        for number in range(50):
            await client.say("ping", id=number)
        told = [await client.hear() for _ in range(50)]  # the pause is in there: what is behind it is answered after it
        assert [answer["id"] for answer in told] == list(range(50))
        assert [answer["type"] for answer in told[:10]] == ["pong"] * 10  # two seconds' worth
        assert {(answer["type"], answer.get("code")) for answer in told} == {("pong", None), ("error", 111)}
        assert (await client.ask("ping"))["type"] in ("pong", "error")


async def test_55_who_does_not_stop_is_ended_with_4013():
    async with stage(message_rate=5) as on_stage:
        client = await on_stage.login()
        await client.send(message("ping") * 200)  # all at once: TLS holds the rest while reading is paused
        assert await client.close_code() == 4013


OWN, OWN_LONG, SHARED = ("", True, 410), ("x" * 225, True, 630), ("", False, 210)


@pytest.mark.parametrize(("prefix", "is_alone", "most_bytes"), [OWN, OWN_LONG, SHARED])
async def test_56_a_membership_takes_no_more_than_the_docs_say(prefix: str, is_alone: bool, most_bytes: int):
    """As Python counts; the core's own 50 bytes come on top. In channels of its own, and in those of another client."""
    async with stage() as on_stage:
        names = [f"{prefix}channel-of-thirty-bytes-{number:06}" for number in range(1_000)]
        first, second = await on_stage.login("ann"), await on_stage.login("bob")
        await ask_all(first, "join", names)  # what is kept of names that were seen before is no membership
        if is_alone:
            await ask_all(first, "leave", names)
        gc.collect()
        tracemalloc.start()
        try:
            await ask_all(second, "join", names)
            gc.collect()
            taken_bytes = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert taken_bytes < most_bytes * len(names), taken_bytes / len(names)


async def ask_all(client: RawClient, type: str, names: list[str]) -> None:
    for name in names:
        assert (await client.ask(type, channel=name))["type"] == "ok"


async def test_56_too_many_channels_are_106():
    async with stage(channels_per_client=2) as on_stage:
        client = await on_stage.login()
        told = [await client.ask("join", channel=name) for name in ("a", "b", "c", "a")]
        assert [answer.get("code") for answer in told] == [None, None, 106, 105]
        await client.ask("leave", channel="a")
        assert (await client.ask("join", channel="c"))["type"] == "ok"
