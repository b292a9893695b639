# The core's own records: channels and their members, the run, limits, totals, and what holds them all together.
#
#   core_t --encodings-> each with its open chunks, for shared and for single-receiver frames
#          --run----> the one channel whose latest frames are not yet in its members' outboxes
#          --lists--> all, marked, flushing, first (single-receiver work), full, transports: borrowed subscribers
#
# Law: a subscriber stands at most once in each list that may outlive its detach, and its bit in `lists` says so. It is freed
# once it is detached and in none of them. Its fd is borrowed from the transport until Core.detach(), which the connection
# calls before the transport closes it. A channel_t lives inside its Channel, which every membership keeps alive.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from starlight.core.arena cimport arena_t, chunk_t, vector_t
from starlight.core.encoding cimport MAX_ENCODINGS, encoding_t
from starlight.core.flush cimport flusher_t
from starlight.core.histogram cimport histogram_t
from starlight.core.outbox cimport CACHE_LINE_BYTES, N_REASONS, subscriber_t

cdef extern from *:
    """
    #define starlight_prefetch(p) __builtin_prefetch((p), 1, 3)
    """
    void starlight_prefetch(void* p) nogil

cdef enum:
    PREFETCH = 6                 # members ahead; a subscriber is a cache miss beyond a few hundred
    INLINE_SLOTS = 2             # encodings of a channel without an allocation; native clients need no more

ctypedef struct member_t:
    subscriber_t* sub            # borrowed: leaves before it is freed
    uint32_t membership          # place in sub.memberships
    uint32_t slot                # place of its encoding in channel.slots

ctypedef struct slot_t:          # an encoding that members of a channel use, or have used
    uint32_t n_members           # 0: nothing is written in it
    uint8_t encoding

ctypedef struct channel_t:
    member_t* members            # owned
    uint32_t n_members
    uint32_t capacity
    slot_t* slots                # inline_slots, or owned, with room for MAX_ENCODINGS; each encoding at most once
    uint32_t n_slots             # never fewer again: members hold places
    slot_t inline_slots[INLINE_SLOTS]
    uint64_t n_publications      # these two only ever grow
    uint64_t n_deliveries
    void* handle                 # PyObject* of the Channel (the struct is inside it)

ctypedef struct run_part_t:      # what the run has in one encoding: frames [first, end) of a chunk
    chunk_t* chunk               # one reference, or NULL: nothing
    uint32_t first
    uint32_t end

ctypedef struct run_t:
    channel_t* channel           # NULL: no run
    uint64_t id
    run_part_t parts[MAX_ENCODINGS]      # one for each of the channel's slots

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
    encoding_t encodings[MAX_ENCODINGS]   # by number
    uint8_t n_encodings
    uint8_t n_codecs
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


cdef inline void prefetch_subscriber(subscriber_t* sub) noexcept nogil:
    starlight_prefetch(sub)
    starlight_prefetch(<char*>sub + CACHE_LINE_BYTES)


cdef inline member_t* member_of(subscriber_t* sub, channel_t* channel) noexcept nogil:
    """A subscriber's place in a channel, borrowed until anyone joins or leaves; NULL if it is no member."""
    cdef uint32_t i
    for i in range(sub.n_memberships):
        if sub.memberships[i].channel == channel:
            return &channel.members[sub.memberships[i].index]
    return NULL
