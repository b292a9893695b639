# A frame of `starlight.v1.lines`, cut into its messages one by one, as they are handled.
#
# Law: `frame` keeps the memory that is read; nothing behind `at` has been looked at, so a frame of many lines costs what of it
# is handled, and its rest waits as it came.

from libc.stdint cimport uint64_t


cdef class Lines:
    cdef bytes frame
    cdef Py_ssize_t at           # everything before it was skipped or cut

    cdef uint64_t skip(self) noexcept
    cdef bytes cut(self)
