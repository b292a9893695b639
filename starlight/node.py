"""One process that serves: core, hub and acceptor put together, listening, timers, signals and the drain.

The order at start: open files, core, hub, acceptor, and the listening socket last, so that nothing is accepted that
can't be served. The order at the end (the drain) is the same backwards: the socket is closed, every client is told when
to come back, outboxes empty, and what is left after `drain_timeout_s` is cut off. A second signal leaves at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import random
import resource
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, cast

import uvloop

from starlight import close_codes
from starlight._connection import Acceptor, Connection
from starlight._fanout import Core
from starlight._gate import Gate
from starlight._listener import Listener
from starlight._tls import Certificate, TlsListener
from starlight._version import __version__
from starlight.auth import Authenticator, Permissions, TokenAuth, make_authenticator
from starlight.config import Settings, format_duration, format_size, unknown_variables
from starlight.errors import ListenFailed, NotServing
from starlight.handlers import Handlers, Timer, call_logged
from starlight.hub import Hub
from starlight.limits import Limits
from starlight.permissions import make_permissions
from starlight.reload import Reloader

__all__ = ["Node", "raise_open_files_limit"]

log = logging.getLogger(__name__)

LISTEN_BACKLOG: Final = 4_096
"""Connections the kernel completes before we accept them: thousands of clients that come back at once after a restart
wait here instead of retrying their SYN a second later. The kernel lowers it to net.core.somaxconn."""

RESERVED_FILES: Final = 64
"""Open files kept for all but clients: listening socket, loop, standard streams, logs, what the application opens."""

RETRY_MIN_MS: Final = 500
RETRY_MAX_MS: Final = 5_500
"""A drained client is told to come back after a random time between these two. Accepting and logging in costs some
200 µs, so 10,000 clients over 5 s keep the next node less than half busy."""

_EXPIRE_S: Final = 0.5
"""How often logins are looked at that have ended, so they end at most a second and a half late."""

_DRAIN_POLL_S: Final = 0.02
"""How often the drain looks whether all connections are gone: often enough not to be noticed, nothing if it is not."""


class Node:
    """A node: made from settings, started once, drained once.

    Args:
        settings: addresses and limits; from the environment by default.
        handlers: the application's.
        authenticator: by default what `settings.auth` names.
        permissions: what a client may do; by default what its groups allow.
        groups: by name; those in `settings.config_file` go before them.
        announces: which channels publish `joined` and `left`; none by default.
        reread: makes the settings anew for `reload`; by default they stay, and only the files they name are read again.
        name: the node's name in `welcome`; random by default, so that no two runs share one.

    Raises `ConfigError` for settings that don't fit together: `make_authenticator` says which.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        handlers: Handlers | None = None,
        authenticator: Authenticator | None = None,
        permissions: Permissions | None = None,
        groups: Mapping[str, Any] | None = None,
        announces: Callable[[str], bool] | None = None,
        name: str | None = None,
        reread: Callable[[], Settings] | None = None,
    ) -> None:
        settings = settings or Settings()
        self.handlers = handlers or Handlers()
        self.settings = settings
        self._groups = groups or {}
        self.name = name or secrets.token_hex(4)
        self._gate = Gate(settings)
        has_tls = bool(settings.tls_cert or settings.tls_key)
        self._certificate = Certificate(settings.tls_cert, settings.tls_key) if has_tls else None
        self._authenticator = authenticator or make_authenticator(settings)
        tokens = self._authenticator if isinstance(self._authenticator, TokenAuth) else None
        self.core = Core(
            outbox_messages=settings.outbox_messages,
            outbox_bytes=settings.outbox_bytes,
            evict_after_ms=round(settings.evict_after_s * 1000),
            write_timeout_ms=round(settings.write_timeout_s * 1000),
            memory_budget_bytes=settings.memory_budget_bytes,
        )
        self.hub = Hub(
            self.core,
            handlers=self.handlers,
            authenticator=self._authenticator,
            permissions=permissions or self._permit(settings),
            sessions=tokens.sessions if tokens is not None else None,
            limits=Limits.of(settings),
            channels_limit=settings.channels_per_client,
            clients_limit=settings.clients_per_channel,
            name_limit_bytes=settings.name_limit_bytes,
            announces=announces,
            node=self.name,
            ping_interval_s=settings.ping_interval_s,
            pong_timeout_s=settings.pong_timeout_s,
        )
        self._reloader = Reloader(
            settings,
            reread or (lambda: settings),
            hub=self.hub,
            gate=self._gate,
            authenticator=tokens if authenticator is None else None,
            permit=self._permit if permissions is None else None,
            certificate=self._certificate,
        )
        self.is_serving = False
        """True from the start until the last connection is gone."""
        self.is_draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._acceptor: Acceptor | None = None
        self._server: Listener | TlsListener | None = None
        self._timers: list[asyncio.Task[None]] = []
        self._reloads: set[asyncio.Future[None]] = set()
        self._drained: asyncio.Future[None] | None = None
        self._has_stuck_threads = False

    # --- start ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen and serve in the running loop. Raises `ListenFailed`, and RuntimeError if it was started before."""
        if self._loop is not None:
            raise RuntimeError("a node is started once")
        self._loop = asyncio.get_running_loop()
        self.settings = _within_open_files(self.settings)
        self.core.bind(self._loop, self.settings.coalesce_delay_s)
        self._acceptor = self.make_acceptor()
        self._acceptor.start()
        self.is_serving = True
        try:
            self._server = await self._listen(self._acceptor)
        except BaseException:
            self.is_serving = False
            self._acceptor.stop()
            self.core.unbind()
            raise
        self._timers = [self._loop.create_task(_run_timer(timer)) for timer in self.handlers.timers]
        self._timers.append(self._loop.create_task(self._expire_logins()))
        if isinstance(self._authenticator, TokenAuth):
            self._authenticator.start()
        log.info("%s", self.start_line())

    def make_acceptor(self) -> Acceptor:
        """What its connections share; `starlight.conformance` has another one."""
        return Acceptor(self.core, self.hub, self.settings, gate=self._gate)

    async def _listen(self, acceptor: Acceptor) -> Listener | TlsListener:
        host, port = self.settings.host, self.settings.port
        try:
            if self._certificate is not None:
                listener = TlsListener(acceptor, self._certificate, self.settings.handshake_timeout_s)
                await listener.open(host, port, LISTEN_BACKLOG)
                return listener
            return await Listener.open(acceptor.protocol, host, port, LISTEN_BACKLOG)
        except socket.gaierror as error:
            raise ListenFailed(error.errno, f"can't listen on {host}: {error.strerror}") from None
        except OSError as error:
            raise ListenFailed(error.errno, f"can't listen on {host}:{port}: {_reason(error)}") from None

    @property
    def port(self) -> int:
        """The TCP port it listens on, also if the kernel chose it. Raises RuntimeError unless it listens."""
        if self._server is None or not self._server.sockets:
            raise RuntimeError("the node does not listen")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Where clients connect, such as ``ws://127.0.0.1:8765/ws``; ``wss`` with a certificate."""
        host, scheme = self.settings.host, "ws" if self._certificate is None else "wss"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}{self.settings.path}"

    @property
    def connections(self) -> int:
        """Connections open now, logged in or not."""
        return self._acceptor.connections if self._acceptor is not None else 0

    def _permit(self, settings: Settings) -> Permissions | None:
        return make_permissions(settings, self._groups, self.handlers.authorizer)

    async def reload(self) -> bool:
        """Read the configuration and the files it names again, and apply what may change while it serves.

        All or nothing: a wrong one is logged, False is returned, and everything stays. See `starlight.reload`.
        """
        parts = await self._reloader.run()
        if parts is None:
            return False
        # max_connections may have been lowered at the start
        self.settings = self.settings.reloaded(parts.settings)
        return True

    def call_threadsafe(self, function: Callable[..., object], *args: object) -> None:
        """Call a function of the hub from any thread, in the loop's next turn; nothing happens if the node ends first.

        Raises `NotServing` if the loop is closed already.
        """

        def call_if_serving() -> None:
            if self.is_serving:
                function(*args)

        if self._loop is None:
            raise NotServing("the node has not been started")
        try:
            self._loop.call_soon_threadsafe(call_if_serving)
        except RuntimeError:
            raise NotServing("the node has stopped") from None

    def start_line(self) -> str:
        """One line for the log: the address and the limits in force."""
        limits = self.settings
        return (
            f"starlight {__version__} node {self.name} listens on {self.url}"
            f" auth={limits.auth} max_connections={limits.max_connections}"
            f" outbox={limits.outbox_messages}/{format_size(limits.outbox_bytes)}"
            f" evict_after={format_duration(limits.evict_after_s)} read_limit={format_size(limits.read_limit_bytes)}"
            f" send_buffer={format_size(limits.send_buffer_bytes)}"
            f" memory_budget={format_size(limits.memory_budget_bytes)}"
            f" coalesce_delay={format_duration(limits.coalesce_delay_s)}"
            f" login_timeout={format_duration(limits.login_timeout_s)}"
            f" ping={format_duration(limits.ping_interval_s)}+{format_duration(limits.pong_timeout_s)}"
            f" write_timeout={format_duration(limits.write_timeout_s)}"
            f" drain_timeout={format_duration(limits.drain_timeout_s)}"
        )

    async def _expire_logins(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_S)
            try:
                self.hub.expire()
            except Exception:
                log.exception("a login could not be ended")

    # --- drain ---------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """End in good order: accept no more, send every client a `bye` and 1001, wait until they are gone.

        Takes `drain_timeout_s` at most. Safe to call twice: the second call waits for the first. Does nothing if the
        node never started.
        """
        if self._loop is None or self._server is None:
            return
        if self._drained is not None:
            await asyncio.shield(self._drained)
            return
        self._drained = self._loop.create_future()
        self.is_draining = True
        try:
            await self._drain(self._server)
        finally:
            self.is_serving = False
            self._drained.set_result(None)

    async def _drain(self, server: Listener | TlsListener) -> None:
        assert self._loop is not None and self._acceptor is not None
        deadline_s = self._loop.time() + self.settings.drain_timeout_s
        server.close()
        for timer in self._timers:
            timer.cancel()
        log.info("draining %d connections", self._acceptor.connections)
        self._send_away(self._acceptor)
        while self._acceptor.connections and self._loop.time() < deadline_s:
            await asyncio.sleep(_DRAIN_POLL_S)
            self._send_away(self._acceptor)  # those whose handshake has ended since; the others are closing
        if self._acceptor.connections:
            log.warning("drain: %d connections did not end in time and are cut off", self._acceptor.connections)
            await self._cut_off()
        await self.handlers.settle(max(0.0, deadline_s - self._loop.time()))
        self._acceptor.stop()
        self._has_stuck_threads = self.handlers.close()
        self.core.unbind()
        log.info("drained")

    def _send_away(self, acceptor: Acceptor) -> None:
        """Close every connection; each client comes back at a time of its own."""
        for client in list(self.hub.clients()):
            retry_ms = random.randint(RETRY_MIN_MS, RETRY_MAX_MS)
            client.connection.close(close_codes.GOING_AWAY, close_codes.drain_reason(retry_ms), retry_ms)
        retry_ms = random.randint(RETRY_MIN_MS, RETRY_MAX_MS)  # one for all that did not log in yet: there are few
        acceptor.close_all(close_codes.GOING_AWAY, close_codes.drain_reason(retry_ms), retry_ms)

    async def _cut_off(self) -> None:
        """Close the sockets that are left, and let the loop notice."""
        for connection in self.core.owners():
            cast(Connection, connection).abort()
        await asyncio.sleep(0)

    async def __aenter__(self) -> Node:
        """Start, unless it already runs."""
        if self._loop is None:
            await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Drain."""
        await self.drain()

    # --- a process of its own ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain and return; blocking, on a uvloop of its own.

        Only for the main thread of a process that does nothing else: it takes the signals, writes the log to stderr
        unless logging has been set up, and tunes the garbage collector. A second signal ends the process at once
        with 128 + its number. Raises `ListenFailed`.
        """
        logging.basicConfig(level=self.settings.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
        for line in unknown_variables(os.environ):
            log.warning("%s", line)
        uvloop.run(self._serve_until_signal())
        if self._has_stuck_threads:  # the interpreter would wait for them without end
            log.warning("handlers with thread=True are still under way; leaving without them")
            _leave(0)

    async def _serve_until_signal(self) -> None:
        loop = asyncio.get_running_loop()
        signalled = loop.create_future()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, _on_signal, number, signalled)
            loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        async with self:
            _tune_gc()
            await signalled

    def _on_reload(self) -> None:
        """SIGHUP."""

        async def reload() -> None:
            if await self.reload():
                logging.getLogger().setLevel(self.settings.log_level.upper())

        task = asyncio.ensure_future(reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)


def _on_signal(number: signal.Signals, signalled: asyncio.Future[None]) -> None:
    """The first signal begins the drain, the second one ends the process."""
    if signalled.done():
        _leave(128 + number)
    log.info("%s: draining; once more leaves at once", number.name)
    signalled.set_result(None)


def _leave(status: int) -> None:
    """End the process now: no waiting for threads, tasks or clients."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # no stream, its disk is full, or it is closed
            continue
    os._exit(status)


def _tune_gc() -> None:
    """Take what start-up left out of the collector's sight.

    The modules loaded so far are some 36,000 objects that never die; each full collection would walk them, a pause of
    about 15 ms for all clients where it was measured.
    """
    gc.collect()
    gc.freeze()


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns the limit then in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard


def _within_open_files(settings: Settings) -> Settings:
    """The settings with `max_connections` lowered to what the limit of open files has room for.

    Without descriptors an accept fails and is tried again in a busy loop; so that limit must never be reached.
    """
    limit = raise_open_files_limit()
    room = sys.maxsize if limit == resource.RLIM_INFINITY else max(1, limit - RESERVED_FILES)
    if settings.max_connections <= room:
        return settings
    log.warning("max_connections=%d: only %d files may be open, so it is %d", settings.max_connections, limit, room)
    return settings.model_copy(update={"max_connections": room})


def _reason(error: OSError) -> str:
    """The system's words for an error; asyncio puts its own around them."""
    return os.strerror(error.errno).lower() if error.errno else str(error)


async def _run_timer(timer: Timer) -> None:
    """Call a timer's handler at multiples of its interval; ticks that pass during a call are skipped."""
    loop = asyncio.get_running_loop()
    due_s = loop.time() + timer.seconds
    while True:
        await asyncio.sleep(due_s - loop.time())
        pending = call_logged(timer.handler, ())
        if pending is not None:
            await pending
        due_s += timer.seconds * max(1, math.ceil((loop.time() - due_s) / timer.seconds))
