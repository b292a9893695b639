"""The keys of an issuer, fetched from the one URL that the configuration names (RFC 7517).

The law: no request is made because of what a token says, except that an unknown key id may make one fetch come
sooner, and that at most once in `COOLDOWN_S`. A login with an unknown key id within that time waits for the next
fetch: its key may be one that the issuer has just begun to sign with. At most `WAITING_LIMIT` logins wait, so that
made-up key ids hold no more; the others are told to come again. The fetch runs in a thread of its own, so the loop
never waits for a network; all logins that need it share it. What was fetched once stays in use while the issuer can't
be reached, for a day: longer, and whoever stole a key that the issuer has withdrawn could keep it good by keeping us
from the issuer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
from orjson import loads

from starlight.auth.tokens import ASYMMETRIC, PreparedKey
from starlight.config.addresses import is_loopback
from starlight.errors import ConfigError, KeysUnavailable

__all__ = ["COOLDOWN_S", "FetchedKeys"]

log = logging.getLogger(__name__)

LIFETIME_S: Final = 600.0
"""How old keys may get before they are fetched again: an issuer publishes a new key hours before it signs with it, and
one it has withdrawn is out of use here within that time."""

STALE_S: Final = 86_400.0
"""How old keys may get if no fetch succeeds; then logins wait for one that does (1013)."""

COOLDOWN_S: Final = 5.0
"""Between two fetches, whatever tokens say. No longer than a client has for its login, so that one with a new key waits
for the next fetch and is in: 12 fetches a minute are what strangers can cause."""

WAIT_S: Final = 5.0
"""How long a login waits for the next fetch to be allowed, unless told otherwise."""

WAITING_LIMIT: Final = 100
"""Logins that wait for the next fetch: a new key is met by some clients at once. Others are told to come again."""

TIMEOUT_S: Final = 5.0
"""For each step of a fetch."""

GIVE_UP_S: Final = 8.0
"""For a fetch in all; a login waits no longer."""

BODY_LIMIT_BYTES: Final = 256 * 1024
"""An ordinary key set has 2-10 KB."""

KEYS_LIMIT: Final = 64

THREADS_LIMIT: Final = 4
"""Fetches that were given up and still hang, as on a server that sends a byte every few seconds; none begins beyond."""

_FAMILIES: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def fetch(url: str) -> bytes:
    """The body behind a URL; no redirects, no proxy from the environment, no more than the limit. Raises OSError."""
    opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={"Accept": "application/json", "User-Agent": "starlight"})
    give_up_s = time.monotonic() + GIVE_UP_S
    body = bytearray()
    with opener.open(request, timeout=TIMEOUT_S) as response:
        while some := response.read1(65_536):
            body += some
            if len(body) > BODY_LIMIT_BYTES:
                raise OSError("the key set is too large")
            if time.monotonic() > give_up_s:
                raise OSError("it takes too long")
    return bytes(body)


class FetchedKeys:
    """Keys by key id and algorithm.

    Args:
        url: https, or http on this machine.
        algorithms: those that are accepted; symmetric ones can't come from a URL.
        wait_s: how long a login with an unknown key waits at most for the next fetch to be allowed, in seconds.
        fetch: gets a body from a URL, in a thread.
        clock: monotonic seconds.
        sleep: waits for seconds of that clock.

    Raises `ConfigError` for another URL.
    """

    def __init__(
        self,
        url: str,
        algorithms: Sequence[str] = ASYMMETRIC,
        *,
        wait_s: float = WAIT_S,
        fetch: Callable[[str], bytes] = fetch,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        _check_url(url)
        self.url = url
        self._shown = url.partition("?")[0]  # what comes behind it may be a key of ours at the issuer's
        self.algorithms = tuple(algorithms)
        self._fetch = fetch
        self._clock = clock
        self._wait_s = wait_s
        self._sleep = sleep
        self._waiting = 0
        self._next: asyncio.Task[None] | None = None  # waits until a fetch is allowed, and fetches
        self._keys: dict[tuple[str | None, str], PreparedKey] = {}
        self._tried_s = -math.inf
        self._fetched_s = -math.inf
        self._under_way: asyncio.Future[None] | None = None
        self._threads: list[threading.Thread] = []  # that fetch, or hang although nobody waits for them any more

    def find(self, algorithm: str, kid: str | None) -> PreparedKey | None:
        """The key of that name; the only one of the algorithm for a token without a name. None if there is none."""
        age_s = self._clock() - self._fetched_s
        if self._keys and age_s > STALE_S:
            self._keys = {}
        if self._keys and age_s > LIFETIME_S:
            self._begin()  # no login waits for it: the old keys serve meanwhile
        key = self._keys.get((kid, algorithm))
        if key is not None or kid is not None:
            return key
        fitting = [key for (_, name), key in self._keys.items() if name == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    def start(self) -> None:
        """Begin to fetch, unless it was done a moment ago. From the loop."""
        self._begin()

    def refresh(self) -> Awaitable[None]:
        """Fetch, join the fetch under way, or wait for the next that is allowed.

        The awaitable raises `KeysUnavailable` if the fetch fails or is too far away, or if too many logins wait for it.
        """
        fetching = self._begin()
        if fetching is not None:
            return asyncio.shield(fetching)
        if not self._keys or self._waiting >= WAITING_LIMIT:
            return _unavailable()
        return self._wait_for_next()

    def _begin(self) -> asyncio.Future[None] | None:
        """The fetch under way, begun now if there was none; None if the last one was a moment ago."""
        if self._under_way is None:
            now_s = self._clock()
            if now_s - self._tried_s < COOLDOWN_S:
                return None
            self._tried_s = now_s
            self._under_way = asyncio.ensure_future(self._run())
            self._under_way.add_done_callback(_retrieve)
        return self._under_way

    async def _wait_for_next(self) -> None:
        """Wait until a fetch is allowed, and for the fetch. One task does both for all who wait."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._fetch_when_allowed())
            self._next.add_done_callback(_retrieve)
        self._waiting += 1
        try:
            left_s = self._tried_s + COOLDOWN_S - self._clock()
            if left_s > self._wait_s:  # it would be in vain
                await self._sleep(self._wait_s)
                raise KeysUnavailable
            await asyncio.shield(self._next)
        finally:
            self._waiting -= 1

    async def _fetch_when_allowed(self) -> None:
        asked_s = self._clock()
        try:
            while (fetching := self._begin()) is None:
                await self._sleep(max(0.0, self._tried_s + COOLDOWN_S - self._clock()))
                if not self._waiting or self._fetched_s > asked_s:
                    return
        finally:
            self._next = None
        await asyncio.shield(fetching)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        body: asyncio.Future[bytes] = loop.create_future()

        def work() -> None:
            try:
                result: bytes | Exception = self._fetch(self.url)
            except Exception as error:
                result = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, body, result)

        # a daemon: whoever stops the node doesn't wait for somebody else's server
        try:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if len(self._threads) >= THREADS_LIMIT:
                raise OSError("earlier requests still hang")
            self._threads.append(threading.Thread(target=work, name="starlight-jwks", daemon=True))
            self._threads[-1].start()
            async with asyncio.timeout(GIVE_UP_S):
                self._keys = self._parse(await body)
            self._fetched_s = self._clock()
            log.info("fetched %d keys from %s", len(self._keys), self._shown)
        except (OSError, HTTPException, ValueError, TimeoutError, jwt.PyJWTError) as error:
            log.warning("no keys from %s: %s", self._shown, str(error)[:200] or type(error).__name__)
            raise KeysUnavailable from None  # whoever waits for it has a key that is unknown so far
        finally:
            self._under_way = None

    def _parse(self, body: bytes) -> dict[tuple[str | None, str], PreparedKey]:
        """Public keys for signatures, each for all algorithms it fits. Raises ValueError if there is none."""
        document = loads(body)
        listed = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(listed, list):
            raise ValueError("not a key set")
        keys: dict[tuple[str | None, str], PreparedKey] = {}
        ambiguous = set()
        for entry in listed[:KEYS_LIMIT]:
            for key in self._prepare(entry):
                place = (key.key_id, key.algorithm_name)
                if place in keys:
                    ambiguous.add(place)
                keys[place] = key
        for place in ambiguous:
            del keys[place]
        if ambiguous:  # which of the two is meant can't be known, so neither is trusted
            log.warning("keys of the same name in %s: none of them is used", self._shown)
        if not keys:
            raise ValueError("no key in it can be used")
        return keys

    def _prepare(self, entry: Any) -> list[PreparedKey]:
        if not isinstance(entry, dict) or "d" in entry or entry.get("use", "sig") != "sig":
            return []
        uses = entry.get("key_ops", ["verify"])
        if not isinstance(uses, list) or "verify" not in uses:
            return []
        kid = entry.get("kid")
        if kid is not None and not isinstance(kid, str):
            return []
        prepared = []
        for name in self.algorithms:
            if entry.get("alg", name) != name or _FAMILIES.get(name[:2]) != entry.get("kty"):
                continue
            try:
                key = jwt.PyJWK(entry, name)
                key.Algorithm.prepare_key(key.key)  # ES256 is for one curve alone
            except jwt.PyJWTError:
                continue
            if not key.Algorithm.check_key_length(key.key):
                prepared.append(PreparedKey(name, key.Algorithm, key.key, kid))
        return prepared


def _settle(body: asyncio.Future[bytes], result: bytes | Exception) -> None:
    if body.done():
        return
    if isinstance(result, Exception):
        body.set_exception(result)
    else:
        body.set_result(result)


def _retrieve(done: asyncio.Future[None]) -> None:
    """Look at the result, so that a background fetch nobody waited for is not reported as lost."""
    if not done.cancelled():
        done.exception()


async def _unavailable() -> None:
    raise KeysUnavailable


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    host = parts.hostname or ""
    is_safe = (parts.scheme == "https" and host) or (parts.scheme == "http" and is_loopback(host))
    if not is_safe or parts.username is not None or parts.password is not None:
        shown = url if parts.username is None and parts.password is None else "(hidden)"
        raise ConfigError("jwt_jwks_url", shown, "an https URL without credentials (http only on this machine)")
