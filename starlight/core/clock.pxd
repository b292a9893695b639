# The node's clock: monotonic milliseconds, without the time in which the process did not run. All deadlines and rates go by it.
#
#   forgiven = gap between two looks - CPU time that the process used in it, where that is more than STOP_MS
#
# Law: only time in which the process did not run is forgiven: SIGSTOP, a suspended machine, a processor that others took, and
# a call that sleeps. Time that our own work took counts, so that no client can stop the deadlines by making us work.

from libc.stdint cimport int64_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID, clock_gettime, clockid_t, timespec

cdef enum:
    STOP_MS = 1000               # shorter stops are part of life on a busy machine: every deadline stands them
    CPU_LOOK_MS = 10             # the CPU time is a system call, so it is looked at only so often; it is known so exactly

ctypedef struct forgiving_clock_t:
    uint64_t last_ms             # monotonic, at the last look; 0 before the first
    uint64_t cpu_ms              # CPU time of the process, at `cpu_looked_ms`
    uint64_t cpu_looked_ms
    uint64_t stopped_ms          # forgiven so far


cdef inline uint64_t clock_read_ms(clockid_t clock) noexcept nogil:
    cdef timespec t
    clock_gettime(clock, &t)
    return <uint64_t>t.tv_sec * 1000 + <uint64_t>t.tv_nsec // 1_000_000


cdef inline void clock_forgive(forgiving_clock_t* clock, uint64_t now_ms) noexcept nogil:
    """Look at the CPU time, and forgive what of the gap since the last look it doesn't explain."""
    cdef uint64_t cpu_ms = clock_read_ms(CLOCK_PROCESS_CPUTIME_ID)
    cdef int64_t stopped_ms = <int64_t>(now_ms - clock.last_ms) - <int64_t>(cpu_ms - clock.cpu_ms)
    if clock.last_ms and stopped_ms > STOP_MS:
        clock.stopped_ms += <uint64_t>stopped_ms
    clock.cpu_ms = cpu_ms
    clock.cpu_looked_ms = now_ms


cdef inline uint64_t clock_look(forgiving_clock_t* clock) noexcept nogil:
    """The time in milliseconds. To be asked every 50 ms or so: a longer silence is taken for a stop, as far as no CPU was used."""
    cdef uint64_t now_ms = clock_read_ms(CLOCK_MONOTONIC)
    if now_ms - clock.cpu_looked_ms >= CPU_LOOK_MS:
        clock_forgive(clock, now_ms)
    clock.last_ms = now_ms
    return now_ms - clock.stopped_ms
