"""A connection: one socket with its WebSocket, as the transport of a session. picows' frames in, whole messages to the session.

picows parses the handshake and the frames, and that is all it does (see picows_adapter.py): the core is the only writer to the
socket, so that no close frame of picows' can land inside a torn frame, and the end is ours to order: a close frame is followed
by EOF and reading until the peer's, not by a reset that destroys it.

picows looks one frame ahead: it reports an error in frame N+1 before it delivers frame N. The error is therefore kept, frame
N is handled, and then the session fails; reading stops meanwhile, so that nothing behind the error is ever delivered.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.string cimport memcmp, memcpy
from picows.picows cimport MemoryBuffer, WSFrame, WSListener, WSMsgType, WSTransport
from starlight._fanout cimport Core
from starlight.core.wire cimport wire_is_utf8
from starlight.protocols.fragments cimport Fragments
from starlight.session.phases cimport PHASE_CLOSING, PHASE_HANDSHAKE, PHASE_REFUSED
from starlight.session.session cimport Session, SessionHost

from picows.picows import WSProtocol

from starlight import close_codes
from starlight.net.departures import Departures, progress, unread_bytes
from starlight.net.gate import Gate
from starlight.net.picows_adapter import (BAD_REQUEST, DISARMED, Answering, Discard, ParserLog, reset_on_close, resume_reading,
                                          resume_reading_now, set_send_buffer)
from starlight.net.pinned import check_versions

check_versions()

cdef extern from "Python.h":
    Py_buffer* PyMemoryView_GET_BUFFER(object view)

cdef extern from "<sys/socket.h>" nogil:
    int SHUT_WR
    int sys_shutdown "shutdown"(int fd, int how)

cdef enum:
    FRAGMENTS_LIMIT = 64         # of one message; a client that sends more plays with us
    HEAD_BYTES = 5               # of "HEAD "
    READ_BUFFER_BYTES = 2048     # picows' minimum; it grows with what really arrives
    BURST_BYTES = 16 * 1024      # up to here by any burst, beyond only by a frame that is larger
    FRAME_WORK = 256             # work is counted in bytes, see `Session.spend`: parsing a frame is as much as so many
    READS_OF_SHARE = 64          # a read may bring this part of a share: its frames, which can't wait, take 40 times their bytes

cdef double DISCARD_PAUSE_S = 0.001                      # between two reads of a closing peer that floods: 64 MB a second
cdef object PING_WHEN_IDLE = 1
cdef MemoryBuffer NO_WRITE_BUFFER = MemoryBuffer(16)     # for all connections: picows writes nothing after the handshake


class SocketProtocol(WSProtocol):
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
        cdef Endpoint endpoint = connection.endpoint
        view = WSProtocol.get_buffer(self, size_hint)
        cdef Py_ssize_t n_bytes = len(view)
        connection.read_at = <const uint8_t*>PyMemoryView_GET_BUFFER(view).buf
        cdef Py_ssize_t limit_bytes = n_bytes if n_bytes <= BURST_BYTES else n_bytes - n_bytes // 4
        if endpoint.share_work < endpoint.turn_work:
            limit_bytes = min(limit_bytes, max(READ_BUFFER_BYTES, <Py_ssize_t>endpoint.share_work // READS_OF_SHARE))
        return view if n_bytes <= limit_bytes else view[:limit_bytes]

    def buffer_updated(self, n_bytes):
        """Count what was read, and see the headers of fragments before picows waits for their ends."""
        cdef Connection connection = self.connection
        cdef Session session = connection.session
        session.on_read(n_bytes)
        if session.phase == PHASE_HANDSHAKE and not connection.is_looked_at and connection.look_at_request(n_bytes):
            return
        connection.look_ahead(connection.read_at, n_bytes)
        WSProtocol.buffer_updated(self, n_bytes)
        session.after_read(n_bytes)

    def connection_lost(self, exc):
        """The socket is about to be closed: forget the fd first of all."""
        if self.transport is not None:
            super().connection_lost(exc)
        self.connection.on_socket_lost()
        self.connection = None


# ---- the connection --------------------------------------------------------------------------------------------------

cdef class Connection(WSListener):
    """One socket. `session` is what the hub sees of it; this is the session's `starlight.session.transport.Transport`.

    endpoint: what it shares with the other connections of its node.
    """

    def __init__(self, Endpoint endpoint not None):
        self.endpoint = endpoint
        self.session = Session(endpoint)
        self.fd = -1
        self.watched_fd = -1

    @property
    def peername(self):
        """The other end's address as the socket module gives it; None without a socket."""
        return self.transport.get_extra_info("peername") if self.transport is not None else None

    @property
    def sockname(self):
        """Our own address, to which the peer has connected; None without a socket."""
        return self.transport.get_extra_info("sockname") if self.transport is not None else None

    # ---- the socket's first and last moment

    def admit(self, peername):
        """Count a socket; False to refuse it: there are too many, in all or of its address."""
        cdef Endpoint endpoint = self.endpoint
        if endpoint.connections >= endpoint.max_connections:
            endpoint.counts.refused_full += 1
            endpoint.gate.refusals.note("full", peername[0] if isinstance(peername, tuple) else None)
            return False
        self.address = endpoint.gate.enter(peername)
        if self.address is None:
            endpoint.counts.refused_address += 1
            return False
        endpoint.connections += 1
        self.is_counted = True
        return True

    def on_socket(self, transport):
        """A socket was accepted (and with TLS, admitted before its handshake): False to refuse it."""
        if not self.is_counted and not self.admit(transport.get_extra_info("peername")):
            return False
        self.transport = transport
        self.session.begin(self)
        set_send_buffer(transport, self.endpoint.send_buffer_bytes)
        return True

    def arm(self, WSTransport transport):
        """Stand between picows and the transport."""
        self.answering = transport.underlying_transport = Answering(self, self.transport)

    def on_socket_lost(self):
        """The socket is about to be closed."""
        self.end()
        if self.is_counted:
            self.is_counted = False
            self.endpoint.connections -= 1
            self.endpoint.gate.leave(self.address)

    def end(self):
        """Forget the socket before it is closed, and end the session. A second call does nothing."""
        if self.session.phase <= PHASE_REFUSED and self.is_counted and not self.is_healthy:
            self.endpoint.counts.handshakes_failed += 1
            self.blame("timeout" if self.session.is_late else "gone")
        self.unwatch()
        self.fragments = None
        self.answering = None
        self.session.on_lost()
        self.transport = None

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
        return self.endpoint.gate.answer(request, self, is_head=self.answering.is_head)

    def on_answered(self, is_health=False):
        """The gate has answered the request: a health check, or a refusal that it has counted."""
        self.is_answered = True
        self.is_healthy = is_health

    def on_bad_request(self, is_too_large):
        """picows could not parse the request."""
        self.blame("too_large" if is_too_large else "bad_request")

    def blame(self, cause, peer=None):
        """Count why the handshake failed, once. cause: one of `refusals.CAUSES`. peer: as the socket module gives it."""
        if self.is_answered:
            return
        self.is_answered = True
        peer = self.session.peername if peer is None else peer
        self.endpoint.gate.refusals.note(cause, peer[0] if isinstance(peer, tuple) else None)

    def pass_gate(self, encoding, address, peername):
        """The gate lets it pass.

        encoding: a `starlight.protocols.base.Encoding`. address: what it is counted by now, None: as before. peername: if
        not the socket's.
        """
        self.encoding = encoding
        self.session.told_peername = peername
        if address is not None:
            self.address = address

    def on_refused(self):
        """The refusal is written: behind it EOF, and reading until the peer's, since a plain close may destroy it."""
        self.answering = None
        if self.transport is None or self.is_discarding:
            return
        self.session.on_refused()
        self.discard()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    cpdef on_ws_connected(self, WSTransport transport):
        self.fd = -1 if transport.is_secure else transport._socket
        disarm(transport)
        self.answering = None
        if self.fd < 0 or self.transport.get_write_buffer_size() > 0:
            self.transport.set_write_buffer_limits(0)    # so that resume_writing means: all is out
        self.session.on_upgraded(
            self.endpoint.core.subscriber(self.session, self.fd, self.transport, self.encoding.number), self.encoding)

    cpdef on_ws_disconnected(self, WSTransport transport):
        self.end()

    cpdef pause_writing(self):
        pass

    cpdef resume_writing(self):
        if self.session.subscriber is not None and self.transport is not None and not self.transport.get_write_buffer_size():
            self.endpoint.core.writable(self.session.subscriber)
            self.session.on_all_written()

    # ---- what picows' parser finds wrong

    def on_parser_error(self, int code):
        """Keep the error; the frame before it, if any, is still to come."""
        if self.session.phase >= PHASE_CLOSING and self.transport is not None:
            self.discard()                               # the parser would keep what it can't read
        if not self.session.is_live() or self.parser_error:
            return
        self.parser_error = code
        self.transport.pause_reading()
        self.endpoint.loop.call_soon(self.on_parser_error_turn)

    def on_parser_error_turn(self):
        """Nothing more of the read that held the error is to come."""
        if self.session.is_live():
            self.session.fail(self.parser_error)

    # ---- frames

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        cdef Session session = self.session
        try:
            if session.take_frame(FRAME_WORK):
                self.receive(frame)
            elif session.phase >= PHASE_CLOSING and frame.msg_type == WSMsgType.CLOSE:
                session.on_close_answered()
        except Exception as error:
            session.end_for(error)

    cdef int receive(self, WSFrame frame) except -1:
        cdef WSMsgType kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            return self.session.fail(close_codes.PROTOCOL_ERROR)
        if kind == WSMsgType.TEXT or kind == WSMsgType.BINARY or kind == WSMsgType.CONTINUATION:
            return self.receive_data(frame)
        if kind == WSMsgType.PING:
            return self.session.on_ping(frame.payload_ptr, frame.payload_size)
        if kind == WSMsgType.PONG:
            return self.session.on_pong()
        return self.receive_close(frame)

    cdef int receive_data(self, WSFrame frame) except -1:
        cdef bint is_text
        if frame.msg_type == WSMsgType.CONTINUATION or not frame.fin or self.fragments is not None:
            return self.receive_fragment(frame)
        if frame.payload_size > self.session.message_limit():
            return self.session.fail(1009)
        is_text = frame.msg_type == WSMsgType.TEXT
        if is_text and not wire_is_utf8(<const uint8_t*>frame.payload_ptr, frame.payload_size):
            return self.session.fail(1007)
        return self.session.on_message(PyBytes_FromStringAndSize(frame.payload_ptr, frame.payload_size), is_text)

    cdef int receive_fragment(self, WSFrame frame) except -1:
        """One frame of a fragmented message (RFC 6455 §5.4)."""
        cdef int code
        if (frame.msg_type == WSMsgType.CONTINUATION) != (self.fragments is not None):
            return self.session.fail(1002)
        if self.fragments is None:
            self.fragments = Fragments(frame.msg_type == WSMsgType.TEXT)
        code = self.fragments.add(frame.payload_ptr, frame.payload_size, frame.fin, self.endpoint.fragments_limit,
                                  self.session.message_limit())
        if code:
            return self.session.fail(code)
        if not frame.fin:
            self.session.may_frames(1)                   # the last one is charged as the message
            return self.look_ahead(<const uint8_t*>frame.payload_ptr + frame.payload_size, frame.tail_size)
        fragments, self.fragments = self.fragments, None
        return self.session.on_message(bytes(fragments.data), fragments.is_text)

    cdef int look_ahead(self, const uint8_t* data, Py_ssize_t n_bytes) except -1:
        """Fail at the header by which a fragmented message passes the limit: the rest of that frame may never come."""
        if self.fragments is not None and self.fragments.look(data, n_bytes, self.session.message_limit()):
            self.on_parser_error(1009)
        return 0

    cdef int receive_close(self, WSFrame frame) except -1:
        """The peer's close frame, if it is a good one (RFC 6455 §5.5.1)."""
        cdef int code = 1000
        cdef const uint8_t* payload = <const uint8_t*>frame.payload_ptr
        reason = None
        if frame.payload_size >= 2:
            code = payload[0] << 8 | payload[1]
            if not close_codes.valid_on_wire(code):
                return self.session.fail(1002)
            if not wire_is_utf8(payload + 2, frame.payload_size - 2):
                return self.session.fail(1007)
        elif frame.payload_size == 1:
            return self.session.fail(1002)
        if frame.payload_size > 2:
            reason = payload[2:frame.payload_size].decode()
        return self.session.on_peer_close(code, reason)

    # ---- what the session asks of its transport: see starlight.session.transport

    def pause_reading(self):
        self.transport.pause_reading()

    def stop_reading(self):
        self.transport.pause_reading()
        if self.watched_fd < 0:
            self.watched_fd = self.transport.get_extra_info("socket").fileno()
            if self.watched_fd >= 0:                     # else it is closed, or there is none to watch
                self.endpoint.departures.watch(self.watched_fd, self.session)

    cdef int unwatch(self) except -1:
        if self.watched_fd >= 0:
            self.endpoint.departures.forget(self.watched_fd)
            self.watched_fd = -1
        return 0

    def resume_reading(self):
        if not self.parser_error:
            self.unwatch()
            resume_reading(self.transport, self.may_read)

    def may_read(self):
        """Whether the socket may be read when it comes to that."""
        return self.session.may_read() and (self.is_discarding or not self.parser_error)

    def discard_input(self):
        self.unwatch()
        self.fragments = None
        if self.transport.can_write_eof() or self.parser_error:
            self.discard()
        else:
            resume_reading(self.transport, self.may_read)  # TLS has no EOF to wait for: the peer's close frame is its last

    cdef int discard(self) except -1:
        """Read on to see the EOF, whatever had stopped it, but keep nothing."""
        if not self.is_discarding:
            self.is_discarding = True
            self.transport.set_protocol(Discard(self, self.transport.get_protocol()))
        resume_reading(self.transport, self.may_read)
        return 0

    def on_discarded(self):
        """A closing peer floods: it is read on a little later, so that it costs next to nothing. (TLS bounds a turn itself.)"""
        if self.transport is not None and self.fd >= 0:
            self.transport.pause_reading()
            self.endpoint.loop.call_later(DISCARD_PAUSE_S, self.discard_on)

    def discard_on(self):
        """The pause is over."""
        if self.transport is not None:
            resume_reading(self.transport, self.may_read)

    def on_eof(self):
        """EOF came while reading without the parser: True to keep the transport open nevertheless."""
        return self.session.on_eof()

    def write_eof(self):
        if self.fd >= 0:
            sys_shutdown(self.fd, SHUT_WR)
        elif self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            return False
        return True

    def has_unsent(self):
        return self.fd < 0 and self.transport.get_write_buffer_size() > 0

    def progress(self):
        return progress(self.transport.get_extra_info("socket"))

    def unread_bytes(self):
        return unread_bytes(self.transport.get_extra_info("socket").fileno())

    def close(self):
        """In order. TLS must be reading then: a transport that is closing can't be told to go on."""
        resume_reading_now(self.transport)
        self.transport.close()

    def abort(self, bint with_reset):
        if self.transport is None:
            return
        if with_reset:
            reset_on_close(self.transport)
        self.transport.abort()


cdef disarm(WSTransport transport):
    """Leave picows nothing but the parser: it writes nothing and closes nothing from here on."""
    transport.is_close_frame_sent = True                 # its send and send_close now return at once
    transport.underlying_transport = DISARMED
    transport.request = None
    transport.response = None
    transport._write_buffer = NO_WRITE_BUFFER


# ---- what the connections of one node share --------------------------------------------------------------------------

cdef class Endpoint(SessionHost):
    """Where clients connect to a node: what its connections share beside what their sessions do.

    core: bound to the running loop. hub: see `starlight.channels.hub.Hub`. settings: see `starlight.config.settings.Settings`.
    gate: who may connect; by default made of the settings. fragments_limit: frames of one message.
    For the other arguments see `SessionHost`.
    """

    def __init__(self, Core core not None, hub, settings, *, gate=None, fragments_limit=FRAGMENTS_LIMIT, **options):
        super().__init__(core, hub, settings, **options)
        self.fragments_limit = fragments_limit
        self.gate = Gate(settings) if gate is None else gate
        self.send_buffer_bytes = settings.send_buffer_bytes
        self.departures = Departures()

    def protocol(self):
        """A protocol for the next socket: the factory for `loop.create_server` (TLS: `aiofastnet.create_server`)."""
        cdef Connection connection = Connection(self)
        protocol = SocketProtocol(None, None, False, connection.on_upgrade, ParserLog(connection), True, None,
                                  False, 20, 20, PING_WHEN_IDLE, False, self.read_limit_bytes, None, READ_BUFFER_BYTES)
        protocol.connection = connection
        return protocol

    def start(self):
        """As `SessionHost.start`; also watch for peers that go while they aren't read."""
        SessionHost.start(self)
        self.departures.start(self.loop)

    def stop(self):
        """As `SessionHost.stop`."""
        self.departures.stop()
        SessionHost.stop(self)

    def judge(self):
        """As `SessionHost.judge`; and tell of handshakes that were refused."""
        SessionHost.judge(self)
        if self.timer is not None:
            self.gate.refusals.tell()
