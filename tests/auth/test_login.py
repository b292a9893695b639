"""starlight.auth.login through the hub: sessions, ends, renewals, revocations, limits and permissions with tokens.

The clocks stand still until a test moves them; tokens are of the real time, so the wall clock begins there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from starlight import ChannelOptions, close_codes
from starlight.auth.identity import TokenAuth, make_verifier
from starlight.auth.limits import Limits
from starlight.auth.permissions import Group, GroupPermissions
from starlight.auth.session_tokens import Sessions
from starlight.channels.client import Client
from starlight.channels.handlers import Handlers
from starlight.channels.hub import Hub
from starlight.channels.options import OptionsByPattern
from starlight.config.settings import Settings
from starlight.errors import CloseConnection
from tests.support.fakes import PairConnection, Stage
from tests.support.tokens import AUDIENCE, ISSUER, SECRET, token

GROUPS = {
    "trader": Group(publish=["auction:*"], subscribe=["auction:*", "news"], direct=True),
    "admin": Group(publish=["*"], subscribe=["*"], direct=True, broadcast=True),
}


class Someone:
    """A client that came with a token."""

    def __init__(self, hub: Hub, core: Any, text: str) -> None:
        self.hub = hub
        self.connection = PairConnection(core)
        try:
            assert hub.login(self.connection, orjson.dumps({"type": "login", "token": text})) is None
        except CloseConnection:
            self.connection.destroy()
            raise
        assert self.connection.client is not None
        self.client = self.connection.client
        self.welcome = self.heard()[0]

    def heard(self) -> list[dict[str, Any]]:
        return self.connection.messages()

    def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        assert self.hub.commands.receive(self.client, orjson.dumps({"type": type, "id": 1, **fields})) is None
        return self.heard()[-1]

    def leave(self) -> None:
        self.connection.destroy()
        self.hub.disconnect(self.client)


class TokenStage(Stage):
    """A hub that wants tokens."""

    def __init__(self, **options: Any) -> None:
        self.wall_s = time.time()
        self.sessions = Sessions(b"k" * 32, 3600, lambda: self.wall_s)
        leeway_s = options.pop("jwt_leeway_s", 0)
        verifier = make_verifier(
            Settings(auth="jwt", jwt_secret=SECRET, jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_leeway_s=leeway_s)
        )
        options = {"permissions": GroupPermissions(GROUPS), **options}
        super().__init__(
            authenticator=TokenAuth(verifier, self.sessions),
            sessions=self.sessions,
            wall_clock=lambda: self.wall_s,
            **options,
        )
        self.everyone: list[Someone] = []

    def come(self, text: str | None = None) -> Someone:
        self.everyone.append(Someone(self.hub, self.core, token() if text is None else text))
        return self.everyone[-1]

    async def come_later(self, text: str) -> None:
        """Come where others have to make room first. Raises `CloseConnection`."""
        connection = PairConnection(self.core)
        try:
            pending = self.hub.login(connection, orjson.dumps({"type": "login", "token": text}))
            assert pending is not None
            await pending
        finally:
            connection.destroy()

    def refused(self, text: str) -> int:
        with pytest.raises(CloseConnection) as end:
            self.come(text)
        return end.value.code

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.wall_s += seconds
        self.hub.expire()

    def close(self) -> None:
        for one in self.everyone:
            one.leave()


@pytest.fixture
def stage() -> Iterator[TokenStage]:
    made = TokenStage()
    yield made
    made.close()


# --- sessions --------------------------------------------------------------------------------------------------------


def test_welcome_carries_a_session_to_log_in_again_with(stage: TokenStage):
    ann = stage.come(token(groups=["trader"], exp=int(stage.wall_s) + 600))
    assert ann.welcome["user"] == "ann"
    assert ann.welcome["expires"] == int(stage.wall_s) + 600
    assert not ann.client.is_resumed
    again = stage.come(ann.welcome["session"])
    assert again.client.is_resumed
    assert (again.client.user, again.client.groups, again.client.token_id) == ("ann", {"trader"}, "j1")


def test_a_session_never_outlives_its_token_however_often_it_is_used(stage: TokenStage):
    text = stage.come(token(exp=int(stage.wall_s) + 600)).welcome["session"]
    for _ in range(5):
        stage.wait(110)
        welcome = stage.come(text).welcome
        assert welcome["expires"] == int(stage.wall_s) + 600 - round(stage.now_s - 1_000)
        text = welcome["session"]
    stage.wait(60)
    assert stage.refused(text) == 4500


def test_nor_the_longest_time_of_a_session(stage: TokenStage):
    welcome = stage.come(token(exp=int(stage.wall_s) + 1_000_000)).welcome
    assert abs(welcome["expires"] - stage.wall_s - 3600) <= 1


@pytest.mark.parametrize("text", ["", "x", "sl1.x.y", "a.b.c"])
def test_a_wrong_token_is_4500_and_none_is_4501(stage: TokenStage, text: str):
    assert stage.refused(text) == 4500
    with pytest.raises(CloseConnection) as end:
        stage.hub.login(stage.connection(), b'{"type":"login","user":"ann"}')
    assert end.value.code == 4501


# --- 50: the end of a login ------------------------------------------------------------------------------------------


def test_50_expiring_comes_30_s_before_the_end_and_then_4014(stage: TokenStage):
    ann = stage.come(token(exp=int(stage.wall_s) + 600))
    stage.wait(560)
    assert ann.heard() == []
    stage.wait(12)
    (expiring,) = ann.heard()
    assert expiring["type"] == "expiring"
    assert 26 <= expiring["seconds"] <= 30
    stage.wait(20)
    assert ann.heard() == []
    assert ann.connection.is_open
    stage.wait(10)
    assert ann.connection.closed_with == 4014


def test_a_stepped_wall_clock_ends_nobodys_login(stage: TokenStage):
    ann = stage.come()
    stage.wall_s += 3600
    stage.hub.expire()
    stage.wait(1)
    assert ann.heard() == []
    assert ann.connection.is_open


def test_refresh_on_the_open_connection(stage: TokenStage):
    start = int(stage.wall_s)
    ann = stage.come(token(exp=start + 600))
    stage.wait(575)
    assert ann.heard()[-1]["type"] == "expiring"
    reply = ann.ask("refresh", token=token(exp=start + 1600, jti="j2"))
    assert (reply["type"], reply["expires"]) == ("ok", start + 1600)
    stage.wait(900)
    assert ann.heard() == []
    assert stage.sessions.verify(reply["session"]).token_id == ann.client.token_id == "j2"
    stage.wait(130)
    assert ann.connection.closed_with == 4014
    assert stage.hub.logins.n_expiring == 0


def test_refresh_with_what_does_not_do(stage: TokenStage):
    ann = stage.come()
    before = ann.client.expires
    for text, code in (
        (token("bob"), 101),
        (token(key="w" * 64), 101),
        (token(exp=int(stage.wall_s) - 60), 109),
        ("sl1.x.y", 101),
    ):
        assert ann.ask("refresh", token=text)["code"] == code
    assert ann.client.expires == before
    assert ann.ask("ping")["type"] == "pong"


def test_refresh_takes_groups_over_unless_the_application_has_set_them(stage: TokenStage):
    ann = stage.come(token(groups=["trader"]))
    assert ann.ask("publish", channel="auction:1", data=1)["type"] == "ok"
    ann.ask("refresh", token=token(groups=[]))
    assert ann.ask("publish", channel="auction:1", data=1)["code"] == 103
    ann.client.groups = ["admin"]
    assert ann.ask("publish", channel="auction:1", data=1)["type"] == "ok"
    ann.ask("refresh", token=token(groups=["trader"]))
    assert ann.client.groups == {"admin"}


def test_refresh_that_loses_a_joined_channel_asks_to_reconnect(stage: TokenStage):
    ann = stage.come(token(groups=["trader"]))
    ann.ask("join", channel="news")
    with pytest.raises(CloseConnection) as end:
        ann.ask("refresh", token=token(groups=[]))
    assert end.value.code == 4011


def test_refresh_without_tokens_is_108():
    stage = Stage()
    assert stage.member("ann").ask("refresh", token="t")["code"] == 108
    stage.close()


# --- 51: revocation --------------------------------------------------------------------------------------------------


def test_51_a_revoked_user_is_sent_away_and_stays_out(stage: TokenStage):
    stage.wall_s -= 10  # so that a token can be made after it and not lie in the future
    old = token(iat=int(stage.wall_s))
    ann, twin, bob = stage.come(old), stage.come(old), stage.come(token("bob"))
    session = ann.welcome["session"]
    assert stage.hub.revoke_user("ann") == 2
    assert [one.connection.closed_with for one in (ann, twin, bob)] == [4503, 4503, None]
    assert [stage.refused(text) for text in (old, session, token(iat=None))] == [4503] * 3
    stage.wait(2)
    assert stage.come(token(iat=int(stage.wall_s))).client.user == "ann"  # one made after it


def test_51_a_revoked_token(stage: TokenStage):
    ann, other = stage.come(token(jti="a")), stage.come(token(jti="b"))
    session = ann.welcome["session"]
    assert stage.hub.revoke_token("a") == 1
    assert [ann.connection.closed_with, other.connection.closed_with] == [4503, None]
    assert [stage.refused(token(jti="a")), stage.refused(session)] == [4503] * 2
    assert other.ask("refresh", token=token(jti="b"))["type"] == "ok"
    with pytest.raises(CloseConnection) as end:
        other.ask("refresh", token=token(jti="a"))
    assert end.value.code == 4503


def test_a_login_without_a_token_id_can_be_revoked_by_the_one_it_was_given(stage: TokenStage):
    ann = stage.come(token(jti=None))
    assert stage.hub.revoke_token(ann.client.token_id) == 1
    assert stage.refused(ann.welcome["session"]) == 4503


def test_51_a_token_without_an_id_does_not_come_back_either(stage: TokenStage):
    text = token(jti=None)
    ann = stage.come(text)
    assert stage.hub.revoke_token(ann.client.token_id) == 1
    assert stage.refused(text) == 4503
    assert stage.come(token(jti=None, iat=int(stage.wall_s) - 1)).client.user == "ann"  # another one


def test_51_a_token_of_an_issuer_whose_clock_is_ahead_is_revoked():
    stage = TokenStage(jwt_leeway_s=30)
    text = token(iat=int(stage.wall_s) + 20)
    ann = stage.come(text)
    stage.hub.revoke_user("ann")
    assert [stage.refused(text), stage.refused(ann.welcome["session"])] == [4503] * 2
    stage.close()


@pytest.mark.parametrize("wrong_s", [3_600, -3_600, 10 * 365 * 86_400])
def test_51_a_clock_that_was_wrong_at_a_revocation_is_forgiven(stage: TokenStage, wrong_s: float):
    true_s = stage.wall_s
    old = token(iat=int(true_s) - 60)
    assert stage.come(old).client.is_connected
    stage.wall_s = true_s - 50 + wrong_s
    assert stage.hub.revoke_user("ann") == 1
    stage.now_s += 50
    stage.wall_s = true_s  # it was set right
    assert stage.refused(old) == close_codes.DISCONNECTED
    assert stage.come(token(iat=int(true_s) - 40)).client.is_connected


# --- limits ----------------------------------------------------------------------------------------------------------


async def test_53_one_connection_too_many_of_a_user():
    stage = TokenStage(limits=Limits(connections_per_user=2))
    ann, other = stage.come(), stage.come()
    with pytest.raises(CloseConnection) as end:
        await stage.come_later(token())
    assert end.value.code == close_codes.CONNECTION_LIMIT
    assert (ann.connection.probes, other.connection.probes) == (1, 1)
    assert ann.connection.is_open and other.connection.is_open
    assert stage.come(token("bob")).client.user == "bob"
    ann.leave()
    assert stage.come().client.user == "ann"
    stage.close()


def test_55_too_many_messages_are_refused_then_not_read_then_the_end():
    stage = TokenStage(limits=Limits(message_rate=10))
    ann, bob = stage.come(token(groups=["trader"])), stage.come(token("bob", groups=["trader"]))
    bob.ask("join", channel="auction:1")
    replies = [ann.ask("publish", channel="auction:1", data=number) for number in range(30)]
    assert [reply["type"] for reply in replies] == ["ok"] * 20 + ["error"] * 10
    assert replies[-1] == {
        "type": "error", "id": 1, "code": 111, "name": "too_many_requests", "message": "too many requests"
    }  # fmt: skip
    assert [message["data"] for message in bob.heard()] == list(range(20))
    assert ann.connection.paused_s == 0
    for _ in range(10):
        ann.ask("ping")
    assert ann.connection.paused_s == 1.0
    with pytest.raises(CloseConnection) as end:
        for _ in range(100):
            ann.ask("ping")
    assert end.value.code == 4013
    assert bob.ask("ping")["type"] == "pong"
    stage.close()


def test_55_what_is_refused_is_answered_even_if_it_is_nonsense():
    stage = TokenStage(limits=Limits(message_rate=1))
    ann = stage.come()
    for message in (b"{}", b"nonsense", b'{"type":"ping","id":[]}', b'{"type":"x","id":"y"}'):
        stage.hub.commands.receive(ann.client, message)
    assert [message["code"] for message in ann.heard()] == [107, 107, 111, 111]
    stage.close()


def test_56_channels_per_client_and_clients_per_channel():
    options = OptionsByPattern({"*": ChannelOptions(clients_limit=1)})
    stage = TokenStage(channels_limit=2, options=options, permissions=None)
    ann, bob = stage.come(), stage.come(token("bob"))
    assert [ann.ask("join", channel=name)["type"] for name in "abc"] == ["ok", "ok", "error"]
    assert bob.ask("join", channel="a")["code"] == 106
    ann.ask("leave", channel="a")
    assert bob.ask("join", channel="a")["type"] == "ok"
    stage.close()


def test_names_may_be_limited_further():
    stage = TokenStage(name_limit_bytes=8, permissions=None)
    ann = stage.come()
    for type in ("join", "publish"):
        reply = ann.ask(type, channel="123456789", data=1)
        assert (reply["code"], reply["message"]) == (107, "channel: longer than 8 bytes")
    assert ann.ask("join", channel="12345678")["type"] == "ok"
    assert stage.refused(token("123456789")) == 4501
    stage.close()


# --- permissions -----------------------------------------------------------------------------------------------------


def test_38_a_refusal_is_the_same_whether_the_channel_or_user_exists_or_not(stage: TokenStage):
    admin, ann = stage.come(token("root", groups=["admin"])), stage.come()
    admin.ask("join", channel="secret")
    for type in ("publish", "join", "presence"):
        there = ann.ask(type, channel="secret", data=1)
        assert there == ann.ask(type, channel="nowhere", data=1)
        assert there["code"] == 103
    assert admin.heard() == []


def test_what_groups_allow(stage: TokenStage):
    admin, trader, plain = [
        stage.come(token(user, groups=groups))
        for user, groups in (("root", ["admin"]), ("tom", ["trader"]), ("pia", []))
    ]
    for one, allowed in ((admin, "xxx"), (trader, "x  "), (plain, "   ")):
        for mark, (type, fields) in zip(
            allowed,
            (("publish", {"channel": "auction:7"}), ("publish", {"channel": "news"}), ("broadcast", {})),
            strict=True,
        ):
            reply = one.ask(type, data=1, **fields)
            assert reply["type"] == ("ok" if mark == "x" else "error"), (one.client, type)
    assert plain.ask("direct", to="tom", data=1)["type"] == "ok"
    assert plain.ask("join", channel="user:pia:inbox")["type"] == "ok"


def test_on_login_assigns_groups_and_knows_a_resumed_login():
    handlers, seen = Handlers(), []

    @handlers.on_login
    def assign(client: Client, login: dict[str, Any]) -> None:
        seen.append(client.is_resumed)
        if client.user == "ann":
            client.groups = client.groups | {"trader"}

    stage = TokenStage(handlers=handlers)
    ann = stage.come(token(groups=["other"]))
    assert ann.client.groups == {"other", "trader"}
    again = stage.come(ann.welcome["session"])
    assert again.ask("publish", channel="auction:1", data=1)["type"] == "ok"
    assert seen == [False, True]
    stage.close()


@pytest.mark.parametrize("text", ["1e400", '{"deep":[-1e999]}'])
def test_a_login_that_only_half_of_us_can_read_is_4501_and_not_our_failure(stage: TokenStage, text: str):
    handlers = Handlers()
    handlers.on_login(lambda client, login: None)
    hub = Hub(stage.core, handlers=handlers)
    connection = stage.connection()
    with pytest.raises(CloseConnection) as end:
        hub.login(connection, b'{"type":"login","user":"ann","x":%b}' % text.encode())
    assert end.value.code == 4501
    connection.destroy()


def test_everything_is_forgotten_when_clients_have_gone(stage: TokenStage):
    for number in range(50):
        stage.come(token(f"user{number}")).leave()
    assert stage.hub.counters() == {"users": 0, "clients": 0, "channels": 0}
    assert stage.hub.logins.n_expiring == 0
