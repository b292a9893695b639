# Memory: what the budget counts, and what is done before it is passed.
#
# Strategy: a few bytes that wait may keep a whole chunk alive. What keeps a sealed chunk less than a quarter alive is copied
# out, so the copies together take less than the chunk. Beyond that the largest outbox goes first.
# Law: memory is counted where it is held: chunk capacity and what transports below hold, not the bytes in outboxes.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from starlight.core.arena cimport CHUNK_BYTES, chunk_new, chunk_t, chunk_unref, frame_start
from starlight.core.outbox cimport STATE_CLOSING, span_bytes, span_t, subscriber_t
from starlight.core.records cimport core_t


cdef inline uint64_t budget_bytes(core_t* c) noexcept nogil:
    """What the budget is about: all chunks, and what left them for transports that hold it."""
    return c.arena.held_bytes + c.transport_bytes


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
