"""One process that serves: core, hub and acceptor put together, listening, timers, start and end.

The order at start: open files, core, hub, acceptor, and the listening socket last, so that nothing is accepted that
can't be served. The order at the end is the same backwards: the node says that it isn't ready, the socket is closed,
every client is sent away (`_drain`), outboxes empty, and what is left after `drain_timeout_s` is cut off. Signals, log
and service manager belong to `_process`, for a node that has a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
import secrets
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from starlight._fanout import Core
from starlight._version import __version__
from starlight.auth.dry_run import DryRun
from starlight.auth.identity import Authenticator, NoAuth, Permissions, TokenAuth, make_authenticator, refuse_strangers
from starlight.auth.limits import Limits, internal_connections
from starlight.auth.permissions import make_permissions
from starlight.brokers.base import Broker
from starlight.channels.handlers import Handlers, Timer
from starlight.channels.hub import Hub
from starlight.channels.options import OptionsByPattern, make_channel_options
from starlight.config.reconfigure import Commit, Reconfigure
from starlight.config.settings import Settings
from starlight.config.units import format_duration, format_size
from starlight.ends import Cause, Ends
from starlight.errors import ListenFailed, NotServing
from starlight.net.accept import Listener, bind_all
from starlight.net.connection import Endpoint
from starlight.net.gate import Gate
from starlight.net.tls import Certificate, TlsHandshakes
from starlight.net.transports import Transports
from starlight.ops.internal_port import InternalPort
from starlight.ops.stats import not_ready
from starlight.protocols.base import Codecs
from starlight.protocols.spoken import SPOKEN
from starlight.server import process as _process
from starlight.server.drain import Drain
from starlight.server.memory import Trimmer, trim
from starlight.server.reload import Reloader

__all__ = ["Node", "raise_open_files_limit"]

log = logging.getLogger(__name__)

RESERVED_FILES: Final = 64
"""Open files kept for all but clients: listening socket, loop, standard streams, logs, what the application opens."""

_EXPIRE_S: Final = 0.5
"""How often logins are looked at that have ended, so they end at most a second and a half late."""


class Node:
    """A node: made from settings, started once, drained once.

    Args:
        settings: addresses and limits; from the environment by default.
        handlers: the application's.
        authenticator: by default what `settings.auth` names.
        permissions: what a client may do; by default what its groups allow.
        broker: carries messages to other nodes; by default there are none.
        groups: by name; those in `settings.config_file` go before them.
        channels: options of channels by pattern; those in `settings.config_file` go before them.
        reread: makes the settings anew for `reload`; by default they stay, and only the files they name are read again.
        codecs: what is spoken; by default the native protocol.

    Raises `ConfigError` for settings that don't fit together: `make_authenticator` says which.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        handlers: Handlers | None = None,
        authenticator: Authenticator | None = None,
        permissions: Permissions | None = None,
        broker: Broker | None = None,
        groups: Mapping[str, Any] | None = None,
        channels: Mapping[str, Any] | None = None,
        reread: Callable[[], Settings] | None = None,
        codecs: Codecs = SPOKEN,
    ) -> None:
        settings = settings or Settings()
        self._codecs = codecs
        self.handlers = handlers or Handlers()
        self.settings = settings
        self._groups = groups or {}
        self._channels = channels or {}
        self.name = settings.node_name or socket.gethostname()
        """What it is called by who runs it; by default host and port, once it listens."""
        self.ends = Ends()
        """How connections ended lately."""
        self.dry_run = DryRun(settings.dry_run)
        """Limits that are not enforced, and what they would have done."""
        self._gate = Gate(settings, dry_run=self.dry_run, codecs=codecs)
        self._certificate = Certificate.of(settings)
        self._authenticator = authenticator or make_authenticator(settings)
        self._internal = InternalPort(settings)
        self.core = _make_core(settings, codecs)
        self.hub = self._make_hub(settings, permissions, broker)
        parts = [part.reconfigure for part in (self._internal, self.dry_run, self.core, self._gate, self.hub)]
        if authenticator is None and self._tokens is not None:
            parts.append(self._tokens.reconfigure)
        if self._certificate is not None:
            parts.append(self._certificate.reconfigure)
        self._reloader = Reloader(settings, reread or (lambda: settings), parts, self.hub.review)
        self.is_serving = False
        """True from the start until the last connection is gone."""
        self.is_draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._acceptor: Endpoint | None = None
        self._listener: Listener | None = None
        self._transports: Transports | None = None
        self._timers: list[asyncio.Task[None]] = []
        self._draining: asyncio.Task[None] | None = None
        self._drain: Drain | None = None
        self._drain_end_s = math.inf
        self._drain_begun = asyncio.Event()
        self._drain_by = ""
        self._drain_hurried = asyncio.Event()
        self.has_stuck_threads = False
        """Whether handlers with ``thread=True`` were still under way at the end of the drain."""

    @property
    def _tokens(self) -> TokenAuth | None:
        """The authenticator, where it is the one of tokens."""
        return self._authenticator if isinstance(self._authenticator, TokenAuth) else None

    def _make_hub(self, settings: Settings, permissions: Permissions | None, broker: Broker | None) -> Hub:
        return Hub(
            self.core,
            codecs=self._codecs,
            handlers=self.handlers,
            authenticator=self._authenticator,
            permissions=permissions or self._permit(settings),
            permit=self._permit if permissions is None else None,
            broker=broker,
            sessions=self._tokens.sessions if self._tokens is not None else None,
            limits=Limits.of(settings),
            login_timeout_s=settings.login_timeout_s,
            channels_limit=settings.channels_per_client,
            name_limit_bytes=settings.name_limit_bytes,
            message_limit_bytes=settings.read_limit_bytes,
            options=self._channel_options(settings),
            make_options=self._channel_options,
            ends=self.ends,
            dry_run=self.dry_run,
            node=secrets.token_hex(4),  # no two runs share one, and no client learns the name of the host
            ping_interval_s=settings.ping_interval_s,
            pong_timeout_s=settings.pong_timeout_s,
        )

    # --- start ---------------------------------------------------------------------------------------------------

    async def start(self, listening: Sequence[socket.socket] = ()) -> None:
        """Listen and serve in the running loop.

        Args:
            listening: sockets that listen already and that others hold as well, instead of `host` and `port`.

        All or nothing: if a step fails or is cancelled, everything is given back before this returns.

        Raises `ListenFailed`; RuntimeError if it was started before; `ConfigError` if one of the sockets can be reached
        by others and neither authentication nor `insecure_no_auth` is there.
        """
        if self._loop is not None:
            raise RuntimeError("a node is started once")
        if listening and isinstance(self._authenticator, NoAuth):
            for sock in listening:
                refuse_strangers(self.settings, sock.getsockname()[0])
        self._loop = asyncio.get_running_loop()
        self.settings = _within_open_files(self.settings)
        self.core.bind(self._loop, self.settings.coalesce_delay_s)
        self._gate.is_ready = lambda: not not_ready(self)
        self._acceptor = self.make_acceptor()
        self._acceptor.start()
        self.is_serving = True
        try:
            await self._start(self._loop, self._acceptor, listening)
        except BaseException:
            await _in_any_case(self._undo_start())
            raise

    async def _start(
        self, loop: asyncio.AbstractEventLoop, acceptor: Endpoint, listening: Sequence[socket.socket]
    ) -> None:
        """The steps of the start that may fail, or be cancelled."""
        await self._internal.listen()
        await self._listen(acceptor, listening)
        self.name = self.settings.node_name or f"{socket.gethostname()}:{self.port}"
        self._timers = [loop.create_task(_run_timer(timer)) for timer in self.handlers.timers]
        self._timers.append(loop.create_task(self._expire_logins()))
        if self._tokens is not None:
            self._tokens.start()
        log.info("%s", self.start_line())
        if self.settings.dry_run:
            log.warning("dry_run=%s: these limits are not enforced", self.settings.dry_run)
        await self._internal.start(self)

    async def _undo_start(self) -> None:
        """Give everything back; who has connected meanwhile is cut off."""
        try:
            if self._listener is not None and self._transports is not None:
                self._listener.stop()
                self._transports.drop_handshakes()
        finally:
            await self._end_serving()
            self._listener = None
            log.info("the start was given up")

    async def _end_serving(self) -> None:
        """The last steps of every end: nothing of them waits for a client."""
        assert self._acceptor is not None
        for timer in self._timers:
            timer.cancel()
        try:
            self._acceptor.stop()
            self.has_stuck_threads = self.handlers.close()
            await self._internal.stop()
        finally:
            self.core.unbind()
            self.is_serving = False

    def make_acceptor(self) -> Endpoint:
        """What its connections share; `starlight.server.conformance` has another one."""
        return Endpoint(self.core, self.hub, self.settings, gate=self._gate, ends=self.ends, dry_run=self.dry_run)

    async def _listen(self, acceptor: Endpoint, listening: Sequence[socket.socket]) -> None:
        host, port = self.settings.host, self.settings.port
        tls = None
        if self._certificate is not None:
            tls = TlsHandshakes(self._certificate, self.settings.handshake_timeout_s)
        self._transports = Transports(acceptor.protocol, tls)
        try:
            sockets = listening or await bind_all(host, port, reuse_port=self.settings.reuse_port)
            self._listener = Listener(
                sockets,
                self._transports.take,
                name="the node's port",
                make_protocol=acceptor.protocol if tls is None else None,
                is_shared=bool(listening),
            )
            self._listener.start()
        except socket.gaierror as error:
            raise ListenFailed(error.errno, f"can't listen on {host}: {error.strerror}") from None
        except OSError as error:
            raise ListenFailed(error.errno, f"can't listen on {host}:{port}: {_reason(error)}") from None

    @property
    def port(self) -> int:
        """The TCP port it listens on, also if the kernel chose it. Raises RuntimeError unless it listens."""
        if self._listener is None or not self._listener.sockets:
            raise RuntimeError("the node does not listen")
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Where clients connect, such as ``ws://127.0.0.1:8765/ws``; ``wss`` with a certificate."""
        host, scheme = self.settings.host, "ws" if self._certificate is None else "wss"
        if self._listener is not None and self._listener.is_shared and self._listener.sockets:
            host = self._listener.sockets[0].getsockname()[0]
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}{self.settings.path}"

    @property
    def internal_url(self) -> str | None:
        """Where the internal port is, such as ``http://127.0.0.1:8766``; None where there is none."""
        return self._internal.url

    @property
    def is_listening(self) -> bool:
        """Whether it accepts connections: it listens, and has descriptors left for them."""
        listener = self._listener
        return listener is not None and bool(listener.sockets) and not listener.is_resting

    @property
    def acceptor(self) -> Endpoint:
        """What its connections share. Raises RuntimeError before the start."""
        if self._acceptor is None:
            raise RuntimeError("the node has not been started")
        return self._acceptor

    @property
    def connections(self) -> int:
        """Connections open now, logged in or not."""
        return self._acceptor.connections if self._acceptor is not None else 0

    def _permit(self, settings: Settings) -> Permissions | None:
        return make_permissions(settings, self._groups, self.handlers.authorizer)

    def _channel_options(self, settings: Settings) -> OptionsByPattern:
        return make_channel_options(settings, self._channels)

    async def reload(self, *others: Reconfigure) -> bool:
        """Read the configuration and the files it names again, and apply what may change while it serves.

        All or nothing: a wrong one is logged, False is returned, and everything stays. See `starlight.server.reload`.

        Args:
            others: parts that aren't the node's, such as its process's log.
        """
        return await self._reloader.run([*others, self.reconfigure])

    def reconfigure(self, settings: Settings) -> Commit:
        """The node's own settings: see `config.reconfigure`."""

        def commit() -> None:
            self.settings = self.settings.reloaded(settings)  # max_connections may have been lowered at the start

        return commit

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
            f"starlight {__version__} node {self.name} run {self.hub.node} listens on {self.url}"
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
        loop = asyncio.get_running_loop()
        trimmer = Trimmer(lambda: loop.run_in_executor(None, trim))
        while True:
            await asyncio.sleep(_EXPIRE_S)
            try:
                self.hub.expire()
            except Exception:
                log.exception("a login could not be ended")
            trimmer.look(self.hub.n_channels)
            self.ends.expire()

    # --- drain ---------------------------------------------------------------------------------------------------

    async def drain(self, timeout_s: float | None = None, *, by: str = "") -> None:
        """End in good order: not ready from now on, accept no more, send every client a `bye` and 1001, wait for them.

        The drain is a task of its own: it goes on if its caller is cancelled, and whoever calls again waits for the
        same drain and gets its result. Does nothing if the node never started.

        Args:
            timeout_s: how long it takes at most, in seconds; by default `drain_timeout_s`. In a drain that is under way
                a shorter time hurries it and a longer one changes nothing.
            by: who asked for it, for the records of ends; "" for a signal or the program itself.
        """
        if self._loop is None or self._listener is None:
            return
        timeout_s = self.settings.drain_timeout_s if timeout_s is None else max(0.0, timeout_s)
        end_s = self._loop.time() + timeout_s
        if self._draining is None:
            self._drain_end_s = end_s
            self._drain_by = by
            self.is_draining = True
            self._drain_begun.set()
            if not self.settings.drain_notice_s:
                self._listener.stop()
            self._draining = self._loop.create_task(self._run_drain(self._listener))
        elif end_s < self._drain_end_s and not self._draining.done():
            self._drain_end_s = end_s
            self._drain_hurried.set()
            if self._drain is not None:
                self._drain.hurry(end_s)
        await asyncio.shield(self._draining)

    async def drain_begun(self) -> None:
        """Return when a drain has begun, whoever asked for it."""
        await self._drain_begun.wait()

    async def _run_drain(self, listener: Listener) -> None:
        try:
            await self._give_notice()
            listener.stop()
            await self._send_clients_away()
        finally:
            listener.stop()  # nothing is left of it unless the program cancels all its tasks
            await self._end_serving()
        log.info("drained")

    async def _give_notice(self) -> None:
        """Serve on for `drain_notice_s` within the drain's time, of which a hurry may leave less."""
        assert self._loop is not None
        notice_end_s = self._loop.time() + self.settings.drain_notice_s
        while (left_s := min(notice_end_s, self._drain_end_s) - self._loop.time()) > 0:
            self._drain_hurried.clear()
            try:
                await asyncio.wait_for(self._drain_hurried.wait(), left_s)
            except TimeoutError:
                return

    async def _send_clients_away(self) -> None:
        assert self._loop is not None and self._acceptor is not None
        log.info("draining %d connections", self._acceptor.connections)
        cause = Cause("drain", self._drain_by)
        self._drain = Drain(self._acceptor, self.settings.drain_rate, self._drain_end_s, self._end_handshakes, cause)
        await self._drain.run()
        for timer in self._timers:  # until then clients were served as ever
            timer.cancel()
        await self.handlers.settle(max(0.0, self._drain_end_s - self._loop.time()))

    def _end_handshakes(self) -> None:
        """Cut off whoever is still in the handshake, of TLS or of HTTP."""
        assert self._acceptor is not None and self._transports is not None
        self._transports.drop_handshakes()
        self._acceptor.abort_handshakes()

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

        Only for a process that does nothing else: `starlight.server.process.run` says what it takes charge of. A second
        signal ends the process at once with 128 + its number. Raises `ListenFailed`, and `ConfigError` for sockets of
        the service manager that others can reach while there is no authentication.
        """
        _process.run(self)


async def _in_any_case(work: Coroutine[Any, Any, None]) -> None:
    """Do something to its end, however often the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                break
        except Exception:
            break
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the start could not be given up in good order", exc_info=error)


def _make_core(settings: Settings, codecs: Codecs) -> Core:
    return Core(
        encodings=codecs.for_core(),
        outbox_messages=settings.outbox_messages,
        outbox_bytes=settings.outbox_bytes,
        evict_after_ms=round(settings.evict_after_s * 1000),
        write_timeout_ms=round(settings.write_timeout_s * 1000),
        memory_budget_bytes=settings.memory_budget_bytes,
        is_dry_run="evict" in settings.dry_run,
    )


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
    reserved = RESERVED_FILES + (internal_connections(limit) if settings.internal_port is not None else 0)
    room = sys.maxsize if limit == resource.RLIM_INFINITY else max(1, limit - reserved)
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
        await timer.handler.run_logged()
        due_s += timer.seconds * max(1, math.ceil((loop.time() - due_s) / timer.seconds))
