"""The connections of the internal port: how many there are, and how long each of them may take.

Strategy: aiohttp speaks HTTP, but accepts whatever comes and waits without end. So a `Listener` accepts, and at most
`limit` connections are taken, which the node keeps apart from the descriptors of its clients; and a sweep a second ends
what takes longer than its phase may. Nothing prolongs a phase: not a byte now and then, not a reader that takes one.

    IDLE --first byte--> HEAD --its end--> REQUEST --answer is written--> IDLE

Where one more connects than there may be, the oldest that asks nothing makes room: first one that never asked anything.
So sockets that only sit there keep nobody out, and those that ask often (`starlight top`, a scraper) keep theirs. A
body that was refused is not read on: the connection ends behind the answer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from enum import Enum
from typing import Final, cast

from aiohttp import web

from starlight.net.accept import Address, Listener
from starlight.ops.answers import finished, refusal

__all__ = ["HttpConnection", "HttpConnections", "HttpPhase"]

log = logging.getLogger(__name__)

HEAD_S: Final = 10.0
"""From the connect, or the first byte of a further request, to the end of its head: programs need milliseconds, and
browsers open a connection for later that they may throw away."""

REQUEST_S: Final = 30.0
"""From the end of the head until the answer is written, the body and a slow reader included: 1 MiB at 280 kbit/s."""

IDLE_S: Final = 75.0
"""Between two requests: above the 60 s that nginx keeps a connection for, and that Prometheus waits between scrapes."""

SWEEP_S: Final = 1.0

LEAVE_S: Final = 1.0
"""How long the client of a refused body has to read the answer; then the connection is reset."""

DISCARD_BYTES: Final = 64 * 1024
"""What of such a body is still taken from the kernel: an end without a reset for small ones."""

BACKLOG: Final = 128
"""Connections that may wait in the kernel: operators and scrapers are few."""

RECEIVE_BUFFER_BYTES: Final = 64 * 1024
"""The kernel's for each connection: by itself it would take 6 MiB of a body that nobody reads."""

SEND_BUFFER_BYTES: Final = 256 * 1024
"""Alike, for an answer that nobody reads."""

WRITING_S: Final = 2.0
"""A client that has not read its answer for so long makes room, too, where no idle one is left."""


class HttpPhase(Enum):
    """What a connection is at, and how long that may take, in seconds."""

    IDLE = IDLE_S
    HEAD = HEAD_S
    REQUEST = REQUEST_S


class HttpConnection(web.RequestHandler):
    """One connection: aiohttp's protocol, which tells `HttpConnections` where it is.

    Args:
        others: all of the port, which count it and end it if it is late.
        server: of aiohttp.
    """

    def __init__(self, others: HttpConnections, server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_S + HEAD_S,  # the sweep is earlier
            lingering_time=0.0,
            access_log=None,  # type: ignore[arg-type]
            logger=_quiet_log(),
        )
        self._others = others
        self._socket: asyncio.Transport | None = None  # aiohttp forgets its own while bytes still wait in it
        self._left: asyncio.Future[None] | None = None  # set while the peer may read the refusal of its body
        self._discarded_bytes = 0
        self.is_refused = False
        self.has_answered = False
        self.phase = HttpPhase.IDLE
        self.since_s = 0.0
        self.order = 0  # of the phases of all: one turn of the loop has one time
        self.enter(HttpPhase.IDLE)

    def enter(self, phase: HttpPhase) -> None:
        """Begin a phase. The head of the first request has its time since the connect, which is when it began."""
        if not (phase is HttpPhase.HEAD and not self.has_answered):
            self.since_s = self._others.now_s()
            self.order = self._others.next_order()
        self.phase = phase

    @property
    def writing_bytes(self) -> int:
        """What of its answers the kernel has not taken."""
        return 0 if self._socket is None else self._socket.get_write_buffer_size()

    def is_late(self, now_s: float) -> bool:
        """Whether its phase has taken longer than it may."""
        if self.phase is HttpPhase.IDLE and self.writing_bytes:
            limit_s = REQUEST_S
        elif self.phase is HttpPhase.IDLE and not self.has_answered:
            limit_s = HEAD_S
        else:
            limit_s = self.phase.value
        return now_s - self.since_s > limit_s

    def abort(self) -> None:
        """End it now."""
        self.is_refused = True
        if self._socket is not None:
            self._socket.abort()

    # --- what the loop calls ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there."""
        self._socket = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        super().connection_made(transport)
        if self.is_refused:
            self._socket.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The socket is gone."""
        self._socket = None
        self._others.forget(self)
        self._on_left()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes; aiohttp itself calls it with none to go on with what it has."""
        if self._left is not None:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > DISCARD_BYTES and self._socket is not None:
                self._socket.pause_reading()
            return
        if data and self.phase is HttpPhase.IDLE:
            self.enter(HttpPhase.HEAD)
        super().data_received(data)

    def eof_received(self) -> None:
        """The peer sends no more."""
        self._on_left()
        super().eof_received()

    # --- what aiohttp calls -------------------------------------------------------------------------------------

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, or to a failure; aiohttp's own would quote the request."""
        self.enter(HttpPhase.REQUEST)
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer is out already")
        response = refusal(status, "this is no HTTP request that can be understood" if status == 400 else "")
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write an answer; behind one to a request whose body was not read, end the connection."""
        resp = finished(resp)
        is_unread = not request.content.is_eof()
        if is_unread:
            resp.force_close()
        written = await super().finish_response(request, resp, start_time)
        if is_unread:
            await self._leave()
        self.has_answered = True
        self.enter(HttpPhase.IDLE)
        return written

    async def _leave(self) -> None:
        """Say EOF and let the peer read the answer: closing at once, with bytes unread, would be a reset."""
        if self._socket is None or self._socket.is_closing():
            return
        self._left = asyncio.get_running_loop().create_future()
        self._socket.write_eof()
        if not self._socket.is_reading():
            self._socket.resume_reading()
        await asyncio.wait((self._left,), timeout=LEAVE_S)

    def _on_left(self) -> None:
        if self._left is not None and not self._left.done():
            self._left.set_result(None)


class HttpConnections:
    """The connections of an internal port.

    Args:
        sockets: bound or listening; closed at the end.
        server: of aiohttp, set up.
        limit: connections at a time.
    """

    def __init__(self, sockets: Sequence[socket.socket], server: web.Server, limit: int) -> None:
        self._server = server
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        # no reserve: an operator gets in where clients have to wait for descriptors
        self._listener = Listener(sockets, self._take, name="the internal port", backlog=BACKLOG, reserve=0)
        self._order = 0
        self._open: set[HttpConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def now_s(self) -> float:
        """The loop's clock, in seconds."""
        return self._loop.time()

    def next_order(self) -> int:
        """A number above all before."""
        self._order += 1
        return self._order

    def start(self) -> None:
        """Accept from now on."""
        for listening in self._listener.sockets:  # accepted ones inherit these
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._listener.start()
        self._sweep()

    def stop(self) -> None:
        """Accept no more; connections stay until `abort`."""
        self._listener.stop()
        if self._sweeping is not None:
            self._sweeping.cancel()

    def abort(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()
        for connection in list(self._open):
            connection.abort()

    def forget(self, connection: HttpConnection) -> None:
        """A connection is gone."""
        self._open.discard(connection)

    def _take(self, sock: socket.socket, peer: Address) -> None:
        if len(self._open) >= self._limit and not self._make_room():
            log.warning("the internal port has %d connections, all of which are busy: one was refused", self._limit)
            sock.close()
            return
        connection = HttpConnection(self, self._server)
        self._open.add(connection)
        task = self._loop.create_task(self._connect(sock, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, sock: socket.socket, connection: HttpConnection) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, sock)
        except (OSError, asyncio.CancelledError):
            self.forget(connection)
            sock.close()

    def _make_room(self) -> bool:
        """End the oldest connection that asks nothing, or does not read its answer; False if there is none."""
        now_s = self.now_s()
        idle = [connection for connection in self._open if connection.phase is not HttpPhase.REQUEST]
        if not idle:
            idle = [
                connection
                for connection in self._open
                if connection.writing_bytes and now_s - connection.since_s > WRITING_S
            ]
        if not idle:
            return False
        oldest = min(idle, key=lambda connection: (connection.has_answered, connection.order))
        self.forget(oldest)
        oldest.abort()
        return True

    def _sweep(self) -> None:
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)
        now_s = self.now_s()
        for connection in [connection for connection in self._open if connection.is_late(now_s)]:
            connection.abort()


def _quiet_log() -> logging.Logger:
    """For aiohttp, which logs a traceback for each request that isn't HTTP. Failures of ours are logged elsewhere."""
    quiet = logging.getLogger(f"{__name__}.aiohttp")
    quiet.setLevel(logging.CRITICAL)
    return quiet
