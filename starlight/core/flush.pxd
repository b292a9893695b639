# The flush: hand each marked subscriber's outbox to the kernel, with as few and as large calls as there can be.
#
#   flush_one:  [torn frame's rest] -> [control frames] -> [all other frames] -> [close frame, once nothing is left]
#
# Law: runs without the GIL and calls no Python. It touches the subscriber's own struct and its flusher; whatever concerns
# the core (references given back, subscribers newly full, events) is collected in the flusher and applied after the flush,
# so that slices can one day run on several threads. A data frame and a control frame are never torn at once.

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy
from starlight.core.arena cimport frame_start, vector_push, vector_t
from starlight.core.outbox cimport (EVENT_BROKEN, EVENT_CLOSE_SENT, LINES_FRAME_BYTES, LIST_EVENTFUL, LIST_NEWLY_FULL, STATE_CLOSED, STATE_DEAD, control_t,
                                merged_t, releases_t, span_t, subscriber_t, between_frames, outbox_consume, torn_bytes)
from starlight.core.wire cimport WIRE_TEXT, wire_write_header

cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    int MSG_NOSIGNAL
    int MSG_DONTWAIT
    ssize_t sys_send "send"(int fd, const void* data, size_t size, int flags)
    ssize_t sys_sendmsg "sendmsg"(int fd, const msghdr* message, int flags)

cdef extern from "<string.h>" nogil:
    void* memset(void* to, int value, size_t size)

cdef enum:
    MAX_IOVECS = 64              # spans a call; more go with the next call
    SCRATCH_BYTES = 16 * 1024    # small spans gathered by copy: an iovec costs the kernel more than copying 512 bytes
    SMALL_SPAN_BYTES = 512
    STAGE_BYTES = 64 * 1024      # what a transport sink is given at once
    MAX_WRITE_BYTES = 1024 * 1024

cdef enum written_t:
    WRITTEN_ALL = 1
    WRITTEN_SHORT = 0            # the sink is full
    WRITTEN_BROKEN = -1

ctypedef struct flusher_t:
    uint32_t now_ms
    releases_t releases
    vector_t newly_full          # borrowed subscribers; each at most once (LIST_NEWLY_FULL)
    vector_t eventful            # likewise (LIST_EVENTFUL)
    char* stage                  # owned, STAGE_BYTES: what the transport sink collects
    uint32_t stage_used
    const int32_t* script        # test seam, borrowed from the core: >0 bytes taken at most, 0 EAGAIN, <0 an errno
    uint32_t script_size
    uint32_t script_next
    uint64_t sends               # system calls
    uint64_t short_sends         # of which the kernel took less than all
    uint64_t sent_bytes
    uint64_t spans               # spans offered to the kernel, summed
    iovec iov[MAX_IOVECS]
    char scratch[SCRATCH_BYTES]


cdef inline void raise_event(vector_t* eventful, subscriber_t* sub, uint8_t event) noexcept nogil:
    if not sub.lists & LIST_EVENTFUL:
        sub.lists |= LIST_EVENTFUL
        vector_push(eventful, sub)
    sub.events |= event


cdef inline ssize_t limit_iovecs(iovec* iov, int* n, size_t limit) noexcept nogil:
    cdef int i
    cdef size_t total = 0
    for i in range(n[0]):
        if total + iov[i].iov_len >= limit:
            iov[i].iov_len = limit - total
            n[0] = i + 1
            return <ssize_t>limit
        total += iov[i].iov_len
    return <ssize_t>total


cdef inline ssize_t socket_write(flusher_t* f, int fd, iovec* iov, int n) noexcept nogil:
    """Bytes the kernel took; 0 if it is full, -1 if the socket is broken."""
    cdef ssize_t taken
    cdef int32_t scripted
    cdef msghdr message
    while f.script_next < f.script_size:
        scripted = f.script[f.script_next]
        f.script_next += 1
        if scripted == -EINTR:
            continue
        if scripted <= 0:
            return 0 if scripted == 0 or -scripted in (EAGAIN, ENOBUFS) else -1
        limit_iovecs(iov, &n, <size_t>scripted)
        break
    while True:
        f.sends += 1
        if n == 1:
            taken = sys_send(fd, iov[0].iov_base, iov[0].iov_len, MSG_NOSIGNAL | MSG_DONTWAIT)
        else:
            memset(&message, 0, sizeof(msghdr))
            message.msg_iov = iov
            message.msg_iovlen = n
            taken = sys_sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
        if taken >= 0:
            return taken
        if errno == EINTR:
            continue
        return 0 if errno == EAGAIN or errno == ENOBUFS else -1


cdef inline ssize_t stage_write(flusher_t* f, iovec* iov, int n) noexcept nogil:
    """The transport's half of the seam: collect up to STAGE_BYTES, which the caller hands over with the GIL."""
    cdef ssize_t taken = 0
    cdef size_t room, size
    cdef int i
    for i in range(n):
        room = STAGE_BYTES - f.stage_used
        size = iov[i].iov_len if iov[i].iov_len < room else room
        memcpy(f.stage + f.stage_used, iov[i].iov_base, size)
        f.stage_used += <uint32_t>size
        taken += <ssize_t>size
        if size < iov[i].iov_len:
            break
    return taken


cdef inline written_t sink_write(flusher_t* f, subscriber_t* sub, int n, size_t total, ssize_t* taken) noexcept nogil:
    """The one seam between an outbox and what is below it: write f.iov[:n], `total` bytes."""
    if sub.fd >= 0:
        taken[0] = socket_write(f, sub.fd, f.iov, n)
    else:
        taken[0] = stage_write(f, f.iov, n)
    if taken[0] == <ssize_t>total:
        f.sent_bytes += total
        return WRITTEN_ALL
    f.short_sends += 1
    if taken[0] < 0:
        taken[0] = 0
        return WRITTEN_BROKEN
    f.sent_bytes += <size_t>taken[0]
    return WRITTEN_SHORT


cdef inline int gather(flusher_t* f, subscriber_t* sub, int n, size_t limit, size_t* total) noexcept nogil:
    """Fill f.iov[n:] with up to `limit` bytes from the front of the outbox; return the new n, add to total."""
    cdef uint32_t i, scratch_used = 0
    cdef span_t* span
    cdef char* start
    cdef size_t size
    cdef uint32_t skip = sub.head_offset
    cdef bint gathered = False
    for i in range(sub.n_spans):
        span = &sub.spans[sub.first_span + i]
        start = span.chunk.data + frame_start(span.chunk, span.first) + skip
        size = <size_t>(span.chunk.data + span.chunk.frames[span.end - 1].end - start)
        skip = 0
        if size > limit:
            size = limit
        f.spans += 1
        if size < SMALL_SPAN_BYTES and sub.n_spans > 1 and scratch_used + size <= SCRATCH_BYTES:
            memcpy(f.scratch + scratch_used, start, size)
            if gathered:
                f.iov[n - 1].iov_len += size
            elif n == MAX_IOVECS:
                break
            else:
                f.iov[n].iov_base = f.scratch + scratch_used
                f.iov[n].iov_len = size
                n += 1
                gathered = True
            scratch_used += <uint32_t>size
        elif n == MAX_IOVECS:
            break
        else:
            f.iov[n].iov_base = start
            f.iov[n].iov_len = size
            n += 1
            gathered = False
        total[0] += size
        limit -= size
        if limit == 0:
            break
    return n


cdef inline written_t write_frames(flusher_t* f, subscriber_t* sub, bint only_torn) noexcept nogil:
    cdef size_t total = 0
    cdef ssize_t taken
    cdef int n = gather(f, sub, 0, torn_bytes(sub) if only_torn else MAX_WRITE_BYTES, &total)
    cdef written_t result = sink_write(f, sub, n, total, &taken)
    outbox_consume(sub, <uint64_t>taken, &f.releases)
    return result


cdef inline void start_merged(subscriber_t* sub) noexcept nogil:
    """Fix the next merged frame: whole messages up to LINES_FRAME_BYTES, at least one; the last separator stays out."""
    cdef merged_t* merged = sub.merged
    cdef uint64_t n_bytes = 0, size
    cdef uint32_t i, frame
    cdef span_t* span
    for i in range(sub.n_spans):
        span = &sub.spans[sub.first_span + i]
        for frame in range(span.first, span.end):
            size = span.chunk.frames[frame].end - frame_start(span.chunk, frame)
            if n_bytes and n_bytes + size - 1 > LINES_FRAME_BYTES:
                merged.left_bytes = <uint32_t>(n_bytes - 1)
                merged.header_size = <uint8_t>wire_write_header(merged.header, WIRE_TEXT, n_bytes - 1)
                merged.header_sent = 0
                return
            n_bytes += size
    merged.left_bytes = <uint32_t>(n_bytes - 1)
    merged.header_size = <uint8_t>wire_write_header(merged.header, WIRE_TEXT, n_bytes - 1)
    merged.header_sent = 0


cdef inline written_t write_merged(flusher_t* f, subscriber_t* sub) noexcept nogil:
    """Write (on with) one merged frame."""
    cdef merged_t* merged = sub.merged
    cdef bint fresh = merged.header_size == 0
    if fresh:
        start_merged(sub)
    cdef size_t header_left = merged.header_size - merged.header_sent
    cdef size_t total = header_left
    cdef ssize_t taken
    cdef int n = 0
    if header_left:
        f.iov[0].iov_base = merged.header + merged.header_sent
        f.iov[0].iov_len = header_left
        n = 1
    n = gather(f, sub, n, merged.left_bytes, &total)
    cdef written_t result = sink_write(f, sub, n, total, &taken)
    if fresh and taken == 0:
        merged.header_size = 0                           # nothing is out: its length is free again
        return result
    if <size_t>taken < header_left:
        merged.header_sent += <uint8_t>taken
        return result
    merged.header_sent = merged.header_size
    merged.left_bytes -= <uint32_t>(<size_t>taken - header_left)
    if merged.left_bytes == 0:
        outbox_consume(sub, <size_t>taken - header_left + 1, &f.releases)    # and the separator behind it
        merged.header_size = 0
        merged.header_sent = 0
    else:
        outbox_consume(sub, <size_t>taken - header_left, &f.releases)
    return result


cdef inline bint control_waits(subscriber_t* sub) noexcept nogil:
    cdef control_t* control = sub.control
    if control == NULL:
        return False
    return (control.tx_size or control.pong_size or control.ping_size
            or (control.close_size and sub.n_spans == 0))


cdef inline void fill_tx(subscriber_t* sub) noexcept nogil:
    """Move what waits to the transmission buffer; the close only behind everything else."""
    cdef control_t* control = sub.control
    memcpy(control.tx, control.pong, control.pong_size)
    control.tx_size = control.pong_size
    memcpy(control.tx + control.tx_size, control.ping, control.ping_size)
    control.tx_size += control.ping_size
    control.pong_size = control.ping_size = 0
    if control.close_size and sub.n_spans == 0:
        memcpy(control.tx + control.tx_size, control.close, control.close_size)
        control.tx_size += control.close_size
        control.close_size = 0
        sub.state = STATE_CLOSED                          # nothing can be queued behind it


cdef inline written_t write_control(flusher_t* f, subscriber_t* sub) noexcept nogil:
    cdef control_t* control = sub.control
    cdef ssize_t taken
    if control.tx_size == 0:
        fill_tx(sub)
    f.iov[0].iov_base = control.tx + control.tx_sent
    f.iov[0].iov_len = control.tx_size - control.tx_sent
    cdef written_t result = sink_write(f, sub, 1, f.iov[0].iov_len, &taken)
    control.tx_sent += <uint16_t>taken
    if result != WRITTEN_ALL:
        return result
    control.tx_size = control.tx_sent = 0
    if control.close_size == 0 and control.pong_size == 0 and control.ping_size == 0:
        free(control)
        sub.control = NULL
    if sub.state == STATE_CLOSED:
        raise_event(&f.eventful, sub, EVENT_CLOSE_SENT)
    return result


cdef inline void flush_one(flusher_t* f, subscriber_t* sub) noexcept nogil:
    """Write until nothing is left or the sink is full."""
    cdef written_t result = WRITTEN_ALL
    cdef uint64_t sent_bytes = f.sent_bytes
    cdef bint waits
    if sub.state == STATE_DEAD or sub.is_full or sub.transport_busy:
        return
    while result == WRITTEN_ALL:
        waits = control_waits(sub)
        if waits and between_frames(sub):
            result = write_control(f, sub)
        elif sub.n_spans == 0:
            sub.is_stalled = False
            return
        elif sub.merged != NULL:
            result = write_merged(f, sub)
        else:
            result = write_frames(f, sub, waits)
    if result == WRITTEN_BROKEN:
        raise_event(&f.eventful, sub, EVENT_BROKEN)
        return
    sub.is_full = True
    if f.sent_bytes != sent_bytes or not sub.is_stalled:
        sub.stalled_since_ms = f.now_ms
        sub.is_stalled = True
    if not sub.lists & LIST_NEWLY_FULL:
        sub.lists |= LIST_NEWLY_FULL
        vector_push(&f.newly_full, sub)
