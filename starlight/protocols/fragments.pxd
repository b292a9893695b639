# A fragmented message under way (RFC 6455 §5.4): what has come of it, and the header of its next frame.
#
#   [frame, fin 0] [ping] [header | ... payload, still to come ...]
#                   ^skipped      ^here it is known whether the message will pass the limit
#
# picows shows a frame with its last byte, and its own limit is that of one frame; so the bytes behind a fragment are looked
# at here as well, as far as the next header of a data frame.
#
# Law: no pointer is kept beyond the call it came with. Only a header that is valid so far is judged: what is wrong with any
# other is picows' to find.

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    CLIENT_MAX_HEADER = 10       # the mask, which follows, is of no interest

ctypedef struct header_watch_t:
    uint8_t bytes[CLIENT_MAX_HEADER]
    uint8_t n_bytes              # of a header, that have come
    bint is_over                 # a data frame's header was seen, or one that is wrong
    uint64_t skip_bytes          # of a control frame, still to come


cdef class Fragments:
    cdef readonly bytearray data         # of the message, without the frame under way
    cdef readonly bint is_text
    cdef Py_ssize_t checked_bytes        # of `data`: so many are known to be UTF-8
    cdef int n_frames
    cdef header_watch_t watch

    cdef int add(self, const char* payload, Py_ssize_t n_bytes, bint is_last, int frames_limit, Py_ssize_t limit_bytes) except -1
    cdef int look(self, const uint8_t* data, Py_ssize_t n_bytes, Py_ssize_t limit_bytes) noexcept
