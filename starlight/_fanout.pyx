"""The core: appends each wire frame once, puts it into the outboxes of its subscribers, evicts who can't keep up, and flushes.

Strategy: a publication costs O(1) (it extends the run); the members of the run's channel are visited once a turn; each marked
subscriber is flushed once a turn, without the GIL, in slices between which the loop polls. Law: mark in the loops, act after
them. The records and their owners are described in `core/`: arena, outbox and records.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from starlight.core.arena cimport arena_trim, chunk_t, frame_start, lane_close, vector_free, vector_push, vector_t
from starlight.core.clock cimport clock_look
from starlight.core.checks cimport check_core
from starlight.core.counters cimport core_counters
from starlight.core.encoding cimport (FRAMING_FRAMES, FRAMING_LINES, MAX_ENCODINGS, N_SHARINGS, affix_t, encoding_t,
                                      message_t, payload_bytes)
from starlight.core.flush cimport STAGE_BYTES, flush_one, flusher_t, raise_event
from starlight.core.histogram cimport clock_us
from starlight.core.outbox cimport (EVENT_BROKEN, EVENT_CLOSE_SENT, EVENT_EVICT, LIST_EVENTFUL,
                                LIST_NEWLY_FULL, LIST_TRANSPORTS, REASON_BUDGET, REASON_DRY_RUN, REASON_NONE,
                                STATE_CLOSED, STATE_CLOSING, STATE_DEAD,
                                STATE_EVICTED, STATE_OPEN, clear_frames, free_parts, outbox_age_ms, queue_close,
                                queue_ping, queue_pong, span_t, subscriber_new, subscriber_t,
                                torn_bytes)
from starlight.core.membership cimport channel_add, channel_remove
from starlight.core.memory cimport budget_bytes, compact, largest_full
from starlight.core.policy cimport (HELD_UP_MS, carry_out, doom, drop_outbox, is_held_up, is_noted, judge_new, note_end,
                                    sweep_begins, verdict, write_once)
from starlight.core.records cimport channel_t, core_t, limits_t, member_of, member_t, run_part_t
from starlight.core.round cimport (EPOLL_CLOEXEC, EPOLL_CTL_DEL, TURN_BYTES, apply_flush, count_transport, epoll_create1,
                                   epoll_ctl, epoll_event, epoll_wait, flush_slice, full_add, full_remove, measure, unlist)
from starlight.core.run cimport mark, mark_first, run_append, send_one, settle, settle_one, unsettled_from
from starlight.core.wire cimport WIRE_BINARY, WIRE_MAX_CONTROL, WIRE_TEXT

import os

from starlight.errors import WrongThread

cdef extern from *:
    """
    #ifdef STARLIGHT_DEBUG
    #define STARLIGHT_CHECKS 1
    #else
    #define STARLIGHT_CHECKS 0
    #endif
    """
    const bint STARLIGHT_CHECKS

cdef extern from "<unistd.h>" nogil:
    int os_close "close"(int fd)

cdef enum:
    MAX_MESSAGE_BYTES = 1 << 30  # offsets in a chunk are 32 bits wide
    COMPACT_ABOVE_BYTES = 16 * 1024 * 1024
    FLUSH_ALL_PART = 8           # of the memory budget: what one turn may append before all of it is flushed, not a slice

FRAMES = FRAMING_FRAMES
LINES = FRAMING_LINES
ENCODINGS_LIMIT = MAX_ENCODINGS
cdef tuple REASONS = (None, "slow", "timeout", "budget")     # why the core evicts, for owners; by REASON_SLOW and so on
DEBUG_BUILD = bool(STARLIGHT_CHECKS)


# ---- the classes -----------------------------------------------------------------------------------------------------

@cython.no_gc_clear
cdef class Channel:
    """A named stream's subscribers. Made by `Core.channel()`."""

    def __init__(self):
        raise TypeError("use Core.channel()")

    def __dealloc__(self):
        free(self.c.members)
        if self.c.slots != self.c.inline_slots:
            free(self.c.slots)
        if self.core is not None:
            self.core.c.n_channels -= 1

    def __len__(self):
        return self.c.n_members

    def __contains__(self, Subscriber subscriber not None):
        return subscriber.s != NULL and member_of(subscriber.s, &self.c) != NULL

    def join(self, Subscriber subscriber not None):
        """Add a subscriber: it gets what is published from now on. False if it already is a member or not open."""
        self.core.check_thread()
        cdef subscriber_t* sub = subscriber.s
        if sub == NULL or sub.state != STATE_OPEN or member_of(sub, &self.c) != NULL:
            return False
        channel_add(&self.core.c, &self.c, sub)
        Py_INCREF(self)
        return True

    def leave(self, Subscriber subscriber not None):
        """Remove a subscriber: it gets what was published until now, nothing later. False if it is no member."""
        self.core.check_thread()
        cdef subscriber_t* sub = subscriber.s
        cdef uint32_t i
        if sub == NULL:
            return False
        for i in range(sub.n_memberships):
            if sub.memberships[i].channel == &self.c:
                channel_remove(&self.core.c, sub, i)
                Py_DECREF(self)
                return True
        return False


cdef class Subscriber:
    """The core's record of one connection: its sink and its outbox. Made by `Core.subscriber()`."""

    def __init__(self):
        raise TypeError("use Core.subscriber()")

    @property
    def is_open(self):
        """Whether messages are accepted: not closing, evicted or detached."""
        return self.s != NULL and self.s.state == STATE_OPEN

    @property
    def is_full(self):
        """Whether the kernel (or the transport) took less than it was given, and has not taken more since."""
        return self.s != NULL and self.s.is_full

    @property
    def outbox_messages(self):
        """Messages not yet handed over in whole, as of the last time the run was settled."""
        return self.s.out_messages if self.s != NULL else 0

    @property
    def outbox_bytes(self):
        """Bytes not yet handed over, likewise."""
        return self.s.out_bytes if self.s != NULL else 0

    @property
    def n_memberships(self):
        """How many channels it is in, those without a name included."""
        return self.s.n_memberships if self.s != NULL else 0

    def channels(self):
        """Names of the channels it is in, in the order of joining; those without a name are left out."""
        cdef list names = None if self.s == NULL else names_of(self.s)
        return [] if names is None else names

    @property
    def oldest_ms(self):
        """When the oldest message in the outbox was appended, on the core's clock modulo 2**32; None if it is empty."""
        if self.s == NULL or self.s.n_spans == 0:
            return None
        cdef span_t* span = &self.s.spans[self.s.first_span]
        return span.chunk.frames[span.first].appended_ms


cdef list names_of(subscriber_t* sub):
    """Names of the channels it is in, in the order of joining; None for none."""
    cdef list aged = None
    cdef Channel channel
    cdef uint32_t i, age
    for i in range(sub.n_memberships):
        channel = <Channel>(<channel_t*>sub.memberships[i].channel).handle
        if channel.name is not None:
            age = channel.core.c.n_joins - sub.memberships[i].number
            if aged is None:
                aged = []
            aged.append((age, channel.name))
    if aged is None:
        return None
    aged.sort(reverse=True)
    return [name for _, name in aged]


cdef inline bint fill(message_t* m, object head, object data, object tail, uint8_t codec, uint8_t n_codecs,
                      Py_buffer* view) except -1:
    """Point the message's data, and the head and tail of one codec, at the caller's memory; True if `view` must be released
    after use."""
    cdef bint is_view = type(data) is not bytes
    m.codec_mask = 0
    if type(head) is bytes and type(tail) is bytes:
        set_affix(&m.affixes[0], <bytes>head, <bytes>tail)
    else:
        set_affix(&m.affixes[0], choose(head, codec, n_codecs), choose(tail, codec, n_codecs))
    if is_view:
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
        m.data = <const char*>view.buf
        m.data_bytes = view.len
    else:
        m.data = PyBytes_AS_STRING(data)
        m.data_bytes = PyBytes_GET_SIZE(data)
    if payload_bytes(m, &m.affixes[0]) > MAX_MESSAGE_BYTES:
        if is_view:
            PyBuffer_Release(view)
        raise too_large(m, &m.affixes[0])
    return is_view


cdef inline void set_affix(affix_t* affix, bytes head, bytes tail) noexcept:
    affix.head = PyBytes_AS_STRING(head)
    affix.head_bytes = PyBytes_GET_SIZE(head)
    affix.tail = PyBytes_AS_STRING(tail)
    affix.tail_bytes = PyBytes_GET_SIZE(tail)


cdef too_large(message_t* m, affix_t* affix):
    return ValueError(f"a message of {payload_bytes(m, affix)} bytes is over the core's limit of {MAX_MESSAGE_BYTES}")


cdef bytes choose(object parts, uint8_t codec, uint8_t n_codecs):
    """A codec's head or tail: `parts` itself if it is for all of them. Borrowed from `parts`, which the caller keeps."""
    if type(parts) is bytes:
        return parts
    if type(parts) is not tuple or len(<tuple>parts) != n_codecs:
        raise TypeError(f"a head or tail: expected bytes, or a tuple of one for each of {n_codecs} codecs")
    part = (<tuple>parts)[codec]
    if type(part) is not bytes:
        raise TypeError(f"a codec's head or tail: expected bytes, got {type(part).__name__}")
    return part


cdef inline int send_as(Core core, Subscriber subscriber, object head, object data, object tail, uint8_t opcode) except -1:
    """`Core.send`, in a frame of this opcode; 0: its encoding's."""
    cdef message_t m
    cdef Py_buffer view
    cdef encoding_t* encoding
    cdef int result
    cdef bint is_view
    core.check_thread()
    if subscriber.s == NULL:
        return 0
    encoding = &core.c.encodings[subscriber.s.encoding]
    is_view = fill(&m, head, data, tail, encoding.codec, core.c.n_codecs, &view)
    result = send_one(&core.c, subscriber.s, &m, opcode if opcode else encoding.opcode)
    if is_view:
        PyBuffer_Release(&view)
    if result < 0:
        raise MemoryError()
    return core.after_append()


cdef class Core:
    """One node's fan-out: arena, outboxes, flush. Belongs to the thread that calls `bind()`.

    Args:
        encodings: (codec, framing, is_text) of each, by number: whose heads and tails it takes, FRAMES or LINES, and whether
            its frames are text or binary. Codecs are numbered from 0. By default codec 0 in FRAMES (encoding 0) and in
            LINES (encoding 1).
        outbox_messages: a subscriber for which more wait than this is over its limits. 256.
        outbox_bytes: likewise in bytes. 1 MiB: 256 messages of 4 KiB.
        evict_after_ms: one that is over a limit is evicted when its sink has taken nothing for so long. 500 ms: longer
            than a retransmission on a mobile line, short enough to bound what one that reads nothing pins.
        write_timeout_ms: one that is over a limit is evicted when its oldest message is older than this; one that
            isn't, when its sink has taken nothing for so long. 10 s.
        memory_budget_bytes: for all chunks together; when it is passed, the largest outboxes go first. 512 MiB. The
            limits of one outbox are passed by whoever reads a burst, so it is this one that bounds the process.
        is_dry_run: the limits of outboxes are not enforced, their owners are told by `on_would_evict()` instead. The
            memory budget and the write timeout are. False.
    """

    def __cinit__(self, *, encodings=((0, FRAMING_FRAMES, True), (0, FRAMING_LINES, True)), uint32_t outbox_messages=256,
                  uint64_t outbox_bytes=1 << 20, uint32_t evict_after_ms=500, uint32_t write_timeout_ms=10_000,
                  uint64_t memory_budget_bytes=512 << 20, bint is_dry_run=False):
        cdef limits_t* limits = &self.c.limits
        limits.outbox_messages = outbox_messages
        limits.outbox_bytes = outbox_bytes
        limits.evict_after_ms = evict_after_ms
        limits.write_timeout_ms = write_timeout_ms
        limits.memory_budget_bytes = memory_budget_bytes
        limits.is_dry_run = is_dry_run
        self.c.epoll_fd = -1                             # nothing for __dealloc__ to close, if this fails
        self.add_encodings(encodings)
        self.c.run.id = 1
        self.c.flusher.stage = <char*>malloc(STAGE_BYTES)
        self.c.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.c.flusher.stage == NULL or self.c.epoll_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.compact_above_bytes = memory_budget_bytes // 2
        self.thread_id = PyThread_get_thread_ident()
        self.on_turn_end = self._on_turn_end
        self.everyone = self.channel()
        self.now_ms()
        self.c.swept_ms = self.c.flusher.now_ms

    def __dealloc__(self):
        cdef core_t* c = &self.c
        cdef int i
        if c.epoll_fd >= 0:
            os_close(c.epoll_fd)
        self.close_lanes()
        arena_trim(&c.arena)
        cdef vector_t** lists = [&c.all, &c.marked, &c.flushing, &c.first, &c.full, &c.transports,
                                 &c.flusher.newly_full, &c.flusher.eventful]
        for i in range(8):
            vector_free(lists[i])
        free(c.flusher.releases.chunks)
        free(c.flusher.releases.counts)
        free(c.flusher.stage)

    cdef int add_encodings(self, encodings) except -1:
        cdef encoding_t* encoding
        if not 0 < len(encodings) <= MAX_ENCODINGS:
            raise ValueError(f"{len(encodings)} encodings: expected 1 to {MAX_ENCODINGS}")
        for codec, framing, is_text in encodings:
            if not (0 <= codec < MAX_ENCODINGS and (framing == FRAMING_FRAMES or framing == FRAMING_LINES and is_text)):
                raise ValueError(f"an encoding of codec {codec}, framing {framing}, is_text {is_text}")
            encoding = &self.c.encodings[self.c.n_encodings]
            encoding.codec = codec
            encoding.framing = framing
            encoding.opcode = WIRE_TEXT if is_text else WIRE_BINARY
            self.c.n_encodings += 1
            self.c.n_codecs = max(self.c.n_codecs, <uint8_t>(encoding.codec + 1))
        return 0

    cdef void close_lanes(self) noexcept:
        cdef int i, sharing
        for i in range(self.c.n_encodings):
            for sharing in range(N_SHARINGS):
                lane_close(&self.c.arena, &self.c.encodings[i].lanes[sharing])

    cdef int check_thread(self) except -1:
        if PyThread_get_thread_ident() != self.thread_id:
            raise WrongThread("the core belongs to its loop's thread; use publish_threadsafe from others")
        return 0

    cpdef uint64_t now_ms(self) except? 0:
        """The core's clock in milliseconds: monotonic, and standing still while the process did not run (core/clock.pxd)."""
        cdef uint64_t now_ms = clock_look(&self.clock)
        self.c.flusher.now_ms = <uint32_t>now_ms
        return now_ms

    cpdef uint64_t stopped_ms(self) except? 0:
        """How long the process did not run so far, in the stops that the clock has forgiven."""
        self.now_ms()
        return self.clock.stopped_ms

    def reconfigure(self, settings):
        """Whether the limits of outboxes are enforced: see `starlight.config.reconfigure`."""
        is_dry_run = "evict" in settings.dry_run

        def commit():
            self.c.limits.is_dry_run = is_dry_run

        return commit

    def bind(self, loop, double coalesce_delay_s=0.0):
        """Run on this loop, from its own thread: it wakes full subscribers and ends each turn with a flush.

        coalesce_delay_s: seconds by which a turn's flush waits for more; 0: not at all.
        """
        self.thread_id = PyThread_get_thread_ident()
        self.loop = loop
        self.coalesce_delay_s = coalesce_delay_s
        loop.add_reader(self.c.epoll_fd, self._on_writable)

    def unbind(self):
        """Leave the loop; nothing is flushed any more."""
        self.check_thread()
        if self.loop is not None:
            self.loop.remove_reader(self.c.epoll_fd)
            self.loop = None

    cdef int schedule(self) except -1:
        if self.is_scheduled or self.loop is None:
            return 0
        self.is_scheduled = True
        if self.coalesce_delay_s > 0:
            self.loop.call_later(self.coalesce_delay_s, self.on_turn_end)
        else:
            self.loop.call_soon(self.on_turn_end)
        return 0

    # ---- subscribers and channels

    cpdef Channel channel(self, str name=None):
        """A new channel without members. It lives as long as somebody holds it or is a member.

        name: by which `Subscriber.channels()` and `leave_all()` tell of it; None: they don't.
        """
        cdef Channel channel = Channel.__new__(Channel)
        channel.core = self
        channel.name = name
        channel.c.handle = <void*>channel
        channel.c.slots = channel.c.inline_slots
        self.c.n_channels += 1
        return channel

    cpdef Subscriber subscriber(self, object owner, int fd, object transport, int encoding):
        """Attach a connection. `owner` is told of events by `on_close_sent()`, `on_broken()` and
        `on_evicted(reason, messages, n_bytes, oldest_ms)`: reason is "slow", "timeout" or "budget"; then what its outbox held,
        and the age of the oldest of it. The owner answers with `evict()` and the close code of its codec.

        fd: a connected non-blocking socket, borrowed until `detach()`; -1: write through `transport` (TLS).
        transport: its asyncio transport. Nothing is sent while it holds unsent bytes; call `writable()` on resume_writing.
        encoding: its number.
        """
        self.check_thread()
        if not 0 <= encoding < self.c.n_encodings or (fd < 0 and transport is None):
            raise ValueError(f"encoding {encoding}, fd {fd}, transport {transport!r}")
        cdef Subscriber handle = Subscriber.__new__(Subscriber)
        cdef subscriber_t* sub = subscriber_new(fd, <uint8_t>encoding, self.c.encodings[encoding].framing == FRAMING_LINES)
        if sub == NULL:
            raise MemoryError()
        sub.index = <int32_t>self.c.all.n
        sub.transport_busy = transport is not None and transport.get_write_buffer_size() > 0
        vector_push(&self.c.all, sub)
        sub.handle = <void*>handle
        handle.s = sub
        handle.owner = owner
        handle.transport = transport
        Py_INCREF(handle)
        return handle

    cpdef detach(self, Subscriber subscriber):
        """Forget a connection, before its fd is closed: out of all channels, its outbox dropped, its memory freed."""
        self.check_thread()
        cdef subscriber_t* sub = subscriber.s
        cdef core_t* c = &self.c
        cdef subscriber_t* moved
        if sub == NULL:
            return
        self.drop(sub)
        if sub.in_epoll:
            epoll_ctl(c.epoll_fd, EPOLL_CTL_DEL, sub.fd, NULL)
        free_parts(sub)
        sub.state = STATE_DEAD
        sub.fd = -1
        c.all.n -= 1
        moved = <subscriber_t*>c.all.items[c.all.n]
        c.all.items[sub.index] = moved
        moved.index = sub.index
        subscriber.s = NULL
        subscriber.owner = None
        subscriber.transport = None
        sub.handle = NULL
        if sub.lists == 0:
            free(sub)
        Py_DECREF(subscriber)
        if c.all.n == 0:
            self.trim()

    cdef int trim(self) except -1:
        """Nobody is left: give all memory back."""
        settle(&self.c)
        self.close_lanes()
        arena_trim(&self.c.arena)
        return 0

    cpdef list leave_all(self, Subscriber subscriber):
        """Take a subscriber out of all its channels; return their names, in the order of joining.

        So each membership that ends is told once: by a True of `Channel.leave`, or here, also if it was ended by an
        eviction, a broken socket or `detach()` before.
        """
        self.check_thread()
        if subscriber.s != NULL:
            self.take_out(subscriber.s)
        cdef list left = subscriber.left
        subscriber.left = None
        return [] if left is None else left

    cdef int take_out(self, subscriber_t* sub) except -1:
        """Out of every channel, which `leave_all` is still to tell."""
        cdef Subscriber subscriber
        cdef Channel channel
        cdef list left = names_of(sub)
        if left is not None:
            subscriber = <Subscriber>sub.handle
            subscriber.left = left if subscriber.left is None else subscriber.left + left
        while sub.n_memberships:
            channel = <Channel>(<channel_t*>sub.memberships[sub.n_memberships - 1].channel).handle
            channel_remove(&self.c, sub, sub.n_memberships - 1)
            Py_DECREF(channel)
        return 0

    # ---- messages

    cpdef uint32_t publish(self, Channel channel, object head, object data, object tail) except? 0xFFFFFFFF:
        """Publish `head + data + tail` to a channel's members; return how many they are.

        head, tail: bytes for all codecs, or a tuple of one for each codec. data: bytes or any buffer; copied once for each
        encoding that has members, never kept. Raises MemoryError if no chunk can be had, WrongThread.
        """
        cdef message_t m
        cdef Py_buffer view
        cdef int result
        cdef bint is_view
        self.check_thread()
        if channel.c.n_members == 0:
            return 0
        is_view = fill(&m, head, data, tail, 0, self.c.n_codecs, &view)
        if type(head) is tuple or type(tail) is tuple:
            try:
                self.fill_codecs(&m, head, tail)
            except BaseException:
                if is_view:
                    PyBuffer_Release(&view)
                raise
        result = run_append(&self.c, &channel.c, &m)
        if is_view:
            PyBuffer_Release(&view)
        if result < 0:
            raise MemoryError()
        self.after_append()
        return channel.c.n_members

    cdef int fill_codecs(self, message_t* m, object head, object tail) except -1:
        """Give a message, which has its first affix, those of the other codecs. Borrowed as `choose` says."""
        cdef uint8_t codec
        m.codec_mask = 0xFF
        for codec in range(1, self.c.n_codecs):
            set_affix(&m.affixes[codec], choose(head, codec, self.c.n_codecs), choose(tail, codec, self.c.n_codecs))
            if payload_bytes(m, &m.affixes[codec]) > MAX_MESSAGE_BYTES:
                raise too_large(m, &m.affixes[codec])
        return 0

    cpdef send(self, Subscriber subscriber, object head, object data=b"", object tail=b""):
        """Send `head + data + tail` to one subscriber, behind all it was to get before. Ignored unless it is open.

        head, tail: bytes, or a tuple of one for each codec, of which it gets its own.
        """
        send_as(self, subscriber, head, data, tail, 0)

    cpdef echo(self, Subscriber subscriber, object data, bint is_text):
        """`send()` for the conformance server, which answers a text frame with one, and a binary frame with a binary one."""
        send_as(self, subscriber, b"", data, b"", WIRE_TEXT if is_text else WIRE_BINARY)

    cpdef send_many(self, object subscribers, object head, object data=b"", object tail=b""):
        """`send()` to each of a few subscribers (the clients of one user)."""
        for subscriber in subscribers:
            self.send(subscriber, head, data, tail)

    cdef int after_append(self) except -1:
        if self.c.turn_bytes > TURN_BYTES:
            self.n_early_slices += 1
            self.flush_early()
        if not self.is_scheduled:
            self.schedule()
        if STARLIGHT_CHECKS:
            self.check()
        return 0

    cdef int pong(self, Subscriber subscriber, const char* payload, Py_ssize_t size) except -1:
        """Answer a ping; see `queue_pong` for which one's pong waits (RFC 6455 §5.5.3)."""
        cdef subscriber_t* sub = subscriber.s
        if sub == NULL or sub.state >= STATE_CLOSED or size > WIRE_MAX_CONTROL:
            return 0
        queue_pong(sub, payload, <uint8_t>size)
        mark_first(&self.c, sub)
        return self.schedule()

    cpdef ping(self, Subscriber subscriber):
        """Queue an empty ping, unless one waits already."""
        self.check_thread()
        cdef subscriber_t* sub = subscriber.s
        if sub == NULL or sub.state >= STATE_CLOSED:
            return
        queue_ping(sub)
        mark_first(&self.c, sub)
        self.schedule()

    cpdef close(self, Subscriber subscriber, int code, bytes reason=b""):
        """Close in order: what is in the outbox, then the close frame; `owner.on_close_sent()` follows.

        code: 0 sends a close frame without a payload. reason: ASCII, at most 123 bytes.
        """
        self.check_thread()
        cdef subscriber_t* sub = subscriber.s
        if sub == NULL or sub.state >= STATE_CLOSING:
            return
        settle_one(&self.c, sub)
        queue_close(sub, code, PyBytes_AS_STRING(reason), PyBytes_GET_SIZE(reason))
        sub.state = STATE_CLOSING
        mark_first(&self.c, sub)
        self.schedule()

    cpdef tuple outbox(self, Subscriber subscriber):
        """(messages, bytes, oldest_ms): what a subscriber has not got yet, and for how long the oldest of it has waited.

        Of one that was evicted, or whose socket broke: what its outbox held then. (0, 0, 0) once it is detached. O(1)
        but for one look through its memberships while a run is open; nothing is settled.
        """
        self.check_thread()
        cdef subscriber_t* sub = subscriber.s
        cdef member_t* member
        cdef run_part_t* part
        cdef uint32_t first, n_messages, oldest_ms
        cdef uint64_t n_bytes
        if sub == NULL:
            return 0, 0, 0
        if sub.end_messages:
            return sub.end_messages, sub.end_bytes, sub.end_oldest_ms
        self.now_ms()
        n_messages, n_bytes, oldest_ms = sub.out_messages, sub.out_bytes, outbox_age_ms(sub, self.c.flusher.now_ms)
        member = NULL
        if sub.state == STATE_OPEN and self.c.run.channel != NULL:
            member = member_of(sub, self.c.run.channel)
        if member != NULL:
            part = &self.c.run.parts[member.slot]
            first = unsettled_from(&self.c.run, member)
            if first < part.end:
                n_messages += part.end - first
                n_bytes += part.chunk.frames[part.end - 1].end - frame_start(part.chunk, first)
                if sub.out_messages == 0:
                    oldest_ms = self.c.flusher.now_ms - part.chunk.frames[first].appended_ms
        return n_messages, n_bytes, oldest_ms

    cpdef evict(self, Subscriber subscriber, int code, bytes reason=b""):
        """Close at once: out of every channel, whole frames dropped; the torn frame's rest and the close frame stay."""
        self.check_thread()
        cdef subscriber_t* sub = subscriber.s
        if sub == NULL or sub.state >= STATE_EVICTED:
            return
        settle_one(&self.c, sub)
        if sub.evict_reason == REASON_NONE:              # else `doom` has done it
            note_end(&self.c, sub)
        if sub.state == STATE_OPEN:
            queue_close(sub, code, PyBytes_AS_STRING(reason), PyBytes_GET_SIZE(reason))
        sub.state = STATE_EVICTED
        self.take_out(sub)
        count_transport(&self.c, sub, 0)
        drop_outbox(&self.c, sub, torn_bytes(sub))
        mark_first(&self.c, sub)
        self.schedule()

    # ---- the turn

    cpdef flush(self):
        """Flush every marked subscriber now. Called by itself only when a turn appends more than an eighth of the memory budget.

        Nobody is judged here; but whoever the memory budget has no room for is doomed, as one turn may append more than that.
        """
        cdef bint more = True
        self.check_thread()
        self.now_ms()
        while more:
            more = self.flush_some()
            if budget_bytes(&self.c) > self.compact_above_bytes:
                self.keep_budget()
        if self.c.flusher.eventful.n:
            self.schedule()

    cdef int flush_early(self) except -1:
        """A turn has appended another 1 MiB: flush a slice, or all if it was much already, as with a loop of an application."""
        if self.n_early_slices > self.c.limits.memory_budget_bytes // (FLUSH_ALL_PART * TURN_BYTES):
            self.flush()
            return 0
        self.now_ms()
        self.flush_some()
        if budget_bytes(&self.c) > self.compact_above_bytes:
            self.keep_budget()
        return 0

    cdef bint flush_some(self) except -1:
        """One slice; whether more waits. Evictions stay marked: they are carried out at the end of the turn."""
        cdef bint more
        cdef uint64_t started_us = clock_us(), sent_bytes = self.c.flusher.sent_bytes
        with nogil:
            more = flush_slice(&self.c)
        if self.c.transports.n:
            self.write_transports()
        measure(&self.c, started_us, sent_bytes)
        return more

    def _on_turn_end(self):
        self.is_scheduled = False
        self.now_ms()
        self.c.totals.turns += 1
        self.n_early_slices = 0
        cdef uint32_t n_full = self.c.full.n
        cdef bint more = self.flush_some()
        judge_new(&self.c, n_full)
        if budget_bytes(&self.c) > self.compact_above_bytes:
            self.keep_budget()
        self.act()
        if more:
            self.schedule()
        if STARLIGHT_CHECKS:
            self.check()

    def _on_writable(self):
        """The epoll of the full sockets has something to say."""
        cdef epoll_event events[64]
        cdef subscriber_t* sub
        cdef int i, n = 64, rounds = 0
        while n == 64 and rounds < 32:                   # the rest comes with the loop's next poll
            rounds += 1
            n = epoll_wait(self.c.epoll_fd, events, 64, 0)
            for i in range(n):
                sub = <subscriber_t*>events[i].data.ptr
                full_remove(&self.c, sub)
                mark(&self.c, sub)
        self.schedule()

    cpdef writable(self, Subscriber subscriber):
        """The transport below has sent all it held (resume_writing)."""
        self.check_thread()
        cdef subscriber_t* sub = subscriber.s
        if sub == NULL:
            return
        sub.transport_busy = False
        sub.is_stalled = False
        if sub.fd < 0:
            full_remove(&self.c, sub)
        mark_first(&self.c, sub)
        self.schedule()

    cdef int write_transports(self) except -1:
        """The second sink: what a slice left for transports, at most STAGE_BYTES at a time and only into an empty one."""
        cdef vector_t mine = self.c.transports
        cdef subscriber_t* sub
        cdef uint32_t i
        self.c.transports.items = NULL
        self.c.transports.n = self.c.transports.capacity = 0
        self.c.n_private += 1
        for i in range(mine.n):
            sub = <subscriber_t*>mine.items[i]
            if sub.state != STATE_DEAD:
                try:
                    self.write_transport(sub, <Subscriber>sub.handle)
                except Exception as error:
                    self.report("writing through a transport failed", error)
                    if sub.state != STATE_DEAD:
                        raise_event(&self.c.flusher.eventful, sub, EVENT_BROKEN)
            unlist(sub, LIST_TRANSPORTS)
        self.c.n_private -= 1
        apply_flush(&self.c)
        vector_free(&mine)
        return 0

    cdef int write_transport(self, subscriber_t* sub, Subscriber handle) except -1:
        cdef flusher_t* f = &self.c.flusher
        cdef bint has_written = False
        transport = handle.transport
        if sub.state < STATE_CLOSED and transport.is_closing():      # the peer has gone: it logs what is written now
            raise_event(&f.eventful, sub, EVENT_BROKEN)
            return 0
        while sub.state != STATE_DEAD and not sub.is_full and not sub.transport_busy:
            if transport.get_write_buffer_size() > 0:
                sub.is_full = True
                if has_written or not sub.is_stalled:
                    sub.stalled_since_ms = f.now_ms
                    sub.is_stalled = True
                full_add(&self.c, sub)
                if sub.state <= STATE_CLOSING:           # one that is evicted has a second to live: nobody pays for it
                    count_transport(&self.c, sub, transport.get_write_buffer_size())
                return 0
            f.stage_used = 0
            flush_one(f, sub)
            if sub.is_full:                              # the stage was, not the transport
                sub.is_full = False
                f.newly_full.n -= 1
                sub.lists &= ~LIST_NEWLY_FULL
            if f.stage_used == 0:
                return 0
            transport.write(PyBytes_FromStringAndSize(f.stage, f.stage_used))
            has_written = True
        return 0

    cdef int act(self) except -1:
        """Carry out what fan-out and flush marked. Owners may publish, close and detach in here."""
        cdef vector_t mine = self.c.flusher.eventful
        cdef Subscriber subscriber
        cdef subscriber_t* sub
        cdef uint32_t i
        cdef uint8_t events
        self.c.flusher.eventful.items = NULL
        self.c.flusher.eventful.n = self.c.flusher.eventful.capacity = 0
        self.c.n_private += 1
        for i in range(mine.n):
            sub = <subscriber_t*>mine.items[i]
            events = sub.events
            sub.events = 0
            subscriber = None if sub.state == STATE_DEAD else <Subscriber>sub.handle
            unlist(sub, LIST_EVENTFUL)                   # before its owner is called, which may raise the next event
            if subscriber is not None:
                self.act_guarded(subscriber, events)
        self.c.n_private -= 1
        vector_free(&mine)
        if self.c.n_untold:
            self.tell_dry_run()
        return 0

    cdef int tell_dry_run(self) except -1:
        """Tell the owners of those that would go if the limits were enforced; once an episode each."""
        cdef list owners = []
        cdef subscriber_t* sub
        cdef uint32_t i
        self.c.n_untold = 0
        for i in range(self.c.all.n):
            sub = <subscriber_t*>self.c.all.items[i]
            if sub.is_untold:
                sub.is_untold = False
                owners.append((<Subscriber>sub.handle).owner)
        for owner in owners:
            try:
                owner.on_would_evict()
            except Exception as error:
                self.report("a connection failed to handle an event", error)
        return 0

    cdef int act_guarded(self, Subscriber subscriber, uint8_t events) except -1:
        """`act_on`; what an owner fails at is reported, and the turn goes on."""
        try:
            self.act_on(subscriber, events)
        except Exception as error:
            self.report("a connection failed to handle an event", error)
        return 0

    cdef int act_on(self, Subscriber subscriber, uint8_t events) except -1:
        cdef subscriber_t* sub = subscriber.s
        owner = subscriber.owner
        if events & EVENT_BROKEN:
            self.c.totals.broken += 1
            self.drop(sub)
            owner.on_broken()
            return 0
        if events & EVENT_CLOSE_SENT:
            owner.on_close_sent()
            return 0
        if sub.state > STATE_CLOSING:                    # it went another way since it was doomed
            return 0
        self.c.totals.evicted[sub.evict_reason] += 1
        try:
            owner.on_evicted(REASONS[sub.evict_reason], sub.end_messages, sub.end_bytes, sub.end_oldest_ms)
        finally:
            self.evict(subscriber, 0)                    # it goes all the same if its owner failed to close it
        return 0

    cdef int drop(self, subscriber_t* sub) except -1:
        """Nothing can be written any more: out of every channel, the outbox and all control frames gone."""
        self.take_out(sub)
        if sub.state < STATE_EVICTED:
            note_end(&self.c, sub)
        full_remove(&self.c, sub)
        drop_outbox(&self.c, sub, 0)
        clear_frames(sub)
        sub.state = STATE_CLOSED
        return 0

    cdef int report(self, str message, error) except -1:
        if self.loop is not None:
            self.loop.call_exception_handler({"message": message, "exception": error})
        return 0

    # ---- the sweep: what time alone decides

    cpdef sweep(self):
        """Judge the full subscribers by the clock, and keep memory within bounds. Call it every 50 ms or so.

        One that seems to take nothing is offered more before it goes: the loop may have been too busy to be told.
        """
        cdef core_t* c = &self.c
        cdef uint32_t i
        cdef subscriber_t* sub
        cdef uint8_t reason
        self.check_thread()
        self.now_ms()
        settle(c)
        if is_held_up(c):
            self.forgive_transports(c.flusher.now_ms - c.swept_ms - HELD_UP_MS)
        sweep_begins(c)
        for i in range(c.full.n, 0, -1):                 # from the end: who takes more now leaves the list
            sub = <subscriber_t*>c.full.items[i - 1]
            reason = verdict(c, sub)
            if reason and not (reason == REASON_DRY_RUN and is_noted(c, sub)) and self.offer(sub):
                reason = verdict(c, sub)
            if reason:
                carry_out(c, sub, reason)
        apply_flush(c)
        if c.full.n and c.arena.held_bytes > COMPACT_ABOVE_BYTES:
            compact(c)
        if budget_bytes(c) > c.limits.memory_budget_bytes // 2:
            self.keep_budget()
        else:
            self.compact_above_bytes = c.limits.memory_budget_bytes // 2
        self.act()

    cdef int forgive_transports(self, uint32_t held_ms) except -1:
        """The loop was held up for so long: what transports hold could not go on, as only the loop writes it."""
        cdef core_t* c = &self.c
        cdef subscriber_t* sub
        cdef uint32_t i
        for i in range(c.full.n):
            sub = <subscriber_t*>c.full.items[i]
            if sub.fd < 0:
                sub.stalled_since_ms += min(held_ms, c.flusher.now_ms - sub.stalled_since_ms)
        return 0

    cdef bint offer(self, subscriber_t* sub) except -1:
        """Look whether a full sink takes more after all; True if it took something since it was last seen to."""
        cdef core_t* c = &self.c
        cdef uint64_t sent_bytes = c.flusher.sent_bytes
        cdef uint32_t n_bytes
        if sub.fd >= 0:
            write_once(c, sub)
            return c.flusher.sent_bytes != sent_bytes
        n_bytes = (<Subscriber>sub.handle).transport.get_write_buffer_size()
        if n_bytes >= sub.transport_bytes:
            return False
        count_transport(c, sub, n_bytes)
        sub.stalled_since_ms = c.flusher.now_ms
        return True

    cdef int keep_budget(self) except -1:
        """Over half the budget: copy what pins chunks. Over all of it: doom, the largest outbox first.

        Between two sweeps a turn comes here again only when another 1/32 of the budget is held: a compaction walks the
        spans of all full subscribers.
        """
        cdef core_t* c = &self.c
        cdef subscriber_t* sub
        compact(c)
        self.compact_above_bytes = min(c.limits.memory_budget_bytes,
                                       budget_bytes(c) + c.limits.memory_budget_bytes // 32)
        while budget_bytes(c) > c.limits.memory_budget_bytes:
            arena_trim(&c.arena)
            sub = largest_full(c)
            if sub == NULL or budget_bytes(c) <= c.limits.memory_budget_bytes:
                break
            doom(c, sub, REASON_BUDGET)
        return 0

    # ---- what others may look at

    def counters(self):
        """A dict of integers: what lives now (all zero once every connection is gone), then totals that only grow."""
        self.check_thread()
        self.now_ms()
        return core_counters(&self.c)

    def owners(self):
        """A list of the owners of all subscribers, safe to iterate whatever is done to them."""
        cdef uint32_t i
        self.check_thread()
        return [(<Subscriber>(<subscriber_t*>self.c.all.items[i]).handle).owner for i in range(self.c.all.n)]

    def script_sends(self, bytes script):
        """Test seam: an array of int32, one for each send(2) to come: >0 bytes taken at most, 0 EAGAIN, <0 an errno."""
        self.test_script = script
        self.c.flusher.script = <const int32_t*>PyBytes_AS_STRING(script)
        self.c.flusher.script_size = <uint32_t>(len(script) // sizeof(int32_t))
        self.c.flusher.script_next = 0

    def check(self):
        """Assert the core's invariants (the debug build does so by itself after every step)."""
        check_core(&self.c)
