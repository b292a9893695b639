"""client.credentials, and the client of a real node with tokens: renewed, come back with a session, refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import starlight
from starlight.client.connect import Expiring, StarlightClient, connect
from starlight.client.credentials import RENEWALS_LIMIT, Credentials
from starlight.errors import CloseConnection, ConnectionClosed, LoginRefused, RequestFailed
from starlight.server.node import Node
from tests.support.fakes import eventually
from tests.support.tokens import SECRET, token

WIRES = ("ws", "wss")
FAST = {"backoff_s": 0.01, "backoff_max_s": 0.05}
JWT = {"port": 0, "drain_timeout_s": 2, "auth": "jwt", "jwt_secret": SECRET, "jwt_leeway_s": 0}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that ends asks its clients to come back soon."""
    monkeypatch.setattr("starlight.server.drain.RETRY_MIN_MS", 10)
    monkeypatch.setattr("starlight.server.drain.RETRY_MAX_MS", 50)


class Door:
    """A node, and what its `on_login` saw: the tokens that were JWTs, and how often a session was used."""

    def __init__(self) -> None:
        self.app = starlight.Starlight(**JWT)
        self.tokens: list[str] = []
        self.n_sessions = 0
        self.app.on_login(self.look)
        self.app.on("end me")(self.end)

    def look(self, client: Any, login: dict[str, Any]) -> None:
        if client.is_resumed:
            self.n_sessions += 1
        else:
            self.tokens.append(login["token"])

    def end(self, client: Any, code: int) -> None:
        raise CloseConnection(code)

    @asynccontextmanager
    async def open(self, **settings: Any) -> AsyncIterator[Node]:
        async with self.app.serve(**settings) as node:
            yield node


class Issuer:
    """Gives a new token at each call."""

    def __init__(self, **claims: Any) -> None:
        self.claims = claims
        self.given: list[str] = []

    def __call__(self) -> str:
        self.given.append(mint(jti=f"t{len(self.given)}", **self.claims))
        return self.given[-1]

    async def later(self) -> str:
        await asyncio.sleep(0)
        return self()


def mint(**claims: Any) -> str:
    return token("ada", iss=None, aud=None, **claims)


def soon(seconds: int) -> int:
    return int(time.time()) + seconds


class States(list[tuple[str, int | None]]):
    """What `on_state` was told."""

    def __call__(self, state: str, code: int | None) -> None:
        self.append((state, code))


async def lose(client: StarlightClient, states: States, code: int) -> None:
    """Have the server end the connection, and wait until the client is back."""
    n_states = len(states)
    await client._tell(b'{"type":"end me","data":%d}' % code)
    await eventually(lambda: len(states) >= n_states + 2)
    assert states[n_states:] == [("reconnecting", code), ("connected", None)]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_function_is_called_at_the_start_and_whenever_the_login_ends_soon(is_async: bool):
    door, issuer, states = Door(), Issuer(), States()
    function: Callable[[], str | Awaitable[str]] = issuer.later if is_async else issuer
    async with (
        door.open(session_ttl_s=3) as node,
        connect(node.url, token=function, on_state=states) as client,
        client.join("user:ada") as own,
    ):
        assert client.expires is not None
        first = client.expires
        await eventually(lambda: len(issuer.given) >= 3 and (client.expires or 0) >= first + 2)
        await client.publish("user:ada", "still here")
        assert (await anext(own)).data == "still here"
        assert states == [("connected", None)]
        assert door.tokens == issuer.given[:1]
        assert len(client._inbox) == 0  # `expiring` was for the library alone


async def test_comes_back_with_the_session_and_asks_nobody_for_a_token():
    door, issuer, states = Door(), Issuer(), States()
    async with door.open() as node, connect(node.url, token=issuer, on_state=states, **FAST) as client:
        for n_losses in range(1, 4):
            await lose(client, states, 4011)
            assert (len(door.tokens), door.n_sessions) == (1, n_losses)
        assert client.user == "ada"
    assert len(issuer.given) == 1


async def test_a_session_that_is_refused_gives_way_to_a_fresh_token():
    door, issuer, states = Door(), Issuer(), States()
    async with door.open() as first:
        client = await connect(first.url, token=issuer, on_state=states, **FAST)
        port = first.port
        await lose(client, states, 4011)
    async with door.open(port=port), client:  # the key of its sessions is another one
        await eventually(lambda: states[-1] == ("connected", None))
        assert door.tokens == issuer.given
        assert (len(issuer.given), door.n_sessions) == (2, 1)
        await lose(client, states, 4011)
        assert (len(issuer.given), door.n_sessions) == (2, 2)


async def test_after_4014_it_asks_for_a_token_and_not_with_the_session():
    door, states = Door(), States()
    answers = iter([mint(), ZeroDivisionError(), mint(jti="second")])

    def function() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with door.open(session_ttl_s=2) as node, connect(node.url, token=function, on_state=states, **FAST):
        await eventually(lambda: len(states) == 3)
        assert states == [("connected", None), ("reconnecting", 4014), ("connected", None)]
        assert (len(door.tokens), door.n_sessions) == (2, 0)


async def test_with_a_string_the_application_hears_expiring_and_refreshes():
    door, states = Door(), States()
    async with door.open() as first:
        client = await connect(first.url, token=mint(exp=soon(3)), on_state=states, **FAST)
        expiring = await anext(client)
        assert isinstance(expiring, Expiring)
        assert 1 <= expiring.seconds <= 3
        fresh = mint(jti="fresh")
        assert await client.refresh(fresh) == client.expires
        assert (client.expires or 0) > soon(500)
        port = first.port
    async with door.open(port=port), client:
        await eventually(lambda: states[-1] == ("connected", None))
        assert door.tokens[-1] == fresh  # it took the place of the one that ends


async def test_a_refresh_that_is_refused_leaves_the_login_as_it_was():
    async with Door().open() as node, connect(node.url, token=mint()) as client:
        expires = client.expires
        for wrong, code in (
            (mint(exp=soon(-60)), 109),
            (mint(key="x" * 40), 101),
            (token("bob", iss=None, aud=None), 101),
        ):
            with pytest.raises(RequestFailed) as failed:
                await client.refresh(wrong)
            assert failed.value.code == code
        assert client.expires == expires
        assert await client.ping() > 0


async def test_a_server_without_tokens_has_nothing_to_refresh():
    app = starlight.Starlight(port=0, drain_timeout_s=2)
    async with app.serve() as node, connect(node.url, user="ada") as client:
        with pytest.raises(RequestFailed, match="not_available"):
            await client.refresh("x")
        assert client.expires is None


async def test_who_was_revoked_stays_away():
    door, issuer = Door(), Issuer()
    async with door.open() as node, connect(node.url, token=issuer, **FAST) as client:
        node.hub.revoke_user("ada")
        with pytest.raises(ConnectionClosed) as closed:
            await anext(client)
        assert closed.value.code == 4503
        with pytest.raises(LoginRefused) as refused:
            await connect(node.url, token=issuer.given[0])
        assert refused.value.code == 4503
    assert len(issuer.given) == 1


async def test_a_closed_client_asks_for_no_more_tokens():
    issuer = Issuer()
    async with Door().open(session_ttl_s=3) as node:
        client = await connect(node.url, token=issuer)
        await eventually(lambda: client._renewal is not None)
        await client.close()
        n_given = len(issuer.given)
        assert client._renewal is not None
        await eventually(client._renewal.done)
        assert len(issuer.given) == n_given


async def test_a_function_that_repeats_itself_is_not_asked_for_ever():
    credentials = Credentials(None, lambda: "same")
    credentials.welcome("session", 100)
    for _ in range(RENEWALS_LIMIT):
        assert credentials.can_renew
        credentials.renew("same", "session", 100)
    assert not credentials.can_renew
    credentials.welcome("session", 100)
    assert credentials.can_renew


async def test_what_the_next_login_says():
    credentials = Credentials(None, "first")
    assert await credentials.login() == {"user": None, "token": "first"}
    credentials.welcome("session", 100)
    assert await credentials.login() == {"token": "session"}
    assert not credentials.drop_session(4503)
    assert not credentials.drop_session(1006)
    assert credentials.drop_session(4500)
    assert not credentials.drop_session(4500)
    assert await credentials.login() == {"user": None, "token": "first"}
    credentials.renew("second", None, 200)
    assert await credentials.login() == {"user": None, "token": "second"}
    assert await Credentials("ada", None).login() == {"user": "ada", "token": None}
    assert not Credentials("ada", None).can_renew
