# A connection's record: its state between the handshake and the end, what of a message has arrived, and its one deadline.
#
#   HANDSHAKE -> LOGIN -> OPEN -> CLOSING -> GONE
#
# Law: from CLOSING on nothing is delivered to the hub and nothing but the close is written. The hub hears of a client's end
# exactly once. picows parses and nothing else: see `disarm` in _connection.pyx.

from libc.stdint cimport int64_t, uint8_t, uint64_t
from picows.picows cimport WSFrame, WSListener, WSTransport
from starlight.session.deadlines cimport deadline_t, wheel_t
from starlight._fanout cimport Core, Subscriber
from starlight.session.fragments cimport Fragments
from starlight.protocols.native._lines cimport Lines


cdef enum phase_t:
    PHASE_HANDSHAKE = 0
    PHASE_LOGIN = 1
    PHASE_OPEN = 2
    PHASE_CLOSING = 3
    PHASE_GONE = 4


cdef enum sign_t:
    SIGN_SILENT = 0
    SIGN_ALIVE = 1
    SIGN_UNKNOWN = 2


cdef class Connection(WSListener)


cdef class Acceptor:
    cdef readonly Core core
    cdef readonly object hub
    cdef readonly int connections        # sockets, from accept to close
    cdef readonly object counts          # Counter: totals by name. `closed_CODE`: by us; `refused_CODE`: before the login;
                                         # `peer_CODE`: by the peer, 1006 without a close frame; `logins`, ...
    cdef readonly object ends            # starlight.ends.Ends: how connections ended
    cdef object dry_run                  # starlight.auth.dry_run.DryRun: limits that are not enforced
    cdef readonly uint64_t messages_in   # totals: whole messages, lines counted one by one
    cdef readonly uint64_t bytes_in      # read from sockets, the handshakes included
    cdef object loop
    cdef object timer
    cdef readonly object gate            # who may connect: starlight.net.gate.Gate
    cdef object departures               # watches those that aren't read: starlight.net.departures.Departures
    cdef dict left_behind                # tasks of handlers whose clients have gone, the oldest first; a dict as ordered set
    cdef object hub_login
    cdef object hub_receive
    cdef object hub_count_bytes
    cdef object hub_count_frames
    cdef list waiting                    # connections that have had their share of this turn
    cdef uint64_t turn_work              # what clients that want more than they get are given in a turn, all together
    cdef uint64_t share_work             # what each client may make us do in a turn, see `spend`
    cdef uint64_t least_work             # the same, where all together have had the turn's
    cdef uint64_t turn                   # the core's turn in which `work` was counted
    cdef uint64_t work                   # what clients made us do in it, all together
    cdef double ticked_s                 # when the latest tick was, on the loop's clock
    cdef wheel_t wheel
    cdef deadline_t due                  # list of those whose deadline has come, while they are told
    cdef int max_connections
    cdef int send_buffer_bytes
    cdef int fragments_limit
    cdef Py_ssize_t read_limit_bytes
    cdef Py_ssize_t login_limit_bytes
    cdef uint64_t handshake_timeout_ms
    cdef uint64_t login_timeout_ms
    cdef uint64_t ping_interval_ms
    cdef uint64_t pong_timeout_ms
    cdef uint64_t write_timeout_ms       # also: how long an orderly close may take to write what is left
    cdef readonly bint echoes
    cdef bint is_stopped                 # whoever is still connected is cut off

    cdef int abort_all(self, phase_t last_phase) except -1
    cdef int wait(self, Connection connection) except -1


cdef class Connection(WSListener):
    cdef Acceptor acceptor
    cdef readonly Subscriber subscriber
    cdef readonly object client          # the hub's Client; None before the login and after the end
    cdef readonly str subprotocol
    cdef readonly uint64_t number        # among the connections of this node, from 1 on; 0 before the handshake is done
    cdef readonly uint64_t connected_ms  # when that was, on the core's clock
    cdef readonly uint64_t messages_in
    cdef object address                  # what the gate counts it by
    cdef object client_peername          # as the gate found it; None before
    cdef object transport                # the asyncio transport; None until the handshake is done and after the end
    cdef object answering                # between picows and the transport during the handshake, else None
    cdef object queue                    # deque of messages, or frames of lines, that are held; None most of the time
    cdef Lines lines                     # the frame of lines under way, before all in `queue`; None most of the time
    cdef object task                     # the handler under way
    cdef str peer_reason                 # of the peer's close frame; None without one
    cdef Fragments fragments             # the fragmented message under way; None most of the time
    cdef const uint8_t* read_at          # borrowed: where picows lets the next read begin, from get_buffer to buffer_updated
    cdef Py_ssize_t request_bytes        # of the request, received so far
    cdef Py_ssize_t queued_bytes
    cdef int64_t received_bytes          # from the peer, as the kernel had counted them when it was pinged; -1: unknown
    cdef int64_t acked_bytes             # of ours by the peer, likewise
    cdef uint64_t pinged_ms              # when the last ping was queued, on the core's clock
    cdef int watched_fd                  # borrowed from the transport: in the acceptor's watch; -1: not there
    cdef int n_doubts                    # pong timeouts that passed in a row while nothing could be told of the peer
    cdef Py_ssize_t stranger_bytes       # received since the handshake, while nobody has logged in
    cdef int fd
    cdef uint64_t turn                   # the core's turn in which `work` was counted
    cdef uint64_t work                   # what it made us do in it, see `spend`
    cdef int fault                       # close code of what is wrong behind messages that wait for the next turn
    cdef int parser_error                # close code of an error that picows found, to be acted on behind the frame before it
    cdef int peer_code                   # of the peer's close frame; 0: none has come. Nothing behind it is delivered
    cdef phase_t phase
    cdef bint is_looked_at               # the request's first bytes
    cdef bint is_answered                # the request, and if that was a refusal it is counted
    cdef bint is_healthy                 # the request: one for a health route, which is no failed handshake
    cdef bint is_late                    # the handshake: it has had its time
    cdef bint is_lines
    cdef bint awaits_pong
    cdef readonly bint is_paused         # reading, because too much is held, or for a moment by the meter
    cdef bint is_waiting                 # for the next turn: not read meanwhile
    cdef bint is_ahead                   # it has published while the core was behind with its writing: waits for that
    cdef bint is_discarding              # reading goes on without the parser
    cdef bint is_evicted                 # the end is an abort with SO_LINGER 0
    cdef bint is_close_sent              # our close frame is with the kernel
    cdef bint is_eof                     # the peer has said that it sends no more
    cdef bint is_counted
    cdef bint is_throttled               # it sends too much and is not read for a moment; paused as well
    cdef deadline_t deadline

    cdef bint look_at_request(self, Py_ssize_t n_bytes) except -1
    cdef bint is_secure(self) except -1
    cdef int receive(self, WSFrame frame) except -1
    cdef int receive_control(self, WSFrame frame) except -1
    cdef int receive_data(self, WSFrame frame) except -1
    cdef Py_ssize_t message_limit(self) noexcept
    cdef int receive_stranger(self, Py_ssize_t n_bytes) except -1
    cdef int receive_fragment(self, WSFrame frame) except -1
    cdef int look_ahead(self, const uint8_t* data, Py_ssize_t n_bytes) except -1
    cdef int receive_close(self, WSFrame frame) except -1
    cdef int whole_message(self, bytes message, bint is_text) except -1
    cdef int count_read(self, Py_ssize_t n_bytes) except -1
    cdef bint may_frames(self, uint64_t n_frames) except -1
    cdef int spend(self, uint64_t work) except -1
    cdef int wait(self) except -1
    cdef int spend_time(self, uint64_t started_ns) except -1
    cdef int spend_copies(self, uint64_t n_bytes) except -1
    cdef bint must_wait(self) noexcept
    cdef bint is_holding(self) noexcept
    cdef bint has_room(self) noexcept
    cdef int read_on(self) except -1
    cdef int deliver(self, bytes text) except -1
    cdef int handle_held(self) except -1
    cdef bytes next_held(self)
    cdef int dispatch(self, bytes message) except -1
    cdef int hold(self, bytes message) except -1
    cdef int cancel_login(self) except -1
    cdef int stop_reading(self) except -1
    cdef int unwatch(self) except -1
    cdef int close_as_told(self, close) except -1
    cdef int send_ping(self) except -1
    cdef sign_t sign(self) except? SIGN_SILENT
    cdef bint may_have_answered(self) except -1
    cdef int fail(self, int code) except -1
    cdef int tell_end(self, int code, str reason, cause, client) except -1
    cdef int close_as(self, int code, str text, retry_ms, cause, client) except -1
    cdef int answer_close(self) except -1
    cdef int begin_close(self, uint64_t within_ms) except -1
    cdef int discard(self) except -1
    cdef int start_linger(self) except -1
    cdef int close_transport(self) except -1
    cdef int leave_hub(self) except -1
    cdef int set_deadline(self, uint64_t after_ms) except -1
    cdef int on_due(self) except -1
