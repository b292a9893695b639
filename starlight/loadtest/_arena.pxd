# What the engines of all processes share, and the histogram.
#
# One anonymous shared mapping per array, made before the fork, so a message may be sent by one process and received by another and its
# send time is still known. Who writes what: a `Stream` and its `Entry` ring only by the process that owns the sender (except
# `remaining`); `Group.members`, `Entry.remaining` and `Sender.done` by everyone, atomically; a `Process` only by its own process.
# The coordinator only reads (and sets `Control.stop`). Owned by the Python class Arena; engines borrow it for their lifetime.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <time.h>
    static inline int64_t sl_now(void) {
        struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    static inline int64_t sl_thread_cpu(void) {
        struct timespec t; clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    #define sl_add32(p, v) __atomic_add_fetch((p), (v), __ATOMIC_RELAXED)
    #define sl_load32(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define sl_clz(v) __builtin_clzll(v)
    #define sl_prefetch(p) __builtin_prefetch(p)
    #define sl_likely(x) __builtin_expect(!!(x), 1)
    #define sl_unlikely(x) __builtin_expect(!!(x), 0)
    """
    int64_t sl_now() noexcept nogil
    int64_t sl_thread_cpu() noexcept nogil
    int32_t sl_add32(void *p, int32_t v) noexcept nogil
    uint32_t sl_load32(void *p) noexcept nogil
    int sl_clz(uint64_t v) noexcept nogil
    void sl_prefetch(const void *p) noexcept nogil
    bint sl_likely(bint x) noexcept nogil
    bint sl_unlikely(bint x) noexcept nogil

cdef enum:
    HISTOGRAM_SLOTS = 33792      # HdrHistogram(1, one hour in ns, 3 digits): same slots, so that merging is exact
    HISTOGRAMS = 4               # intended, actual, connect, ack
    INTENDED = 0
    ACTUAL = 1
    CONNECT = 2
    ACK = 3

# Counters of one process. COUNTER_NAMES in _engine.pyx has the names in the same order.
cdef enum:
    SENT
    DELIVERIES
    BYTES_RECEIVED
    CHECKED
    REPLIES
    ACKS
    ERRORS
    CONNECTS
    CONNECT_FAILURES
    CLOSED_BY_SERVER
    CHURNED
    REJOINS
    LOST
    DUPLICATES
    REORDERED
    MISDELIVERED
    DAMAGED
    UNEXPECTED
    CLIPPED
    GIVEN_UP
    BLOCKED
    SLOW_DELIVERIES
    TURNS
    IDLE_NS
    PREEMPTED_NS
    CPU_NS
    RECEIVES
    SENDS
    READY
    OPEN
    COUNTED_EXPECTED
    COUNTED
    OVERDUE
    PINGS
    UNLOGGED
    COUNTERS

ctypedef struct Entry:           # one message under way; 32 bytes
    int64_t intended_ns          # when the schedule wanted it sent
    int64_t sent_ns              # when it was written
    uint32_t number              # tells whether the ring has moved on
    uint32_t size                # bytes of its data
    int32_t remaining            # deliveries still expected from counted receivers; atomic
    uint32_t unused

ctypedef struct Stream:
    uint32_t sender              # index in `senders`
    uint32_t group
    uint32_t sent                # messages so far = the next number
    uint32_t gone                # 1: its sender's connection is lost, so the tail is not owed
    uint64_t ring                # first entry
    uint32_t mask
    uint32_t unused

ctypedef struct Sender:
    uint32_t connection          # over all processes
    uint32_t sent
    uint32_t done                # atomic
    uint32_t first_stream        # its order of streams: order[first_stream : first_stream + streams]
    uint32_t streams
    uint32_t position            # next in that order
    int64_t progress_ns          # when `done` was last seen to move (closed model)
    uint32_t done_seen
    uint32_t unused[5]           # one cache line each: `done` is written by every process

ctypedef struct Group:           # everyone, a channel or a user
    uint32_t members             # counted receivers: those a message waits for; atomic
    uint32_t first_stream        # group_streams[first_stream : first_stream + streams]
    uint32_t streams

ctypedef struct Process:
    uint64_t counters[64]
    uint64_t slots[4][33792]

ctypedef struct Control:
    uint32_t stop                # any process leaves its loop at the next turn

ctypedef struct Shared:          # the pointers; copied by value into each engine
    Control *control
    Group *groups
    uint32_t *group_streams
    Stream *streams
    Sender *senders
    uint32_t *order
    Entry *entries
    Process *processes
    uint32_t n_groups
    uint32_t n_streams
    uint32_t n_senders
    uint32_t n_processes


cdef inline void histogram_record(uint64_t *slots, int64_t value_ns) noexcept nogil:
    """HdrHistogram's own slot for a value, three significant digits, lowest value 1 ns, highest an hour."""
    cdef uint64_t value = 0 if value_ns < 0 else <uint64_t>value_ns
    cdef int bucket
    if value > 3600000000000ULL:
        value = 3600000000000ULL
    bucket = 53 - sl_clz(value | 2047)
    slots[(bucket << 10) + (value >> bucket)] += 1


cdef inline int64_t histogram_value(int slot) noexcept nogil:
    """The middle of a slot in ns."""
    cdef int bucket = (slot >> 10) - 1
    cdef int64_t low
    if bucket < 0:
        return slot
    low = <int64_t>((slot & 1023) + 1024) << bucket
    return low + ((<int64_t>1 << bucket) >> 1)


cdef inline void settle(Shared *shared, uint32_t stream, uint32_t number) noexcept nogil:
    """One expected delivery of a message is accounted for (it came, or it never will). The last one completes the message."""
    cdef Stream *s = &shared.streams[stream]
    cdef Entry *entry = &shared.entries[s.ring + (number & s.mask)]
    if entry.number == number and sl_add32(&entry.remaining, -1) == 0:
        sl_add32(&shared.senders[s.sender].done, 1)
