"""Who may open a connection: by address when the socket is accepted, by page and proxy when the request is read.

At accept nothing is known but the address, and a refusal is the cheapest there is: the socket is closed and nothing was
read. A socket of a trusted proxy is let in; whom it is for is known with its request, and too many are answered 429.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, Protocol

from picows import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener

from starlight._upgrade import check_upgrade, refuse, tokens
from starlight.config import Settings
from starlight.dry_run import DryRun
from starlight.limits import Limits, address_key
from starlight.origins import Origins, Proxies
from starlight.protocol.lines import select_subprotocol

__all__ = ["UNCOUNTED", "Gate"]

log = logging.getLogger(__name__)

UNCOUNTED: Final = ""
"""The address of a connection that is not counted by address."""

RETRY_S: Final = "2"
"""What a 429 says about when to come again, in seconds: the time in which a rate fills up."""

Peer = tuple[Any, ...] | str | None


class Connection(Protocol):
    """What the gate asks of a connection, and tells it."""

    @property
    def peername(self) -> tuple[Any, ...] | None: ...
    def pass_gate(self, subprotocol: str, address: str | None, peername: tuple[Any, ...] | None) -> None: ...


class Gate:
    """The gate of one node.

    Args:
        settings: path, origins, proxies and limits.
        clock: monotonic seconds.
        dry_run: limits that are not enforced; none by default.

    Raises `ConfigError` for origins or proxies that are none.
    """

    def __init__(
        self, settings: Settings, clock: Callable[[], float] = time.monotonic, dry_run: DryRun | None = None
    ) -> None:
        self._path = settings.path.encode()
        self._origins = Origins(settings.allowed_origins)
        self._proxies = Proxies(settings.trusted_proxies)
        self._dry_run = dry_run or DryRun()
        self._addresses = Limits.of(settings).addresses(clock, self._dry_run)
        self._clock = clock
        self._told_s = -1.0
        self.n_failures = 0
        """Handshakes that failed since a line in the log last said so."""

    def change(self, limits: Limits, origins: Origins, proxies: Proxies) -> None:
        """Other rules for who comes; who is in stays, and counts if it has counted so far."""
        self._origins = origins
        self._proxies = proxies
        if self._addresses is None:
            self._addresses = limits.addresses(self._clock, self._dry_run)
        else:
            self._addresses.change(limits.connections_per_address, limits.connection_rate)

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
        return key if self._addresses.admit(key) else None

    def leave(self, address: str) -> None:
        """A socket that was let in is gone."""
        if self._addresses is not None and address:
            self._addresses.release(address)

    def tell_failures(self) -> None:
        """One line a second at most, whatever clients do."""
        now_s = self._clock()
        if self.n_failures and now_s - self._told_s >= 1:
            log.info("%d handshakes failed", self.n_failures)
            self.n_failures = 0
            self._told_s = now_s

    def answer(self, request: WSUpgradeRequest, connection: Connection) -> WSUpgradeResponseWithListener:
        """The response to a request that picows could parse. Never raises."""
        try:
            return self._answer(request, connection)
        except Exception:
            log.exception("handshake failed")
            return refuse(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error")

    def _answer(self, request: WSUpgradeRequest, connection: Connection) -> WSUpgradeResponseWithListener:
        refusal = check_upgrade(request, self._path)
        if refusal is not None:
            return refusal
        if not self._origins.allows(request.headers.getall("origin", ()), request.headers["host"]):
            return refuse(HTTPStatus.FORBIDDEN, b"this page may not connect: see --allowed-origins")
        offers = tokens(request, "sec-websocket-protocol")
        chosen = select_subprotocol(offers)
        if chosen is None:
            return refuse(HTTPStatus.BAD_REQUEST, b"no subprotocol in common: starlight.v1, starlight.v1.lines")
        peer, client, address = connection.peername, None, None
        if self._proxies and peer and self._proxies.trusts(peer[0]):
            host = self._proxies.client(peer[0], request.headers.getall("x-forwarded-for", ()))
            if host is None:
                return refuse(HTTPStatus.BAD_REQUEST, b"X-Forwarded-For makes no sense")
            client = (host, 0)
            address = self.enter(client)
            if address is None:
                return refuse(HTTPStatus.TOO_MANY_REQUESTS, b"too many connections", {"Retry-After": RETRY_S})
        connection.pass_gate(chosen, address, client)
        headers = {"Sec-WebSocket-Protocol": chosen} if offers else None
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(headers), connection)
