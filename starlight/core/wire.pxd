# Wire frames: RFC 6455 §5.2 headers as a server writes them, and the UTF-8 check of §8.1.
#
# Everything here is a pure inline function over memory of the caller; nothing is kept.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    WIRE_CONTINUATION = 0x0
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


cdef inline Py_ssize_t wire_utf8_prefix(const uint8_t* p, Py_ssize_t size) noexcept nogil:
    """Length of the longest prefix of whole UTF-8 characters; -1 if what follows it can't become one.

    RFC 3629: no overlong forms, no surrogates, at most U+10FFFF. Equal to `size` for valid text; less where the text ends
    inside a character, as a fragment may.
    """
    cdef Py_ssize_t i = 0, need
    cdef uint64_t word
    cdef uint8_t c, low, high
    while i < size:
        while i + 8 <= size:                     # eight ASCII bytes at a time
            memcpy(&word, p + i, 8)
            if word & <uint64_t>0x8080808080808080:
                break
            i += 8
        if i >= size:
            return size
        c = p[i]
        if c < 0x80:
            i += 1
            continue
        low, high = 0x80, 0xBF                   # the second byte's range
        if 0xC2 <= c <= 0xDF:
            need = 1
        elif 0xE0 <= c <= 0xEF:
            need = 2
            if c == 0xE0:
                low = 0xA0
            elif c == 0xED:
                high = 0x9F
        elif 0xF0 <= c <= 0xF4:
            need = 3
            if c == 0xF0:
                low = 0x90
            elif c == 0xF4:
                high = 0x8F
        else:
            return -1
        if i + 1 < size and not low <= p[i + 1] <= high:
            return -1
        if i + 2 < size and need >= 2 and (p[i + 2] & 0xC0) != 0x80:
            return -1
        if i + 3 < size and need == 3 and (p[i + 3] & 0xC0) != 0x80:
            return -1
        if i + need >= size:
            return i
        i += need + 1
    return size


cdef inline bint wire_is_utf8(const uint8_t* p, Py_ssize_t size) noexcept nogil:
    return wire_utf8_prefix(p, size) == size
