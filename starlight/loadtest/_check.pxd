# The delivery checker: loss, duplicates, order, wrong receiver and damage, while the load runs.
#
# A stream is one sender to one group (everyone, a channel or a user) with its own consecutive numbers; a pair is a stream at one of its
# receivers. The contract is first in, first out per pair, so the whole memory of a pair is the next number expected and a short list of
# ranges still missing: O(pairs), whatever the rate. checker.py has the same rules as an obvious Python model; a test compares both.
#
#   number == next   as it should be            number > next   next .. number-1 are missing
#   number <  next   if it was missing: it came late, the order is wrong; else: a duplicate
#   no such pair     this receiver is no member of the group: wrong receiver
#   at the end       what is missing, and the tail up to what was sent, is lost
#
# A pair that joined while traffic ran owes nothing sent before the join's `ok` was seen (`base`), but from the first message it received
# on everything. Ownership: a Receiver owns its table and the missing lists (receiver_free). Nothing here allocates on the fast path.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from starlight.loadtest._arena cimport *

cdef enum:
    MISSING_RANGES = 16          # a receiver that misses more ranges than this at once: the oldest is lost for good
    NO_BASE = 0xFFFFFFFF
    PAIR_NEW = 0                 # joined, nothing received yet
    PAIR_RUNNING = 1
    PAIR_LEFT = 2                # left: whatever comes now is misdelivered
    PAIR_LEAVING = 3             # the leave is sent, its `ok` not seen yet: deliveries are fine, nothing is owed

ctypedef struct Range:
    uint32_t first
    uint32_t last

ctypedef struct Missing:
    uint32_t ranges
    Range range[16]

ctypedef struct Pair:
    uint32_t key                 # stream + 1; 0: empty slot
    uint32_t next
    uint32_t base                # owed, and counted in Entry.remaining, from this number on
    uint32_t state
    Missing *missing             # owned; NULL while there is no gap

ctypedef struct Receiver:
    Pair *pairs                  # open addressing, a power of two, at most 3/4 full
    uint32_t mask
    uint32_t used
    uint32_t counted             # 1: messages wait for this receiver (not for slow readers, nor for unsampled ones)


cdef inline Pair *pair_slot(Pair *pairs, uint32_t mask, uint32_t key) noexcept nogil:
    cdef uint32_t at = (key * 2654435769U >> 7) & mask
    while pairs[at].key != 0 and pairs[at].key != key:
        at = (at + 1) & mask
    return &pairs[at]


cdef inline Pair *pair_find(Receiver *r, uint32_t stream) noexcept nogil:
    cdef Pair *pair
    if r.pairs == NULL:
        return NULL
    pair = pair_slot(r.pairs, r.mask, stream + 1)
    return pair if pair.key != 0 else NULL


cdef inline Pair *pair_add(Receiver *r, uint32_t stream) noexcept nogil:
    """The pair of a stream, made if need be. NULL: out of memory."""
    cdef Pair *bigger
    cdef Pair *pair
    cdef uint32_t size, i
    if r.pairs == NULL or (r.used + 1) * 4 > (r.mask + 1) * 3:
        size = 2 if r.pairs == NULL else (r.mask + 1) * 2
        bigger = <Pair *>calloc(size, sizeof(Pair))
        if bigger == NULL:
            return NULL
        if r.pairs != NULL:
            for i in range(r.mask + 1):
                if r.pairs[i].key != 0:
                    pair_slot(bigger, size - 1, r.pairs[i].key)[0] = r.pairs[i]
            free(r.pairs)
        r.pairs = bigger
        r.mask = size - 1
    pair = pair_slot(r.pairs, r.mask, stream + 1)
    if pair.key == 0:
        r.used += 1
        pair.key = stream + 1
        pair.state = PAIR_LEFT
    return pair


cdef inline void receiver_free(Receiver *r) noexcept nogil:
    cdef uint32_t i
    if r.pairs != NULL:
        for i in range(r.mask + 1):
            free(r.pairs[i].missing)
        free(r.pairs)
    r.pairs = NULL
    r.mask = r.used = 0


cdef inline int group_enter(Shared *shared, Receiver *r, uint32_t group) noexcept nogil:
    """The join is sent: deliveries of the group are no longer wrong, nothing is owed yet. -1: out of memory."""
    cdef Group *g = &shared.groups[group]
    cdef Pair *pair
    cdef uint32_t i
    for i in range(g.streams):
        pair = pair_add(r, shared.group_streams[g.first_stream + i])
        if pair == NULL:
            return -1
        pair.state = PAIR_NEW
        pair.next = 0
        pair.base = NO_BASE
        if pair.missing != NULL:
            pair.missing.ranges = 0
    return 0


cdef inline void group_joined(Shared *shared, Receiver *r, uint32_t group) noexcept nogil:
    """The join is confirmed: whatever is sent from now on must arrive."""
    cdef Group *g = &shared.groups[group]
    cdef Pair *pair
    cdef uint32_t i, stream
    for i in range(g.streams):
        stream = shared.group_streams[g.first_stream + i]
        pair = pair_find(r, stream)
        if pair != NULL:
            pair.base = sl_load32(&shared.streams[stream].sent)
    if r.counted:
        sl_add32(&g.members, 1)


cdef inline void missing_drop(Missing *m, uint32_t at) noexcept nogil:
    cdef uint32_t i
    m.ranges -= 1
    for i in range(at, m.ranges):
        m.range[i] = m.range[i + 1]


cdef inline uint64_t missing_count(Pair *pair) noexcept nogil:
    cdef uint64_t n = 0
    cdef uint32_t i
    if pair.missing != NULL:
        for i in range(pair.missing.ranges):
            n += pair.missing.range[i].last - pair.missing.range[i].first + 1
    return n


cdef inline void note_missing(uint64_t *counters, Pair *pair, uint32_t first, uint32_t last) noexcept nogil:
    cdef Missing *m = pair.missing
    if m == NULL:
        m = pair.missing = <Missing *>calloc(1, sizeof(Missing))
        if m == NULL:
            counters[LOST] += last - first + 1
            return
    if m.ranges == MISSING_RANGES:
        counters[LOST] += m.range[0].last - m.range[0].first + 1
        missing_drop(m, 0)
    m.range[m.ranges].first = first
    m.range[m.ranges].last = last
    m.ranges += 1


cdef inline bint was_missing(Pair *pair, uint32_t number) noexcept nogil:
    """Take a number out of the missing ranges; False if it isn't in them."""
    cdef Missing *m = pair.missing
    cdef Range *range_
    cdef uint32_t i, last
    if m == NULL:
        return False
    for i in range(m.ranges):
        range_ = &m.range[i]
        if range_.first <= number <= range_.last:
            last = range_.last
            if range_.first == last:
                missing_drop(m, i)
            elif number == range_.first:
                range_.first += 1
            elif number == last:
                range_.last -= 1
            else:
                range_.last = number - 1
                if m.ranges < MISSING_RANGES:
                    m.range[m.ranges].first = number + 1
                    m.range[m.ranges].last = last
                    m.ranges += 1
            return True
    return False


cdef inline void settle_range(Shared *shared, Receiver *r, Pair *pair, uint32_t first, uint32_t end) noexcept nogil:
    """Account for the numbers first .. end-1, as far as messages still wait for them at this receiver."""
    cdef uint32_t stream = pair.key - 1
    cdef uint32_t ring = shared.streams[stream].mask + 1
    if not r.counted or pair.base == NO_BASE:
        return
    if first < pair.base:
        first = pair.base
    if end > first and end - first > ring:
        first = end - ring
    while first < end:
        settle(shared, stream, first)
        first += 1


cdef inline void deliver_odd(Shared *shared, Receiver *r, Pair *pair, uint32_t number, uint64_t *counters) noexcept nogil:
    """Everything but the next number in order."""
    if pair == NULL or pair.state == PAIR_LEFT:
        counters[MISDELIVERED] += 1
        return
    if number >= sl_load32(&shared.streams[pair.key - 1].sent):
        counters[DAMAGED] += 1             # never sent: the checksum is right by chance, or the message is from another run
        return
    if pair.state == PAIR_NEW or (pair.state == PAIR_LEAVING and pair.next == 0):
        if pair.state == PAIR_NEW:
            pair.state = PAIR_RUNNING
            if pair.base != NO_BASE and number > pair.base:
                note_missing(counters, pair, pair.base, number - 1)
                settle_range(shared, r, pair, pair.base, number)
        pair.next = number + 1
        settle_range(shared, r, pair, number, number + 1)
        return
    if number >= pair.next:
        if number > pair.next:
            note_missing(counters, pair, pair.next, number - 1)
            settle_range(shared, r, pair, pair.next, number)
        pair.next = number + 1
        if pair.state == PAIR_RUNNING:
            settle_range(shared, r, pair, number, number + 1)
        return
    if was_missing(pair, number):
        counters[REORDERED] += 1
    else:
        counters[DUPLICATES] += 1


cdef inline void deliver(Shared *shared, Receiver *r, uint32_t stream, uint32_t number, uint64_t *counters) noexcept nogil:
    """One undamaged message arrived at a receiver. `stream` < n_streams."""
    cdef Pair *pair = pair_find(r, stream)
    if sl_likely(pair != NULL and pair.next == number and pair.state == PAIR_RUNNING):
        if sl_unlikely(number >= sl_load32(&shared.streams[stream].sent)):
            counters[DAMAGED] += 1
            return
        pair.next = number + 1
        if r.counted and number >= pair.base:
            settle(shared, stream, number)
        return
    deliver_odd(shared, r, pair, number, counters)


cdef inline void group_leave(Shared *shared, Receiver *r, uint32_t group, uint64_t *counters, uint32_t state) noexcept nogil:
    """The receiver leaves (PAIR_LEAVING until the `ok`, PAIR_LEFT at once when its connection is gone): what is on the way is not owed,
    what is missing before it is lost."""
    cdef Group *g = &shared.groups[group]
    cdef Pair *pair
    cdef uint32_t i, stream
    cdef bint was_member = False
    for i in range(g.streams):
        stream = shared.group_streams[g.first_stream + i]
        pair = pair_find(r, stream)
        if pair == NULL or pair.state == PAIR_LEFT:
            continue
        if pair.state != PAIR_LEAVING:
            was_member = was_member or pair.base != NO_BASE
            settle_range(shared, r, pair, pair.next if pair.state == PAIR_RUNNING else 0, sl_load32(&shared.streams[stream].sent))
            counters[LOST] += missing_count(pair)
            if pair.missing != NULL:
                pair.missing.ranges = 0
        pair.state = state
    if r.counted and was_member:
        sl_add32(&g.members, -1)


cdef inline uint64_t group_finish(Shared *shared, Receiver *r, uint32_t group, bint owes_tail) noexcept nogil:
    """How much of a group's traffic is lost at this receiver, judged after the last message had time to arrive."""
    cdef Group *g = &shared.groups[group]
    cdef Pair *pair
    cdef Stream *s
    cdef uint64_t lost = 0
    cdef uint32_t i, start
    for i in range(g.streams):
        s = &shared.streams[shared.group_streams[g.first_stream + i]]
        pair = pair_find(r, shared.group_streams[g.first_stream + i])
        if pair == NULL or pair.state == PAIR_LEFT or pair.state == PAIR_LEAVING:
            continue
        lost += missing_count(pair)
        start = pair.next if pair.state == PAIR_RUNNING else pair.base
        if owes_tail and not s.gone and start != NO_BASE and s.sent > start:
            lost += s.sent - start
    return lost
