# The core's records and its loops: appending, the run, membership, flushing in slices, memory. No Python in any of them.
#
#   core_t --lanes--> open chunk per wire form, for shared and for single-receiver frames
#          --run----> the one channel whose latest frames are not yet in its members' outboxes
#          --lists--> all, marked, flushing, first (single-receiver work), full, transports: borrowed subscribers
#
# The run is what makes a burst cheap: publications to one channel only extend the run, and its members' outboxes are touched
# once, when something else needs them settled (another channel's publication, the run's own bounds, the end of the turn). A
# reply or direct to one member, or its leaving, settles that member alone.
#
# Eviction: full subscribers are judged after the flush that ends a turn and in sweeps, never while messages are delivered;
# delivering writes to no socket. Whoever has to go is doomed: its outbox is dropped at once, the rest follows with its event.
#
# Lifetime: a subscriber_t is freed once it is detached and in no list of the core (`lists`). Its fd is borrowed from
# the transport until Core.detach(), which the connection calls before the transport closes it. A channel_t lives inside its
# Channel, which every membership keeps alive; a run's channel always has a member.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy
from starlight.core.arena cimport (CHUNK_BYTES, arena_t, checked_realloc, chunk_new, chunk_t, chunk_unref, frame_start,
                               lane_commit, lane_reserve, vector_push, vector_t)
from starlight.core.flush cimport flush_one, flusher_t, raise_event
from starlight.core.histogram cimport clock_us, histogram_add, histogram_t
from starlight.core.outbox cimport (CACHE_LINE_BYTES, EVENT_BROKEN, EVENT_EVICT, FORM_FRAMES, FORM_LINES, LIST_EVENTFUL,
                                LIST_FIRST, LIST_MARKED, LIST_NEWLY_FULL, LIST_TRANSPORTS, N_FORMS, N_REASONS,
                                REASON_DRY_RUN, REASON_NONE, REASON_SLOW, REASON_TIMEOUT, STATE_CLOSING, STATE_DEAD, STATE_OPEN,
                                membership_t, outbox_age_ms, outbox_append, outbox_truncate,
                                releases_apply, span_bytes, span_t, subscriber_t, torn_bytes)
from starlight.core.wire cimport wire_header_size, wire_write_header

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

cdef extern from *:
    """
    #define starlight_prefetch(p) __builtin_prefetch((p), 1, 3)
    """
    void starlight_prefetch(void* p) nogil

cdef enum:
    SLICE_SENDS = 1000           # ~5 ms of send(2): between slices the loop polls
    SLICE_BYTES = 8 * 1024 * 1024   # likewise for the copies that large messages are: looked at after every few sends
    SENDS_A_LOOK = 16
    TURN_BYTES = 1024 * 1024     # appended in one turn before a slice is flushed at once
    HELD_UP_MS = 200             # sweeps come every 50 ms or so: four were missed
    EPISODE_MS = 60_000          # a dry run: so long without a verdict, and the next one is told again
    PREFETCH = 6                 # members ahead; a subscriber is a cache miss beyond a few hundred

cdef enum:
    SHARED = 0
    SINGLE = 1
    N_SHARINGS = 2

ctypedef struct member_t:
    subscriber_t* sub            # borrowed: leaves before it is freed
    uint32_t membership          # place in sub.memberships

ctypedef struct channel_t:
    member_t* members            # owned
    uint32_t n_members
    uint32_t capacity
    uint32_t n_form[N_FORMS]     # members by wire form: a form nobody wants is not written
    uint64_t n_publications      # these two only ever grow
    uint64_t n_deliveries
    void* handle                 # PyObject* of the Channel (the struct is inside it)

ctypedef struct run_t:
    channel_t* channel           # NULL: no run
    uint64_t id
    chunk_t* chunk[N_FORMS]      # one reference each, or NULL
    uint32_t first[N_FORMS]
    uint32_t end[N_FORMS]

ctypedef struct limits_t:
    uint32_t outbox_messages
    uint64_t outbox_bytes
    uint32_t evict_after_ms
    uint32_t write_timeout_ms
    uint64_t memory_budget_bytes
    bint is_dry_run              # nobody goes for the limits of outboxes

ctypedef struct totals_t:        # only ever grow
    uint64_t messages            # publications and single-receiver messages accepted
    uint64_t publications        # of which went to a channel, `everyone` included
    uint64_t deliveries          # messages put into an outbox
    uint64_t delivery_bytes      # of publications, once for each member
    uint64_t settles
    uint64_t turns
    uint64_t slices
    uint64_t evicted[N_REASONS]
    uint64_t dropped_messages[N_REASONS]    # what evicted clients never got
    uint64_t dropped_bytes[N_REASONS]
    uint64_t broken
    uint64_t compacted_bytes

ctypedef struct core_t:
    arena_t arena
    chunk_t* lanes[N_FORMS][N_SHARINGS]   # one reference each, or NULL
    run_t run
    limits_t limits
    totals_t totals
    vector_t all
    vector_t marked              # to be flushed
    vector_t flushing            # the round under way, from flush_next on
    uint32_t flush_next
    vector_t first               # single-receiver work, flushed before the round
    vector_t full
    vector_t transports          # popped in this slice, written with the GIL
    uint64_t transport_bytes     # what transports below hold of full subscribers: counts against the budget
    uint32_t n_private           # lists that `act` and `write_transports` took out and walk now; the bits are still set
    uint32_t swept_ms            # when the full ones were last swept
    uint32_t n_untold            # subscribers whose owners are to be told that they would have gone
    uint32_t patience_ms         # what is left of the longest time between two sweeps: messages may be older by as much
    uint64_t turn_bytes          # appended since the last flush
    uint32_t round_start         # where in `flushing` the round began
    uint32_t n_channels
    uint32_t n_memberships
    uint32_t n_joins             # ever, modulo 2**32
    int epoll_fd
    flusher_t flusher
    histogram_t flush_us         # of each flush that handed anything over: how long it took,
    histogram_t flush_bytes      # and how much that was

ctypedef struct message_t:       # borrowed for one call: the parts of a message, written one behind the other
    const char* part[3]
    size_t size[3]
    uint8_t opcode


cdef inline void prefetch_subscriber(subscriber_t* sub) noexcept nogil:
    starlight_prefetch(sub)
    starlight_prefetch(<char*>sub + CACHE_LINE_BYTES)


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
        c.totals.delivery_bytes += <uint64_t>size * channel.n_form[form]
    channel.n_publications += 1
    channel.n_deliveries += channel.n_members
    c.totals.messages += 1
    c.totals.publications += 1
    c.totals.deliveries += channel.n_members
    return 0


cdef inline bint is_member(subscriber_t* sub, channel_t* channel) noexcept nogil:
    cdef uint32_t i
    for i in range(sub.n_memberships):
        if sub.memberships[i].channel == channel:
            return True
    return False


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


# ---- membership ------------------------------------------------------------------------------------------------------

cdef inline void channel_add(core_t* c, channel_t* channel, subscriber_t* sub) noexcept nogil:
    cdef membership_t* membership
    if channel.n_members == channel.capacity:
        channel.capacity = channel.capacity * 2 if channel.capacity else 1   # very many channels have one member
        channel.members = <member_t*>checked_realloc(channel.members, channel.capacity * sizeof(member_t))
    if sub.n_memberships == sub.membership_capacity:
        sub.membership_capacity = sub.membership_capacity * 2 if sub.membership_capacity else 2
        sub.memberships = <membership_t*>checked_realloc(sub.memberships, sub.membership_capacity * sizeof(membership_t))
    channel.members[channel.n_members].sub = sub
    channel.members[channel.n_members].membership = sub.n_memberships
    membership = &sub.memberships[sub.n_memberships]
    membership.channel = channel
    membership.index = channel.n_members
    membership.number = c.n_joins
    c.n_joins += 1
    channel.n_members += 1
    channel.n_form[sub.form] += 1
    sub.n_memberships += 1
    c.n_memberships += 1
    if c.run.channel == channel:                         # what the run already holds came before this join
        sub.run_id = c.run.id
        sub.run_seen = c.run.end[sub.form]


cdef inline void channel_remove(core_t* c, subscriber_t* sub, uint32_t slot) noexcept nogil:
    """Swap-remove on both sides, O(1); what was published before the leaving is delivered."""
    cdef channel_t* channel = <channel_t*>sub.memberships[slot].channel
    cdef uint32_t index = sub.memberships[slot].index
    cdef member_t* moved
    cdef membership_t* other
    if c.run.channel == channel:
        settle_member(c, sub)
        if channel.n_members == 1:
            settle(c)
    channel.n_members -= 1
    channel.n_form[sub.form] -= 1
    if index != channel.n_members:
        moved = &channel.members[index]
        moved[0] = channel.members[channel.n_members]
        moved.sub.memberships[moved.membership].index = index
    sub.n_memberships -= 1
    if slot != sub.n_memberships:
        other = &sub.memberships[slot]
        other[0] = sub.memberships[sub.n_memberships]
        (<channel_t*>other.channel).members[other.index].membership = slot
    c.n_memberships -= 1
    if channel.capacity > 64 and channel.n_members < channel.capacity // 4:
        channel.capacity //= 2
        channel.members = <member_t*>checked_realloc(channel.members, channel.capacity * sizeof(member_t))


# ---- flushing --------------------------------------------------------------------------------------------------------

cdef inline void unlist(subscriber_t* sub, uint8_t list_bit) noexcept nogil:
    """A list of the core let go of the subscriber; the last one frees it once it is detached."""
    sub.lists &= ~list_bit
    if sub.lists == 0 and sub.state == STATE_DEAD:
        free(sub)


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


cdef inline uint64_t budget_bytes(core_t* c) noexcept nogil:
    """What the budget is about: all chunks, and what left them for transports that hold it."""
    return c.arena.held_bytes + c.transport_bytes


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


# ---- eviction --------------------------------------------------------------------------------------------------------

cdef inline bint is_held_up(core_t* c) noexcept nogil:
    """Whether the last sweep was so long ago that the loop must have been busy with other things."""
    return c.flusher.now_ms - c.swept_ms > HELD_UP_MS


cdef inline uint8_t verdict_slow(core_t* c, uint32_t stalled_ms) noexcept nogil:
    """What becomes of one over the limits of outboxes: in a dry run only the write timeout is enforced."""
    if not c.limits.is_dry_run:
        return REASON_SLOW
    return REASON_TIMEOUT if stalled_ms >= c.limits.write_timeout_ms else REASON_DRY_RUN


cdef inline uint32_t patience_ms(core_t* c) noexcept nogil:
    """By how much messages may be older than the write timeout, as the loop was held up and wrote nothing meanwhile."""
    return max(c.patience_ms, c.flusher.now_ms - c.swept_ms)


cdef inline void sweep_begins(core_t* c) noexcept nogil:
    """A time in which the loop was held up is given back to clients once, and then runs out as time goes on."""
    cdef uint32_t passed_ms = c.flusher.now_ms - c.swept_ms
    c.patience_ms = max(passed_ms, c.patience_ms - min(c.patience_ms, passed_ms))
    c.swept_ms = c.flusher.now_ms


cdef inline uint8_t verdict(core_t* c, subscriber_t* sub) noexcept nogil:
    """Why a full subscriber has to go, by what is known of it now."""
    cdef limits_t* limits = &c.limits
    cdef uint32_t now_ms = c.flusher.now_ms
    cdef uint32_t stalled_ms = now_ms - sub.stalled_since_ms
    if not sub.is_full or sub.events or sub.state > STATE_CLOSING:
        return REASON_NONE
    if sub.state == STATE_OPEN and (sub.out_messages > limits.outbox_messages or sub.out_bytes > limits.outbox_bytes):
        if stalled_ms >= limits.evict_after_ms:
            return verdict_slow(c, stalled_ms)
        if outbox_age_ms(sub, now_ms) >= <uint64_t>limits.write_timeout_ms + patience_ms(c):
            return verdict_slow(c, stalled_ms)
    elif stalled_ms >= limits.write_timeout_ms:
        return REASON_TIMEOUT
    return REASON_NONE


cdef inline void write_once(core_t* c, subscriber_t* sub) noexcept nogil:
    """Offer a full socket more, though no event said that it takes more; `apply_flush` must follow."""
    full_remove(c, sub)
    flush_one(&c.flusher, sub)


cdef inline void note_end(core_t* c, subscriber_t* sub) noexcept nogil:
    """Its outbox is about to be dropped: remember for its owner what it held."""
    sub.end_messages = sub.out_messages
    sub.end_bytes = sub.out_bytes
    sub.end_oldest_ms = outbox_age_ms(sub, c.flusher.now_ms)


cdef inline void drop_outbox(core_t* c, subscriber_t* sub, uint64_t keep_bytes) noexcept nogil:
    """Give the outbox back, but for frames of which a byte is among the next `keep_bytes`, and count what went."""
    cdef uint32_t n_messages = sub.out_messages
    cdef uint64_t n_bytes = sub.out_bytes
    outbox_truncate(sub, keep_bytes, &c.flusher.releases)
    releases_apply(&c.flusher.releases, &c.arena)
    count_dropped(c, sub, n_messages - sub.out_messages, n_bytes - sub.out_bytes)


cdef inline void doom(core_t* c, subscriber_t* sub, uint8_t reason) noexcept nogil:
    """Decide that it goes: nothing more is delivered to it and its memory is free now; `act` does the rest."""
    sub.evict_reason = reason
    note_end(c, sub)
    drop_outbox(c, sub, torn_bytes(sub))
    count_transport(c, sub, 0)                           # it has a second to live: nobody pays for it
    raise_event(&c.flusher.eventful, sub, EVENT_EVICT)


cdef inline bint is_noted(core_t* c, subscriber_t* sub) noexcept nogil:
    """Whether it has been over the limits in a dry run within the last minute: that is one episode."""
    return sub.is_noted and c.flusher.now_ms - sub.noted_ms < EPISODE_MS


cdef inline void carry_out(core_t* c, subscriber_t* sub, uint8_t reason) noexcept nogil:
    """Do what a verdict says; in a dry run, note it, and have the owner told of each new episode."""
    if reason != REASON_DRY_RUN:
        doom(c, sub, reason)
        return
    if not is_noted(c, sub) and not sub.is_untold:
        sub.is_untold = True
        c.n_untold += 1
    sub.is_noted = True
    sub.noted_ms = c.flusher.now_ms


cdef inline void judge_new(core_t* c, uint32_t first) noexcept nogil:
    """Judge those that became full in the flush that has just ended: `full` from `first` on."""
    cdef subscriber_t* sub
    cdef uint8_t reason
    cdef uint32_t i
    for i in range(first, c.full.n):
        sub = <subscriber_t*>c.full.items[i]
        reason = verdict(c, sub)
        if reason:
            carry_out(c, sub, reason)


# ---- memory ----------------------------------------------------------------------------------------------------------

cdef inline bint copy_span(core_t* c, span_t* span) noexcept nogil:
    """Move a span to a chunk of its own, exactly as large as it."""
    cdef uint32_t start = frame_start(span.chunk, span.first), i, n = span.end - span.first
    cdef uint32_t n_bytes = <uint32_t>span_bytes(span)
    cdef chunk_t* chunk = chunk_new(&c.arena, n_bytes, n)
    if chunk == NULL:
        return False
    memcpy(chunk.data, span.chunk.data + start, n_bytes)
    for i in range(n):
        chunk.frames[i] = span.chunk.frames[span.first + i]
        chunk.frames[i].end -= start
    chunk.used_bytes = n_bytes
    chunk.n_frames = n
    chunk_unref(&c.arena, span.chunk, 1)
    span.chunk = chunk
    span.first = 0
    span.end = n
    c.totals.compacted_bytes += n_bytes
    return True


cdef inline void compact(core_t* c) noexcept nogil:
    """Copy out what keeps a sealed chunk less than a quarter alive: the copies together take less than the chunk."""
    cdef subscriber_t* sub
    cdef span_t* span
    cdef uint32_t i, j, step
    for step in range(3):                                # zero, sum up, copy
        for i in range(c.full.n):
            sub = <subscriber_t*>c.full.items[i]
            for j in range(sub.n_spans):
                span = &sub.spans[sub.first_span + j]
                if step == 0:
                    span.chunk.live_bytes = 0
                elif step == 1:
                    span.chunk.live_bytes += span_bytes(span)
                elif (not span.chunk.is_open and span.chunk.capacity_bytes >= CHUNK_BYTES
                        and span.chunk.live_bytes < span.chunk.capacity_bytes // 4):
                    copy_span(c, span)


cdef inline subscriber_t* largest_full(core_t* c) noexcept nogil:
    """Of the full subscribers that don't go already, the one with the largest outbox; NULL if there is none."""
    cdef subscriber_t* largest = NULL
    cdef uint64_t n_bytes, largest_bytes = 0
    cdef subscriber_t* sub
    cdef uint32_t i
    for i in range(c.full.n):
        sub = <subscriber_t*>c.full.items[i]
        n_bytes = sub.out_bytes + sub.transport_bytes
        if sub.state <= STATE_CLOSING and not sub.events and (largest == NULL or n_bytes > largest_bytes):
            largest = sub
            largest_bytes = n_bytes
    return largest


# ---- invariants ------------------------------------------------------------------------------------------------------

cdef inline int check_subscriber(core_t* c, subscriber_t* sub) except -1:
    cdef uint64_t n_bytes = 0, n_messages = 0
    cdef uint32_t i
    cdef span_t* span
    cdef membership_t* membership
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
        assert (<channel_t*>membership.channel).members[membership.index].sub == sub, "membership points elsewhere"
        assert (<channel_t*>membership.channel).members[membership.index].membership == i
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
