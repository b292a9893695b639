"""A session: one client's connection as the protocol sees it. Messages in, in order; its deadlines, and every way it can end.

It knows no socket. A transport (`transport.Transport`) hands it whole messages, control frames and counts of bytes; what is
written goes through the core, as the session's subscriber. What can happen when, and what is done then, is one table: `phases`.

Law: what a client makes us do is counted before it is done, in two ways. Where rates are set, each byte that is read and each
frame or line is charged to the client's meter, which slows it down and ends it. And with or without rates, a client gets
its share of a loop turn (`spend`): beyond it reading stops and messages are held until the next turn, when others have had theirs.
A message is counted by its size and by the time that it took, as there are cheap ones that ask for much (a join of 256 channels).
"""

import asyncio
import logging
import random
from collections import deque

cimport cython
from libc.stdint cimport uint8_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from starlight._fanout cimport Core, Subscriber
from starlight.protocols.native._lines cimport Lines
from starlight.session.deadlines cimport (WHEEL_SLOTS, WHEEL_TICK_MS, deadline_clear, deadline_set, deadline_t, list_init,
                                          wheel_collect, wheel_init)
from starlight.session.phases cimport (DO_ANSWER, DO_AWAIT_LOGIN, DO_AWAIT_PEER, DO_AWAIT_SILENCE, DO_BEGIN_CLOSE, DO_CUT_OFF,
                                       DO_CUT_OFF_LATE, DO_FINISH, DO_FORGET, DO_JUDGE_LOGIN, DO_JUDGE_PEER, DO_RECORD_LOSS,
                                       DO_SAY_EOF, ON_CLOSE, ON_CLOSE_SENT, ON_DEPARTURE, ON_DUE, ON_EVICT, ON_HANDLED,
                                       ON_LOGIN, ON_LOST, ON_PEER_CLOSE, ON_REFUSAL, ON_UPGRADE, PHASE_CLOSING, PHASE_GONE,
                                       PHASE_HANDSHAKE, PHASE_LEAVING, PHASE_LINGERING, PHASE_LOGIN, PHASE_OPEN,
                                       PHASE_REFUSED, action_t, happening_t, phase_t, row_of, row_t)

from starlight import close_codes
from starlight.auth.dry_run import DryRun
from starlight.ends import Cause, Ends, cause_of
from starlight.errors import CloseConnection
from starlight.protocols.base import LINES
from starlight.session.counts import ConnectionCounts
from starlight.session.phases import PHASES, IllegalTransition

log = logging.getLogger(__name__)

cdef enum:
    LINGER_MS = 1000             # after our last byte: time for the peer to read it and to close
    HOLD_MESSAGES = 64           # that wait for an async handler before reading stops
    HOLD_BYTES = 256 * 1024
    LOGIN_BYTES = 16 * 1024      # the first message: a token has 8 KiB at most
    STRANGER_BYTES = 24 * 1024   # all that may come before the login, so that a stranger costs less than 64 KiB
    DOUBTS_LIMIT = 3             # pong timeouts for a peer of which nothing can be told while it isn't read
    MESSAGE_WORK = 2048          # work is counted in bytes, about a nanosecond each: handling a message is as much as so many
    TURN_WORK = 2 * 1024 * 1024  # about 2 ms: what clients that want more than they get are given in a turn, all together
    SHARE_WORK = 32 * 1024       # what a client gets at least: about 15 messages
    COPY_BYTES = 32              # a publication's bytes, once for each member, are a 32nd of the work of those that are read
    HEAVY_SHARES = 2             # who did more than so many shares in a turn goes on when a turn has room for as much again
    LATE_MS = 3 * WHEEL_TICK_MS  # a tick that comes so late was held up: sockets are read before deadlines are judged

cdef object BY_CLIENT = Cause("client")
cdef object OVER_BUDGET = Cause("budget")
cdef object CUT_OFF = Cause("drain", "cut off at the end of the drain time")
cdef object GAVE_WAY = Cause("silent", "it made room for another connection of its user")
cdef object LATE_LOGIN = Cause("login", "no login came within login_timeout")

# What the core's reasons to evict are called: the close code, and the cause for operators; None: by the code.
cdef dict EVICTIONS = {"slow": (close_codes.SLOW_CONSUMER, None), "timeout": (close_codes.WRITE_TIMEOUT, None),
                       "budget": (close_codes.SLOW_CONSUMER, OVER_BUDGET)}


@cython.no_gc_clear                                      # __dealloc__ unlinks the deadline from the host's wheel
cdef class Session:
    """One client's connection. The hub sees `subscriber`, `peername`, `subprotocol`, `is_open` and `close()`.

    host: what it shares with the other sessions of its node.
    """

    def __init__(self, SessionHost host not None):
        self.host = host
        self.phase = PHASE_HANDSHAKE
        self.subprotocol = ""
        self.deadline.owner = <void*>self

    def __dealloc__(self):
        deadline_clear(&self.deadline)

    @property
    def is_open(self):
        """False once it is closing or closed."""
        return self.phase < PHASE_CLOSING

    @property
    def phase_name(self):
        """One of `phases.PHASES`."""
        return PHASES[self.phase]

    @property
    def is_paused(self):
        """Whether reading is stopped, because too much is held or the client sends too much."""
        return bool(self.is_stopped)

    @property
    def peername(self):
        """The client's address as the socket module gives it; None without a socket. Behind a proxy the port is 0."""
        if self.told_peername is not None:
            return self.told_peername
        return self.transport.peername if self.transport is not None else None

    @property
    def sockname(self):
        """Our own address, to which the client has connected; None without a socket."""
        return self.transport.sockname if self.transport is not None else None

    # ---- what happens, and what is done about it

    cdef int happened(self, happening_t happening) except -1:
        """Go to the next phase and act. Where the table has none, cut off the transport and raise `IllegalTransition`."""
        cdef row_t row
        try:
            row = row_of(<phase_t>self.phase, happening)
        except IllegalTransition:                        # a bug: nothing that is believed of this session may hold
            self.abort()
            raise
        self.phase = row.to_phase
        return self.act(<action_t>row.action)

    cdef int act(self, action_t action) except -1:
        cdef SessionHost host = self.host
        if action == DO_AWAIT_LOGIN:
            return self.set_deadline(host.login_timeout_ms)
        if action == DO_AWAIT_SILENCE:                   # spread, for those that came at once
            return self.set_deadline(<uint64_t>(host.ping_interval_ms * random.uniform(0.5, 1.0)))
        if action == DO_AWAIT_PEER:
            return self.set_deadline(LINGER_MS)
        if action == DO_JUDGE_LOGIN:
            return self.judge_login()
        if action == DO_JUDGE_PEER:
            return self.judge_peer()
        if action == DO_FINISH:
            return self.finish()
        if action == DO_ANSWER:
            return self.answer_close()
        if action == DO_BEGIN_CLOSE:
            return self.begin_close()
        if action == DO_SAY_EOF:
            return self.say_eof()
        if action == DO_CUT_OFF:
            return self.cut_off()
        if action == DO_CUT_OFF_LATE:
            self.is_late = True
            return self.cut_off()
        if action == DO_RECORD_LOSS:
            self.record_loss()
            return self.forget()
        if action == DO_FORGET:
            return self.forget()
        return 0

    # ---- from the first moment to the login

    cpdef int begin(self, object transport) except -1:
        """A socket was accepted; its handshake has so long."""
        self.transport = transport
        return self.set_deadline(self.host.handshake_timeout_ms)

    cpdef int on_upgraded(self, Subscriber subscriber, encoding) except -1:
        """The handshake is done. subscriber: the core's record of the transport, with this session as owner.

        encoding: the `protocols.base.Encoding` that was negotiated, in which the core writes to it.
        """
        cdef SessionHost host = self.host
        self.subscriber = subscriber
        self.subprotocol = encoding.subprotocol
        self.codec = encoding.codec
        self.is_lines = encoding.framing == LINES
        self.is_text = self.codec.is_text
        host.counts.accepted += 1
        self.number = host.counts.accepted
        self.connected_ms = host.core.now_ms()
        self.happened(ON_UPGRADE)
        if host.echoes:
            self.happened(ON_LOGIN)
        return 0

    cpdef int on_refused(self) except -1:
        """The handshake was refused, and the answer is written."""
        return self.happened(ON_REFUSAL)

    # ---- what the transport reads

    cpdef bint is_live(self) noexcept:
        """Whether it has a peer that is still served."""
        return PHASE_LOGIN <= self.phase <= PHASE_LEAVING

    cpdef bint take_frame(self, uint64_t work) except -1:
        """Whether a frame that came is to be handled; if so it has been counted as so much work, see `spend`."""
        if (self.phase != PHASE_OPEN and self.phase != PHASE_LOGIN) or self.fault or self.subscriber.has_events():
            return False                                 # an event: the core is about to evict it
        self.spend(work)
        return True

    cpdef Py_ssize_t message_limit(self) noexcept:
        """Whoever has not logged in may only say who it is."""
        return self.host.read_limit_bytes if self.phase == PHASE_OPEN else self.host.login_limit_bytes

    def may_read(self):
        """Whether the transport may be read: nothing has to wait for something else, or it closes."""
        return self.phase >= PHASE_CLOSING or not (
            self.is_stopped or self.is_waiting or self.phase == PHASE_LEAVING or self.fault)

    cpdef int on_read(self, Py_ssize_t n_bytes) except -1:
        """Charge what was read, before anything of it is looked at."""
        self.host.bytes_in += n_bytes
        if self.is_live():
            self.spend(n_bytes)
            if self.client is not None and self.client.login.meter is not None:
                self.host.hub_count_bytes(self.client, n_bytes)
        return 0

    cpdef int after_read(self, Py_ssize_t n_bytes) except -1:
        """All of a read was handed over. A stranger's bytes are bounded, also those that make no message so far."""
        if self.phase != PHASE_LOGIN:
            return 0
        self.stranger_bytes += n_bytes
        if self.stranger_bytes > STRANGER_BYTES:
            if self.task is None:
                return self.fail(1009)
            if not self.is_stopped:                      # its login is being checked: the rest waits for that
                self.stop_reading()
        return 0

    cpdef int on_message(self, bytes message, bint is_text) except -1:
        """A whole message, within `message_limit`; a text is UTF-8."""
        if self.host.echoes:
            self.host.core.echo(self.subscriber, message, is_text)
            return 0
        if is_text != self.is_text:
            return self.fail(1003)
        return self.deliver(message)

    cpdef int on_ping(self, const char* payload, Py_ssize_t n_bytes) except -1:
        """payload: of 125 bytes at most, borrowed for the call."""
        return self.host.core.pong(self.subscriber, payload, n_bytes) if self.may_frames(1) else 0

    cpdef int on_pong(self) except -1:
        """The pong that is awaited is free; any other is charged like what is no message."""
        if self.awaits_pong:
            self.awaits_pong = False
            self.n_doubts = 0
            return self.set_deadline(self.host.ping_interval_ms)
        if self.may_frames(1):
            self.host.counts.unsolicited_pongs += 1
        return 0

    cpdef int on_peer_close(self, int code, str reason) except -1:
        """The peer closes: answer with its code, behind what it is still to get (RFC 6455 §5.5.1). reason: None: none."""
        self.peer_code = code
        self.peer_reason = reason
        return self.happened(ON_PEER_CLOSE)

    cpdef int fail(self, int code) except -1:
        """The peer broke the protocol. What it sent before that in the same turn is handled first."""
        if self.is_waiting and self.is_holding():
            self.fault = code
        else:
            self.close(code)
        return 0

    cpdef int end_for(self, error) except -1:
        """End it for what handling a frame or message has raised. To be called where that is caught."""
        if isinstance(error, CloseConnection):
            return self.close_as_told(error)
        log.exception("a message could not be handled")
        self.close(close_codes.INTERNAL)
        return 0

    # ---- how much a client makes us do

    cpdef bint may_frames(self, uint64_t n_frames) except -1:
        """Charge frames or lines that are no message. False if they are too many; those read before a pause are passed over."""
        if self.client is None or self.client.login.meter is None:
            return True
        return not self.is_throttled and self.host.hub_count_frames(self.client, n_frames)

    cdef int spend(self, uint64_t work) except -1:
        """Count work for this client. Beyond its share of the turn nothing more is read, and messages are held."""
        cdef SessionHost host = self.host
        cdef uint64_t turn = host.core.turn()
        if self.turn != turn:                            # it counts on in a turn without output: a share comes sooner or later
            self.turn = turn
            self.work = 0
        if host.turn != turn:
            host.turn = turn
            host.work = 0
        self.work += work
        host.work += work
        if self.work > (host.share_work if host.work <= host.turn_work else host.least_work):
            self.wait()
        return 0

    cdef int wait(self) except -1:
        """Read and handle nothing until its next turn."""
        if not self.is_waiting:
            self.is_waiting = True
            self.transport.pause_reading()
            self.host.wait(self)
        return 0

    cdef int spend_time(self, uint64_t started_ns) except -1:
        """Count a message that has been handled since then, as far as it took longer than any message is counted."""
        cdef uint64_t took_ns = clock_ns() - started_ns
        if took_ns > MESSAGE_WORK and self.is_live():    # else it has closed meanwhile, and is read to its end
            self.spend(took_ns - MESSAGE_WORK)
        return 0

    cdef int spend_copies(self, uint64_t n_bytes) except -1:
        """Count what publications are to be copied. While the core is behind with that, a client that publishes waits."""
        if n_bytes == 0 or not self.is_live():
            return 0
        self.spend(n_bytes // COPY_BYTES)
        if self.host.core.is_behind():
            self.is_ahead = True
            self.wait()
        return 0

    def on_turn(self):
        """A new turn, with a new share of it."""
        self.is_waiting = False
        self.is_ahead = False
        self.work = 0
        if self.is_live():
            self.go_on()

    def pause_reading(self, double seconds):
        """Read nothing for so long, and handle nothing: what was read already is held."""
        if self.phase not in (PHASE_OPEN, PHASE_LEAVING) or self.is_throttled:
            return
        self.is_throttled = True
        if not self.is_stopped:
            self.stop_reading()
        self.host.loop.call_later(seconds, self.read_again)

    def read_again(self):
        """The pause is over."""
        self.is_throttled = False
        if self.phase in (PHASE_OPEN, PHASE_LEAVING):
            self.go_on()

    # ---- messages, strictly one after the other

    cdef bint must_wait(self) noexcept:
        """Whether the next message has to be held."""
        return self.task is not None or self.is_waiting or self.is_throttled

    cdef bint is_holding(self) noexcept:
        """Whether messages, or frames of lines, are held."""
        return self.queue is not None or self.lines is not None

    cdef bint is_at_rest(self) noexcept:
        """Whether all that came is handled."""
        return self.task is None and not self.is_holding()

    cdef bint is_stranger(self) noexcept:
        """Whether it has not logged in, and should."""
        return self.client is None and not self.host.echoes

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
        while self.phase < PHASE_CLOSING and not self.must_wait() and not self.subscriber.has_events():
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
        cdef SessionHost host = self.host
        self.messages_in += 1
        host.messages_in += 1
        self.spend(MESSAGE_WORK)
        cdef uint64_t started_ns = clock_ns(), delivery_bytes = host.core.delivery_bytes()
        if self.client is not None:
            awaitable = host.hub_receive(self.client, message)
        else:
            awaitable = host.hub_login(self, message)
        self.spend_time(started_ns)
        self.spend_copies(host.core.delivery_bytes() - delivery_bytes)
        if awaitable is not None:
            self.is_checking = self.is_stranger()
            self.task = host.loop.create_task(self.handle(awaitable))
        return 0

    def on_login(self, client):
        """The hub has welcomed it; `on_connect` is still to come."""
        self.is_checking = False
        if self.phase >= PHASE_CLOSING:                  # over already: it was closed meanwhile
            self.host.hub.disconnect(client)
            return
        self.client = client
        self.host.counts.logins += 1
        self.happened(ON_LOGIN)

    async def handle(self, awaitable):
        """Run what is left of an async handler, or of a login, then what waited for it."""
        try:
            await awaitable
        except asyncio.CancelledError:                   # by a stranger: what waits behind it has lost its order
            self.close(close_codes.INTERNAL)
            raise
        except Exception as error:
            self.end_for(error)
        self.on_handled()

    def on_handled(self):
        """The handler is done."""
        self.task = None
        self.is_checking = False
        self.go_on()

    def go_on(self):
        """Go on with the messages that are held, until one has to wait again; then read on, or end."""
        if self.phase < PHASE_CLOSING:
            try:
                self.handle_held()
            except Exception as error:
                self.end_for(error)
        if self.phase >= PHASE_CLOSING:
            self.drop_held()
        elif self.is_waiting or self.is_throttled:
            return                                       # until this is called again
        elif self.fault:
            self.close(self.fault)
        elif self.phase == PHASE_LEAVING:
            if self.is_at_rest():
                self.happened(ON_HANDLED)
        elif self.has_room():
            self.read_on()

    cdef bint has_room(self) noexcept:
        """Whether what is held lets reading go on: half of what stops it, and no login is being checked."""
        if self.is_checking:
            return not self.is_stopped
        return self.queue is None or (len(self.queue) <= HOLD_MESSAGES // 2 and self.queued_bytes <= HOLD_BYTES // 2)

    cdef int read_on(self) except -1:
        cdef bint was_stopped = self.is_stopped
        self.n_doubts = 0
        self.is_stopped = False
        self.transport.resume_reading()
        if was_stopped and self.awaits_pong:             # it may be behind all that we didn't read
            return self.set_deadline(self.host.pong_timeout_ms)
        return 0

    cdef int hold(self, bytes message) except -1:
        """Keep a message for later; reading stops when enough of them wait."""
        if self.queue is None:
            self.queue = deque()
        self.queue.append(message)
        self.queued_bytes += len(message)
        if not self.is_stopped and (self.phase == PHASE_LOGIN or len(self.queue) >= HOLD_MESSAGES
                                    or self.queued_bytes >= HOLD_BYTES):
            self.stop_reading()
        return 0

    cdef int stop_reading(self) except -1:
        """Read nothing for now; that the peer goes is told meanwhile by the transport (`on_departed`)."""
        self.is_stopped = True
        self.transport.stop_reading()
        return 0

    # ---- the ways to end

    def close(self, code, reason=None, retry_ms=None, cause=None):
        """End in good order: what is in the outbox, a `bye`, the close frame, then up to 1 s for the peer.

        code: a close code of the protocol. reason: ASCII of at most 123 bytes; None: the code's constant one.
        retry_ms: when the client may come back, told in the `bye`. cause: a `starlight.ends.Cause` for the operator;
        None: by the code. Does nothing on a session that is closing.
        Raises TypeError or ValueError for what may not be sent: `close_codes.check_close`. All closes come through here but
        evictions, which the core decides, and the answer to a peer's close, whose code was checked.
        """
        if not self.is_live():
            return
        close_codes.check_close(code, reason)
        self.close_as(code, reason, retry_ms, cause, self.client)

    cdef int close_as(self, int code, reason, retry_ms, cause, client) except -1:
        """`close`, of what may be sent; client: whose login it was, also where that was refused."""
        end = self.codec.end(code, reason, retry_ms)
        self.tell_end(code, end.reason, cause, client)
        if end.bye:
            self.host.core.send(self.subscriber, end.bye)
        self.host.core.close(self.subscriber, end.code, end.reason.encode("ascii"))
        (self.host.counts.refused if self.is_stranger() else self.host.counts.closed).add(code)
        self.happened(ON_CLOSE)
        return self.set_deadline(LINGER_MS if code == close_codes.NO_PONG else self.host.write_timeout_ms)

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
        cause = cause_of(close.code, close.cause, close.detail, is_login=self.is_stranger())
        return self.close_as(close.code, close.reason, None, cause, self.client or close.client)

    def give_way(self):
        """End it, as it is silent and its user has another one."""
        if self.phase == PHASE_LEAVING:
            self.happened(ON_HANDLED)                    # its handler goes on by itself
        else:
            self.close(close_codes.NO_PONG, None, None, GAVE_WAY)

    def abort(self):
        """End it now; an evicted one with a reset, so that no orphan holds kernel memory."""
        if self.transport is not None:
            self.transport.abort(bool(self.is_evicted))

    cdef int tell_end(self, int code, str reason, cause, client) except -1:
        """Have the end recorded, once: when it is decided, before anything is taken apart.

        reason: what goes with the code; None: its constant one. cause: a `starlight.ends.Cause`; None: by the code.
        client: whose; None before the login.
        """
        cdef SessionHost host = self.host
        try:
            if cause is None:
                cause = cause_of(code, is_login=self.is_stranger())
            messages, n_bytes, oldest_ms = host.core.outbox(self.subscriber)
            host.ends.add(
                code, close_codes.reason(code) if reason is None else reason, cause, client=client,
                connection=self.number, peername=self.peername, messages_in=self.messages_in,
                connected_s=(host.core.now_ms() - self.connected_ms) / 1000.0,
                outbox=(messages, n_bytes, oldest_ms if messages else None))
        except Exception:                                # the session ends all the same
            log.exception("an end could not be recorded")
        return 0

    cdef int finish(self) except -1:
        """What the peer sent before its close is handled first, if that is in time."""
        if self.is_at_rest():
            return self.happened(ON_HANDLED)
        self.stop_reading()
        return self.set_deadline(self.host.write_timeout_ms)

    cdef int answer_close(self) except -1:
        self.host.counts.left.add(self.peer_code)
        self.tell_end(self.peer_code, self.peer_reason or "", BY_CLIENT, self.client)
        self.host.core.close(self.subscriber, self.peer_code)
        self.begin_close()
        return self.set_deadline(self.host.write_timeout_ms)

    cdef int begin_close(self) except -1:
        """Nothing more from the peer. The deadline is set by what brought this about."""
        self.cancel_login()
        self.drop_held()
        self.leave_hub()
        self.is_stopped = False
        self.transport.discard_input()
        return 0

    cdef int cancel_login(self) except -1:
        """It is over: what still checks its login has nothing to check. Not before that has begun, or it is never awaited."""
        if self.is_checking and self.task is not None:
            self.host.loop.call_soon(self.task.cancel)
        self.is_checking = False
        return 0

    cdef int drop_held(self) except -1:
        self.queue = None
        self.lines = None
        return 0

    cdef int leave_hub(self) except -1:
        client, self.client = self.client, None
        if client is not None:
            try:
                self.host.hub.disconnect(client)
            except BaseException:                        # a handler that calls sys.exit() must not keep a session half
                log.exception("the hub failed to disconnect a client")
        return 0

    def on_departed(self):
        """The peer has gone while it wasn't read: what it sent and nobody has read goes with it."""
        if self.is_live():
            self.happened(ON_DEPARTURE)

    def on_evicted(self, reason, messages, n_bytes, oldest_ms):
        """The core evicts it: out of the hub now; the torn frame's rest and the close frame have 1 s."""
        if self.phase >= PHASE_GONE:
            return
        code, cause = EVICTIONS[reason]
        end = self.codec.end(code, None, None)
        self.host.core.evict(self.subscriber, end.code, end.reason.encode("ascii"))
        if self.phase < PHASE_CLOSING:
            self.tell_end(code, end.reason, cause, self.client)
        self.is_evicted = True
        self.host.counts.closed.add(code)
        self.happened(ON_EVICT)
        self.set_deadline(LINGER_MS)

    def on_would_evict(self):
        """In a dry run: it would have been evicted for the limits of its outbox."""
        client = self.client
        self.host.dry_run.note("evict", user=None if client is None else client.user, peername=self.peername)

    def on_close_sent(self):
        """The close frame is with the kernel (or the transport)."""
        self.happened(ON_CLOSE_SENT)

    cdef int say_eof(self) except -1:
        """Say that nothing more comes, and wait for the peer to say it, too: by EOF, or where there is none by its close."""
        self.start_linger()
        cdef bint is_said = self.transport.write_eof()
        if self.is_eof or not is_said and self.peer_code:
            self.transport.close()
        return 0

    cdef int start_linger(self) except -1:
        """All is with the kernel, so the peer has so long to close."""
        if self.phase == PHASE_LINGERING and not self.is_evicted and not self.transport.has_unsent():
            self.set_deadline(LINGER_MS)
        return 0

    cpdef int on_all_written(self) except -1:
        """The transport has given all it had to the kernel."""
        return self.start_linger()

    cpdef bint on_eof(self) except -1:
        """The peer's end of a session that is closing: True while there is something left to write to it."""
        self.is_eof = True
        return self.phase == PHASE_CLOSING

    cpdef int on_close_answered(self) except -1:
        """The peer has answered our close frame (seen only where there is no EOF to wait for)."""
        self.peer_code = close_codes.NORMAL
        if self.phase == PHASE_LINGERING:
            self.transport.close()
        return 0

    def on_broken(self):
        """Nothing can be written any more."""
        self.abort()

    cdef int cut_off(self) except -1:
        """Its time is over."""
        if self.phase >= PHASE_CLOSING and self.subscriber.outbox_bytes > 0:
            self.is_evicted = True                       # it has not read what it was to get: a reset drops that
        self.abort()
        return 0

    cpdef int on_lost(self) except -1:
        """The socket is about to be closed: forget it, and tell the hub. A second call does nothing."""
        return self.happened(ON_LOST) if self.phase != PHASE_GONE else 0

    cdef int record_loss(self) except -1:
        self.host.counts.left.add(close_codes.ABNORMAL)
        return self.tell_end(close_codes.ABNORMAL, None, CUT_OFF if self.host.is_stopped else None, self.client)

    cdef int forget(self) except -1:
        self.cancel_login()
        deadline_clear(&self.deadline)
        if self.task is not None:
            self.host.leave_behind(self.task)
        self.drop_held()
        if self.subscriber is not None:                  # the fd first: nothing of an application may come between
            self.host.core.detach(self.subscriber)
            self.leave_hub()
        self.transport = None
        return 0

    # ---- deadlines

    cdef int set_deadline(self, uint64_t after_ms) except -1:
        if self.phase != PHASE_GONE:
            deadline_set(&self.host.wheel, &self.deadline, self.host.core.now_ms() + after_ms)
        return 0

    cdef int judge_login(self) except -1:
        """The time for the login is over, unless the application is checking it."""
        if self.task is None:
            self.close(close_codes.LOGIN_TIMEOUT, None, None, LATE_LOGIN)
            return 0
        return self.set_deadline(self.host.login_timeout_ms)

    cdef int judge_peer(self) except -1:
        """A ping is due, or its pong."""
        if not self.awaits_pong or (self.is_stopped or self.is_waiting) and self.may_have_answered():
            return self.send_ping()
        self.close(close_codes.NO_PONG)
        return 0

    # ---- signs of life

    cdef int send_ping(self) except -1:
        """Ping it, and note what the kernel has had of it so far."""
        cdef SessionHost host = self.host
        self.received_bytes, self.acked_bytes = self.transport.progress()
        host.core.ping(self.subscriber)
        self.awaits_pong = True
        self.pinged_ms = host.core.now_ms()
        return self.set_deadline(host.pong_timeout_ms)

    cdef sign_t sign(self) except? SIGN_SILENT:
        """What the kernel knows of the peer since our ping, whether it is read or not."""
        received_bytes, acked_bytes = self.transport.progress()
        if received_bytes < 0:                           # no TCP, so the kernel knows nothing
            return SIGN_UNKNOWN if self.is_stopped else SIGN_SILENT
        if received_bytes > self.received_bytes:
            return SIGN_ALIVE
        if acked_bytes <= self.acked_bytes:              # not even its kernel has had the ping
            return SIGN_SILENT
        if self.subscriber.is_full or self.transport.unread_bytes():
            return SIGN_UNKNOWN                          # the ping still waits here, or the peer may be kept from sending
        return SIGN_SILENT

    cdef bint may_have_answered(self) except -1:
        """Whether the pong of a client that isn't read may be among what the kernel holds. Doubt has its limit."""
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
        if self.phase == PHASE_LEAVING:
            return 1 << 31
        if self.phase != PHASE_OPEN or not self.awaits_pong or self.sign() != SIGN_SILENT:
            return 0
        return max(<uint64_t>1, self.host.core.now_ms() - self.pinged_ms)

    def probe(self):
        """Ping it now, unless it owes a pong already."""
        if self.phase == PHASE_OPEN and not self.awaits_pong:
            self.send_ping()


cdef inline uint64_t clock_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1_000_000_000 + <uint64_t>t.tv_nsec


# ---- what the sessions of one node share -----------------------------------------------------------------------------

cdef class SessionHost:
    """What the sessions of one node share: core, hub, limits, turns, the wheel of deadlines.

    core: bound to the running loop. hub: see `starlight.channels.hub.Hub`. settings: see `starlight.config.settings.Settings`.
    ends: where ends are recorded; by default its own. dry_run: limits that are not enforced; by default none.
    echoes: send every message back to its sender instead (the conformance server; no login, no hub).
    turn_work: what clients that want more than they get are given in a turn, all together; in bytes, see `Session.spend`.
    """

    def __init__(self, Core core not None, hub, settings, *, ends=None, dry_run=None, echoes=False, turn_work=TURN_WORK):
        self.core = core
        self.hub = hub
        commands = getattr(hub, "commands", None)
        self.hub_login = getattr(hub, "login", None)
        self.hub_receive = getattr(commands, "receive", None)
        self.hub_count_bytes = getattr(commands, "count_bytes", None)
        self.hub_count_frames = getattr(commands, "count_frames", None)
        self.waiting = []
        self.turn_work = turn_work
        self.share_work = turn_work
        self.least_work = min(SHARE_WORK, turn_work)
        self.echoes = echoes
        self.max_connections = settings.max_connections
        self.read_limit_bytes = settings.read_limit_bytes
        self.login_limit_bytes = min(LOGIN_BYTES, settings.read_limit_bytes)
        self.handshake_timeout_ms = <uint64_t>(settings.handshake_timeout_s * 1000)
        self.login_timeout_ms = <uint64_t>(settings.login_timeout_s * 1000)
        self.write_timeout_ms = <uint64_t>(settings.write_timeout_s * 1000)
        self.ping_interval_ms = <uint64_t>(settings.ping_interval_s * 1000)
        self.pong_timeout_ms = <uint64_t>(settings.pong_timeout_s * 1000)
        self.counts = ConnectionCounts()
        self.ends = Ends() if ends is None else ends
        self.dry_run = DryRun() if dry_run is None else dry_run
        self.left_behind = {}
        wheel_init(&self.wheel, core.now_ms())
        list_init(&self.due)

    def start(self):
        """Start the sweeper on the running loop."""
        self.loop = asyncio.get_running_loop()
        self.ticked_s = self.loop.time()
        self.tick()

    def stop(self):
        """Stop the sweeper, and cut off what is still connected: no deadline would end it any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.is_stopped = True
        self.abort_all(PHASE_LINGERING)

    def abort_handshakes(self):
        """Cut off what is still in the handshake."""
        self.abort_all(PHASE_REFUSED)

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
            if not self.counts.handlers_cancelled:
                log.error("%d handlers are under way whose clients have gone: from now on the oldest one is cancelled for "
                          "each that follows", self.max_connections)
            self.counts.handlers_cancelled += 1

    def forget_task(self, task):
        self.left_behind.pop(task, None)

    cdef int abort_all(self, phase_t last_phase) except -1:
        """Abort every session up to a phase. Each of them has a deadline."""
        cdef deadline_t* node
        cdef list found = []
        cdef int i
        for i in range(WHEEL_SLOTS):
            node = self.wheel.slots[i].next
            while node != &self.wheel.slots[i]:
                found.append(<Session>node.owner)
                node = node.next
        for session in found:
            if (<Session>session).phase <= last_phase:
                session.abort()
        return 0

    cdef int wait(self, Session session) except -1:
        """A session has had its share of this turn: it goes on in the next one, and shares that with others like it."""
        if not self.waiting:
            self.loop.call_soon(self.next_turn)
        self.waiting.append(session)
        return 0

    def next_turn(self):
        """Clients that wanted more than their share go on. Runs once all that was readable in this turn has been read.

        What a single message asks for may be far more than a share. Clients of that kind take turns: as many go on as did
        a turn's work together when they last went on, or one.
        """
        cdef Session session
        cdef uint64_t heavy_work, room = self.turn_work
        cdef bint is_first = True
        cdef list going = [], staying = []
        self.share_work = max(self.least_work, self.turn_work // len(self.waiting))
        self.work = 0
        heavy_work = HEAVY_SHARES * self.share_work
        for session in self.waiting:
            if session.is_ahead and self.core.is_behind() and session.phase < PHASE_CLOSING:
                staying.append(session)
            elif session.work <= heavy_work or session.phase >= PHASE_CLOSING:
                going.append(session)
            elif is_first or session.work <= room:
                is_first = False
                room -= min(room, session.work)
                going.append(session)
            else:
                staying.append(session)
        self.waiting = staying
        if staying:
            self.loop.call_soon(self.next_turn)
        for session in going:
            session.on_turn()

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
        """Those whose deadline has come, and the core's own sweep."""
        cdef Session session
        if self.timer is None:
            return
        wheel_collect(&self.wheel, self.core.now_ms(), &self.due)
        while self.due.next != &self.due:
            session = <Session>self.due.next.owner
            deadline_clear(&session.deadline)
            try:
                session.happened(ON_DUE)
            except Exception:
                log.exception("a deadline could not be handled")
        self.core.sweep()
