# Wire frames: RFC 6455 §5.2 headers as a server writes them, and the UTF-8 check of §8.1.
#
# Everything here is a pure inline function over memory of the caller; nothing is kept.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    WIRE_TEXT = 0x1
    WIRE_BINARY = 0x2
    WIRE_CLOSE = 0x8
    WIRE_PING = 0x9
    WIRE_PONG = 0xA
    WIRE_MAX_HEADER = 10         # 2 + 8: servers never mask (§5.1)
    WIRE_MAX_CONTROL = 125       # payload of a control frame (§5.5)


cdef inline uint32_t wire_header_size(uint64_t payload_bytes) noexcept nogil:
    return 2 if payload_bytes < 126 else (4 if payload_bytes < 65536 else 10)


cdef inline uint32_t wire_write_header(char* to, uint8_t opcode, uint64_t payload_bytes) noexcept nogil:
    """Write a final, unmasked frame's header at `to` (at least 10 bytes of room); return its size."""
    cdef int i
    to[0] = <char>(0x80 | opcode)
    if payload_bytes < 126:
        to[1] = <char>payload_bytes
        return 2
    if payload_bytes < 65536:
        to[1] = 126
        to[2] = <char>(payload_bytes >> 8)
        to[3] = <char>(payload_bytes & 0xFF)
        return 4
    to[1] = 127
    for i in range(8):
        to[2 + i] = <char>((payload_bytes >> (56 - 8 * i)) & 0xFF)
    return 10


cdef inline bint wire_is_utf8(const uint8_t* p, Py_ssize_t size) noexcept nogil:
    """Whether the bytes are valid UTF-8 (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF)."""
    cdef Py_ssize_t i = 0
    cdef uint64_t word
    cdef uint8_t c
    while i < size:
        while i + 8 <= size:                     # eight ASCII bytes at a time
            memcpy(&word, p + i, 8)
            if word & <uint64_t>0x8080808080808080:
                break
            i += 8
        if i >= size:
            return True
        c = p[i]
        if c < 0x80:
            i += 1
        elif c < 0xE0:
            if c < 0xC2 or i + 1 >= size or (p[i + 1] & 0xC0) != 0x80:
                return False
            i += 2
        elif c < 0xF0:
            if i + 2 >= size or (p[i + 1] & 0xC0) != 0x80 or (p[i + 2] & 0xC0) != 0x80:
                return False
            if (c == 0xE0 and p[i + 1] < 0xA0) or (c == 0xED and p[i + 1] > 0x9F):
                return False
            i += 3
        else:
            if (c > 0xF4 or i + 3 >= size or (p[i + 1] & 0xC0) != 0x80
                    or (p[i + 2] & 0xC0) != 0x80 or (p[i + 3] & 0xC0) != 0x80):
                return False
            if (c == 0xF0 and p[i + 1] < 0x90) or (c == 0xF4 and p[i + 1] > 0x8F):
                return False
            i += 4
    return True
