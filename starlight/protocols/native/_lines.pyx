"""How a frame of ``starlight.v1.lines`` is cut: empty lines are skipped, one trailing ``\\r`` of each line is dropped."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcmp


cdef class Lines:
    """The messages of one whole text frame, in order: an iterator of bytes."""

    def __init__(self, bytes frame not None):
        self.frame = frame

    def __iter__(self):
        return self

    def __next__(self):
        self.skip()
        message = self.cut()
        if message is None:
            raise StopIteration
        return message

    cdef uint64_t skip(self) noexcept:
        """Pass over the empty lines that come next; their number. A run of them takes a step for eight bytes."""
        cdef const char* data = PyBytes_AS_STRING(self.frame)
        cdef Py_ssize_t i = self.at, size = PyBytes_GET_SIZE(self.frame)
        cdef uint64_t skipped = 0
        while i < size:
            if i + 8 <= size and memcmp(data + i, "\n\n\n\n\n\n\n\n", 8) == 0:
                i += 8
                skipped += 8
            elif i + 8 <= size and memcmp(data + i, "\r\n\r\n\r\n\r\n", 8) == 0:
                i += 8
                skipped += 4
            elif data[i] == c"\n":
                i += 1
                skipped += 1
            elif data[i] == c"\r" and (i + 1 == size or data[i + 1] == c"\n"):
                i += 2
                skipped += 1
            else:
                break
        self.at = i
        return skipped

    cdef bytes cut(self):
        """The message that comes next, where `skip` has just been; None at the end."""
        cdef const char* start = PyBytes_AS_STRING(self.frame) + self.at
        cdef Py_ssize_t left = PyBytes_GET_SIZE(self.frame) - self.at
        cdef const char* end
        cdef Py_ssize_t n_bytes
        if left <= 0:
            return None
        end = <const char*>memchr(start, c"\n", left)
        n_bytes = left if end == NULL else end - start
        self.at += n_bytes + 1
        if start[n_bytes - 1] == c"\r":
            n_bytes -= 1
        return PyBytes_FromStringAndSize(start, n_bytes)
