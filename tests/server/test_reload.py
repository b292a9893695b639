"""server.reload: what SIGHUP changes for who is connected and for who comes, and that it is all or nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus

from starlight import ChannelOptions
from starlight.app import Starlight
from starlight.auth.jwks import FetchedKeys
from starlight.config.settings import Settings, entries
from starlight.errors import ConfigError
from starlight.server import logs, process
from starlight.server.node import Node
from starlight.server.reload import problems
from tests.support.fakes import eventually
from tests.support.settings import clean_environment  # noqa: F401  # pytest finds fixtures by name
from tests.support.tls import write_certificate
from tests.support.tokens import AUDIENCE, ISSUER, SECRET, token, write
from tests.support.wire_client import WireClient

pytestmark = pytest.mark.usefixtures("clean_environment")
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 30.0

GROUPS = """
[groups.default]
subscribe = ["news", "open:*"]
publish = ["news"]
[groups.staff]
subscribe = ["staff"]
publish = ["*"]
"""


class Configured:
    """A file, and a node that was configured by it."""

    def __init__(self, path: Path, node: Node) -> None:
        self.path = path
        self.node = node

    async def change(self, text: str) -> bool:
        self.path.write_text(text)
        async with asyncio.timeout(TIMEOUT_S):
            return await self.node.reload()


@asynccontextmanager
async def configured(
    tmp_path: Path, text: str, app: Starlight | None = None, **given: Any
) -> AsyncIterator[Configured]:
    path = tmp_path / "starlight.toml"
    path.write_text(text)
    given = {"port": 0, "drain_timeout_s": 2, "config_file": str(path), **given}
    async with (app or Starlight()).serve(**given) as node:
        yield Configured(path, node)


async def login(node: Node, text: str) -> WireClient:
    client = WireClient(await connect(node.url, compression=None))
    welcome = await client.ask("login", token=text)
    assert welcome["type"] == "welcome", welcome
    return client


async def refused(node: Node, text: str) -> int:
    """The code that a login ends with."""
    client = WireClient(await connect(node.url, compression=None))
    await client.say("login", token=text)
    return (await client.closed())[0]


# permissions


async def test_permissions_hold_from_now_on_and_who_lost_a_channel_comes_back(tmp_path: Path):
    async with configured(tmp_path, GROUPS) as made:
        ann, bob = await WireClient.login(made.node.url, "ann"), await WireClient.login(made.node.url, "bob")
        for client, channel in ((ann, "news"), (ann, "open:1"), (bob, "news")):
            assert (await client.ask("join", channel=channel))["type"] == "ok"
        for client in (ann, bob):  # the verdicts are known now
            assert (await client.ask("publish", channel="news", data=1))["type"] == "ok"
        assert (await bob.ask("publish", channel="open:1", data=1))["code"] == 103
        changed = GROUPS.replace('subscribe = ["news", "open:*"]', 'subscribe = ["news"]')
        assert await made.change(changed.replace('publish = ["news"]', 'publish = ["open:*"]'))
        assert (await bob.ask("publish", channel="news", data=1))["code"] == 103
        assert (await bob.ask("publish", channel="open:1", data=1))["type"] == "ok"
        assert (await bob.ask("join", channel="open:2"))["code"] == 103
        *_, bye = await ann.hear_until("bye")
        assert bye["code"] == 4011
        assert 500 <= bye["retry_ms"] <= 5_500
        assert (await ann.closed())[0] == 4011
        await eventually(lambda: made.node.hub.counters() == {"users": 1, "clients": 1, "channels": 1})
        await bob.close()


async def test_groups_can_come_and_go_altogether(tmp_path: Path):
    async with configured(tmp_path, "") as made:
        ann = await WireClient.login(made.node.url, "ann")
        assert (await ann.ask("join", channel="anything"))["type"] == "ok"
        assert await made.change(GROUPS.replace('["news", "open:*"]', '["*"]'))
        assert (await ann.ask("join", channel="more"))["type"] == "ok"
        assert (await ann.ask("publish", channel="more", data=1))["code"] == 103
        assert await made.change("")
        assert (await ann.ask("publish", channel="more", data=1))["type"] == "ok"
        await ann.close()


async def test_the_hook_and_the_groups_of_code_stay(tmp_path: Path):
    app = Starlight(groups={"default": {"publish": ["code"]}, "staff": {"publish": ["x"]}})
    asked: list[str] = []

    @app.authorize
    def authorize(client: Any, action: str, name: str) -> None:
        asked.append(name)

    async with configured(tmp_path, "", app) as made:
        ann = await WireClient.login(made.node.url, "ann")
        assert (await ann.ask("publish", channel="code", data=1))["type"] == "ok"
        assert await made.change('[groups.default]\npublish = ["file"]')
        assert (await ann.ask("publish", channel="code", data=1))["code"] == 103
        assert (await ann.ask("publish", channel="file", data=1))["type"] == "ok"
        assert asked == ["code", "code", "file"]
        await ann.close()


async def test_permissions_of_the_application_are_not_touched(tmp_path: Path):
    class Nothing:
        def allows(self, client: object, action: str, name: str) -> bool:
            return False

    async with configured(tmp_path, "", Starlight(permissions=Nothing())) as made:
        ann = await WireClient.login(made.node.url, "ann")
        assert await made.change('[groups.default]\npublish = ["*"]')
        assert (await ann.ask("publish", channel="x", data=1))["code"] == 103
        await ann.close()


async def test_many_clients_are_looked_at_with_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("starlight.server.reload.SLICE_S", 0.0)
    async with configured(tmp_path, GROUPS) as made:
        clients = [await WireClient.login(made.node.url, f"user{n}") for n in range(10)]
        for client in clients[:5]:
            assert (await client.ask("join", channel="open:1"))["type"] == "ok"
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.ensure_future(count())
        assert await made.change(GROUPS.replace('"open:*"', '"shut:*"'))
        counting.cancel()
        assert turns >= 15  # one for each client, and one for each channel
        assert [(await client.closed())[0] for client in clients[:5]] == [4011] * 5
        assert all([(await client.ask("ping"))["type"] == "pong" for client in clients[5:]])
        for client in clients[5:]:
            await client.close()


# limits


async def test_rates_of_who_is_connected(tmp_path: Path):
    async with configured(tmp_path, "") as made:
        ann = await WireClient.login(made.node.url, "ann")
        for _ in range(20):
            assert (await ann.ask("ping"))["type"] == "pong"
        assert await made.change("message_rate = 1")
        assert [(await ann.ask("ping")).get("code") for _ in range(3)] == [None, None, 111]  # two seconds' worth
        assert await made.change("message_rate = 0")
        for _ in range(20):
            assert (await ann.ask("ping"))["type"] == "pong"
        await ann.close()


async def test_a_reload_that_changes_no_rate_gives_nobody_a_new_one(tmp_path: Path):
    async with configured(tmp_path, "message_rate = 1") as made:
        ann = await WireClient.login(made.node.url, "ann")
        assert [(await ann.ask("ping")).get("code") for _ in range(3)] == [None, None, 111]
        assert await made.change("message_rate = 1\nchannels_per_client = 5")
        assert (await ann.ask("ping"))["code"] == 111
        await ann.close()


async def test_limits_of_channels_and_names(tmp_path: Path):
    async with configured(tmp_path, "") as made:
        ann, bob = await WireClient.login(made.node.url, "ann"), await WireClient.login(made.node.url, "bob")
        for name in ("a", "b"):
            assert (await ann.ask("join", channel=name))["type"] == "ok"
        limits = 'channels_per_client = 2\nname_limit_bytes = 8\n[channels."*"]\nclients_limit = 1'
        assert await made.change(limits)
        assert (await ann.ask("join", channel="c"))["code"] == 106
        assert (await bob.ask("join", channel="a"))["code"] == 106
        assert (await bob.ask("join", channel="a-long-name"))["code"] == 107
        assert (await bob.ask("join", channel="c"))["type"] == "ok"
        client = WireClient(await connect(made.node.url, compression=None))
        await client.say("login", user="a-long-name")
        assert (await client.closed())[0] == 4501
        for one in (ann, bob):
            await one.close()


async def test_options_of_channels_change_for_those_that_there_are(tmp_path: Path):
    app = Starlight(channels={"room:*": ChannelOptions(announce="users", announce_delay="100ms")})
    async with configured(tmp_path, "", app) as made:
        ann, bob = await WireClient.login(made.node.url, "ann"), await WireClient.login(made.node.url, "bob")
        for client in (ann, bob):
            assert (await client.ask("join", channel="room:1"))["type"] == "ok"
        assert await ann.hear() == {"type": "joined", "channel": "room:1", "user": "bob"}
        assert (await bob.ask("leave", channel="room:1"))["type"] == "ok"
        assert await ann.hear() == {"type": "left", "channel": "room:1", "user": "bob"}  # by the timer of the loop
        assert await made.change('[channels."room:*"]\npresence = false')  # the file goes before code
        assert (await ann.ask("presence", channel="room:1"))["code"] == 108
        assert (await bob.ask("join", channel="room:1"))["type"] == "ok"
        assert not await made.change('[channels."room:*"]\npresense = false')
        assert await made.change("")
        assert set((await ann.ask("presence", channel="room:1"))["users"]) == {"ann", "bob"}
        for one in (ann, bob):
            await one.close()
        await eventually(lambda: made.node.hub.counters()["channels"] == 0)


async def test_limits_of_users_and_addresses_are_for_who_comes(tmp_path: Path):
    async with configured(tmp_path, "connections_per_address = 2") as made:
        first, second = [await WireClient.login(made.node.url, "ann") for _ in range(2)]
        with pytest.raises((InvalidMessage, OSError)):
            await WireClient.login(made.node.url, "ann")
        assert await made.change("connections_per_address = 3\nconnections_per_user = 1")
        client = WireClient(await connect(made.node.url, compression=None))  # the two still count
        await client.say("login", user="ann")
        assert (await client.closed())[0] == 4016
        for one in (first, second):
            assert (await one.ask("ping"))["type"] == "pong"
            await one.close()
        assert await made.change("")
        clients = [await WireClient.login(made.node.url, "ann") for _ in range(4)]
        for one in clients:
            await one.close()


async def test_origins(tmp_path: Path):
    async with configured(tmp_path, "") as made:
        origin = "https://app.example.com"
        with pytest.raises(InvalidStatus):
            await connect(made.node.url, compression=None, origin=origin)
        assert await made.change(f'allowed_origins = ["{origin}"]')
        await (await connect(made.node.url, compression=None, origin=origin)).close()


async def test_proxies(tmp_path: Path):
    async with configured(tmp_path, "") as made:
        assert await made.change('trusted_proxies = "127.0.0.1"')
        socket = await connect(made.node.url, compression=None, additional_headers={"X-Forwarded-For": "192.0.2.7"})
        ann = WireClient(socket)
        await ann.ask("login", user="ann")
        assert [client.connection.peername for client in made.node.hub.clients()] == [("192.0.2.7", 0)]
        await ann.close()


# keys


async def test_keys_of_tokens_and_sessions(tmp_path: Path):
    old, new = SECRET, "another-" + SECRET
    given = {"auth": "jwt", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    text = f'jwt_secret_file = "{write(tmp_path / "jwt", old)}"\nsession_secret_file = "{write(tmp_path / "key", old)}"'
    async with configured(tmp_path, text, **given) as made:
        ann = WireClient(await connect(made.node.url, compression=None))
        welcome = await ann.ask("login", token=token())
        write(tmp_path / "jwt", new)
        assert await made.change(text)  # the same text: what it names has changed
        assert await refused(made.node, token()) == 4500
        bob = await login(made.node, token("bob", key=new))
        assert (await ann.ask("ping"))["type"] == "pong"  # a login stays until it ends
        carol = await login(made.node, welcome["session"])  # and so does a session
        write(tmp_path / "key", new)
        assert await made.change(text)
        assert await refused(made.node, welcome["session"]) == 4500
        for client in (ann, bob, carol):
            await client.close()


async def test_a_session_key_that_is_replaced_sends_nobody_away_before_it_is_taken_out(tmp_path: Path):
    first, second = write(tmp_path / "1.key", SECRET), write(tmp_path / "2.key", "another-" + SECRET)
    given = {"auth": "jwt", "jwt_secret": SECRET, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    async with configured(tmp_path, f'session_secret_file = "{first}"', **given) as made:
        ann = WireClient(await connect(made.node.url, compression=None))
        old = (await ann.ask("login", token=token()))["session"]
        both = f'session_secret_file = "{second}"\nsession_previous_secret_file = "{first}"'
        assert await made.change(both)
        again = WireClient(await connect(made.node.url, compression=None))
        new = (await again.ask("login", token=old))["session"]
        assert await made.change(f'session_previous_secret_file = "{first}"') is False  # of what would it be the other?
        assert await made.change(f'session_secret_file = "{second}"')
        assert await refused(made.node, old) == 4500
        last = await login(made.node, new)
        for client in (ann, again, last):
            await client.close()


async def test_a_random_session_key_stays(tmp_path: Path):
    given = {"auth": "jwt", "jwt_secret": SECRET, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    async with configured(tmp_path, "", **given) as made:
        ann = WireClient(await connect(made.node.url, compression=None))
        welcome = await ann.ask("login", token=token(exp=2**31))
        assert await made.change('session_ttl_s = "1m"')
        again = WireClient(await connect(made.node.url, compression=None))
        assert (await again.ask("login", token=welcome["session"]))["type"] == "welcome"
        later = await again.ask("refresh", token=token(exp=2**31))
        assert later["expires"] <= welcome["expires"] - 3_000  # a minute instead of an hour
        for client in (ann, again):
            await client.close()


async def test_the_key_of_the_internal_port(tmp_path: Path):
    old, new = "o" * 32, "n" * 32

    def status(url: str, key: str) -> int:
        request = urllib.request.Request(f"{url}/api/broadcast", b'{"data":1}', {"Authorization": f"Bearer {key}"})
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    text = f'internal_port = 0\ninternal_key_file = "{write(tmp_path / "key", old)}"'
    async with configured(tmp_path, text) as made:
        url = made.node.internal_url
        assert url is not None
        assert [await asyncio.to_thread(status, url, key) for key in (old, new)] == [200, 401]
        write(tmp_path / "key", new)
        assert await made.change(text)
        assert [await asyncio.to_thread(status, url, key) for key in (old, new)] == [401, 200]
        write(tmp_path / "key", "short")
        assert not await made.change(text)
        assert await asyncio.to_thread(status, url, new) == 200
        assert await made.change("internal_port = 0")
        assert await asyncio.to_thread(status, url, new) == 403  # nothing can be changed without one


# all or nothing


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ('message_rate = "x"', "starlight.toml:1: message_rate='x': expected a whole number"),
        ("mesage_rate = 1", "did you mean message_rate?"),
        ("message_rate = ", "a TOML file"),
        ("[groups.a]\npublish = 1", "groups.a.publish=1: expected a list of channel patterns"),
        ('[channels."a:*"]\nanounce = 1', "channels.a:*.anounce=1: expected an option of a channel: "),
        ('allowed_origins = "nonsense"', "allowed_origins='nonsense'"),
        ('trusted_proxies = "nonsense"', "trusted_proxies='nonsense'"),
        ('jwt_key_file = "/nowhere"', "jwt_key_file='/nowhere'"),
        ('tls_cert = "/nowhere"', ""),
    ],
)
async def test_a_wrong_file_changes_nothing(
    wrong: str, expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    right = "connections_per_user = 1\n" + GROUPS
    given = {"auth": "jwt", "jwt_secret_file": write(tmp_path / "secret", SECRET), "jwt_audience": AUDIENCE}
    async with configured(tmp_path, right, **given) as made:
        ann = await login(made.node, token())
        before = made.node.settings
        if wrong.startswith("jwt_key_file"):
            wrong += f"\njwt_secret_file = '{given['jwt_secret_file']}'"
        is_taken = await made.change("connections_per_user = 5\n" + wrong if wrong[0] != "m" else wrong)
        if not expected:  # not wrong: a node without TLS stays one, until a restart
            assert is_taken
            assert "not changed before a restart: tls_cert, tls_key" in caplog.text
        else:
            assert not is_taken
            assert made.node.settings is before
            assert "the configuration stays as it was: " in caplog.text
            assert await refused(made.node, token()) == 4016
            assert (await ann.ask("publish", channel="news", data=1))["type"] == "ok"
        await ann.close()


async def test_a_file_that_is_gone_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with configured(tmp_path, "message_rate = 5") as made:
        made.path.unlink()
        assert not await made.node.reload()
        assert "no such file" in caplog.text
        assert made.node.settings.message_rate == 5


async def test_what_needs_a_restart_is_named_and_not_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    async with configured(tmp_path, "") as made:
        text = 'path = "/other"\noutbox_messages = 7\nmax_connections = 5\nmessage_rate = 9\nlog_level = "error"'
        assert await made.change(text)
        assert "changed: message_rate=9, log_level=error" in caplog.text
        assert "not changed before a restart: path, max_connections, outbox_messages" in caplog.text
        kept = made.node.settings
        assert (kept.path, kept.outbox_messages, kept.message_rate, kept.log_level) == ("/ws", 256, 9, "error")
        caplog.clear()
        assert await made.change(text)
        assert "changed: no setting" in caplog.text
        assert "not changed before a restart: path, max_connections, outbox_messages" in caplog.text


async def test_the_log_says_which_files_have_changed_and_which_have_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    certificate, key = write_certificate(tmp_path)
    secret, session = write(tmp_path / "secret", SECRET), write(tmp_path / "session", "s" * 64)
    text = (
        f'tls_cert = "{certificate}"\ntls_key = "{key}"\nauth = "jwt"\njwt_secret_file = "{secret}"\n'
        f'session_secret_file = "{session}"\n'
    )

    async def told(made: Configured, new: str) -> tuple[str, str]:
        caplog.clear()
        assert await made.change(new)
        line = next(record.getMessage() for record in caplog.records if "read again" in record.getMessage())
        changed, _, same = line.partition("; read again and as before: ")
        return changed.partition("changed: ")[2], same

    async with configured(tmp_path, text) as made:
        config = f"config_file ({made.path})"
        changed, same = await told(made, text)
        assert changed == "no setting and no file"
        for name in (config, "tls_cert (", "tls_key (", "jwt_secret_file (", "session_secret_file ("):
            assert name in same
        write_certificate(tmp_path, 1)
        changed, same = await told(made, text)
        assert changed == f"the content of tls_cert ({certificate}), the content of tls_key ({key})"
        assert "tls" not in same and config in same
        write(tmp_path / "secret", SECRET[::-1])
        assert (await told(made, text))[0] == f"the content of jwt_secret_file ({secret})"
        changed, _ = await told(made, text + GROUPS)
        assert changed == f"the content of {config}, groups new: default, staff"
        changed, _ = await told(made, text + GROUPS.replace('"open:*"', '"shut:*"'))
        assert changed == f"the content of {config}, groups changed: default"
        assert (await told(made, text))[0] == f"the content of {config}, groups gone: default, staff"
        changed, _ = await told(made, text + '[channels."a:*"]\nannounce = "users"')
        assert changed == f"the content of {config}, channels new: a:*"
        assert (await told(made, text))[0] == f"the content of {config}, channels gone: a:*"
        other = write(tmp_path / "other", SECRET)
        changed, _ = await told(made, text.replace(secret, other))
        assert changed == f"jwt_secret_file={other}, the content of {config}, the content of jwt_secret_file ({other})"
        assert SECRET not in caplog.text


async def test_reloads_wait_for_each_other(tmp_path: Path):
    async with configured(tmp_path, "") as made:
        results = []
        for rate in range(1, 6):
            made.path.write_text(f"message_rate = {rate}")
            results.append(asyncio.ensure_future(made.node.reload()))
            await asyncio.sleep(0)
        assert await asyncio.gather(*results) == [True] * 5
        assert made.node.settings.message_rate == 5


async def test_a_node_without_a_way_to_make_settings_reads_the_files_that_they_name(tmp_path: Path):
    path = tmp_path / "starlight.toml"
    path.write_text("")
    async with Node(Settings(port=0, drain_timeout_s=2, config_file=str(path))) as node:
        path.write_text("message_rate = 1\n" + GROUPS)
        assert await node.reload()
        ann = await WireClient.login(node.url, "ann")
        assert (await ann.ask("publish", channel="x", data=1))["code"] == 103
        assert node.settings.message_rate == 200
        await ann.close()


def test_the_settings_that_reload_are_all_applied():
    """A new one has to be added here, and to the `reconfigure` of the part that it is for."""
    assert {entry.name for entry in entries() if entry.reloads} == {
        *("config_file", "tls_cert", "tls_key", "jwt_secret", "jwt_secret_file", "jwt_key_file", "jwt_jwks_url"),
        *("jwt_algorithms", "jwt_issuer", "jwt_audience", "jwt_leeway_s", "jwt_groups_claim", "session_secret_file"),
        *(
            "session_previous_secret_file",
            "session_ttl_s",
            "allowed_origins",
            "trusted_proxies",
            "connections_per_user",
            "connections_per_address",
        ),
        *("connection_rate", "message_rate", "byte_rate_bytes", "channels_per_client"),
        *(
            "internal_key_file",
            "name_limit_bytes",
            "drain_timeout_s",
            "drain_notice_s",
            "drain_rate",
            "log_level",
            "dry_run",
        ),
    }


async def test_each_setting_that_reloads_is_read_by_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One that no part reads would be said to have changed, and nothing would change."""
    asked: set[str] = set()
    monkeypatch.setattr(FetchedKeys, "start", lambda self: None)  # it would fetch them

    class Asked(Settings):
        def __getattribute__(self, name: str) -> Any:
            asked.add(name)
            return super().__getattribute__(name)

    certificate, key = write_certificate(tmp_path)
    secret = write(tmp_path / "secret", SECRET)
    given: dict[str, Any] = {"port": 0, "drain_timeout_s": 2, "internal_port": 0, "auth": "jwt"}
    given |= {"tls_cert": certificate, "tls_key": key, "internal_key_file": secret}
    sources = ({"jwt_secret": SECRET}, {"jwt_secret_file": secret}, {"jwt_jwks_url": "https://issuer.test/keys"})
    for source in sources:
        node = Node(Settings(**given, **source))
        for reconfigure in (*node._reloader._parts, logs.reconfigure, process._reconfigure):
            reconfigure(Asked(**given, **source, session_secret_file=secret))()
    of_the_node = {"drain_notice_s", "drain_rate"}  # read when it drains
    assert {entry.name for entry in entries() if entry.reloads} - asked == of_the_node


async def test_a_part_that_fails_changes_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    committed: list[str] = []

    def wrong(settings: Settings) -> Callable[[], None]:
        raise ConfigError("log_level", settings.log_level, "another one")

    async with configured(tmp_path, "message_rate = 5") as made:
        made.path.write_text("message_rate = 6")
        before = made.node.settings
        right = lambda settings: lambda: committed.append(settings.log_level)  # noqa: E731
        assert not await made.node.reload(right, wrong)
        assert not committed and made.node.settings is before
        assert "the configuration stays as it was: log_level='info': expected another one" in caplog.text
        assert await made.node.reload(right)
        assert (committed, made.node.settings.message_rate) == (["info"], 6)


def test_problems_are_all_told(tmp_path: Path):
    certificate, _ = write_certificate(tmp_path)
    file = write(tmp_path / "a.toml", "[groups.a]\nb = 1\n[groups.c]\nd = 1\n")
    settings = Settings(auth="jwt", tls_cert=certificate, allowed_origins="x", trusted_proxies="x", config_file=file)
    keys = [error.key for error in problems(settings)]
    assert keys[:4] == ["auth", "tls_key", "allowed_origins", "trusted_proxies"]
    assert [key.partition(": ")[2] for key in keys[4:]] == ["groups.a.b", "groups.c.d"]
    assert problems(Settings()) == []


# a process


async def test_sighup(tmp_path: Path):
    """`starlight serve` with a file: a right change, a wrong one, and another right one."""
    path = tmp_path / "starlight.toml"
    path.write_text('port = 0\nlog_level = "info"\n' + GROUPS)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "starlight", "serve", "--config", str(path), "--message-rate", "0"),
        cwd=ROOT,
        env={**os.environ, "STARLIGHT_CHANNELS_PER_CLIENT": "3"},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None

    async def line(containing: str) -> str:
        async with asyncio.timeout(TIMEOUT_S):
            while text := (await process.stderr.readline()).decode():
                if containing in text:
                    return text
        raise AssertionError(f"the log ended without {containing!r}")

    try:
        found = re.search(r"ws://[^\s\"]+", await line("listens on"))
        assert found
        ann, bob = await WireClient.login(found[0], "ann"), await WireClient.login(found[0], "bob")
        assert (await ann.ask("join", channel="open:1"))["type"] == "ok"
        assert (await bob.ask("join", channel="news"))["type"] == "ok"

        less = GROUPS.replace('"open:*"', '"shut:*"')
        path.write_text(
            f"port = 0\nmessage_rate = 1\nchannels_per_client = 9\nhost = '127.0.0.2'\nname_limit_bytes = 8{less}"
        )
        process.send_signal(signal.SIGHUP)
        assert "changed: name_limit_bytes=8" in await line("read again")  # flag and variable go before the file
        assert "restart: host" in await line("before a restart")
        assert (await ann.closed())[0] == 4011
        assert (await bob.ask("join", channel="a-long-name"))["code"] in (103, 107)
        for _ in range(5):
            assert (await bob.ask("ping"))["type"] == "pong"

        path.write_text("prot = 0\n" + GROUPS)
        process.send_signal(signal.SIGHUP)
        assert f"{path}:1: prot=0" in await line("stays as it was")
        assert (await bob.ask("join", channel="open:1"))["code"] == 103

        path.write_text('port = 0\nlog_level = "warning"\n' + GROUPS)
        process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(TIMEOUT_S):
            while (await bob.ask("join", channel="open:1")).get("code") == 103:
                await asyncio.sleep(0.05)
        await bob.close()
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert process.returncode == 0
    assert b"drain" not in rest  # the level is warning now
