# Checks: the invariants of all records, asserted by the debug build after every step and by tests when they like.
#
# Law: nothing here changes anything. Sums, places and bits that the other files keep in step are counted anew.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from starlight.core.arena cimport vector_t
from starlight.core.outbox cimport (LIST_EVENTFUL, LIST_FIRST, LIST_MARKED, LIST_NEWLY_FULL, LIST_TRANSPORTS, STATE_DEAD,
                                    membership_t, span_bytes, span_t, subscriber_t)
from starlight.core.records cimport channel_t, core_t, member_t
from starlight.core.round cimport in_round


cdef inline int check_subscriber(core_t* c, subscriber_t* sub) except -1:
    cdef uint64_t n_bytes = 0, n_messages = 0
    cdef uint32_t i
    cdef span_t* span
    cdef membership_t* membership
    cdef channel_t* channel
    cdef member_t* member
    for i in range(sub.n_spans):
        span = &sub.spans[sub.first_span + i]
        assert span.first < span.end <= span.chunk.n_frames, "a span is empty or runs past its chunk"
        assert span.chunk.refs > 0, "a span's chunk was given back"
        n_bytes += span_bytes(span)
        n_messages += span.end - span.first
    assert sub.n_spans or sub.head_offset == 0, "an offset into nothing"
    assert n_messages == sub.out_messages and n_bytes - sub.head_offset == sub.out_bytes, "outbox sums are wrong"
    assert sub.first_span + sub.n_spans <= sub.span_capacity, "spans past their array"
    assert not sub.is_full or sub.is_stalled, "full since an unknown time"
    assert (sub.full_index < 0) or (<subscriber_t*>c.full.items[sub.full_index] == sub and sub.is_full)
    for i in range(sub.n_memberships):
        membership = &sub.memberships[i]
        channel = <channel_t*>membership.channel
        member = &channel.members[membership.index]
        assert member.sub == sub, "membership points elsewhere"
        assert member.membership == i
        assert member.slot < channel.n_slots and channel.slots[member.slot].encoding == sub.encoding, "another's encoding"
        assert channel.slots[member.slot].n_members > 0, "an encoding whose member isn't counted"
    return 0


cdef inline uint32_t occurrences(vector_t* vector, uint32_t start, void* item) noexcept nogil:
    cdef uint32_t i, n = 0
    for i in range(start, vector.n):
        n += vector.items[i] == item
    return n


cdef inline int check_list(core_t* c, subscriber_t* sub, uint8_t list_bit, uint32_t n, bint may_be_private) except -1:
    """A subscriber is in a list at most once, and its bit says so; a private list can't be seen from here."""
    assert n <= 1, "twice in a list"
    if sub.lists & list_bit:
        assert n == 1 or (may_be_private and c.n_private), "a bit without its list"
    else:
        assert n == 0, "in a list without its bit"
    return 0


cdef inline int check_lists(core_t* c, subscriber_t* sub) except -1:
    cdef uint32_t i, n_marked = occurrences(&c.marked, 0, sub)
    for i in range(c.flush_next, c.flushing.n):
        n_marked += in_round(c, i) == sub
    check_list(c, sub, LIST_MARKED, n_marked, False)
    check_list(c, sub, LIST_FIRST, occurrences(&c.first, 0, sub), False)
    check_list(c, sub, LIST_TRANSPORTS, occurrences(&c.transports, 0, sub), True)
    check_list(c, sub, LIST_NEWLY_FULL, occurrences(&c.flusher.newly_full, 0, sub), False)
    check_list(c, sub, LIST_EVENTFUL, occurrences(&c.flusher.eventful, 0, sub), True)
    assert sub.events == 0 or sub.lists & LIST_EVENTFUL, "an event that no list knows"
    return 0


cdef inline int check_core(core_t* c) except -1:
    cdef uint32_t i, n_memberships = 0
    cdef uint64_t transport_bytes = 0
    cdef subscriber_t* sub
    for i in range(c.all.n):
        sub = <subscriber_t*>c.all.items[i]
        assert sub.index == <int32_t>i and sub.state != STATE_DEAD
        n_memberships += sub.n_memberships
        check_subscriber(c, sub)
        transport_bytes += sub.transport_bytes
        if c.all.n <= 32:                  # quadratic
            check_lists(c, sub)
    assert n_memberships == c.n_memberships, "memberships were lost"
    assert transport_bytes == c.transport_bytes, "the transports' sum is wrong"
    assert c.run.channel == NULL or c.run.channel.n_members > 0, "a run without members"
    assert c.arena.n_free <= c.arena.n_chunks
    return 0
