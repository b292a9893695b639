# Histograms in powers of two: an array of counts and a sum, filled once per flush, read by whoever scrapes.
#
# Law: bucket i counts the values in (2**(i-1), 2**i]; bucket 0 counts 0 and 1, the last one all that is larger.

from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from *:
    int starlight_clzll "__builtin_clzll"(unsigned long long value) nogil

cdef enum:
    HISTOGRAM_BUCKETS = 32

ctypedef struct histogram_t:
    uint64_t counts[HISTOGRAM_BUCKETS]
    uint64_t sum


cdef inline void histogram_add(histogram_t* histogram, uint64_t value) noexcept nogil:
    cdef int bucket = 64 - starlight_clzll(value - 1) if value > 1 else 0
    histogram.counts[bucket if bucket < HISTOGRAM_BUCKETS else HISTOGRAM_BUCKETS - 1] += 1
    histogram.sum += value


cdef inline uint64_t clock_us() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1_000_000 + <uint64_t>t.tv_nsec // 1_000
