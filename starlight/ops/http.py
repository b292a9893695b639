"""The internal port: an HTTP server on the node's own loop, for those who run it and for their backends.

Strategy: what is told stands in `stats` and `metrics`, what is done in `api`; here are routes, who may use
them, and what HTTP wants. aiohttp takes a fifth of a second to import, so the node imports this module in a thread,
when it accepts clients already (see `internal_port`), and only where a port is wanted.

Who may do what:

- Whatever changes something (``POST /api/...``, and what reads with POST) needs the bearer key, and so does ``/endz``.
  Without a key file nobody has it.
- Reading needs no key on a loopback address. On any other all but ``/healthz``, ``/readyz``, the console's page and
  ``/openapi.json`` need it; they tell nothing.
- No page of another origin can use it from a browser: there are no CORS headers, a foreign `Origin` is refused, and on
  a loopback address so is, with the key and without, a `Host` that is a name which somebody else could have bound to
  it (DNS rebinding).

How many connections there may be, and how long each request may take, is up to `http_connections`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
import resource
import socket
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any, Final

from aiohttp import HttpVersion11, web

from starlight.auth.limits import internal_connections
from starlight.config.addresses import is_loopback
from starlight.ends import ENDS_LIMIT, address_text
from starlight.net.origins import is_fixed_host
from starlight.ops import console, metrics
from starlight.ops.answers import answer, finished, refusal
from starlight.ops.api import Api, ApiError, Caller, ServedNode
from starlight.ops.http_connections import HttpConnection, HttpConnections, HttpPhase
from starlight.ops.stats import CHANNEL_ORDERS, CONNECTION_ORDERS, Stats

__all__ = ["REQUESTS_LIMIT", "InternalHttp"]

log = logging.getLogger(__name__)

REQUESTS_LIMIT: Final = 64
"""Requests under way at a time; 429 beyond. A page of connections takes some hundred turns of the loop, and a hundred
of them at once would be felt by the clients."""

PAGE_LIMIT: Final = 1_000
"""Rows of one page of connections or channels."""

OFFSET_LIMIT: Final = 1_000_000

SINCE_LIMIT: Final = 10**10
"""Unix seconds of the year 2286."""

STOP_S: Final = 1.0
"""What requests under way have to end when the node has drained."""

_OPEN_PATHS: Final = frozenset(("/", "/healthz", "/readyz", "/openapi.json"))
_CHANGING: Final = "POST"
_KEYED_PATHS: Final = frozenset(("/endz",))
"""What is read with the key only, on any address: it says who came from where, and why they went."""

OPERATOR_HEADER: Final = "X-Starlight-Operator"
_OPERATOR: Final = re.compile(r"[\x20-\x7e]{1,64}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,10}")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class InternalHttp:
    """The HTTP server of one node's internal port.

    Args:
        node: the node, started.
        sockets: that listen already.
        key: says which key allows to change something; None: no request may.
    """

    def __init__(self, node: ServedNode, sockets: Sequence[socket.socket], key: Callable[[], bytes | None]) -> None:
        self.stats = Stats(node)
        self._node = node
        self._sockets = sockets
        self._key = key
        self._is_loopback = is_loopback(node.settings.internal_host)
        self._api = Api(node, self.stats)
        self._registry = metrics.make_registry(self.stats)
        self._under_way = 0
        self._reading = asyncio.Lock()
        self._runner: web.AppRunner | None = None
        self._connections: HttpConnections | None = None
        self.port: int = sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        """Where it is: ``http://127.0.0.1:8766``."""
        host = self._node.settings.internal_host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Serve, on the running loop."""
        self._runner = web.AppRunner(self.make_app(), handle_signals=False, shutdown_timeout=STOP_S)
        await self._runner.setup()
        assert self._runner.server is not None
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._connections = HttpConnections(self._sockets, self._runner.server, internal_connections(open_files))
        self._connections.start()
        self.stats.lag.start()
        log.info("the internal port is %s%s", self.url, "" if self._key() else ", for reading only: it has no key")

    async def stop(self) -> None:
        """Serve no more."""
        self.stats.lag.stop()
        if self._connections is not None:
            self._connections.stop()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._connections is not None:
            self._connections.abort()
            self._connections = None

    def make_app(self) -> web.Application:
        """The routes."""
        app = web.Application(middlewares=[self._guard], client_max_size=self._api.body_limit_bytes)
        for path, handler in (
            ("/", self._console),
            ("/healthz", self._healthz),
            ("/readyz", self._readyz),
            ("/metrics", self._metrics),
            ("/varz", self._varz),
            ("/connz", self._connz),
            ("/channelz", self._channelz),
            ("/endz", self._endz),
            ("/openapi.json", self._openapi),
        ):
            app.router.add_get(path, handler)  # and HEAD
        for name, function in self._api.routes.items():
            app.router.add_post(f"/api/{name}", self._api_handler(function), expect_handler=self._expect)
        return app

    async def _expect(self, request: web.Request) -> web.StreamResponse | None:
        """Ask a client that waits for it (``Expect: 100-continue``) for its body, unless the request is refused."""
        _begin(request)
        if request.version < HttpVersion11:
            return None  # it knows of no such answer
        if request.headers.get("Expect", "").lower() != "100-continue":
            return refusal(417)
        try:
            self._check(request)
        except ApiError as error:
            return refusal(error.status, error.message)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # else aiohttp takes this for a part of the answer
        return None

    # --- who may use it ------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request pass or refuse it, and turn every failure into an answer of one shape."""
        _begin(request)
        self._under_way += 1
        try:
            self._check(request)
            if request.method == _CHANGING or request.path in _OPEN_PATHS:
                return await handler(request)
            async with self._reading:  # one after the other, with a turn of the loop for the clients between them
                await asyncio.sleep(0)
                return await handler(request)
        except ApiError as error:
            return refusal(error.status, error.message)
        except web.HTTPException as error:  # of aiohttp itself: no such route, wrong method, body too large
            return finished(error)
        except Exception:
            log.exception("the internal port could not answer %s", request.rel_url.raw_path)
            return refusal(500, "internal error")
        finally:
            self._under_way -= 1

    def _check(self, request: web.Request) -> None:
        has_key = self._has_key(request)
        self._check_host(request)
        if self._under_way > REQUESTS_LIMIT and request.path not in _OPEN_PATHS:
            raise ApiError(429, "too many requests at a time")
        if request.match_info.http_exception is not None:
            return  # there is no such route, which nobody needs a key to be told
        needs_key = request.method == _CHANGING or request.path in _KEYED_PATHS
        if needs_key and self._key() is None:
            raise ApiError(403, "this can't be asked without an --internal-key-file")
        if not has_key and (needs_key or not (self._is_loopback or request.path in _OPEN_PATHS)):
            if "Authorization" in request.headers:
                raise ApiError(401, "the key is wrong: it is not the one in this node's --internal-key-file")
            raise ApiError(401, "the key is missing: expected Authorization: Bearer and the key")
        if (request.content_length or 0) > self._api.body_limit_bytes:
            raise ApiError(413, f"the body is too large: at most {self._api.body_limit_bytes} bytes are allowed")

    def _has_key(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        key = self._key()
        if key is None or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), key)

    def _check_host(self, request: web.Request) -> None:
        """Refuse what a browser sends for a page of somebody else."""
        hosts = request.headers.getall("Host", ())
        if len(hosts) != 1:
            raise ApiError(400, "expected one Host")
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() != f"http://{hosts[0].lower()}":
            raise ApiError(403, "a page of another origin may not use this")
        if self._is_loopback and not self._is_ours(hosts[0]):
            log.warning("the internal port refused a request: its Host is neither an address nor localhost")
            raise ApiError(403, "Host: expected an address or localhost; others could bind a name to this machine")

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header is an address, or a name that nobody else can bind to this one."""
        return is_fixed_host(host) or host.lower().partition(":")[0] == self._node.settings.internal_host.lower()

    # --- reading -------------------------------------------------------------------------------------------------

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        reasons = self.stats.not_ready()
        return answer({"ready": False, "reasons": reasons}, 503) if reasons else answer({"ready": True})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(self._registry), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _varz(self, request: web.Request) -> web.Response:
        return answer(self.stats.varz())

    async def _connz(self, request: web.Request) -> web.Response:
        user = request.query.get("user")
        if user is not None and not 1 <= len(user) <= 255:
            raise ApiError(400, "user: expected 1 to 255 characters")
        page = await self.stats.connz(
            _choice(request, "sort", CONNECTION_ORDERS),
            user,
            _whole(request, "limit", 100, 1, PAGE_LIMIT),
            _whole(request, "offset", 0, 0, OFFSET_LIMIT),
        )
        return answer(page)

    async def _channelz(self, request: web.Request) -> web.Response:
        order = _choice(request, "sort", CHANNEL_ORDERS)
        return answer(await self.stats.channelz(order, _whole(request, "limit", 100, 1, PAGE_LIMIT)))

    async def _endz(self, request: web.Request) -> web.Response:
        user = request.query.get("user")
        if user is not None and not 1 <= len(user) <= 255:
            raise ApiError(400, "user: expected 1 to 255 characters")
        page = await self.stats.endz(
            user,
            _whole(request, "code", 0, 1_000, 4_999) or None,
            _whole(request, "since", 0, 0, SINCE_LIMIT),
            _whole(request, "limit", 100, 1, PAGE_LIMIT),
            _whole(request, "offset", 0, 0, ENDS_LIMIT),
        )
        return answer(page)

    async def _openapi(self, request: web.Request) -> web.Response:
        description = files("starlight.ops") / "openapi.json"
        return web.Response(body=description.read_bytes(), content_type="application/json")

    async def _console(self, request: web.Request) -> web.Response:
        body, headers = console.page()
        return web.Response(body=body, headers=headers)

    # --- changing ------------------------------------------------------------------------------------------------

    def _api_handler(self, function: Callable[[bytes, Caller], Awaitable[tuple[int, dict[str, Any]]]]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            status, content = await function(await _read(request), self._caller(request))
            return answer(content, status)

        return handle

    def _caller(self, request: web.Request) -> Caller:
        """Who asks, with the key that `_check` has seen."""
        peername = None if request.transport is None else request.transport.get_extra_info("peername")
        operator = request.headers.get(OPERATOR_HEADER, "")
        return Caller(
            address_text(peername),
            os.path.basename(self._node.settings.internal_key_file),
            operator if _OPERATOR.fullmatch(operator) else "",
        )


def _begin(request: web.Request) -> None:
    """The head of a request is complete: tell its connection, which knows how long the rest may take."""
    if isinstance(request.protocol, HttpConnection):
        request.protocol.enter(HttpPhase.REQUEST)


async def _read(request: web.Request) -> bytes:
    """The body. Raises `ApiError` 400 where it does not come, or not as its head said."""
    try:
        return await request.read()
    except web.HTTPException:  # too large
        raise
    except Exception:
        raise ApiError(400, "the body could not be read") from None


def _choice(request: web.Request, name: str, choices: tuple[str, ...]) -> str:
    chosen = request.query.get(name, choices[0])
    if chosen not in choices:
        raise ApiError(400, f"{name}: expected one of {', '.join(choices)}")
    return chosen


def _whole(request: web.Request, name: str, default: int, least: int, most: int) -> int:
    word = request.query.get(name)
    if word is None:
        return default
    if not _NUMBER.fullmatch(word) or not least <= int(word) <= most:
        raise ApiError(400, f"{name}: expected a whole number from {least} to {most}")
    return int(word)
