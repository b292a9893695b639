# The arena: wire frames, written once, shared by everyone who is to receive them.
#
#   chunk   | frame 0 | frame 1 | frame 2 | ........ free ........ |
#           data      ^ends[0]  ^ends[1]  ^ends[2] == used_bytes    ^capacity_bytes
#
# Law: a chunk is append-only while it is open and immutable once sealed. `refs` counts the spans that point into it, plus one
# while it is open in a lane, plus one while the core's run points into it. At zero it goes to the free list, or back to
# the allocator. An open chunk that nobody but its lane refers to is rewound instead of filled further: its memory is hot in
# the cache.
#
# Out of memory: a chunk that can't be had is an error for the caller (NULL); bookkeeping of a few KB that can't be had ends
# the process, as in redis: nothing sensible can follow.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport abort, free, malloc, realloc

cdef enum:
    CHUNK_BYTES = 256 * 1024     # as large as a few full socket buffers; 1,000 frames of 256 bytes
    CHUNK_FRAMES = 4096          # a frame of the native protocol has at least ~40 bytes; when reached, the chunk is sealed
    FREE_CHUNKS = 16             # 4.5 MiB kept for reuse at most

ctypedef struct frame_t:
    uint32_t end                 # offset just behind the frame's last byte
    uint32_t appended_ms         # the core's clock, modulo 2**32

ctypedef struct chunk_t:
    char* data                   # owned, in the same allocation as the struct
    frame_t* frames              # owned, likewise
    uint32_t used_bytes
    uint32_t capacity_bytes
    uint32_t n_frames
    uint32_t capacity_frames
    uint32_t refs
    uint64_t live_bytes          # scratch of the compaction: bytes of all spans in this chunk; many may share each
    bint is_open                 # some lane appends to it
    chunk_t* next                # free list (borrowed by nobody else)

ctypedef struct arena_t:
    chunk_t* free_list           # standard-size chunks, refs == 0
    uint32_t n_free
    uint32_t n_chunks            # all, the free ones included
    uint64_t held_bytes          # what all of them take from the allocator: the budgets' measure


cdef inline uint64_t chunk_cost(chunk_t* chunk) noexcept nogil:
    return sizeof(chunk_t) + <uint64_t>chunk.capacity_frames * sizeof(frame_t) + chunk.capacity_bytes


cdef inline chunk_t* chunk_new(arena_t* arena, uint32_t capacity_bytes, uint32_t capacity_frames) noexcept nogil:
    """A chunk with one reference, the caller's; NULL if there is no memory."""
    cdef chunk_t* chunk
    if capacity_bytes == CHUNK_BYTES and capacity_frames == CHUNK_FRAMES and arena.free_list != NULL:
        chunk = arena.free_list
        arena.free_list = chunk.next
        arena.n_free -= 1
    else:
        chunk = <chunk_t*>malloc(sizeof(chunk_t) + capacity_frames * sizeof(frame_t) + capacity_bytes)
        if chunk == NULL:
            return NULL
        chunk.capacity_bytes = capacity_bytes
        chunk.capacity_frames = capacity_frames
        chunk.frames = <frame_t*>(<char*>chunk + sizeof(chunk_t))
        chunk.data = <char*>chunk.frames + capacity_frames * sizeof(frame_t)
        arena.n_chunks += 1
        arena.held_bytes += chunk_cost(chunk)
    chunk.used_bytes = 0
    chunk.n_frames = 0
    chunk.refs = 1
    chunk.live_bytes = 0
    chunk.is_open = False
    chunk.next = NULL
    return chunk


cdef inline void chunk_delete(arena_t* arena, chunk_t* chunk) noexcept nogil:
    arena.n_chunks -= 1
    arena.held_bytes -= chunk_cost(chunk)
    free(chunk)


cdef inline void chunk_unref(arena_t* arena, chunk_t* chunk, uint32_t n) noexcept nogil:
    chunk.refs -= n
    if chunk.refs != 0:
        return
    if chunk.capacity_bytes != CHUNK_BYTES or chunk.capacity_frames != CHUNK_FRAMES or arena.n_free >= FREE_CHUNKS:
        chunk_delete(arena, chunk)
        return
    chunk.next = arena.free_list
    arena.free_list = chunk
    arena.n_free += 1


cdef inline void arena_trim(arena_t* arena) noexcept nogil:
    """Give the free chunks back to the allocator."""
    cdef chunk_t* chunk
    while arena.free_list != NULL:
        chunk = arena.free_list
        arena.free_list = chunk.next
        arena.n_free -= 1
        chunk_delete(arena, chunk)


cdef inline uint32_t frame_start(chunk_t* chunk, uint32_t index) noexcept nogil:
    return chunk.frames[index - 1].end if index else 0


cdef inline char* lane_reserve(arena_t* arena, chunk_t** lane, uint32_t need_bytes) noexcept nogil:
    """Make sure that the lane's open chunk has room for one frame of `need_bytes`; return where it starts, NULL without memory.

    May seal the chunk that was open and replace it: whoever remembers a place in it compares `lane[0]` before and after.
    """
    cdef chunk_t* chunk = lane[0]
    if chunk != NULL:
        if chunk.refs == 1 and chunk.n_frames:           # only the lane: all was handed to the kernel
            chunk.used_bytes = 0
            chunk.n_frames = 0
        if chunk.n_frames < chunk.capacity_frames and chunk.capacity_bytes - chunk.used_bytes >= need_bytes:
            return chunk.data + chunk.used_bytes
        lane_close(arena, lane)
    if need_bytes > CHUNK_BYTES:
        chunk = chunk_new(arena, need_bytes, 1)           # one frame larger than a chunk has one of its own
    else:
        chunk = chunk_new(arena, CHUNK_BYTES, CHUNK_FRAMES)
    if chunk == NULL:
        return NULL
    chunk.is_open = True
    lane[0] = chunk
    return chunk.data


cdef inline uint32_t lane_commit(chunk_t* chunk, uint32_t frame_bytes, uint32_t now_ms) noexcept nogil:
    """Count the bytes written at the reserved place as one frame; return its index."""
    cdef uint32_t index = chunk.n_frames
    chunk.used_bytes += frame_bytes
    chunk.frames[index].end = chunk.used_bytes
    chunk.frames[index].appended_ms = now_ms
    chunk.n_frames = index + 1
    return index


cdef inline void lane_close(arena_t* arena, chunk_t** lane) noexcept nogil:
    """Seal the lane's chunk."""
    cdef chunk_t* chunk = lane[0]
    if chunk != NULL:
        lane[0] = NULL
        chunk.is_open = False
        chunk_unref(arena, chunk, 1)


ctypedef struct vector_t:        # of borrowed pointers
    void** items                 # owned
    uint32_t n
    uint32_t capacity


cdef inline void* checked_realloc(void* old, size_t size) noexcept nogil:
    cdef void* new = realloc(old, size)
    if new == NULL:
        abort()
    return new


cdef inline void vector_push(vector_t* vector, void* item) noexcept nogil:
    if vector.n == vector.capacity:
        vector.capacity = vector.capacity * 2 if vector.capacity else 16
        vector.items = <void**>checked_realloc(vector.items, vector.capacity * sizeof(void*))
    vector.items[vector.n] = item
    vector.n += 1


cdef inline void vector_free(vector_t* vector) noexcept nogil:
    free(vector.items)
    vector.items = NULL
    vector.n = vector.capacity = 0
