# The round of a flush: everyone who was marked is written to, in slices between which the loop polls.
#
#   marked --start_round--> flushing [round_start ... | ... )  --visit--> flush_one, or `transports` for the GIL
#   newly full --apply_flush--> full, and the epoll that says when they take more
#
# Strategy: single-receiver work goes first, in every slice; rounds begin at rotating places, so that the last is not always the same.
# Law: the full list holds who is full and attached, each once (`full_index`); one bit in `lists` for each other list.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from starlight.core.arena cimport vector_push, vector_t
from starlight.core.flush cimport flush_one, flusher_t, raise_event
from starlight.core.histogram cimport clock_us, histogram_add
from starlight.core.outbox cimport (EVENT_BROKEN, LIST_FIRST, LIST_MARKED, LIST_NEWLY_FULL, LIST_TRANSPORTS, STATE_DEAD,
                                    releases_apply, subscriber_t)
from starlight.core.records cimport PREFETCH, core_t, prefetch_subscriber
from starlight.core.run cimport settle

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void* ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int EPOLL_CTL_ADD
    int EPOLL_CTL_MOD
    int EPOLL_CTL_DEL
    int EPOLL_CLOEXEC
    uint32_t EPOLLOUT
    uint32_t EPOLLONESHOT
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int n, int timeout_ms)

cdef enum:
    SLICE_SENDS = 1000           # ~5 ms of send(2): between slices the loop polls
    SLICE_BYTES = 8 * 1024 * 1024   # likewise for the copies that large messages are: looked at after every few sends
    SENDS_A_LOOK = 16
    TURN_BYTES = 1024 * 1024     # appended in one turn before a slice is flushed at once


# ---- lists -----------------------------------------------------------------------------------------------------------

cdef inline void unlist(subscriber_t* sub, uint8_t list_bit) noexcept nogil:
    """A list of the core let go of the subscriber; the last one frees it once it is detached."""
    sub.lists &= ~list_bit
    if sub.lists == 0 and sub.state == STATE_DEAD:
        free(sub)


cdef inline void full_add(core_t* c, subscriber_t* sub) noexcept nogil:
    cdef epoll_event event
    sub.full_index = <int32_t>c.full.n
    vector_push(&c.full, sub)
    if sub.fd < 0:
        return                                           # resume_writing wakes it
    event.events = EPOLLOUT | EPOLLONESHOT
    event.data.ptr = sub
    if epoll_ctl(c.epoll_fd, EPOLL_CTL_MOD if sub.in_epoll else EPOLL_CTL_ADD, sub.fd, &event) < 0:
        raise_event(&c.flusher.eventful, sub, EVENT_BROKEN)
    sub.in_epoll = True


cdef inline void count_transport(core_t* c, subscriber_t* sub, uint32_t n_bytes) noexcept nogil:
    """So much is held by the transport below, until it takes more or the subscriber goes."""
    c.transport_bytes -= sub.transport_bytes
    c.transport_bytes += n_bytes
    sub.transport_bytes = n_bytes


cdef inline void full_remove(core_t* c, subscriber_t* sub) noexcept nogil:
    """The sink takes more again (or the subscriber goes)."""
    cdef subscriber_t* moved
    sub.is_full = False
    count_transport(c, sub, 0)
    if sub.full_index >= 0:
        c.full.n -= 1
        moved = <subscriber_t*>c.full.items[c.full.n]
        c.full.items[sub.full_index] = moved
        moved.full_index = sub.full_index
        sub.full_index = -1


# ---- slices ----------------------------------------------------------------------------------------------------------

cdef inline void visit(core_t* c, subscriber_t* sub, uint8_t list_bit) noexcept nogil:
    """Flush one that was taken out of a list; a transport is written to with the GIL after the slice."""
    if sub.fd >= 0:
        flush_one(&c.flusher, sub)
    elif sub.state != STATE_DEAD and not sub.lists & LIST_TRANSPORTS:
        sub.lists |= LIST_TRANSPORTS
        vector_push(&c.transports, sub)
    unlist(sub, list_bit)


cdef inline void start_round(core_t* c) noexcept nogil:
    """Take the marked subscribers private; each round begins a slice further on, so that nobody is always last."""
    cdef vector_t emptied = c.flushing
    c.flushing = c.marked
    c.marked = emptied
    c.marked.n = 0
    c.flush_next = 0
    c.round_start = (c.round_start + SLICE_SENDS) % c.flushing.n if c.flushing.n > SLICE_SENDS else 0


cdef inline subscriber_t* in_round(core_t* c, uint32_t i) noexcept nogil:
    i += c.round_start
    return <subscriber_t*>c.flushing.items[i if i < c.flushing.n else i - c.flushing.n]


cdef inline bint flush_slice(core_t* c) noexcept nogil:
    """Flush all single-receiver work and one slice of the round; return whether more waits."""
    cdef subscriber_t* sub
    cdef uint32_t i, stop, look
    cdef uint64_t sent_bytes = c.flusher.sent_bytes
    settle(c)
    c.turn_bytes = 0
    c.totals.slices += 1
    for i in range(c.first.n):
        visit(c, <subscriber_t*>c.first.items[i], LIST_FIRST)
    c.first.n = 0
    if c.flush_next == c.flushing.n:
        start_round(c)
    stop = min(c.flushing.n, c.flush_next + SLICE_SENDS)
    while c.flush_next < stop and c.flusher.sent_bytes - sent_bytes < SLICE_BYTES:
        look = min(stop, c.flush_next + SENDS_A_LOOK)
        while c.flush_next < look:
            if c.flush_next + PREFETCH < stop:
                prefetch_subscriber(in_round(c, c.flush_next + PREFETCH))
            sub = in_round(c, c.flush_next)
            c.flush_next += 1
            visit(c, sub, LIST_MARKED)
    if c.flush_next == c.flushing.n:
        c.flushing.n = c.flush_next = 0
    apply_flush(c)
    return c.flushing.n > 0 or c.marked.n > 0


cdef inline bint is_behind(core_t* c) noexcept nogil:
    """Whether a round is under way: a slice was not enough for what is to be written."""
    return c.flushing.n > 0


cdef inline void measure(core_t* c, uint64_t started_us, uint64_t sent_bytes) noexcept nogil:
    """A slice is over that began at this time with so many bytes handed over; one that wrote nothing doesn't count."""
    if c.flusher.sent_bytes != sent_bytes:
        histogram_add(&c.flush_us, clock_us() - started_us)
        histogram_add(&c.flush_bytes, c.flusher.sent_bytes - sent_bytes)


cdef inline void apply_flush(core_t* c) noexcept nogil:
    """What a flush collected for the core: references given back, subscribers newly full."""
    cdef flusher_t* f = &c.flusher
    cdef subscriber_t* sub
    cdef uint32_t i
    releases_apply(&f.releases, &c.arena)
    for i in range(f.newly_full.n):
        sub = <subscriber_t*>f.newly_full.items[i]
        if sub.state != STATE_DEAD and sub.is_full and sub.full_index < 0:
            full_add(c, sub)
        unlist(sub, LIST_NEWLY_FULL)
    f.newly_full.n = 0
