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

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from starlight.core.arena cimport chunk_t, chunk_unref, frame_start, lane_commit, lane_reserve, vector_push
from starlight.core.encoding cimport (MAX_ENCODINGS, SHARED, SINGLE, affix_of, affix_t, encoding_t, message_t, write_message,
                                      written_bytes)
from starlight.core.outbox cimport LIST_FIRST, LIST_MARKED, STATE_OPEN, outbox_append, subscriber_t
from starlight.core.records cimport (PREFETCH, channel_t, core_t, member_of, member_t, prefetch_subscriber, run_part_t,
                                     run_t)


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

cdef inline uint32_t unsettled_from(run_t* run, member_t* member) noexcept nogil:
    """The first frame of the run that a member of its channel hasn't in its outbox."""
    cdef uint32_t first = run.parts[member.slot].first
    return member.sub.run_seen if member.sub.run_id == run.id and member.sub.run_seen > first else first


cdef inline void settle_member(core_t* c, member_t* member) noexcept nogil:
    """Deliver what the run holds for one member of its channel, and remember how far that was."""
    cdef run_t* run = &c.run
    cdef run_part_t* part = &run.parts[member.slot]
    cdef subscriber_t* sub = member.sub
    cdef uint32_t first = unsettled_from(run, member), end = part.end
    sub.run_id = run.id
    sub.run_seen = end
    if first < end and sub.state == STATE_OPEN:
        deliver(c, sub, part.chunk, first, end, part.chunk.frames[end - 1].end - frame_start(part.chunk, first))
        mark(c, sub)


cdef inline void settle_one(core_t* c, subscriber_t* sub) noexcept nogil:
    """Deliver what the run holds for a subscriber, if it is in its channel."""
    cdef member_t* member
    if c.run.channel != NULL:
        member = member_of(sub, c.run.channel)
        if member != NULL:
            settle_member(c, member)


cdef inline void settle(core_t* c) noexcept nogil:
    """Deliver the run to all members of its channel, and end it."""
    cdef run_t* run = &c.run
    cdef channel_t* channel = run.channel
    cdef run_part_t* part
    cdef subscriber_t* sub
    cdef uint64_t n_bytes[MAX_ENCODINGS]
    cdef uint32_t i, n, slot
    if channel == NULL:
        return
    for slot in range(channel.n_slots):
        part = &run.parts[slot]
        n_bytes[slot] = 0
        if part.chunk != NULL:
            n_bytes[slot] = part.chunk.frames[part.end - 1].end - frame_start(part.chunk, part.first)
    n = channel.n_members
    for i in range(n):
        if i + PREFETCH < n:
            prefetch_subscriber(channel.members[i + PREFETCH].sub)
        sub = channel.members[i].sub
        slot = channel.members[i].slot
        if sub.run_id == run.id:                         # it joined or was sent something meanwhile
            settle_member(c, &channel.members[i])
        elif sub.state == STATE_OPEN and n_bytes[slot]:
            part = &run.parts[slot]
            deliver(c, sub, part.chunk, part.first, part.end, n_bytes[slot])
            mark(c, sub)
    run.channel = NULL
    for slot in range(channel.n_slots):
        part = &run.parts[slot]
        if part.chunk != NULL:
            chunk_unref(&c.arena, part.chunk, 1)
            part.chunk = NULL
    c.totals.settles += 1


cdef inline void clear_part(run_t* run, uint32_t slot) noexcept nogil:
    run.parts[slot].chunk = NULL
    run.parts[slot].first = run.parts[slot].end = 0


cdef inline void start_run(core_t* c, channel_t* channel) noexcept nogil:
    cdef uint32_t slot
    c.run.channel = channel
    c.run.id += 1
    for slot in range(channel.n_slots):
        clear_part(&c.run, slot)


cdef inline int run_append(core_t* c, channel_t* channel, message_t* m) noexcept nogil:
    """Append a publication to the channel's run, in each encoding that has members; -1 without memory."""
    cdef run_t* run = &c.run
    cdef run_part_t* part
    cdef encoding_t* encoding
    cdef affix_t* affix
    cdef chunk_t** lane
    cdef uint32_t size, slot
    cdef char* to
    if run.channel != channel:
        settle(c)
        start_run(c, channel)
    for slot in range(channel.n_slots):
        if channel.slots[slot].n_members == 0:
            continue
        encoding = &c.encodings[channel.slots[slot].encoding]
        affix = affix_of(m, encoding.codec)
        part = &run.parts[slot]
        lane = &encoding.lanes[SHARED]
        size = written_bytes(m, affix, encoding.framing)
        to = lane_reserve(&c.arena, lane, size)
        if to == NULL:
            return -1
        if part.chunk != lane[0]:
            if part.chunk != NULL:                       # the chunk was full: the run goes on in a new one
                settle(c)
                start_run(c, channel)
            part.chunk = lane[0]
            lane[0].refs += 1
            part.first = lane[0].n_frames
        write_message(to, m, affix, encoding.framing, encoding.opcode)
        part.end = lane_commit(lane[0], size, c.flusher.now_ms) + 1
        encoding.n_publications += 1
        encoding.n_bytes += size
        c.turn_bytes += size
        c.totals.delivery_bytes += <uint64_t>size * channel.slots[slot].n_members
    channel.n_publications += 1
    channel.n_deliveries += channel.n_members
    c.totals.messages += 1
    c.totals.publications += 1
    c.totals.deliveries += channel.n_members
    return 0


cdef inline int send_one(core_t* c, subscriber_t* sub, message_t* m, uint8_t opcode) noexcept nogil:
    """Append a single-receiver message behind all that the subscriber was to get before; -1 without memory.

    The message has one affix, its codec's.
    """
    cdef encoding_t* encoding = &c.encodings[sub.encoding]
    cdef chunk_t** lane = &encoding.lanes[SINGLE]
    cdef affix_t* affix = &m.affixes[0]
    cdef uint32_t size, index
    cdef char* to
    if sub.state != STATE_OPEN:
        return 0
    size = written_bytes(m, affix, encoding.framing)
    if sub.events:                                       # as in `deliver`, but not written either
        count_dropped(c, sub, 1, size)
        return 0
    settle_one(c, sub)
    to = lane_reserve(&c.arena, lane, size)
    if to == NULL:
        return -1
    write_message(to, m, affix, encoding.framing, opcode)
    index = lane_commit(lane[0], size, c.flusher.now_ms)
    deliver(c, sub, lane[0], index, index + 1, size)
    mark_first(c, sub)
    c.turn_bytes += size
    c.totals.messages += 1
    c.totals.deliveries += 1
    return 0
