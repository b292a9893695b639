# The classes around the core. Read in this order: core/arena.pxd (frames), outbox (spans), flush (writing), records, run, round,
# policy, then _fanout.pyx.
#
# Re-entry: only `Core.act`, `Core.write_transports` and the loop's own callbacks call Python; each takes its list private
# first, so that what they call may publish, close and detach.

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from starlight.core.clock cimport forgiving_clock_t
from starlight.core.encoding cimport message_t
from starlight.core.records cimport channel_t, core_t
from starlight.core.outbox cimport subscriber_t
from starlight.core.round cimport is_behind


@cython.final                        # all three: their methods are called directly
cdef class Channel:
    cdef channel_t c
    cdef Core core
    cdef readonly str name       # None: it isn't told to whom it is left


@cython.final
cdef class Subscriber:
    cdef subscriber_t* s         # NULL once detached
    cdef readonly object owner   # whoever is told of events; None once detached
    cdef object transport        # what to write through when s.fd < 0
    cdef list left               # names of channels that the core took it out of, until `leave_all`; None: none

    cdef inline bint has_events(self) noexcept:
        """Whether the core is about to act on it: evict it, or find it broken. To be asked before it is detached."""
        return self.s.events != 0


@cython.final
cdef class Core:
    cdef core_t c
    cdef object loop
    cdef readonly Channel everyone
    cdef unsigned long thread_id
    cdef bint is_scheduled
    cdef double coalesce_delay_s
    cdef object on_turn_end      # the bound method, made once
    cdef object test_script      # keeps the flusher's script alive
    cdef forgiving_clock_t clock
    cdef uint64_t compact_above_bytes    # held chunks, before a turn looks after the budget (again)
    cdef uint32_t n_early_slices         # flushed in this turn before its end, as it had appended so much

    cpdef Channel channel(self, str name=*)
    cpdef Subscriber subscriber(self, object owner, int fd, object transport, int encoding)
    cpdef uint32_t publish(self, Channel channel, object head, object data, object tail) except? 0xFFFFFFFF
    cpdef send(self, Subscriber subscriber, object head, object data=*, object tail=*)
    cpdef echo(self, Subscriber subscriber, object data, bint is_text)
    cpdef send_many(self, object subscribers, object head, object data=*, object tail=*)
    cpdef close(self, Subscriber subscriber, int code, bytes reason=*)
    cpdef tuple outbox(self, Subscriber subscriber)
    cpdef evict(self, Subscriber subscriber, int code, bytes reason=*)
    cpdef ping(self, Subscriber subscriber)
    cpdef writable(self, Subscriber subscriber)
    cpdef detach(self, Subscriber subscriber)
    cpdef flush(self)
    cpdef sweep(self)
    cpdef uint64_t now_ms(self) except? 0
    cpdef uint64_t stopped_ms(self) except? 0
    cdef int pong(self, Subscriber subscriber, const char* payload, Py_ssize_t size) except -1
    cdef int add_encodings(self, encodings) except -1
    cdef void close_lanes(self) noexcept
    cdef int fill_codecs(self, message_t* m, object head, object tail) except -1
    cdef inline uint64_t turn(self) noexcept:
        """The number of this turn: of those that ended, one more at each end."""
        return self.c.totals.turns

    cdef inline uint64_t delivery_bytes(self) noexcept:
        """What publications came to so far, once for each member."""
        return self.c.totals.delivery_bytes

    cdef inline bint is_behind(self) noexcept:
        """Whether a slice was not enough for what is to be written."""
        return is_behind(&self.c)

    cdef int check_thread(self) except -1
    cdef int schedule(self) except -1
    cdef int after_append(self) except -1
    cdef int trim(self) except -1
    cpdef list leave_all(self, Subscriber subscriber)
    cdef int take_out(self, subscriber_t* sub) except -1
    cdef int flush_early(self) except -1
    cdef bint flush_some(self) except -1
    cdef int write_transports(self) except -1
    cdef int write_transport(self, subscriber_t* sub, Subscriber handle) except -1
    cdef int act(self) except -1
    cdef int tell_dry_run(self) except -1
    cdef int act_guarded(self, Subscriber subscriber, unsigned char events) except -1
    cdef int act_on(self, Subscriber subscriber, unsigned char events) except -1
    cdef int drop(self, subscriber_t* sub) except -1
    cdef int report(self, str message, error) except -1
    cdef int keep_budget(self) except -1
    cdef int forgive_transports(self, uint32_t held_ms) except -1
    cdef bint offer(self, subscriber_t* sub) except -1
