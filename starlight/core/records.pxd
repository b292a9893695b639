# The core's own records: channels and their members, the run, limits, totals, and what holds them all together.
#
#   core_t --lanes--> open chunk per wire form, for shared and for single-receiver frames
#          --run----> the one channel whose latest frames are not yet in its members' outboxes
#          --lists--> all, marked, flushing, first (single-receiver work), full, transports: borrowed subscribers
#
# Law: a subscriber stands at most once in each list that may outlive its detach, and its bit in `lists` says so. It is freed
# once it is detached and in none of them. Its fd is borrowed from the transport until Core.detach(), which the connection
# calls before the transport closes it. A channel_t lives inside its Channel, which every membership keeps alive.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from starlight.core.arena cimport arena_t, chunk_t, vector_t
from starlight.core.flush cimport flusher_t
from starlight.core.histogram cimport histogram_t
from starlight.core.outbox cimport CACHE_LINE_BYTES, N_FORMS, N_REASONS, subscriber_t

cdef extern from *:
    """
    #define starlight_prefetch(p) __builtin_prefetch((p), 1, 3)
    """
    void starlight_prefetch(void* p) nogil

cdef enum:
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


cdef inline bint is_member(subscriber_t* sub, channel_t* channel) noexcept nogil:
    cdef uint32_t i
    for i in range(sub.n_memberships):
        if sub.memberships[i].channel == channel:
            return True
    return False
