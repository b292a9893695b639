"""Fragmented messages: their limits and their UTF-8 frame by frame, and their size at the header that passes the limit."""

from libc.stdint cimport uint8_t, uint64_t
from starlight.core.wire cimport WIRE_CONTINUATION, WIRE_PING, WIRE_PONG, wire_utf8_prefix

cdef enum:
    FIN = 0x80
    RSV = 0x70
    CONTROL = 0x08
    MASK = 0x80


cdef class Fragments:
    """One fragmented message. is_text: as its first frame said."""

    def __cinit__(self, bint is_text):
        self.data = bytearray()
        self.is_text = is_text

    cdef int add(self, const char* payload, Py_ssize_t n_bytes, bint is_last, int frames_limit, Py_ssize_t limit_bytes) except -1:
        """Take the next frame. payload: borrowed for the call. 0, or the close code for what is wrong."""
        cdef Py_ssize_t checked
        cdef const uint8_t* text
        self.n_frames += 1
        if self.n_frames >= frames_limit and not is_last:
            return 1008
        if len(self.data) + n_bytes > limit_bytes:
            return 1009
        self.data += payload[:n_bytes]
        if self.is_text:
            text = <const uint8_t*><char*>self.data
            checked = wire_utf8_prefix(text + self.checked_bytes, len(self.data) - self.checked_bytes)
            self.checked_bytes += checked
            if checked < 0 or (is_last and self.checked_bytes != len(self.data)):
                return 1007
        self.watch.n_bytes = 0
        self.watch.skip_bytes = 0
        self.watch.is_over = is_last
        return 0

    def take(self, bytes payload, bint is_last, int frames_limit, Py_ssize_t limit_bytes):
        """`add` for Python."""
        return self.add(payload, len(payload), is_last, frames_limit, limit_bytes)

    cdef int look(self, const uint8_t* data, Py_ssize_t n_bytes, Py_ssize_t limit_bytes) noexcept:
        """See the next bytes of the stream. 1009 if they hold the header of a frame that makes the message too large, else 0.

        data: borrowed for the call.
        """
        cdef header_watch_t* watch = &self.watch
        cdef Py_ssize_t i = 0
        cdef uint64_t payload_bytes, step
        while i < n_bytes and not watch.is_over:
            if watch.skip_bytes:
                step = min(watch.skip_bytes, <uint64_t>(n_bytes - i))
                watch.skip_bytes -= step
                i += step
                continue
            watch.bytes[watch.n_bytes] = data[i]
            watch.n_bytes += 1
            i += 1
            if watch.n_bytes < 2 or watch.n_bytes < length_end(watch):
                continue
            if not is_plausible(watch):
                watch.is_over = True
                break
            payload_bytes = payload_of(watch)
            if watch.bytes[0] & CONTROL:
                watch.skip_bytes = 4 + payload_bytes
                watch.n_bytes = 0
                continue
            watch.is_over = True
            if payload_bytes > <uint64_t>(limit_bytes - len(self.data)):
                return 1009
        return 0


cdef inline int length_end(header_watch_t* watch) noexcept nogil:
    """Bytes of a header up to its mask, by its second byte."""
    cdef uint8_t length = watch.bytes[1] & 0x7F
    return 2 if length < 126 else (4 if length == 126 else 10)


cdef inline bint is_plausible(header_watch_t* watch) noexcept nogil:
    """A masked continuation or control frame without extensions (§5.2), its length in the shortest form."""
    cdef uint8_t opcode = watch.bytes[0] & 0x0F
    cdef uint64_t payload_bytes = payload_of(watch)
    cdef int end = length_end(watch)
    if watch.bytes[0] & RSV or not watch.bytes[1] & MASK:
        return False
    if opcode in (WIRE_PING, WIRE_PONG):
        return watch.bytes[0] & FIN and end == 2
    return opcode == WIRE_CONTINUATION and (
        end == 2 or (end == 4 and payload_bytes > 125) or 65535 < payload_bytes < <uint64_t>1 << 63)


cdef inline uint64_t payload_of(header_watch_t* watch) noexcept nogil:
    """The length a whole header declares."""
    cdef uint64_t n_bytes = 0
    cdef int i, end = length_end(watch)
    if end == 2:
        return watch.bytes[1] & 0x7F
    for i in range(2, end):
        n_bytes = n_bytes << 8 | watch.bytes[i]
    return n_bytes
