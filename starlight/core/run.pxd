# The run: messages are appended once, and reach their receivers' outboxes when something needs them there.
#
#   publish(A) publish(A) publish(A) | publish(B)
#   `- run of A: three frames -------'  settle: A's members get one span of three frames, then the run of B begins
#
# The run is what makes a burst cheap: publications to one channel only extend the run, and its members' outboxes are touched
# once, when something else needs them settled (another channel's publication, the run's own bounds, the end of the turn). A
# reply or direct to one member, or its leaving, settles that member alone (`run_seen`).
#
# Law: a run's channel always has a member. Delivering writes to no socket and never judges. One that is doomed gets nothing.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from starlight.core.arena cimport chunk_t, chunk_unref, frame_start, lane_commit, lane_reserve, vector_push
from starlight.core.outbox cimport (FORM_FRAMES, FORM_LINES, LIST_FIRST, LIST_MARKED, N_FORMS, STATE_OPEN, outbox_append,
                                    subscriber_t)
from starlight.core.records cimport (PREFETCH, SHARED, SINGLE, channel_t, core_t, is_member, message_t, prefetch_subscriber,
                                     run_t)
from starlight.core.wire cimport wire_header_size, wire_write_header


# ---- appending -------------------------------------------------------------------------------------------------------

cdef inline uint64_t payload_bytes(message_t* m) noexcept nogil:
    return m.size[0] + m.size[1] + m.size[2]


cdef inline uint32_t written_bytes(message_t* m, int form) noexcept nogil:
    return <uint32_t>(payload_bytes(m) + (wire_header_size(payload_bytes(m)) if form == FORM_FRAMES else 1))


cdef inline void write_message(char* to, message_t* m, int form) noexcept nogil:
    cdef size_t i
    if form == FORM_FRAMES:
        to += wire_write_header(to, m.opcode, payload_bytes(m))
    memcpy(to, m.part[0], m.size[0])
    to += m.size[0]
    memcpy(to, m.part[1], m.size[1])
    if form == FORM_LINES:                               # a line break in valid JSON is white space; here it would separate
        for i in range(m.size[1]):
            if to[i] == c"\n" or to[i] == c"\r":
                to[i] = c" "
    to += m.size[1]
    memcpy(to, m.part[2], m.size[2])
    if form == FORM_LINES:
        to[m.size[2]] = c"\n"


# ---- marking and delivering ------------------------------------------------------------------------------------------

cdef inline void mark(core_t* c, subscriber_t* sub) noexcept nogil:
    if not sub.lists & LIST_MARKED:
        sub.lists |= LIST_MARKED
        vector_push(&c.marked, sub)


cdef inline void mark_first(core_t* c, subscriber_t* sub) noexcept nogil:
    if not sub.lists & LIST_FIRST:
        sub.lists |= LIST_FIRST
        vector_push(&c.first, sub)


cdef inline void count_dropped(core_t* c, subscriber_t* sub, uint64_t n_messages, uint64_t n_bytes) noexcept nogil:
    c.totals.dropped_messages[sub.evict_reason] += n_messages
    c.totals.dropped_bytes[sub.evict_reason] += n_bytes


cdef inline void deliver(core_t* c, subscriber_t* sub, chunk_t* chunk, uint32_t first, uint32_t end,
                         uint64_t n_bytes) noexcept nogil:
    if sub.events:                                       # it is as good as gone: what came now would only be held
        count_dropped(c, sub, end - first, n_bytes)
        return
    outbox_append(sub, chunk, first, end, n_bytes)


# ---- the run ---------------------------------------------------------------------------------------------------------

cdef inline uint32_t unsettled_from(run_t* run, subscriber_t* sub) noexcept nogil:
    """The first frame of the run that a member of its channel hasn't in its outbox."""
    cdef uint32_t first = run.first[sub.form]
    return sub.run_seen if sub.run_id == run.id and sub.run_seen > first else first


cdef inline void settle_member(core_t* c, subscriber_t* sub) noexcept nogil:
    """Deliver what the run holds for one member and remember how far that was."""
    cdef run_t* run = &c.run
    cdef uint32_t first = unsettled_from(run, sub), end = run.end[sub.form]
    sub.run_id = run.id
    sub.run_seen = end
    if first < end and sub.state == STATE_OPEN:
        deliver(c, sub, run.chunk[sub.form], first, end,
                run.chunk[sub.form].frames[end - 1].end - frame_start(run.chunk[sub.form], first))
        mark(c, sub)


cdef inline void settle(core_t* c) noexcept nogil:
    """Deliver the run to all members of its channel, and end it."""
    cdef run_t* run = &c.run
    cdef channel_t* channel = run.channel
    cdef subscriber_t* sub
    cdef uint64_t n_bytes[N_FORMS]
    cdef uint32_t i, n
    cdef int form
    if channel == NULL:
        return
    for form in range(N_FORMS):
        n_bytes[form] = 0
        if run.chunk[form] != NULL:
            n_bytes[form] = run.chunk[form].frames[run.end[form] - 1].end - frame_start(run.chunk[form], run.first[form])
    n = channel.n_members
    for i in range(n):
        if i + PREFETCH < n:
            prefetch_subscriber(channel.members[i + PREFETCH].sub)
        sub = channel.members[i].sub
        form = sub.form
        if sub.run_id == run.id:                         # it joined or was sent something meanwhile
            settle_member(c, sub)
        elif sub.state == STATE_OPEN and n_bytes[form]:
            deliver(c, sub, run.chunk[form], run.first[form], run.end[form], n_bytes[form])
            mark(c, sub)
    run.channel = NULL
    for form in range(N_FORMS):
        if run.chunk[form] != NULL:
            chunk_unref(&c.arena, run.chunk[form], 1)
            run.chunk[form] = NULL
    c.totals.settles += 1


cdef inline void start_run(core_t* c, channel_t* channel) noexcept nogil:
    cdef int form
    c.run.channel = channel
    c.run.id += 1
    for form in range(N_FORMS):
        c.run.chunk[form] = NULL
        c.run.first[form] = c.run.end[form] = 0


cdef inline int run_append(core_t* c, channel_t* channel, message_t* m) noexcept nogil:
    """Append a publication to the channel's run, in each wire form that has members; -1 without memory."""
    cdef run_t* run = &c.run
    cdef chunk_t** lane
    cdef uint32_t size
    cdef char* to
    cdef int form
    if run.channel != channel:
        settle(c)
        start_run(c, channel)
    for form in range(N_FORMS):
        if channel.n_form[form] == 0:
            continue
        lane = &c.lanes[form][SHARED]
        size = written_bytes(m, form)
        to = lane_reserve(&c.arena, lane, size)
        if to == NULL:
            return -1
        if run.chunk[form] != lane[0]:
            if run.chunk[form] != NULL:                  # the chunk was full: the run goes on in a new one
                settle(c)
                start_run(c, channel)
            run.chunk[form] = lane[0]
            lane[0].refs += 1
            run.first[form] = lane[0].n_frames
        write_message(to, m, form)
        run.end[form] = lane_commit(lane[0], size, c.flusher.now_ms) + 1
        c.turn_bytes += size
    channel.n_publications += 1
    channel.n_deliveries += channel.n_members
    c.totals.messages += 1
    c.totals.publications += 1
    c.totals.deliveries += channel.n_members
    return 0


cdef inline int send_one(core_t* c, subscriber_t* sub, message_t* m) noexcept nogil:
    """Append a single-receiver message behind all that the subscriber was to get before; -1 without memory."""
    cdef chunk_t** lane = &c.lanes[sub.form][SINGLE]
    cdef uint32_t size, index
    cdef char* to
    if sub.state != STATE_OPEN:
        return 0
    if sub.events:                                       # as in `deliver`, but not written either
        count_dropped(c, sub, 1, written_bytes(m, sub.form))
        return 0
    if c.run.channel != NULL and is_member(sub, c.run.channel):
        settle_member(c, sub)
    size = written_bytes(m, sub.form)
    to = lane_reserve(&c.arena, lane, size)
    if to == NULL:
        return -1
    write_message(to, m, sub.form)
    index = lane_commit(lane[0], size, c.flusher.now_ms)
    deliver(c, sub, lane[0], index, index + 1, size)
    mark_first(c, sub)
    c.turn_bytes += size
    c.totals.messages += 1
    c.totals.deliveries += 1
    return 0
