# Outboxes: what each subscriber has not yet handed to the kernel, as a short list of spans of frames in shared chunks.
#
#   subscriber.spans:  [chunk A, frames 3..17)  [chunk B, frames 0..2)  [chunk A, frames 17..18)
#                       ^head_offset: bytes of frame 3 that are already out
#
# Law: a span holds one reference on its chunk and is never empty. `out_messages` and `out_bytes` are the sums over the spans
# (bytes less head_offset). Appending never copies payload; consuming gives references back to a release list, so that a
# flush touches only its own subscribers' structs.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset
from starlight.core.arena cimport arena_t, checked_realloc, chunk_t, chunk_unref, frame_start
from starlight.core.wire cimport WIRE_CLOSE, WIRE_MAX_CONTROL, WIRE_PING, WIRE_PONG, wire_write_header

cdef extern from "<stdlib.h>" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef enum state_t:
    STATE_OPEN = 0
    STATE_CLOSING = 1            # orderly: the outbox, then the close frame
    STATE_EVICTED = 2            # the torn frame's tail, then the close frame
    STATE_CLOSED = 3             # the close frame is with the kernel, nothing more is written
    STATE_DEAD = 4               # detached or broken: never touched again except to be freed

cdef enum event_t:               # what a flush or fan-out saw; carried out after it
    EVENT_EVICT = 1              # `evict_reason` says why
    EVENT_CLOSE_SENT = 2
    EVENT_BROKEN = 4             # the socket is gone: EPIPE, ECONNRESET, ...

cdef enum:                       # reasons of the core to evict
    REASON_NONE = 0              # it doesn't, or its user asked for it
    REASON_SLOW = 1              # over a limit of the outbox
    REASON_TIMEOUT = 2           # took nothing for the write timeout
    REASON_BUDGET = 3            # the largest outbox when memory ran out
    N_REASONS = 4
    REASON_DRY_RUN = 4           # it would go for REASON_SLOW, if that were enforced: none of those that are counted

cdef enum list_t:                # the lists of the core that may outlive a detach: a bit is set while the subscriber is in one
    LIST_MARKED = 1              # `marked`, or what is left of the round
    LIST_FIRST = 2
    LIST_TRANSPORTS = 4
    LIST_NEWLY_FULL = 8
    LIST_EVENTFUL = 16

cdef enum:
    CACHE_LINE_BYTES = 64
    INLINE_SPANS = 2
    CONTROL_FRAME = 2 + WIRE_MAX_CONTROL
    LINES_FRAME_BYTES = 64 * 1024   # a merged frame's messages, protocol.md

ctypedef struct span_t:
    chunk_t* chunk               # shared: one reference held
    uint32_t first               # frames [first, end)
    uint32_t end

ctypedef struct control_t:       # the lane of control frames: one ping, one close, and pongs in the room of one
    uint8_t pong_size            # bytes of whole wire frames; 0: none waits
    uint8_t ping_size
    uint8_t close_size
    uint16_t tx_size             # what is going out: complete control frames, filled only between data frames
    uint16_t tx_sent
    char pong[CONTROL_FRAME]
    char ping[CONTROL_FRAME]
    char close[CONTROL_FRAME]
    char tx[3 * CONTROL_FRAME]

ctypedef struct merged_t:        # FRAMING_LINES: the frame under way
    uint32_t left_bytes          # payload bytes still to go out; 0 with header_size 0: between frames
    uint8_t header_size
    uint8_t header_sent
    char header[10]

ctypedef struct membership_t:
    void* channel                # channel_t*, borrowed: the channel object is kept alive by one reference per membership
    uint32_t index               # place in the channel's members
    uint32_t number              # of the join, among those of the core modulo 2**32: tells their order

ctypedef struct subscriber_t:    # aligned to cache lines; a turn touches the first two of them and no more
    # The first: all that a fan-out touches.
    span_t* spans                # inline_spans, or owned
    uint32_t first_span          # the oldest one's index
    uint32_t n_spans
    uint64_t out_bytes
    uint32_t out_messages
    uint32_t run_seen
    uint64_t run_id              # the run of which this one already has the frames before run_seen
    uint8_t state
    uint8_t encoding             # its number
    uint8_t is_full              # the last send was short or EAGAIN, and no writable event has come since
    uint8_t is_stalled           # it has been full since its outbox was last empty: `stalled_since_ms` holds
    uint8_t lists                # bits of list_t: at most once in each, and freed only when it is in none
    uint8_t events               # waiting in the core's list of events
    uint8_t evict_reason         # set when the core decides
    uint8_t transport_busy       # the transport below still holds bytes: nothing is sent directly
    span_t inline_spans[INLINE_SPANS]    # the first one still in the first line
    # The second: what a flush needs as well.
    int fd                       # borrowed from the transport until detach; -1: write through the transport
    uint32_t head_offset
    control_t* control           # owned; NULL most of the time
    merged_t* merged             # owned; only FRAMING_LINES
    uint32_t stalled_since_ms    # when the sink last took a byte, or first refused one behind an empty outbox
    int32_t full_index           # place in the core's full list; -1: not in it
    uint32_t span_capacity
    uint32_t transport_bytes     # what the transport below holds, as far as the core counts it
    uint8_t in_epoll
    # The rest: membership.
    uint32_t n_memberships
    uint32_t membership_capacity
    membership_t* memberships    # owned
    int32_t index                # place in the core's list of all subscribers
    uint32_t noted_ms            # when it last would have gone in a dry run, if `is_noted`
    uint8_t is_noted
    uint8_t is_untold            # its owner is still to be told
    uint32_t end_messages        # what its outbox held when the core dropped it: evicted, or its socket broken
    uint32_t end_oldest_ms       # the age of the oldest of them
    uint64_t end_bytes
    void* handle                 # PyObject* of the Subscriber; the core holds one reference until detach


cdef inline subscriber_t* subscriber_new(int fd, uint8_t encoding, bint is_merged) noexcept nogil:
    """An open subscriber with nothing in its outbox; NULL without memory. is_merged: its framing merges messages."""
    cdef size_t size = (sizeof(subscriber_t) + CACHE_LINE_BYTES - 1) // CACHE_LINE_BYTES * CACHE_LINE_BYTES
    cdef subscriber_t* sub = <subscriber_t*>aligned_alloc(CACHE_LINE_BYTES, size)
    if sub == NULL:
        return NULL
    memset(sub, 0, size)
    if is_merged:
        sub.merged = <merged_t*>calloc(1, sizeof(merged_t))
        if sub.merged == NULL:
            free(sub)
            return NULL
    sub.spans = sub.inline_spans
    sub.span_capacity = INLINE_SPANS
    sub.encoding = encoding
    sub.fd = fd
    sub.full_index = -1
    return sub


cdef inline void free_parts(subscriber_t* sub) noexcept nogil:
    """All it owns, its outbox being empty; the struct itself may still be in a list of the core."""
    if sub.spans != sub.inline_spans:
        free(sub.spans)
    free(sub.control)
    free(sub.merged)
    free(sub.memberships)
    sub.spans = sub.inline_spans
    sub.control = NULL
    sub.merged = NULL
    sub.memberships = NULL


cdef inline span_t* last_span(subscriber_t* sub) noexcept nogil:
    return &sub.spans[sub.first_span + sub.n_spans - 1]


cdef inline void spans_grow(subscriber_t* sub) noexcept nogil:
    """Make room behind the last span: shift to the front while half is unused, else double."""
    cdef span_t* new
    cdef uint32_t capacity
    if sub.first_span >= sub.span_capacity // 2:
        memmove(sub.spans, sub.spans + sub.first_span, sub.n_spans * sizeof(span_t))
    else:
        capacity = sub.span_capacity * 2
        new = <span_t*>checked_realloc(NULL, capacity * sizeof(span_t))
        memcpy(new, sub.spans + sub.first_span, sub.n_spans * sizeof(span_t))
        if sub.spans != sub.inline_spans:
            free(sub.spans)
        sub.spans = new
        sub.span_capacity = capacity
    sub.first_span = 0


cdef inline void outbox_append(subscriber_t* sub, chunk_t* chunk, uint32_t first, uint32_t end, uint64_t n_bytes) noexcept nogil:
    """Add frames [first, end) of the chunk, `n_bytes` in all; grows the last span where they follow it."""
    cdef span_t* span
    if sub.n_spans:
        span = last_span(sub)
        if span.chunk == chunk and span.end == first:
            span.end = end
            sub.out_messages += end - first
            sub.out_bytes += n_bytes
            return
        if sub.first_span + sub.n_spans == sub.span_capacity:
            spans_grow(sub)
    else:
        sub.first_span = 0
    sub.n_spans += 1
    span = last_span(sub)
    span.chunk = chunk
    span.first = first
    span.end = end
    chunk.refs += 1
    sub.out_messages += end - first
    sub.out_bytes += n_bytes


cdef inline uint32_t outbox_age_ms(subscriber_t* sub, uint32_t now_ms) noexcept nogil:
    """How long the oldest message has waited; 0 with an empty outbox."""
    cdef span_t* span
    if sub.n_spans == 0:
        return 0
    span = &sub.spans[sub.first_span]
    return now_ms - span.chunk.frames[span.first].appended_ms


cdef inline uint64_t span_bytes(span_t* span) noexcept nogil:
    return span.chunk.frames[span.end - 1].end - frame_start(span.chunk, span.first)


ctypedef struct releases_t:      # references a flush gives back, applied after it
    chunk_t** chunks             # owned array of borrowed pointers
    uint32_t* counts             # owned
    uint32_t n
    uint32_t capacity


cdef inline void release(releases_t* releases, chunk_t* chunk) noexcept nogil:
    if releases.n and releases.chunks[releases.n - 1] == chunk:
        releases.counts[releases.n - 1] += 1
        return
    if releases.n == releases.capacity:
        releases.capacity = releases.capacity * 2 if releases.capacity else 64
        releases.chunks = <chunk_t**>checked_realloc(releases.chunks, releases.capacity * sizeof(chunk_t*))
        releases.counts = <uint32_t*>checked_realloc(releases.counts, releases.capacity * sizeof(uint32_t))
    releases.chunks[releases.n] = chunk
    releases.counts[releases.n] = 1
    releases.n += 1


cdef inline void releases_apply(releases_t* releases, arena_t* arena) noexcept nogil:
    cdef uint32_t i
    for i in range(releases.n):
        chunk_unref(arena, releases.chunks[i], releases.counts[i])
    releases.n = 0


cdef inline void outbox_consume(subscriber_t* sub, uint64_t n_bytes, releases_t* releases) noexcept nogil:
    """Count `n_bytes` from the front as handed over."""
    cdef span_t* span
    cdef uint64_t start, size
    cdef uint32_t i, low, high, middle
    if n_bytes == sub.out_bytes:                          # all of it, as nearly always
        for i in range(sub.n_spans):
            release(releases, sub.spans[sub.first_span + i].chunk)
        sub.out_bytes = sub.out_messages = sub.head_offset = sub.n_spans = 0
        outbox_shrink(sub)
        return
    sub.out_bytes -= n_bytes
    while n_bytes:
        span = &sub.spans[sub.first_span]
        start = frame_start(span.chunk, span.first) + sub.head_offset
        size = span.chunk.frames[span.end - 1].end - start
        if n_bytes >= size:
            n_bytes -= size
            sub.out_messages -= span.end - span.first
            sub.head_offset = 0
            release(releases, span.chunk)
            sub.first_span += 1
            sub.n_spans -= 1
            continue
        low = span.first                                  # the frame that holds byte start + n_bytes
        high = span.end - 1
        while low < high:
            middle = (low + high) // 2
            if span.chunk.frames[middle].end <= start + n_bytes:
                low = middle + 1
            else:
                high = middle
        sub.out_messages -= low - span.first
        span.first = low
        sub.head_offset = <uint32_t>(start + n_bytes - frame_start(span.chunk, low))
        n_bytes = 0


cdef inline void outbox_shrink(subscriber_t* sub) noexcept nogil:
    """Nothing waits: an array grown by a burst goes back."""
    sub.first_span = 0
    if sub.spans != sub.inline_spans and sub.span_capacity > 32:
        free(sub.spans)
        sub.spans = sub.inline_spans
        sub.span_capacity = INLINE_SPANS


cdef inline void outbox_truncate(subscriber_t* sub, uint64_t keep_bytes, releases_t* releases) noexcept nogil:
    """Drop every frame of which no byte is among the next `keep_bytes`; a frame is kept whole or not at all."""
    cdef uint32_t i, kept = 0, frame
    cdef uint64_t start, seen = 0
    cdef span_t* span
    sub.out_messages = 0
    sub.out_bytes = 0
    for i in range(sub.n_spans):
        span = &sub.spans[sub.first_span + i]
        if seen >= keep_bytes:
            release(releases, span.chunk)
            continue
        start = frame_start(span.chunk, span.first) + (sub.head_offset if i == 0 else 0)
        frame = span.first
        while frame < span.end - 1 and seen + span.chunk.frames[frame].end - start < keep_bytes:
            frame += 1
        span.end = frame + 1
        seen += span.chunk.frames[frame].end - start
        sub.out_messages += span.end - span.first
        kept += 1
    sub.out_bytes = seen
    sub.n_spans = kept
    if kept == 0:
        sub.head_offset = 0
        outbox_shrink(sub)


cdef inline void clear_frames(subscriber_t* sub) noexcept nogil:
    """Forget the merged frame under way and all control frames: nothing is written any more."""
    if sub.merged != NULL:
        sub.merged.header_size = 0
    free(sub.control)
    sub.control = NULL


cdef inline bint between_frames(subscriber_t* sub) noexcept nogil:
    """Whether the last byte handed over was a data frame's last one."""
    if sub.merged != NULL:
        return sub.merged.header_size == 0
    return sub.head_offset == 0


cdef inline uint64_t torn_bytes(subscriber_t* sub) noexcept nogil:
    """What is left of the data frame under way, in bytes of the outbox (a merged frame's header not counted)."""
    cdef span_t* span
    if between_frames(sub):
        return 0
    if sub.merged != NULL:
        return sub.merged.left_bytes
    span = &sub.spans[sub.first_span]
    return span.chunk.frames[span.first].end - frame_start(span.chunk, span.first) - sub.head_offset


# ---- the lane of control frames --------------------------------------------------------------------------------------

cdef inline control_t* control_of(subscriber_t* sub) noexcept nogil:
    if sub.control == NULL:
        sub.control = <control_t*>checked_realloc(NULL, sizeof(control_t))
        sub.control.pong_size = sub.control.ping_size = sub.control.close_size = 0
        sub.control.tx_size = sub.control.tx_sent = 0
    return sub.control


cdef inline void queue_pong(subscriber_t* sub, const char* payload, uint8_t size) noexcept nogil:
    """`size` is at most 125. Pongs of one turn go out together if they fit; otherwise, or on a full socket, the latest
    replaces what waits (RFC 6455 §5.5.3 asks for no more), so that a flood of pings costs one small write a turn."""
    cdef control_t* control = control_of(sub)
    if sub.is_full or sub.transport_busy or control.pong_size + 2 + size > CONTROL_FRAME:
        control.pong_size = 0
    wire_write_header(control.pong + control.pong_size, WIRE_PONG, size)
    memcpy(control.pong + control.pong_size + 2, payload, size)
    control.pong_size += 2 + size


cdef inline void queue_ping(subscriber_t* sub) noexcept nogil:
    cdef control_t* control = control_of(sub)
    control.ping_size = <uint8_t>wire_write_header(control.ping, WIRE_PING, 0)


cdef inline void queue_close(subscriber_t* sub, int code, const char* reason, Py_ssize_t size) noexcept nogil:
    """Code 0: without a payload. The reason is cut at 123 bytes."""
    cdef control_t* control = control_of(sub)
    if code == 0:
        control.close_size = <uint8_t>wire_write_header(control.close, WIRE_CLOSE, 0)
        return
    if size > WIRE_MAX_CONTROL - 2:
        size = WIRE_MAX_CONTROL - 2
    wire_write_header(control.close, WIRE_CLOSE, 2 + size)
    control.close[2] = <char>(code >> 8)
    control.close[3] = <char>(code & 0xFF)
    memcpy(control.close + 4, reason, size)
    control.close_size = <uint8_t>(4 + size)
