"""auth.jwks: keys of a real HTTP server, fetched once for many logins, in a thread, only from where we said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from websockets.asyncio.client import connect

from starlight.auth.jwks import (
    BODY_LIMIT_BYTES,
    COOLDOWN_S,
    LIFETIME_S,
    STALE_S,
    THREADS_LIMIT,
    WAITING_LIMIT,
    FetchedKeys,
    fetch,
)
from starlight.auth.tokens import ASYMMETRIC, Claims, Rules, Verifier
from starlight.config.settings import Settings
from starlight.errors import ConfigError, KeysUnavailable, TokenRefused
from starlight.server.node import Node
from starlight.stepping import begin
from tests.support.fakes import eventually
from tests.support.tokens import AUDIENCE, ISSUER, pair, token
from tests.support.wire_client import WireClient


class Issuer:
    """What an issuer's server answers, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = 200
        self.body: bytes | None = None
        self.location = ""
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.keys: list[dict[str, Any]] = [pair("RS256").jwk(kid="r", use="sig"), pair("ES256").jwk(kid="e")]
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                issuer.may_answer.wait(5)
                body = issuer.body if issuer.body is not None else json.dumps({"keys": issuer.keys}).encode()
                self.send_response(issuer.status)
                if issuer.location:
                    self.send_header("Location", issuer.location)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.may_answer.set()
        self.server.shutdown()
        self.server.server_close()


class Clock:
    """A clock that a test moves, and what sleeps by it."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self._sleepers: dict[asyncio.Future[None], float] = {}

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        sleeper = asyncio.get_running_loop().create_future()
        self._sleepers[sleeper] = self.now_s + seconds
        try:
            await sleeper
        finally:
            del self._sleepers[sleeper]

    @property
    def sleeping(self) -> list[float]:
        """How long each sleeper still sleeps."""
        return [until_s - self.now_s for until_s in self._sleepers.values()]

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds
        for sleeper, until_s in self._sleepers.items():
            if until_s <= self.now_s and not sleeper.done():
                sleeper.set_result(None)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(issuer: Issuer, clock: Clock) -> Verifier:
    return Verifier(FetchedKeys(issuer.url, clock=clock, sleep=clock.sleep), Rules(ASYMMETRIC, ISSUER, AUDIENCE))


def signed(alg: str = "RS256", kid: str | None = "r", number: int = 0, **changes: Any) -> str:
    headers = {} if kid is None else {"kid": kid}
    return token(key=pair(alg, number).private, alg=alg, headers=headers, **changes)


async def log_in(url: str, token: str) -> WireClient:
    """A client that the node has let in by its token."""
    client = WireClient(await connect(url, compression=None))
    await client.say("login", token=token)
    assert (await client.hear())["type"] == "welcome"
    return client


async def test_keys_are_fetched_at_need_and_kept(issuer: Issuer, verifier: Verifier):
    fetching = begin(verifier.verify(signed()))
    assert not isinstance(fetching, Claims)
    assert (await fetching).user == "ann"
    assert isinstance(begin(verifier.verify(signed("ES256", "e"))), Claims)  # no waiting any more
    assert isinstance(begin(verifier.verify(signed("ES256", None))), Claims)  # the only one of its kind needs no name
    assert issuer.asked == ["/keys"]


async def test_many_logins_share_one_fetch_and_the_loop_goes_on(issuer: Issuer, verifier: Verifier):
    issuer.may_answer.clear()
    checks = [asyncio.ensure_future(verifier.verify(signed())) for _ in range(100)]
    for _ in range(20):
        await asyncio.sleep(0.005)  # the loop lives while the issuer is silent
    assert not any(one.done() for one in checks)
    issuer.may_answer.set()
    assert {claims.user for claims in await asyncio.gather(*checks)} == {"ann"}
    assert issuer.asked == ["/keys"]


async def test_a_new_key_is_waited_for_and_unknown_ones_do_not_make_us_ask_again_and_again(
    issuer: Issuer, verifier: Verifier, clock: Clock
):
    await verifier.verify(signed())
    issuer.keys.append(pair("RS256", 1).jwk(kid="new"))
    clock.now_s += 1
    logins = [asyncio.ensure_future(verifier.verify(signed(kid="new", number=1))) for _ in range(20)]
    unknown = [asyncio.ensure_future(verifier.verify(signed(kid=f"unknown-{n}"))) for n in range(20)]
    await eventually(lambda: clock.sleeping == [COOLDOWN_S - 1])
    assert len(issuer.asked) == 1
    assert not any(login.done() for login in (*logins, *unknown))
    clock.pass_s(COOLDOWN_S - 1)
    assert {claims.user for claims in await asyncio.gather(*logins)} == {"ann"}
    for login in unknown:
        with pytest.raises(TokenRefused, match="no such key"):
            await login
    assert len(issuer.asked) == 2
    for n in range(50):  # what can be made up has no fetch of its own, either
        waiting = asyncio.ensure_future(verifier.verify(signed(kid=f"more-{n}")))
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.wait((waiting,))
    clock.pass_s(COOLDOWN_S)
    await eventually(lambda: verifier.keys._next is None)
    assert len(issuer.asked) == 2, "who has asked is gone"


async def test_logins_that_wait_for_a_key_are_bounded(issuer: Issuer, verifier: Verifier, clock: Clock):
    await verifier.verify(signed())
    logins = [asyncio.ensure_future(verifier.verify(signed(kid=f"u{n}"))) for n in range(WAITING_LIMIT)]
    await eventually(lambda: verifier.keys._waiting == WAITING_LIMIT)
    with pytest.raises(KeysUnavailable):  # 1013: come again
        await verifier.verify(signed(kid="one more"))
    assert isinstance(begin(verifier.verify(signed())), Claims), "who has a known key is let in all the same"
    clock.pass_s(COOLDOWN_S)
    assert all(isinstance(end, TokenRefused) for end in await asyncio.gather(*logins, return_exceptions=True))
    assert verifier.keys._waiting == 0


async def test_a_login_does_not_wait_longer_than_it_may(issuer: Issuer, clock: Clock):
    keys = FetchedKeys(issuer.url, wait_s=2.0, clock=clock, sleep=clock.sleep)
    verifier = Verifier(keys, Rules(ASYMMETRIC, ISSUER, AUDIENCE))
    await verifier.verify(signed())
    waiting = asyncio.ensure_future(verifier.verify(signed(kid="new")))
    await eventually(lambda: 2.0 in clock.sleeping)
    clock.pass_s(2.0)
    with pytest.raises(KeysUnavailable):
        await waiting
    assert len(issuer.asked) == 1


async def test_where_the_issuer_fails_an_unknown_key_is_not_called_wrong(
    issuer: Issuer, verifier: Verifier, clock: Clock
):
    await verifier.verify(signed())
    issuer.status = 500
    clock.now_s += COOLDOWN_S
    with pytest.raises(KeysUnavailable):
        await verifier.verify(signed(kid="new"))
    assert isinstance(begin(verifier.verify(signed())), Claims)


async def test_a_client_with_a_new_key_is_in_after_a_moment(issuer: Issuer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("starlight.auth.jwks.COOLDOWN_S", 0.5)
    settings = {"auth": "jwt", "jwt_jwks_url": issuer.url, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    async with Node(Settings(port=0, drain_timeout_s=2, **settings)) as node:
        first = await log_in(node.url, token=signed())
        issuer.keys = [pair("RS256", 1).jwk(kid="new")]
        client = await log_in(node.url, token=signed(kid="new", number=1))
        await first.close()
        await client.close()


async def test_old_keys_are_fetched_again_while_they_serve(issuer: Issuer, verifier: Verifier, clock: Clock):
    await verifier.verify(signed())
    clock.now_s += LIFETIME_S + 1
    issuer.keys = [pair("ES256").jwk(kid="e")]
    assert isinstance(begin(verifier.verify(signed())), Claims)  # the withdrawn key serves until the fetch is done
    await eventually(lambda: verifier.keys.find("RS256", "r") is None)
    assert len(issuer.asked) == 2


async def test_an_issuer_that_fails_later_costs_nobody_the_login(issuer: Issuer, verifier: Verifier, clock: Clock):
    await verifier.verify(signed())
    issuer.status = 500
    for _ in range(3):
        clock.now_s += LIFETIME_S + 1
        assert isinstance(begin(verifier.verify(signed())), Claims)
        await eventually(lambda: verifier.keys._under_way is None)
    assert len(issuer.asked) == 4


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, None), (404, None), (200, b"not JSON"), (200, b"[]"), (200, b'{"keys":[]}'), (200, b'{"keys":{}}'),
        (200, b'{"keys":[1,null,{},{"kty":"oct","k":"AAAA","alg":"HS256"}]}'), (200, b" " * (BODY_LIMIT_BYTES + 2)),
    ],
)  # fmt: skip
async def test_without_any_key_it_is_not_the_clients_fault(
    issuer: Issuer, verifier: Verifier, clock: Clock, status: int, body: bytes | None
):
    issuer.status, issuer.body = status, body
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            await verifier.verify(signed())
    assert len(issuer.asked) == 1
    issuer.status, issuer.body = 200, None
    clock.now_s += COOLDOWN_S
    assert (await verifier.verify(signed())).user == "ann"


async def test_43_nothing_is_fetched_but_the_configured_url(issuer: Issuer, verifier: Verifier):
    evil = Issuer()
    evil.keys = [pair("RS256", 1).jwk(kid="r")]
    try:
        await verifier.verify(signed())
        for header in ("jku", "x5u"):
            text = token(key=pair("RS256", 1).private, alg="RS256", headers={"kid": "r", header: evil.url})
            with pytest.raises(TokenRefused):
                await verifier.verify(text)
        own = token(key=pair("RS256", 1).private, alg="RS256", headers={"kid": "r", "jwk": pair("RS256", 1).jwk()})
        with pytest.raises(TokenRefused):
            await verifier.verify(own)
        assert evil.asked == []
    finally:
        evil.close()


async def test_a_redirect_is_not_followed(issuer: Issuer, verifier: Verifier):
    other = Issuer()
    issuer.status, issuer.location = 302, other.url
    try:
        with pytest.raises(KeysUnavailable):
            await verifier.verify(signed())
        assert other.asked == []
    finally:
        other.close()


async def test_keys_that_are_none_of_ours(issuer: Issuer, verifier: Verifier, clock: Clock):
    private = json.loads(__import__("jwt").get_algorithm_by_name("RS256").to_jwk(pair("RS256", 2).private))
    issuer.keys = [
        pair("ES256").jwk(kid="e"),
        pair("RS256").jwk(kid="enc", use="enc"),
        pair("RS256").jwk(kid="alg", alg="RS512"),
        {**private, "kid": "private"},
        pair("RS256").jwk(kid=7),
        pair("RS256").jwk(kid="twice"),
        pair("RS256", 1).jwk(kid="twice"),
    ]
    assert (await verifier.verify(signed("ES256", "e"))).user == "ann"
    for kid, number in (("enc", 0), ("alg", 0), ("private", 2), ("7", 0), ("twice", 0), ("twice", 1)):
        clock.now_s += COOLDOWN_S
        with pytest.raises(TokenRefused):
            await verifier.verify(signed(kid=kid, number=number))


async def test_a_key_is_for_its_curve_and_its_purpose_alone(issuer: Issuer, verifier: Verifier):
    issuer.keys = [
        pair("ES384").jwk(kid="p384"),
        pair("ES256").jwk(kid="agree", key_ops=["deriveKey"]),
        pair("ES256").jwk(kid="odd", key_ops=7),
        pair("ES256").jwk(kid="e", key_ops=["verify"]),
        {**pair("ES256").jwk(kid="off the curve"), "x": "A" * 43},
        {"kty": "RSA", "n": 5, "e": [], "kid": "nonsense"},
    ]
    assert (await verifier.verify(signed("ES256", "e"))).user == "ann"
    assert verifier.keys.find("ES384", "p384") is not None
    for kid in ("p384", "agree", "odd", "off the curve", "nonsense"):
        assert verifier.keys.find("ES256", kid) is None


async def test_after_a_day_without_an_issuer_old_keys_are_good_no_more(
    issuer: Issuer, verifier: Verifier, clock: Clock
):
    await verifier.verify(signed())
    issuer.status = 500
    clock.now_s += STALE_S + 1
    with pytest.raises(KeysUnavailable):
        await verifier.verify(signed())
    issuer.status = 200
    clock.now_s += COOLDOWN_S
    assert (await verifier.verify(signed())).user == "ann"


async def test_fetches_that_hang_are_not_piled_up(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("starlight.auth.jwks.GIVE_UP_S", 0.02)
    go_on, n_begun = threading.Event(), [0]

    def hang(url: str) -> bytes:
        n_begun[0] += 1
        go_on.wait(20)
        raise OSError

    keys = FetchedKeys("https://issuer.test/keys", fetch=hang, clock=clock)
    try:
        for _ in range(THREADS_LIMIT + 5):
            fetching = keys.refresh()
            assert fetching is not None
            with pytest.raises(KeysUnavailable):
                await fetching
            clock.now_s += COOLDOWN_S
        assert n_begun == [THREADS_LIMIT]
    finally:
        go_on.set()


def test_a_body_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("starlight.auth.jwks.GIVE_UP_S", 0.2)
    stop = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not stop.wait(0.02):
                connection.sendall(b" ")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        with pytest.raises(OSError, match="too long"):
            fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/keys")
    finally:
        stop.set()
        thread.join(10)
        listening.close()


async def test_what_an_address_holds_beside_the_place_is_not_shown(issuer: Issuer, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    verifier = Verifier(FetchedKeys(issuer.url + "?key=canary"), Rules(ASYMMETRIC, ISSUER, AUDIENCE))
    await verifier.verify(signed())
    assert issuer.asked == ["/keys?key=canary"]
    with pytest.raises(ConfigError) as error:
        FetchedKeys("https://user:canary@issuer.test/keys")
    assert "canary" not in caplog.text + str(error.value)


def test_other_urls_are_no_configuration():
    for url in ("http://issuer.test/", "ftp://a/", "data:,x", "https://", "", "https://u:p@a.test/"):
        with pytest.raises(ConfigError, match="https URL"):
            FetchedKeys(url)
    FetchedKeys("https://issuer.test/keys")
    FetchedKeys("http://localhost/keys")
