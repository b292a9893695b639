"""Who may open a connection: by address when the socket is accepted, by page and proxy when the request is read.

At accept nothing is known but the address, and a refusal is the cheapest there is: the socket is closed and nothing was
read. A socket of a trusted proxy is let in; whom it is for is known with its request, and too many are answered 429.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol

from picows import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener

from starlight.auth.dry_run import DryRun
from starlight.auth.limits import Limits, address_key
from starlight.config.addresses import is_loopback
from starlight.config.reconfigure import Commit
from starlight.config.settings import Settings
from starlight.net.origins import Origins, Proxies
from starlight.net.refusals import TELL_AGAIN_S, Refusals
from starlight.net.upgrade import HEALTH_PATHS, Refused, check_upgrade, health, refuse, tokens
from starlight.protocols.base import Codecs, Encoding
from starlight.protocols.spoken import SPOKEN

__all__ = ["UNCOUNTED", "Gate"]

log = logging.getLogger(__name__)

UNCOUNTED: Final = ""
"""The address of a connection that is not counted by address."""

RETRY_S: Final = "2"
"""What a 429 says about when to come again, in seconds: the time in which a rate fills up."""

Peer = tuple[Any, ...] | str | None


class GatedConnection(Protocol):
    """What the gate asks of a connection, and tells it."""

    @property
    def peername(self) -> tuple[Any, ...] | None: ...
    @property
    def sockname(self) -> tuple[Any, ...] | str | None: ...
    def on_answered(self, is_health: bool = False) -> None: ...
    def pass_gate(self, encoding: Encoding, address: str | None, peername: tuple[Any, ...] | None) -> None: ...


class Gate:
    """The gate of one node.

    Args:
        settings: path, origins, proxies and limits.
        clock: monotonic seconds.
        dry_run: limits that are not enforced; none by default.
        codecs: what is spoken; by default the native protocol.

    Attributes:
        refusals: who was refused, and why.
        is_ready: what ``/readyz`` at the port of the clients asks; always true unless the node sets it.

    Raises `ConfigError` for origins or proxies that are none.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        dry_run: DryRun | None = None,
        codecs: Codecs = SPOKEN,
    ) -> None:
        self._codecs = codecs
        self._path = settings.path.encode()
        self._origins = Origins(settings.allowed_origins)
        self._proxies = Proxies(settings.trusted_proxies)
        self._dry_run = dry_run or DryRun()
        self._addresses = Limits.of(settings).addresses(clock, self._dry_run)
        self._clock = clock
        self._forwarded_told_s = -TELL_AGAIN_S
        self.refusals = Refusals(settings, clock)
        self.is_ready: Callable[[], bool] = lambda: True

    def reconfigure(self, settings: Settings) -> Commit:
        """Other rules for connections to come: see `config.reconfigure`.

        Those that are open stay, and count for their address if they have counted so far.
        """
        origins, proxies = Origins(settings.allowed_origins), Proxies(settings.trusted_proxies)
        limit_addresses = self._reconfigure_addresses(settings)
        advise = self.refusals.reconfigure(settings)

        def commit() -> None:
            self._origins = origins
            self._proxies = proxies
            limit_addresses()
            advise()

        return commit

    def _reconfigure_addresses(self, settings: Settings) -> Commit:
        """Addresses that are counted go on being counted, also where no limit is left."""
        if self._addresses is not None:
            return self._addresses.reconfigure(settings)
        addresses = Limits.of(settings).addresses(self._clock, self._dry_run)

        def commit() -> None:
            self._addresses = addresses

        return commit

    def enter(self, peer: Peer) -> str | None:
        """Count a new socket by its address: what `leave` is to be told, or None to refuse it.

        Args:
            peer: its address as the socket module gives it.
        """
        if self._addresses is None or not isinstance(peer, tuple):
            return UNCOUNTED
        if self._proxies and self._proxies.trusts(peer[0]):
            return UNCOUNTED
        key = address_key(peer[0])
        if self._addresses.admit(key):
            return key
        self.refusals.note("address_connections" if self._addresses.is_full(key) else "address_rate", peer[0])
        return None

    def leave(self, address: str) -> None:
        """A socket that was let in is gone."""
        if self._addresses is not None and address:
            self._addresses.release(address)

    def answer(
        self, request: WSUpgradeRequest, connection: GatedConnection, *, is_head: bool = False
    ) -> WSUpgradeResponseWithListener:
        """The response to a request that picows could parse. Never raises.

        Args:
            request: as picows parsed it.
            connection: that it came on.
            is_head: whether it is a HEAD request, which upgrades nothing.
        """
        try:
            target = request.path.partition(b"?")[0]
            if target in HEALTH_PATHS and target != self._path:
                connection.on_answered(True)
                return health(target == b"/healthz" or self.is_ready())
            answer = self._answer(request, connection, is_head)
        except Exception:
            log.exception("handshake failed")
            answer = refuse("internal", HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error")
        if not isinstance(answer, Refused):
            return answer
        connection.on_answered()
        if answer.cause not in _COUNTED_AT_ENTRY:
            self._note(answer, request, connection)
        return answer.response

    def _note(self, refused: Refused, request: WSUpgradeRequest, connection: GatedConnection) -> None:
        headers, peer = request.headers, connection.peername
        self.refusals.note(
            refused.cause,
            peer[0] if isinstance(peer, tuple) else None,
            origin=headers.get("origin", ""),
            host=headers.get("host", ""),
        )

    def _answer(
        self, request: WSUpgradeRequest, connection: GatedConnection, is_head: bool
    ) -> WSUpgradeResponseWithListener | Refused:
        refused = check_upgrade(request, self._path)
        if refused is not None:
            return refused
        if is_head:
            return refuse("no_upgrade", HTTPStatus.METHOD_NOT_ALLOWED, b"", {"Allow": "GET"})
        refused = self._check_page(request, connection)
        if refused is not None:
            return refused
        offers = tokens(request, "sec-websocket-protocol")
        chosen = self._codecs.select(offers)
        if chosen is None:
            names = ", ".join(encoding.subprotocol for encoding in self._codecs.encodings)
            body = f"no subprotocol in common: {names}".encode()
            return refuse("subprotocol", HTTPStatus.BAD_REQUEST, body)
        peer, client, address = connection.peername, None, None
        if self._proxies and peer and self._proxies.trusts(peer[0]):
            client = (self._client_behind(peer[0], request.headers.getall("x-forwarded-for", ())), 0)
            address = self.enter(client)
            if address is None:
                body, headers = b"too many connections", {"Retry-After": RETRY_S}
                return refuse("address_connections", HTTPStatus.TOO_MANY_REQUESTS, body, headers)
        connection.pass_gate(chosen, address, client)
        return WSUpgradeResponseWithListener(
            WSUpgradeResponse.create_101_response({"Sec-WebSocket-Protocol": chosen.subprotocol} if offers else None),
            connection,
        )

    def _check_page(self, request: WSUpgradeRequest, connection: GatedConnection) -> Refused | None:
        """None if the page that asks may connect."""
        origins = request.headers.getall("origin", ())
        if not origins:
            return None
        cause = self._origins.refusal(origins, request.headers["host"], is_local=_is_local(connection.sockname))
        if cause is None:
            return None
        return refuse(cause, HTTPStatus.FORBIDDEN, b"this page may not connect: see --allowed-origins")

    def _client_behind(self, proxy: str, forwarded: Sequence[str]) -> str:
        """The address of the client behind a trusted proxy; the proxy's own, which is not limited, if it tells none."""
        host, is_told = self._proxies.client(proxy, forwarded)
        now_s = self._clock()
        if not is_told and now_s - self._forwarded_told_s >= TELL_AGAIN_S:
            self._forwarded_told_s = now_s
            log.warning(
                "the trusted proxy %s sent an X-Forwarded-For that tells no address: its client is let in, but has the "
                "proxy's address and counts for no limit of addresses",
                host,
            )
        return host


_COUNTED_AT_ENTRY: Final = ("address_connections", "address_rate")
"""`Gate.enter` has counted these when it refused."""


def _is_local(sockname: tuple[Any, ...] | str | None) -> bool:
    """Whether a connection came to a loopback address; a Unix socket is none, as a proxy stands before it."""
    return isinstance(sockname, tuple) and is_loopback(sockname[0])
