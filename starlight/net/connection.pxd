# A connection's record: one socket with its WebSocket, the transport of a session.
#
# Law: picows parses and nothing else: see `disarm` in connection.pyx. What a message means, and when a connection ends, is the
# session's to say.

from libc.stdint cimport uint8_t
from picows.picows cimport WSFrame, WSListener, WSTransport
from starlight.protocols.fragments cimport Fragments
from starlight.session.session cimport Session, SessionHost


cdef class Endpoint(SessionHost):
    cdef readonly int connections        # sockets, from accept to close
    cdef readonly object gate            # who may connect: starlight.net.gate.Gate
    cdef object departures               # watches those that aren't read: starlight.net.departures.Departures
    cdef int send_buffer_bytes
    cdef int fragments_limit


cdef class Connection(WSListener):
    cdef Endpoint endpoint
    cdef readonly Session session        # they refer to each other from the accept until the socket is lost
    cdef object encoding                 # a protocols.base.Encoding, as the gate chose it; None before
    cdef object address                  # what the gate counts it by
    cdef object transport                # the asyncio transport; None before the accept and after the end
    cdef object answering                # between picows and the transport during the handshake, else None
    cdef Fragments fragments             # the fragmented message under way; None most of the time
    cdef const uint8_t* read_at          # borrowed: where picows lets the next read begin, from get_buffer to buffer_updated
    cdef Py_ssize_t request_bytes        # of the request, received so far
    cdef int fd                          # borrowed from the transport; -1: the core writes through that
    cdef int watched_fd                  # borrowed likewise: in the endpoint's watch; -1: not there
    cdef int parser_error                # close code of an error that picows found, to be acted on behind the frame before it
    # Flags, a byte each: there are many connections.
    cdef uint8_t is_looked_at            # the request's first bytes
    cdef uint8_t is_answered             # the request, and if that was a refusal it is counted
    cdef uint8_t is_healthy              # the request: one for a health route, which is no failed handshake
    cdef uint8_t is_counted
    cdef uint8_t is_discarding           # reading goes on without the parser

    cdef bint look_at_request(self, Py_ssize_t n_bytes) except -1
    cdef bint is_secure(self) except -1
    cdef int receive(self, WSFrame frame) except -1
    cdef int receive_data(self, WSFrame frame) except -1
    cdef int receive_fragment(self, WSFrame frame) except -1
    cdef int look_ahead(self, const uint8_t* data, Py_ssize_t n_bytes) except -1
    cdef int receive_close(self, WSFrame frame) except -1
    cdef int discard(self) except -1
    cdef int unwatch(self) except -1
