# A session's record: a client's connection as the protocol sees it. It knows no socket.
#
# Law: messages are handled strictly one after the other. From PHASE_CLOSING on nothing is given to the hub and nothing but the
# close is written. The hub hears of a client's end exactly once. See phases.pyx for all transitions.

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint64_t
from starlight._fanout cimport Core, Subscriber
from starlight.protocols.native._lines cimport Lines
from starlight.session.deadlines cimport deadline_t, wheel_t
from starlight.session.phases cimport action_t, happening_t, phase_t


cdef enum sign_t:
    SIGN_SILENT = 0
    SIGN_ALIVE = 1
    SIGN_UNKNOWN = 2


cdef class Session


cdef class SessionHost:
    cdef readonly Core core
    cdef readonly object hub
    cdef readonly object counts          # starlight.session.counts.ConnectionCounts
    cdef readonly object ends            # starlight.ends.Ends: how sessions ended
    cdef object dry_run                  # starlight.auth.dry_run.DryRun: limits that are not enforced
    cdef readonly uint64_t messages_in   # totals: whole messages, lines counted one by one
    cdef readonly uint64_t bytes_in      # read from sockets, the handshakes included
    cdef object loop
    cdef object timer
    cdef dict left_behind                # tasks of handlers whose clients have gone, the oldest first; a dict as ordered set
    cdef object hub_login
    cdef object hub_receive
    cdef object hub_count_bytes
    cdef object hub_count_frames
    cdef list waiting                    # sessions that have had their share of this turn
    cdef uint64_t turn_work              # what clients that want more than they get are given in a turn, all together
    cdef uint64_t share_work             # what each client may make us do in a turn, see `Session.spend`
    cdef uint64_t least_work             # the same, where all together have had the turn's
    cdef uint64_t turn                   # the core's turn in which `work` was counted
    cdef uint64_t work                   # what clients made us do in it, all together
    cdef double ticked_s                 # when the latest tick was, on the loop's clock
    cdef wheel_t wheel
    cdef deadline_t due                  # list of those whose deadline has come, while they are told
    cdef int max_connections
    cdef Py_ssize_t read_limit_bytes
    cdef Py_ssize_t login_limit_bytes
    cdef uint64_t handshake_timeout_ms
    cdef uint64_t login_timeout_ms
    cdef uint64_t ping_interval_ms
    cdef uint64_t pong_timeout_ms
    cdef uint64_t write_timeout_ms       # also: how long an orderly close may take to write what is left
    cdef readonly bint echoes
    cdef bint is_stopped                 # what is still connected is cut off

    cdef int abort_all(self, phase_t last_phase) except -1
    cdef int wait(self, Session session) except -1


@cython.final
cdef class Session:
    cdef SessionHost host
    cdef object transport                # starlight.session.transport.Transport; None before `begin` and after the end
    cdef readonly Subscriber subscriber
    cdef readonly object client          # the hub's Client; None before the login and after the end
    cdef readonly str subprotocol
    cdef readonly object codec           # a starlight.protocols.base.Codec; None until it is upgraded
    cdef readonly uint64_t number        # among the sessions of this node, from 1 on; 0 before the handshake is done
    cdef readonly uint64_t connected_ms  # when that was, on the core's clock
    cdef readonly uint64_t messages_in
    cdef object told_peername            # by a trusted proxy, instead of the transport's; None if there is none
    cdef object queue                    # deque of messages, or frames of lines, that are held; None most of the time
    cdef Lines lines                     # the frame of lines under way, before all in `queue`; None most of the time
    cdef object task                     # the handler, or check of a login, under way
    cdef str peer_reason                 # of the peer's close frame; None without one
    cdef Py_ssize_t queued_bytes
    cdef int64_t received_bytes          # from the peer, as the kernel had counted them when it was pinged; -1: unknown
    cdef int64_t acked_bytes             # of ours by the peer, likewise
    cdef uint64_t pinged_ms              # when the last ping was queued, on the core's clock
    cdef Py_ssize_t stranger_bytes       # received since the handshake, while nobody has logged in
    cdef uint64_t turn                   # the core's turn in which `work` was counted
    cdef uint64_t work                   # what it made us do in it, see `spend`
    cdef deadline_t deadline             # its one deadline: what it means is the phase's business
    cdef int n_doubts                    # pong timeouts that passed in a row while nothing could be told of the peer
    cdef int fault                       # close code of what is wrong behind messages that wait for the next turn
    cdef int peer_code                   # of the peer's close frame; 0: none has come. Nothing behind it is delivered
    cdef uint8_t phase                   # phase_t
    # Flags, a byte each: there are many sessions.
    cdef uint8_t is_lines                # its framing: a frame may hold several messages
    cdef uint8_t is_text                 # its codec: messages come in text frames
    cdef uint8_t is_late                 # the handshake: it has had its time
    cdef uint8_t is_checking             # `task` checks the login
    cdef uint8_t awaits_pong
    cdef uint8_t is_stopped              # reading, because too much is held, or for a moment by the meter
    cdef uint8_t is_waiting              # for the next turn: not read meanwhile
    cdef uint8_t is_ahead                # it has published while the core was behind with its writing: waits for that
    cdef uint8_t is_evicted              # the end is a reset
    cdef uint8_t is_eof                  # the peer has said that it sends no more
    cdef uint8_t is_throttled            # it sends too much and is not read for a moment; stopped as well

    # For the transport, compiled or not:
    cpdef int begin(self, object transport) except -1
    cpdef int on_upgraded(self, Subscriber subscriber, encoding) except -1
    cpdef int on_refused(self) except -1
    cpdef bint is_live(self) noexcept
    cpdef bint take_frame(self, uint64_t work) except -1
    cpdef Py_ssize_t message_limit(self) noexcept
    cpdef int on_read(self, Py_ssize_t n_bytes) except -1
    cpdef int after_read(self, Py_ssize_t n_bytes) except -1
    cpdef bint may_frames(self, uint64_t n_frames) except -1
    cpdef int on_message(self, bytes message, bint is_text) except -1
    cpdef int on_ping(self, const char* payload, Py_ssize_t n_bytes) except -1
    cpdef int on_pong(self) except -1
    cpdef int on_peer_close(self, int code, str reason) except -1
    cpdef int fail(self, int code) except -1
    cpdef int end_for(self, error) except -1
    cpdef int on_all_written(self) except -1
    cpdef bint on_eof(self) except -1
    cpdef int on_close_answered(self) except -1
    cpdef int on_lost(self) except -1

    # Its own:
    cdef int happened(self, happening_t happening) except -1
    cdef int act(self, action_t action) except -1
    cdef int spend(self, uint64_t work) except -1
    cdef int wait(self) except -1
    cdef int spend_time(self, uint64_t started_ns) except -1
    cdef int spend_copies(self, uint64_t n_bytes) except -1
    cdef bint must_wait(self) noexcept
    cdef bint is_holding(self) noexcept
    cdef bint is_at_rest(self) noexcept
    cdef bint is_stranger(self) noexcept
    cdef bint has_room(self) noexcept
    cdef int read_on(self) except -1
    cdef int deliver(self, bytes text) except -1
    cdef int handle_held(self) except -1
    cdef bytes next_held(self)
    cdef int dispatch(self, bytes message) except -1
    cdef int hold(self, bytes message) except -1
    cdef int stop_reading(self) except -1
    cdef int finish(self) except -1
    cdef int cancel_login(self) except -1
    cdef int close_as_told(self, close) except -1
    cdef int close_as(self, int code, reason, retry_ms, cause, client) except -1
    cdef int tell_end(self, int code, str reason, cause, client) except -1
    cdef int answer_close(self) except -1
    cdef int begin_close(self) except -1
    cdef int say_eof(self) except -1
    cdef int start_linger(self) except -1
    cdef int cut_off(self) except -1
    cdef int record_loss(self) except -1
    cdef int forget(self) except -1
    cdef int drop_held(self) except -1
    cdef int leave_hub(self) except -1
    cdef int set_deadline(self, uint64_t after_ms) except -1
    cdef int judge_login(self) except -1
    cdef int judge_peer(self) except -1
    cdef int send_ping(self) except -1
    cdef sign_t sign(self) except? SIGN_SILENT
    cdef bint may_have_answered(self) except -1
