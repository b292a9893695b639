"""How deep a JSON text nests: one pass over its bytes, at about the cost of parsing it, and often far less."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcpy

cdef enum:
    QUOTE = 0x22                 # "
    BACKSLASH = 0x5C
    OPENING = 0x7B               # { and, with the bit of 0x20, [
    CLOSING = 0x7D               # } and, with the bit of 0x20, ]
    CASE = 0x20


cdef inline uint64_t bytes_equal(uint64_t word, uint64_t wanted) noexcept nogil:
    """Not zero if any of the eight bytes of `word` is the one that `wanted` repeats."""
    cdef uint64_t differing = word ^ wanted
    return (differing - <uint64_t>0x0101010101010101) & ~differing & <uint64_t>0x8080808080808080


cdef inline Py_ssize_t string_end(const uint8_t* text, Py_ssize_t i, Py_ssize_t size) noexcept nogil:
    """The place behind a string whose first byte is at i; behind the text, if the string does not end."""
    cdef uint64_t word
    while i < size:
        if text[i] == QUOTE:
            return i + 1
        i += 2 if text[i] == BACKSLASH else 1
        while i + 8 <= size:                             # eight bytes at a time that end and escape nothing
            memcpy(&word, text + i, 8)
            if bytes_equal(word, <uint64_t>0x2222222222222222) | bytes_equal(word, <uint64_t>0x5C5C5C5C5C5C5C5C):
                break
            i += 8
    return size


cdef inline Py_ssize_t count_up_to(const uint8_t* text, Py_ssize_t size, int wanted, Py_ssize_t limit) noexcept nogil:
    """How often a byte is in a text; counting ends above the limit."""
    cdef const uint8_t* end = text + size
    cdef const uint8_t* at = text
    cdef Py_ssize_t found = 0
    while found <= limit:
        at = <const uint8_t*>memchr(at, wanted, end - at)
        if at == NULL:
            break
        at += 1
        found += 1
    return found


def is_deeper(bytes text not None, Py_ssize_t limit) -> bool:
    """Whether a valid JSON text has more levels than the limit; a scalar has none. Of any other text, whatever.

    Most texts have fewer brackets than that, which is quickly seen.
    """
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(text)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
    cdef Py_ssize_t i = 0, level = 0
    cdef uint8_t byte
    if count_up_to(data, size, c"[", limit) + count_up_to(data, size, c"{", limit) <= limit:
        return False
    while i < size:
        byte = data[i]
        i += 1
        if byte == QUOTE:
            i = string_end(data, i, size)
            continue
        byte |= CASE
        level += <Py_ssize_t>(byte == OPENING) - <Py_ssize_t>(byte == CLOSING)
        if level > limit:
            return True
    return False
