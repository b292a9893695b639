"""starlight.auth.identity: who a login is, by the authenticators there are and by one of the test's own."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from starlight.auth.identity import Identity, NoAuth, TokenAuth, make_authenticator
from starlight.auth.jwks import FetchedKeys
from starlight.config.settings import Settings
from starlight.errors import CloseConnection, ConfigError
from starlight.protocols.native.commands import Login
from tests.support.fakes import Stage


def test_no_auth_believes_the_user():
    assert NoAuth().authenticate(Login(user="ann")) == Identity("ann", None, None)


@pytest.mark.parametrize("user", [None, "", "a\nb", "x" * 256, "ü" * 128])
def test_no_auth_refuses_impossible_users_with_4501(user: str | None):
    with pytest.raises(CloseConnection) as end:
        NoAuth().authenticate(Login(user=user))
    assert end.value.code == 4501


def test_a_token_alone_names_nobody():
    with pytest.raises(CloseConnection) as end:
        NoAuth().authenticate(Login(token="abc"))
    assert end.value.code == 4501


class Stuck:
    """An authenticator that asks somebody who never answers."""

    async def authenticate(self, login: Login) -> Identity:
        await asyncio.Event().wait()
        raise AssertionError


async def test_an_authenticator_that_never_answers_is_1013():
    stage = Stage(authenticator=Stuck(), login_timeout_s=0.05)
    for _ in range(3):
        connection = stage.connection()
        with pytest.raises(CloseConnection) as end:
            pending = stage.hub.login(connection, b'{"type":"login","token":"x"}')
            assert pending is not None
            await pending
        assert end.value.code == 1013
        assert end.value.detail == "its check took more than 0.05 s: login_timeout"  # in the line of its end
        connection.destroy()
    assert stage.hub.counters()["clients"] == 0


class Tickets:
    """An authenticator that has to ask somebody: sync for known tickets, async for others."""

    def authenticate(self, login: Login) -> Identity | asyncio.Future[Identity]:
        if login.token == "known":
            return Identity("ann", "session-1", 1_900_000_000)
        return asyncio.ensure_future(self.ask(login))

    async def ask(self, login: Login) -> Identity:
        await asyncio.sleep(0)
        if login.token != "asked":
            raise CloseConnection(4500)
        return Identity("bob")


@pytest.mark.parametrize("token", ["known", "asked", "wrong"])
async def test_an_authenticator_of_ones_own_may_be_async(token: str):
    stage = Stage(authenticator=Tickets())
    connection = stage.connection()
    pending = stage.hub.login(connection, orjson.dumps({"type": "login", "token": token}))
    assert (pending is None) == (token == "known")
    if pending is None:
        assert connection.messages()[0]["session"] == "session-1"
        assert connection.client is not None
        assert (connection.client.user, connection.client.expires) == ("ann", 1_900_000_000)
    elif token == "asked":
        await pending
        assert connection.client is not None and connection.client.user == "bob"
    else:
        with pytest.raises(CloseConnection) as end:
            await pending
        assert end.value.code == 4500
        assert stage.hub.counters()["clients"] == 0
    connection.destroy()


def test_reconfigured_it_keeps_keys_that_were_fetched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FetchedKeys, "start", lambda self: None)  # it would fetch them
    old = Settings(auth="jwt", jwt_jwks_url="https://issuer.test/keys")
    auth = make_authenticator(old)
    assert isinstance(auth, TokenAuth)
    keys = auth._verifier.keys
    commit = auth.reconfigure(old.model_copy(update={"jwt_issuer": "https://issuer.test", "jwt_leeway_s": 1.0}))
    assert auth._verifier.rules.issuer == "", "nothing has changed before the commit"
    commit()
    assert auth._verifier.keys is keys
    assert (auth._verifier.rules.issuer, auth._verifier.rules.leeway_s) == ("https://issuer.test", 1.0)
    for change in ({"jwt_jwks_url": "https://issuer.test/others"}, {"jwt_algorithms": "RS256"}):
        keys = auth._verifier.keys
        auth.reconfigure(old.model_copy(update=change))()
        assert auth._verifier.keys is not keys
    with pytest.raises(ConfigError):
        auth.reconfigure(old.model_copy(update={"jwt_jwks_url": ""}))
