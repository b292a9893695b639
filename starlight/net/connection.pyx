"""A connection's read side and life: picows' frames in, whole messages to the hub, deadlines, and every way it can end.

picows parses the handshake and the frames, and that is all it does (see _handover.py): the core is the only writer to the
socket, so that no close frame of picows' can land inside a torn frame, and the end is ours to order: a close frame is followed
by EOF and reading until the peer's, not by a reset that destroys it.

picows looks one frame ahead: it reports an error in frame N+1 before it delivers frame N. The error is therefore kept, frame
N is handled, and then the connection fails; reading stops meanwhile, so that nothing behind the error is ever delivered.

Law: what a client makes us do is counted before it is done, in two ways. Where rates are set, each byte that is read and each
frame or line is charged to the client's meter, which slows it down and ends it. And with or without rates, a client gets
its share of a loop turn (`spend`): beyond it reading stops and messages are held until the next turn, when others have had theirs.
A message is counted by its size and by the time that it took, as there are cheap ones that ask for much (a join of 256 channels).
"""

import asyncio
import logging
import random
from collections import Counter, deque

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from picows.picows cimport MemoryBuffer, WSFrame, WSListener, WSMsgType, WSTransport
from starlight.session.deadlines cimport (WHEEL_SLOTS, WHEEL_TICK_MS, deadline_clear, deadline_set, deadline_t, list_init,
                                   wheel_collect, wheel_init)
from starlight._fanout cimport Core
from starlight.core.records cimport is_behind
from starlight.session.fragments cimport Fragments
from starlight.core.wire cimport wire_is_utf8
from starlight.protocols.native._lines cimport Lines

from picows.picows import WSProtocol

from starlight import close_codes
from starlight.net.departures import Departures, progress, unread_bytes
from starlight._fanout import FRAMES, LINES
from starlight.net.gate import Gate
from starlight.net.picows_adapter import (BAD_REQUEST, DISARMED, Answering, Discard, ParserLog, reset_on_close, resume_reading,
                                 resume_reading_now, set_send_buffer)
from starlight.net.pinned import check_versions
from starlight.auth.dry_run import DryRun
from starlight.ends import Cause, Ends, cause_of
from starlight.errors import CloseConnection
from starlight.protocols.native.lines import LINES as LINES_SUBPROTOCOL
from starlight.protocols.native.replies import bye

check_versions()
log = logging.getLogger(__name__)

cdef extern from "Python.h":
    Py_buffer* PyMemoryView_GET_BUFFER(object view)

cdef extern from "<sys/socket.h>" nogil:
    int SHUT_WR
    int sys_shutdown "shutdown"(int fd, int how)

cdef enum:
    LINGER_MS = 1000             # after our last byte: time for the peer to read it and to close
    HOLD_MESSAGES = 64           # that wait for an async handler before reading stops
    HOLD_BYTES = 256 * 1024
    FRAGMENTS_LIMIT = 64         # of one message; a client that sends more plays with us
    LOGIN_BYTES = 16 * 1024      # the first message: a token has 8 KiB at most
    STRANGER_BYTES = 24 * 1024   # all that may come before the login, so that a stranger costs less than 64 KiB
    HEAD_BYTES = 5               # of "HEAD "
    READ_BUFFER_BYTES = 2048     # picows' minimum; it grows with what really arrives
    BURST_BYTES = 16 * 1024      # up to here by any burst, beyond only by a frame that is larger
    DOUBTS_LIMIT = 3             # pong timeouts for a peer of which nothing can be told while it isn't read
    FRAME_WORK = 256             # work is counted in bytes, about a nanosecond each: parsing a frame is as much as so many,
    MESSAGE_WORK = 2048          # and handling a message
    TURN_WORK = 2 * 1024 * 1024  # about 2 ms: what clients that want more than they get are given in a turn, all together
    SHARE_WORK = 32 * 1024       # what a client gets at least: about 15 messages
    COPY_BYTES = 32              # a publication's bytes, once for each member, are a 32nd of the work of those that are read
    HEAVY_SHARES = 2             # who did more than so many shares in a turn goes on when a turn has room for as much again
    READS_OF_SHARE = 64          # a read may bring this part of a share: its frames, which can't wait, take 40 times their bytes
    LATE_MS = 3 * WHEEL_TICK_MS  # a tick that comes so late was held up: sockets are read before deadlines are judged

cdef double DISCARD_PAUSE_S = 0.001                      # between two reads of a closing peer that floods: 64 MB a second
cdef object PING_WHEN_IDLE = 1
cdef MemoryBuffer NO_WRITE_BUFFER = MemoryBuffer(16)     # for all connections: picows writes nothing after the handshake

cdef object BY_CLIENT = Cause("client")
cdef object OVER_BUDGET = Cause("budget")
cdef object CUT_OFF = Cause("drain", "cut off at the end of the drain time")
cdef object GAVE_WAY = Cause("silent", "it made room for another connection of its user")
cdef object LATE_LOGIN = Cause("login", "no login came within login_timeout")

# Closes without a `bye`: the peer does not read, or does not speak the protocol.
cdef frozenset NO_BYE = frozenset((1002, 1003, 1007, 1008, 1009, 4008, 4009))


class Protocol(WSProtocol):
    """picows' protocol, told of the socket's first and last moment (its listener only hears of upgraded ones)."""

    __slots__ = ("connection",)

    def connection_made(self, transport):
        """Count the socket, or refuse it when there are too many."""
        if self.connection.on_socket(transport):
            super().connection_made(transport)
            self.connection.arm(self.transport)
        else:
            transport.abort()

    def get_buffer(self, size_hint):
        """picows doubles its buffer whenever a read fills it, and a flood fills any: see that only a large frame does.

        While clients share turns, a read brings so little that its frames fit into the share.
        """
        cdef Connection connection = self.connection
        view = WSProtocol.get_buffer(self, size_hint)
        cdef Py_ssize_t n_bytes = len(view)
        connection.read_at = <const uint8_t*>PyMemoryView_GET_BUFFER(view).buf
        cdef Py_ssize_t limit_bytes = n_bytes if n_bytes <= BURST_BYTES else n_bytes - n_bytes // 4
        if connection.acceptor.share_work < connection.acceptor.turn_work:
            limit_bytes = min(limit_bytes, max(READ_BUFFER_BYTES, <Py_ssize_t>connection.acceptor.share_work // READS_OF_SHARE))
        return view if n_bytes <= limit_bytes else view[:limit_bytes]

    def buffer_updated(self, n_bytes):
        """Count what was read, and see the headers of fragments before picows waits for their ends."""
        cdef Connection connection = self.connection
        connection.count_read(n_bytes)
        if connection.phase == PHASE_HANDSHAKE and not connection.is_looked_at and connection.look_at_request(n_bytes):
            return
        connection.look_ahead(connection.read_at, n_bytes)
        WSProtocol.buffer_updated(self, n_bytes)
        if connection.phase == PHASE_LOGIN:
            connection.receive_stranger(n_bytes)

    def connection_lost(self, exc):
        """The socket is about to be closed: forget the fd first of all."""
        if self.transport is not None:
            super().connection_lost(exc)
        self.connection.on_socket_lost()
        self.connection = None


# ---- the connection --------------------------------------------------------------------------------------------------

@cython.no_gc_clear                                      # __dealloc__ unlinks the deadline from the acceptor's wheel
cdef class Connection(WSListener):
    """One socket. The hub sees `subscriber`, `peername`, `subprotocol`, `is_open` and `close()`."""

    def __init__(self, Acceptor acceptor not None):
        self.acceptor = acceptor
        self.phase = PHASE_HANDSHAKE
        self.subprotocol = ""
        self.fd = -1
        self.watched_fd = -1
        self.deadline.owner = <void*>self

    def __dealloc__(self):
        deadline_clear(&self.deadline)

    @property
    def is_open(self):
        """False once it is closing or closed."""
        return self.phase < PHASE_CLOSING

    @property
    def peername(self):
        """The client's address as the socket module gives it; None without a socket. Behind a proxy the port is 0."""
        if self.client_peername is not None:
            return self.client_peername
        return self.transport.get_extra_info("peername") if self.transport is not None else None

    @property
    def sockname(self):
        """Our own address, to which the client has connected; None without a socket."""
        return self.transport.get_extra_info("sockname") if self.transport is not None else None

    # ---- the socket's first and last moment

    def admit(self, peername):
        """Count a socket; False to refuse it: there are too many, in all or of its address."""
        cdef Acceptor acceptor = self.acceptor
        if acceptor.connections >= acceptor.max_connections:
            acceptor.counts["refused_full"] += 1
            acceptor.gate.refusals.note("full", peername[0] if isinstance(peername, tuple) else None)
            return False
        self.address = acceptor.gate.enter(peername)
        if self.address is None:
            acceptor.counts["refused_address"] += 1
            return False
        acceptor.connections += 1
        self.is_counted = True
        return True

    def on_socket(self, transport):
        """A socket was accepted (and with TLS, admitted before its handshake): False to refuse it."""
        cdef Acceptor acceptor = self.acceptor
        if not self.is_counted and not self.admit(transport.get_extra_info("peername")):
            return False
        self.transport = transport
        self.set_deadline(acceptor.handshake_timeout_ms)
        set_send_buffer(transport, acceptor.send_buffer_bytes)
        return True

    def arm(self, WSTransport transport):
        """Stand between picows and the transport."""
        self.answering = transport.underlying_transport = Answering(self, self.transport)

    def on_socket_lost(self):
        """The socket is about to be closed."""
        self.end()
        if self.is_counted:
            self.is_counted = False
            self.acceptor.connections -= 1
            self.acceptor.gate.leave(self.address)

    cdef bint look_at_request(self, Py_ssize_t n_bytes) except -1:
        """The first bytes of the request, before picows sees them: True if they are answered here.

        picows parses GET alone, so a HEAD is made one in its buffer: "HEAD /path" to "GET //path", of the same length.
        """
        # owned by picows, which keeps all of the request in one piece; writable, as it is a bytearray's
        cdef char* start = <char*>self.read_at - self.request_bytes
        self.request_bytes += n_bytes
        if start[0] == 0x16 and not self.is_secure():
            self.is_looked_at = True
            self.blame("no_tls")
            self.transport.write(BAD_REQUEST)
            self.on_refused()
            return True
        if self.request_bytes >= HEAD_BYTES:
            self.is_looked_at = True
            if memcmp(start, b"HEAD ", HEAD_BYTES) == 0:
                memcpy(start, b"GET /", HEAD_BYTES)
                self.answering.is_head = True
        return False

    cdef bint is_secure(self) except -1:
        return self.transport.get_extra_info("sslcontext") is not None

    def on_upgrade(self, request):
        """picows' listener factory: this listener with a 101, or a response that refuses."""
        self.answering.is_ours = True
        if self.answering.is_head:
            request.path = request.path[1:]
        return self.acceptor.gate.answer(request, self, is_head=self.answering.is_head)

    def on_answered(self, is_health=False):
        """The gate has answered the request: a health check, or a refusal that it has counted."""
        self.is_answered = True
        self.is_healthy = is_health

    def on_bad_request(self, is_too_large):
        """picows could not parse the request."""
        self.blame("too_large" if is_too_large else "bad_request")

    def blame(self, cause, peer=None):
        """Count why the handshake failed, once. cause: one of `_refusals.CAUSES`. peer: as the socket module gives it."""
        if self.is_answered:
            return
        self.is_answered = True
        peer = self.peername if peer is None else peer
        self.acceptor.gate.refusals.note(cause, peer[0] if isinstance(peer, tuple) else None)

    def pass_gate(self, str subprotocol, address, peername):
        """The gate lets it pass. address: what it is counted by now, None: as before. peername: if not the socket's."""
        self.subprotocol = subprotocol
        self.is_lines = subprotocol == LINES_SUBPROTOCOL
        self.client_peername = peername
        if address is not None:
            self.address = address

    def on_refused(self):
        """The refusal is written: behind it EOF, and reading until the peer's, since a plain close may destroy it."""
        self.answering = None
        if self.transport is None:
            return
        self.discard()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.set_deadline(LINGER_MS)
        else:
            self.transport.close()

    cpdef on_ws_connected(self, WSTransport transport):
        cdef Acceptor acceptor = self.acceptor
        self.fd = -1 if transport.is_secure else transport._socket
        disarm(transport)
        self.answering = None
        if self.fd < 0 or self.transport.get_write_buffer_size() > 0:
            self.transport.set_write_buffer_limits(0)    # so that resume_writing means: all is out
        self.subscriber = acceptor.core.subscriber(self, self.fd, self.transport, LINES if self.is_lines else FRAMES)
        acceptor.counts["accepted"] += 1
        self.number = acceptor.counts["accepted"]
        self.connected_ms = acceptor.core.now_ms()
        self.phase = PHASE_OPEN if acceptor.echoes else PHASE_LOGIN
        self.set_deadline(acceptor.ping_interval_ms if acceptor.echoes else acceptor.login_timeout_ms)

    cpdef on_ws_disconnected(self, WSTransport transport):
        self.end()

    def end(self):
        """Forget the fd before it is closed, and tell the hub. A second call does nothing."""
        if self.phase == PHASE_GONE:
            return
        if self.phase == PHASE_HANDSHAKE and self.is_counted and not self.is_healthy:
            self.acceptor.counts["handshakes_failed"] += 1
            self.blame("timeout" if self.is_late else "gone")
        elif self.phase in (PHASE_LOGIN, PHASE_OPEN):
            self.acceptor.counts["peer_1006"] += 1
            self.tell_end(close_codes.ABNORMAL, None, CUT_OFF if self.acceptor.is_stopped else None, self.client)
        self.unwatch()
        self.cancel_login()
        self.phase = PHASE_GONE
        deadline_clear(&self.deadline)
        if self.task is not None:
            self.acceptor.leave_behind(self.task)
        self.queue = None
        self.lines = None
        self.fragments = None
        self.answering = None
        if self.subscriber is not None:                  # the fd first: nothing of an application may come between
            self.acceptor.core.detach(self.subscriber)
            self.leave_hub()
        self.transport = None

    cpdef pause_writing(self):
        pass

    cpdef resume_writing(self):
        if self.subscriber is not None and self.transport is not None and self.transport.get_write_buffer_size() == 0:
            self.acceptor.core.writable(self.subscriber)
            self.start_linger()

    # ---- what picows' parser finds wrong

    def on_parser_error(self, int code):
        """Keep the error; the frame before it, if any, is still to come."""
        if self.phase == PHASE_CLOSING:
            self.discard()                               # the parser would keep what it can't read
        if self.phase not in (PHASE_LOGIN, PHASE_OPEN) or self.parser_error:
            return
        self.parser_error = code
        self.transport.pause_reading()
        self.acceptor.loop.call_soon(self.on_parser_error_turn)

    def on_parser_error_turn(self):
        """Nothing more of the read that held the error is to come."""
        if self.phase in (PHASE_LOGIN, PHASE_OPEN):
            self.fail(self.parser_error)

    # ---- frames

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        if self.phase == PHASE_CLOSING and frame.msg_type == WSMsgType.CLOSE:
            self.on_peer_closed()
        if (self.phase >= PHASE_CLOSING or self.phase == PHASE_HANDSHAKE or self.peer_code or self.fault
                or self.subscriber.s.events):
            return                                       # events: the core is about to evict it
        try:
            self.spend(FRAME_WORK)
            self.receive(frame)
        except CloseConnection as close:
            self.close_as_told(close)
        except Exception:
            log.exception("a message could not be handled")
            self.close(1011)

    cdef int receive(self, WSFrame frame) except -1:
        cdef WSMsgType kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            return self.fail(1002)
        if kind == WSMsgType.TEXT or kind == WSMsgType.BINARY or kind == WSMsgType.CONTINUATION:
            return self.receive_data(frame)
        if kind == WSMsgType.PING or kind == WSMsgType.PONG:
            return self.receive_control(frame)
        return self.receive_close(frame)

    cdef int receive_control(self, WSFrame frame) except -1:
        """A ping or pong. The pong that is awaited is free; any other is charged, and passed over if it is too many."""
        if frame.msg_type == WSMsgType.PONG and self.awaits_pong:
            self.awaits_pong = False
            self.n_doubts = 0
            return self.set_deadline(self.acceptor.ping_interval_ms)
        if not self.may_frames(1):
            return 0
        if frame.msg_type == WSMsgType.PING:
            return self.acceptor.core.pong(self.subscriber, frame.payload_ptr, frame.payload_size)
        self.acceptor.counts["unsolicited_pongs"] += 1
        return 0

    cdef int receive_data(self, WSFrame frame) except -1:
        cdef bint is_text
        if frame.msg_type == WSMsgType.CONTINUATION or not frame.fin or self.fragments is not None:
            return self.receive_fragment(frame)
        if frame.payload_size > self.message_limit():
            return self.fail(1009)
        is_text = frame.msg_type == WSMsgType.TEXT
        if is_text and not wire_is_utf8(<const uint8_t*>frame.payload_ptr, frame.payload_size):
            return self.fail(1007)
        return self.whole_message(PyBytes_FromStringAndSize(frame.payload_ptr, frame.payload_size), is_text)

    cdef Py_ssize_t message_limit(self) noexcept:
        """Whoever has not logged in may only say who it is."""
        return self.acceptor.read_limit_bytes if self.phase == PHASE_OPEN else self.acceptor.login_limit_bytes

    cdef int receive_stranger(self, Py_ssize_t n_bytes) except -1:
        """picows would read a whole frame of the read limit before it shows it to us."""
        self.stranger_bytes += n_bytes
        if self.stranger_bytes > STRANGER_BYTES:
            if self.task is None:
                return self.fail(1009)
            if not self.is_paused:                       # its login is being checked: the rest waits for that
                self.stop_reading()
        return 0

    cdef int receive_fragment(self, WSFrame frame) except -1:
        """One frame of a fragmented message (RFC 6455 §5.4)."""
        cdef int code
        if (frame.msg_type == WSMsgType.CONTINUATION) != (self.fragments is not None):
            return self.fail(1002)
        if self.fragments is None:
            self.fragments = Fragments(frame.msg_type == WSMsgType.TEXT)
        code = self.fragments.add(frame.payload_ptr, frame.payload_size, frame.fin, self.acceptor.fragments_limit,
                                  self.message_limit())
        if code:
            return self.fail(code)
        if not frame.fin:
            self.may_frames(1)                           # the last one is charged as the message
            return self.look_ahead(<const uint8_t*>frame.payload_ptr + frame.payload_size, frame.tail_size)
        fragments, self.fragments = self.fragments, None
        return self.whole_message(bytes(fragments.data), fragments.is_text)

    cdef int look_ahead(self, const uint8_t* data, Py_ssize_t n_bytes) except -1:
        """Fail at the header by which a fragmented message passes the limit: the rest of that frame may never come."""
        if self.fragments is not None and self.fragments.look(data, n_bytes, self.message_limit()):
            self.on_parser_error(1009)
        return 0

    cdef int receive_close(self, WSFrame frame) except -1:
        """The peer closes: answer with its code, behind what it is still to get (RFC 6455 §5.5.1)."""
        cdef int code = 1000
        cdef const uint8_t* payload = <const uint8_t*>frame.payload_ptr
        if frame.payload_size >= 2:
            code = payload[0] << 8 | payload[1]
            if not close_codes.valid_on_wire(code):
                return self.fail(1002)
            if not wire_is_utf8(payload + 2, frame.payload_size - 2):
                return self.fail(1007)
        elif frame.payload_size == 1:
            return self.fail(1002)
        self.peer_code = code
        if frame.payload_size > 2:
            self.peer_reason = payload[2:frame.payload_size].decode()
        if self.task is None and not self.is_holding():
            return self.answer_close()
        self.stop_reading()                              # what it sent before the close is handled first, if that is in time
        self.set_deadline(self.acceptor.write_timeout_ms)
        return 0

    cdef int answer_close(self) except -1:
        self.acceptor.counts[f"peer_{self.peer_code if self.peer_code in close_codes.CLOSE_CODES else 'other'}"] += 1
        self.tell_end(self.peer_code, self.peer_reason or "", BY_CLIENT, self.client)
        self.acceptor.core.close(self.subscriber, self.peer_code)
        return self.begin_close(self.acceptor.write_timeout_ms)

    cdef int whole_message(self, bytes message, bint is_text) except -1:
        if self.acceptor.echoes:
            self.acceptor.core.send(self.subscriber, b"", message, b"", is_text)
            return 0
        if not is_text:
            return self.fail(1003)
        return self.deliver(message)

    # ---- how much a client makes us do

    cdef int count_read(self, Py_ssize_t n_bytes) except -1:
        """Charge what was read, before anything of it is looked at."""
        self.acceptor.bytes_in += n_bytes
        if self.phase == PHASE_LOGIN or self.phase == PHASE_OPEN:
            self.spend(n_bytes)
            if self.client is not None and self.client.meter is not None:
                self.acceptor.hub_count_bytes(self.client, n_bytes)
        return 0

    cdef bint may_frames(self, uint64_t n_frames) except -1:
        """Charge frames or lines that are no message. False if they are too many; those read before a pause are passed over."""
        if self.client is None or self.client.meter is None:
            return True
        return not self.is_throttled and self.acceptor.hub_count_frames(self.client, n_frames)

    cdef int spend(self, uint64_t work) except -1:
        """Count work for this client. Beyond its share of the turn nothing more is read, and messages are held."""
        cdef Acceptor acceptor = self.acceptor
        cdef uint64_t turn = acceptor.core.c.totals.turns
        if self.turn != turn:                            # it counts on in a turn without output: a share comes sooner or later
            self.turn = turn
            self.work = 0
        if acceptor.turn != turn:
            acceptor.turn = turn
            acceptor.work = 0
        self.work += work
        acceptor.work += work
        if self.work > (acceptor.share_work if acceptor.work <= acceptor.turn_work else acceptor.least_work):
            self.wait()
        return 0

    cdef int wait(self) except -1:
        """Read and handle nothing until its next turn."""
        if not self.is_waiting:
            self.is_waiting = True
            self.transport.pause_reading()
            self.acceptor.wait(self)
        return 0

    cdef int spend_time(self, uint64_t started_ns) except -1:
        """Count a message that has been handled since then, as far as it took longer than any message is counted."""
        cdef uint64_t took_ns = clock_ns() - started_ns
        if took_ns > MESSAGE_WORK:
            self.spend(took_ns - MESSAGE_WORK)
        return 0

    cdef int spend_copies(self, uint64_t n_bytes) except -1:
        """Count what a publication is to be copied. While the core is behind with that, who publishes waits for it."""
        self.spend(n_bytes // COPY_BYTES)
        if is_behind(&self.acceptor.core.c):
            self.is_ahead = True
            self.wait()
        return 0

    def on_turn(self):
        """A new turn, with a new share of it."""
        self.is_waiting = False
        self.is_ahead = False
        self.work = 0
        if self.phase == PHASE_LOGIN or self.phase == PHASE_OPEN:
            self.go_on()

    # ---- messages, strictly one after the other

    cdef bint must_wait(self) noexcept:
        """Whether the next message has to be held."""
        return self.task is not None or self.is_waiting or self.is_throttled

    cdef bint is_holding(self) noexcept:
        """Whether messages, or frames of lines, are held."""
        return self.queue is not None or self.lines is not None

    cdef int deliver(self, bytes text) except -1:
        """Handle what a whole frame holds: a message, or lines."""
        if self.is_holding() or self.must_wait():
            return self.hold(text)
        if not self.is_lines:
            return self.dispatch(text)
        self.lines = Lines(text)
        if len(text) == 0:
            self.may_frames(1)
        return self.handle_held()

    cdef int handle_held(self) except -1:
        """Handle messages that are held, as far as none has to wait."""
        cdef bytes message
        while self.phase < PHASE_CLOSING and not self.must_wait() and not self.subscriber.s.events:
            message = self.next_held()
            if message is None:
                break
            self.dispatch(message)
        return 0

    cdef bytes next_held(self):
        """The next message of those that are held; None if there is none, or if it has to wait now."""
        cdef uint64_t n_empty
        cdef bytes text
        while True:
            if self.lines is not None:
                n_empty = self.lines.skip()
                if n_empty and (not self.may_frames(n_empty)) and self.must_wait():
                    return None
                text = self.lines.cut()
                if text is not None:
                    return text
                self.lines = None
            if self.queue is None:
                return None
            text = self.queue.popleft()
            self.queued_bytes -= len(text)
            if not self.queue:
                self.queue = None
            if not self.is_lines:
                return text
            self.lines = Lines(text)

    cdef int dispatch(self, bytes message) except -1:
        self.messages_in += 1
        self.acceptor.messages_in += 1
        self.spend(MESSAGE_WORK)
        cdef uint64_t started_ns = clock_ns()
        cdef uint64_t delivery_bytes = self.acceptor.core.c.totals.delivery_bytes
        if self.client is not None:
            awaitable = self.acceptor.hub_receive(self.client, message)
            self.spend_time(started_ns)
            if self.acceptor.core.c.totals.delivery_bytes != delivery_bytes:
                self.spend_copies(self.acceptor.core.c.totals.delivery_bytes - delivery_bytes)
            if awaitable is not None:
                self.task = self.acceptor.loop.create_task(self.handle(awaitable, False))
            return 0
        result = self.acceptor.hub_login(self, message)
        self.spend_time(started_ns)
        if hasattr(result, "__await__"):
            self.task = self.acceptor.loop.create_task(self.handle(result, True))
            return 0
        greeting = self.on_login(result)
        if greeting is not None:
            self.task = self.acceptor.loop.create_task(self.handle(greeting, False))
        return 0

    def on_login(self, client):
        """The login was accepted: returns what of `on_connect` has to be awaited, or None."""
        if self.phase >= PHASE_CLOSING:                  # over already: it was closed meanwhile
            self.acceptor.hub.disconnect(client)
            return None
        self.client = client
        self.acceptor.counts["logins"] += 1
        self.phase = PHASE_OPEN
        if not self.peer_code:
            self.set_deadline(<uint64_t>(self.acceptor.ping_interval_ms * random.uniform(0.5, 1.0)))
        return self.acceptor.hub.greet(client)

    cdef int cancel_login(self) except -1:
        """It is over: what still checks its login has nothing to check. Not before that has begun, or it is never awaited."""
        if self.phase == PHASE_LOGIN and self.task is not None:
            self.acceptor.loop.call_soon(self.task.cancel)
        return 0

    async def handle(self, awaitable, is_login):
        """Run an async handler, or a login that is checked, then what waited for it."""
        try:
            result = await awaitable
            greeting = self.on_login(result) if is_login else None
            if greeting is not None:
                await greeting
        except CloseConnection as close:
            self.close_as_told(close)
        except asyncio.CancelledError:                   # by a stranger: what waits behind it has lost its order
            self.close(1011)
            raise
        except Exception:
            log.exception("a message could not be handled")
            self.close(1011)
        self.on_handled()

    def on_handled(self):
        """The handler is done."""
        self.task = None
        self.go_on()

    def go_on(self):
        """Go on with the messages that are held, until one has to wait again; then read on, or end."""
        if self.phase < PHASE_CLOSING:
            try:
                self.handle_held()
            except CloseConnection as close:
                self.close_as_told(close)
            except Exception:
                log.exception("a message could not be handled")
                self.close(1011)
        if self.phase >= PHASE_CLOSING:
            self.queue = None
            self.lines = None
        elif self.is_waiting or self.is_throttled:
            return                                       # until this is called again
        elif self.fault:
            self.close(self.fault)
        elif self.peer_code:
            if self.task is None and not self.is_holding():
                self.answer_close()
        elif not self.parser_error and self.has_room():
            self.read_on()

    cdef bint has_room(self) noexcept:
        """Whether what is held lets reading go on: half of what stops it, and no login is being checked."""
        if self.phase == PHASE_LOGIN and self.task is not None:
            return not self.is_paused
        return self.queue is None or (len(self.queue) <= HOLD_MESSAGES // 2 and self.queued_bytes <= HOLD_BYTES // 2)

    def may_read(self):
        """Whether the socket may be read: nothing has to wait for something else, or it closes."""
        return self.phase == PHASE_CLOSING or not (
            self.is_paused or self.is_waiting or self.parser_error or self.peer_code or self.fault)

    cdef int read_on(self) except -1:
        cdef bint was_paused = self.is_paused
        self.unwatch()
        self.n_doubts = 0
        self.is_paused = False
        resume_reading(self.transport, self.may_read)
        if was_paused and self.awaits_pong:              # it may be behind all that we didn't read
            return self.set_deadline(self.acceptor.pong_timeout_ms)
        return 0

    cdef int hold(self, bytes message) except -1:
        """Keep a message for later; reading stops when enough of them wait."""
        if self.queue is None:
            self.queue = deque()
        self.queue.append(message)
        self.queued_bytes += len(message)
        if not self.is_paused and (self.phase == PHASE_LOGIN or len(self.queue) >= HOLD_MESSAGES
                                   or self.queued_bytes >= HOLD_BYTES):
            self.stop_reading()
        return 0

    cdef int stop_reading(self) except -1:
        """Read nothing for now; that the peer goes is told meanwhile by the acceptor's watch (`on_departed`)."""
        self.is_paused = True
        self.transport.pause_reading()
        if self.watched_fd < 0:
            self.watched_fd = self.transport.get_extra_info("socket").fileno()
            self.acceptor.departures.watch(self.watched_fd, self)
        return 0

    cdef int unwatch(self) except -1:
        if self.watched_fd >= 0:
            self.acceptor.departures.forget(self.watched_fd)
            self.watched_fd = -1
        return 0

    def on_departed(self):
        """The peer has gone while it wasn't read: what it sent and nobody has read goes with it."""
        if self.phase not in (PHASE_LOGIN, PHASE_OPEN):
            return
        if self.peer_code:
            self.answer_close()
        else:
            self.abort()

    def pause_reading(self, double seconds):
        """Read nothing for so long, and handle nothing: what was read already is held."""
        if self.phase != PHASE_OPEN or self.is_throttled:
            return
        self.is_throttled = True
        if not self.is_paused:
            self.stop_reading()
        self.acceptor.loop.call_later(seconds, self.read_again)

    def read_again(self):
        """The pause is over."""
        self.is_throttled = False
        if self.phase == PHASE_OPEN:
            self.go_on()

    # ---- the ways to end

    cdef int tell_end(self, int code, str reason, cause, client) except -1:
        """Have the end recorded, once: when it is decided, before anything is taken apart.

        reason: what goes with the code; None: its constant one. cause: a `starlight.ends.Cause`; None: by the code.
        client: whose; None before the login.
        """
        cdef Acceptor acceptor = self.acceptor
        try:
            if cause is None:
                cause = cause_of(code, is_login=self.phase == PHASE_LOGIN)
            messages, n_bytes, oldest_ms = acceptor.core.outbox(self.subscriber)
            acceptor.ends.add(
                code, close_codes.reason(code) if reason is None else reason, cause, client=client,
                connection=self.number, peername=self.peername, messages_in=self.messages_in,
                connected_s=(acceptor.core.now_ms() - self.connected_ms) / 1000.0,
                outbox=(messages, n_bytes, oldest_ms if messages else None))
        except Exception:                                # the connection ends all the same
            log.exception("an end could not be recorded")
        return 0

    def close(self, code, reason=None, retry_ms=None, cause=None):
        """End in good order: what is in the outbox, a `bye`, the close frame, then up to 1 s for the peer.

        code: a close code of the protocol. reason: ASCII of at most 123 bytes; None: the code's constant one.
        retry_ms: when the client may come back, told in the `bye`. cause: a `starlight.ends.Cause` for the operator;
        None: by the code. Does nothing on a connection that is closing.
        Raises TypeError or ValueError for what may not be sent: `close_codes.check_close`. All closes come through here but
        evictions, whose codes are the core's, and the answer to a peer's close, whose code was checked.
        """
        if self.phase == PHASE_HANDSHAKE or self.phase >= PHASE_CLOSING:
            return
        close_codes.check_close(code, reason)
        self.close_as(code, close_codes.reason(code) if reason is None else reason, retry_ms, cause, self.client)

    cdef int close_as(self, int code, str text, retry_ms, cause, client) except -1:
        """`close`, of what may be sent; client: whose login it was, also where that was refused."""
        self.tell_end(code, text, cause, client)
        if code not in NO_BYE:
            self.acceptor.core.send(self.subscriber, bye(code, text, retry_ms))
        self.acceptor.core.close(self.subscriber, code, text.encode("ascii"))
        self.acceptor.counts[f"{'refused' if self.phase == PHASE_LOGIN else 'closed'}_{code}"] += 1
        return self.begin_close(LINGER_MS if code == close_codes.NO_PONG else self.acceptor.write_timeout_ms)

    cdef int close_as_told(self, close) except -1:
        """End it as a `CloseConnection` says; with 1011 if that is an application's, and says what may not be sent."""
        if self.phase >= PHASE_CLOSING:
            return 0
        try:
            close_codes.check_close(close.code, close.reason)
        except Exception as error:
            log.error("a handler raised CloseConnection%.200r: %s; the client is closed with 1011", close.args, error)
            self.close(close_codes.INTERNAL)
            return 0
        cause = cause_of(close.code, close.cause, close.detail, is_login=self.phase == PHASE_LOGIN)
        return self.close_as(close.code, close.reason, None, cause, self.client or close.client)

    def give_way(self):
        """End it, as it is silent and its user has another one."""
        if self.peer_code and self.phase in (PHASE_LOGIN, PHASE_OPEN):
            self.answer_close()
        else:
            self.close(close_codes.NO_PONG, None, None, GAVE_WAY)

    cdef int fail(self, int code) except -1:
        """The peer broke the protocol. What it sent before that in the same turn is handled first."""
        if self.is_waiting and self.is_holding():
            self.fault = code
        else:
            self.close(code)
        return 0

    cdef int begin_close(self, uint64_t within_ms) except -1:
        """Nothing more from the peer, and so long for what it is still to get."""
        self.unwatch()
        self.cancel_login()
        self.phase = PHASE_CLOSING
        self.fragments = None
        self.queue = None
        self.lines = None
        self.leave_hub()
        self.set_deadline(within_ms)
        if self.transport.can_write_eof() or self.parser_error:
            self.discard()
        else:
            resume_reading(self.transport, self.may_read)  # TLS has no EOF to wait for: the peer's close frame is its last
        return 0

    cdef int discard(self) except -1:
        """Read on to see the EOF, whatever had stopped it, but keep nothing."""
        if not self.is_discarding:
            self.is_discarding = True
            self.is_paused = False
            self.transport.set_protocol(Discard(self, self.transport.get_protocol()))
        resume_reading(self.transport, self.may_read)
        return 0

    def on_discarded(self):
        """A closing peer floods: it is read on a little later, so that it costs next to nothing. (TLS bounds a turn itself.)"""
        if self.transport is not None and self.fd >= 0:
            self.transport.pause_reading()
            self.acceptor.loop.call_later(DISCARD_PAUSE_S, self.discard_on)

    def discard_on(self):
        """The pause is over."""
        if self.transport is not None:
            resume_reading(self.transport, self.may_read)

    cdef int leave_hub(self) except -1:
        client, self.client = self.client, None
        if client is not None:
            try:
                self.acceptor.hub.disconnect(client)
            except BaseException:                        # a handler that calls sys.exit() must not keep a connection half
                log.exception("the hub failed to disconnect a client")
        return 0

    def on_evicted(self, int code, messages, n_bytes, oldest_ms):
        """The core evicted it: out of the hub now; the torn frame's rest and the close frame have 1 s."""
        if self.phase >= PHASE_GONE:
            return
        if self.phase < PHASE_CLOSING:
            self.tell_end(code, None, OVER_BUDGET if self.subscriber.is_over_budget else None, self.client)
        self.is_evicted = True
        self.acceptor.counts[f"closed_{code}"] += 1
        self.begin_close(LINGER_MS)

    def on_would_evict(self):
        """In a dry run: it would have been evicted for the limits of its outbox."""
        client = self.client
        self.acceptor.dry_run.note("evict", user=None if client is None else client.user, peername=self.peername)

    def on_close_sent(self):
        """The close frame is with the kernel (or the transport): say EOF, and wait for the peer's."""
        self.is_close_sent = True
        self.start_linger()
        if self.fd >= 0:
            sys_shutdown(self.fd, SHUT_WR)
        elif self.transport.can_write_eof():
            self.transport.write_eof()
        elif self.peer_code:
            self.close_transport()
        if self.is_eof:
            self.close_transport()

    cdef int start_linger(self) except -1:
        """All is with the kernel, so the peer has so long to close."""
        if self.is_close_sent and not self.is_evicted and (self.fd >= 0 or self.transport.get_write_buffer_size() == 0):
            self.set_deadline(LINGER_MS)
        return 0

    def on_peer_closed(self):
        """The peer has answered our close frame (seen only where there is no EOF to wait for)."""
        self.peer_code = close_codes.NORMAL
        if self.is_close_sent:
            self.close_transport()

    cdef int close_transport(self) except -1:
        """Close it in order. TLS must be reading then: a transport that is closing can't be told to go on."""
        resume_reading_now(self.transport)
        self.transport.close()
        return 0

    def on_eof(self):
        """The peer's end of a connection that is closing: True while there is something left to write to it."""
        self.is_eof = True
        return self.phase == PHASE_CLOSING and not self.is_close_sent

    def on_broken(self):
        """The socket is gone."""
        self.abort()

    def abort(self):
        """Close the socket now; an evicted one with a reset, so that no orphan holds kernel memory."""
        if self.transport is None:
            return
        if self.is_evicted:
            reset_on_close(self.transport)
        self.transport.abort()

    # ---- deadlines

    cdef int set_deadline(self, uint64_t after_ms) except -1:
        deadline_set(&self.acceptor.wheel, &self.deadline, self.acceptor.core.now_ms() + after_ms)
        return 0

    cdef int on_due(self) except -1:
        """The one deadline has come: what it means depends on the phase."""
        cdef Acceptor acceptor = self.acceptor
        if self.peer_code and self.phase in (PHASE_LOGIN, PHASE_OPEN):
            self.answer_close()                          # its handler takes too long: it goes on by itself
        elif self.phase == PHASE_LOGIN:
            if self.task is None:
                self.close(close_codes.LOGIN_TIMEOUT, None, None, LATE_LOGIN)
            else:
                self.set_deadline(acceptor.login_timeout_ms)     # the application is checking it
        elif self.phase == PHASE_HANDSHAKE:
            self.is_late = True
            self.abort()
        elif self.phase == PHASE_CLOSING:
            self.is_evicted = self.is_evicted or self.subscriber.outbox_bytes > 0
            self.abort()
        elif not self.awaits_pong or (self.is_paused or self.is_waiting) and self.may_have_answered():
            self.send_ping()
        else:
            self.close(close_codes.NO_PONG)
        return 0

    # ---- signs of life

    cdef int send_ping(self) except -1:
        """Ping it, and note what the kernel has had of it so far."""
        cdef Acceptor acceptor = self.acceptor
        self.received_bytes, self.acked_bytes = progress(self.transport.get_extra_info("socket"))
        acceptor.core.ping(self.subscriber)
        self.awaits_pong = True
        self.pinged_ms = acceptor.core.now_ms()
        self.set_deadline(acceptor.pong_timeout_ms)
        return 0

    cdef sign_t sign(self) except? SIGN_SILENT:
        """What the kernel knows of the peer since our ping, whether it is read or not."""
        received_bytes, acked_bytes = progress(self.transport.get_extra_info("socket"))
        if received_bytes < 0:                           # no TCP, so the kernel knows nothing
            return SIGN_UNKNOWN if self.is_paused else SIGN_SILENT
        if received_bytes > self.received_bytes:
            return SIGN_ALIVE
        if acked_bytes <= self.acked_bytes:              # not even its kernel has had the ping
            return SIGN_SILENT
        if self.subscriber.s.is_full or unread_bytes(self.transport.get_extra_info("socket").fileno()):
            return SIGN_UNKNOWN                          # the ping still waits here, or the peer may be kept from sending
        return SIGN_SILENT

    cdef bint may_have_answered(self) except -1:
        """Whether the pong of a connection that isn't read may be among what the kernel holds. Doubt has its limit."""
        cdef sign_t sign = self.sign()
        if sign == SIGN_ALIVE:
            self.n_doubts = 0
        elif sign == SIGN_UNKNOWN:
            self.n_doubts += 1
        return sign != SIGN_SILENT and self.n_doubts <= DOUBTS_LIMIT

    @property
    def silent_ms(self):
        """How long a ping has had no answer, nor any other sign of life; 0 if there is none.

        A peer that has said it closes counts as silent from then on: it waits for nothing but its handler's end.
        """
        if self.phase != PHASE_OPEN:
            return 0
        if self.peer_code:
            return 1 << 31
        if not self.awaits_pong or self.sign() != SIGN_SILENT:
            return 0
        return max(<uint64_t>1, self.acceptor.core.now_ms() - self.pinged_ms)

    def probe(self):
        """Ping it now, unless it owes a pong already."""
        if self.phase == PHASE_OPEN and not self.awaits_pong and not self.peer_code:
            self.send_ping()


cdef inline uint64_t clock_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1_000_000_000 + <uint64_t>t.tv_nsec


cdef disarm(WSTransport transport):
    """Leave picows nothing but the parser: it writes nothing and closes nothing from here on."""
    transport.is_close_frame_sent = True                 # its send and send_close now return at once
    transport.underlying_transport = DISARMED
    transport.request = None
    transport.response = None
    transport._write_buffer = NO_WRITE_BUFFER


# ---- the acceptor ----------------------------------------------------------------------------------------------------

cdef class Acceptor:
    """What the connections of one node share: core, hub, limits, the wheel of deadlines.

    core: bound to the running loop. hub: see `starlight.channels.hub.Hub`. settings: see `starlight.config.settings.Settings`.
    gate: who may connect; by default made of the settings. ends: where ends are recorded; by default its own.
    dry_run: limits that are not enforced; by default none.
    echoes: send every message back to its sender instead (the conformance server; no login, no hub).
    fragments_limit: frames of one message.
    turn_work: what clients that want more than they get are given in a turn, all together; in bytes, see `FRAME_WORK`.
    """

    def __init__(self, Core core not None, hub, settings, *, gate=None, ends=None, dry_run=None, echoes=False,
                 fragments_limit=FRAGMENTS_LIMIT, turn_work=TURN_WORK):
        self.core = core
        self.hub = hub
        self.hub_login = getattr(hub, "login", None)
        self.hub_receive = getattr(hub, "receive", None)
        self.hub_count_bytes = getattr(hub, "count_bytes", None)
        self.hub_count_frames = getattr(hub, "count_frames", None)
        self.waiting = []
        self.turn_work = turn_work
        self.share_work = turn_work
        self.least_work = min(SHARE_WORK, turn_work)
        self.echoes = echoes
        self.fragments_limit = fragments_limit
        self.gate = Gate(settings) if gate is None else gate
        self.max_connections = settings.max_connections
        self.send_buffer_bytes = settings.send_buffer_bytes
        self.read_limit_bytes = settings.read_limit_bytes
        self.login_limit_bytes = min(LOGIN_BYTES, settings.read_limit_bytes)
        self.handshake_timeout_ms = <uint64_t>(settings.handshake_timeout_s * 1000)
        self.login_timeout_ms = <uint64_t>(settings.login_timeout_s * 1000)
        self.write_timeout_ms = <uint64_t>(settings.write_timeout_s * 1000)
        self.ping_interval_ms = <uint64_t>(settings.ping_interval_s * 1000)
        self.pong_timeout_ms = <uint64_t>(settings.pong_timeout_s * 1000)
        self.counts = Counter()
        self.ends = Ends() if ends is None else ends
        self.dry_run = DryRun() if dry_run is None else dry_run
        self.departures = Departures()
        self.left_behind = {}
        wheel_init(&self.wheel, core.now_ms())
        list_init(&self.due)

    def protocol(self):
        """A protocol for the next socket: the factory for `loop.create_server` (TLS: `aiofastnet.create_server`)."""
        cdef Connection connection = Connection(self)
        protocol = Protocol(None, None, False, connection.on_upgrade, ParserLog(connection), True, None,
                            False, 20, 20, PING_WHEN_IDLE, False, self.read_limit_bytes, None, READ_BUFFER_BYTES)
        protocol.connection = connection
        return protocol

    def start(self):
        """Start the sweeper on the running loop."""
        self.loop = asyncio.get_running_loop()
        self.departures.start(self.loop)
        self.ticked_s = self.loop.time()
        self.tick()

    def stop(self):
        """Stop the sweeper, and cut off whoever is still connected: nobody would end them any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.is_stopped = True
        self.departures.stop()
        self.abort_all(PHASE_CLOSING)

    def leave_behind(self, task):
        """A handler goes on though its client has gone. No more than `max_connections` do: then the oldest is cancelled."""
        if task.done():
            return
        self.left_behind[task] = None
        task.add_done_callback(self.forget_task)
        if len(self.left_behind) > self.max_connections:
            oldest = next(iter(self.left_behind))
            del self.left_behind[oldest]
            oldest.cancel()
            if not self.counts["handlers_cancelled"]:
                log.error("%d handlers are under way whose clients have gone: from now on the oldest one is cancelled for "
                          "each that follows", self.max_connections)
            self.counts["handlers_cancelled"] += 1

    def forget_task(self, task):
        self.left_behind.pop(task, None)

    cdef int abort_all(self, phase_t last_phase) except -1:
        """Abort every connection up to a phase. Each of them has a deadline."""
        cdef deadline_t* node
        cdef list found = []
        cdef int i
        for i in range(WHEEL_SLOTS):
            node = self.wheel.slots[i].next
            while node != &self.wheel.slots[i]:
                found.append(<Connection>node.owner)
                node = node.next
        for connection in found:
            if (<Connection>connection).phase <= last_phase:
                connection.abort()
        return 0

    cdef int wait(self, Connection connection) except -1:
        """A connection has had its share of this turn: it goes on in the next one, and shares that with others like it."""
        if not self.waiting:
            self.loop.call_soon(self.next_turn)
        self.waiting.append(connection)
        return 0

    def next_turn(self):
        """Clients that wanted more than their share go on. Runs once all that was readable in this turn has been read.

        What a single message asks for may be far more than a share. Clients of that kind take turns: as many go on as did
        a turn's work together when they last went on, or one.
        """
        cdef Connection connection
        cdef uint64_t heavy_work, room = self.turn_work
        cdef bint is_first = True
        cdef list going = [], staying = []
        self.share_work = max(self.least_work, self.turn_work // len(self.waiting))
        self.work = 0
        heavy_work = HEAVY_SHARES * self.share_work
        for connection in self.waiting:
            if connection.is_ahead and is_behind(&self.core.c) and connection.phase < PHASE_CLOSING:
                staying.append(connection)
            elif connection.work <= heavy_work or connection.phase >= PHASE_CLOSING:
                going.append(connection)
            elif is_first or connection.work <= room:
                is_first = False
                room -= min(room, connection.work)
                going.append(connection)
            else:
                staying.append(connection)
        self.waiting = staying
        if staying:
            self.loop.call_soon(self.next_turn)
        for connection in going:
            connection.on_turn()

    def tick(self):
        """Every 50 ms. After a longer turn all sockets are read once before deadlines are judged: a pong may wait there."""
        cdef double now_s = self.loop.time()
        cdef bint is_late = now_s - self.ticked_s > (WHEEL_TICK_MS + LATE_MS) / 1000.0
        self.ticked_s = now_s
        self.timer = self.loop.call_later(WHEEL_TICK_MS / 1000.0, self.tick)
        if is_late:
            self.loop.call_later(0.001, self.judge)      # a timer that isn't due yet: the loop polls before it
        else:
            self.judge()

    def judge(self):
        """Whoever's deadline has come, and the core's own sweep."""
        cdef Connection connection
        if self.timer is None:
            return
        wheel_collect(&self.wheel, self.core.now_ms(), &self.due)
        while self.due.next != &self.due:
            connection = <Connection>self.due.next.owner
            deadline_clear(&connection.deadline)
            try:
                connection.on_due()
            except Exception:
                log.exception("a deadline could not be handled")
        self.core.sweep()
        self.gate.refusals.tell()

    def abort_handshakes(self):
        """Cut off whoever is still in the handshake."""
        self.abort_all(PHASE_HANDSHAKE)
