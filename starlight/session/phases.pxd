# The phases of a session: one table of all transitions (see phases.pyx, which has it and draws it).
#
# Law: a session changes its phase by a row of it and by nothing else. What the table doesn't have is a bug, and raises.
# The order matters: what is below PHASE_CLOSING still belongs to the client, what is below PHASE_LOGIN has not begun.

from libc.stdint cimport uint8_t

cdef enum phase_t:
    PHASE_HANDSHAKE = 0          # the transport is being set up
    PHASE_REFUSED = 1            # ... and was refused: the peer may read the answer
    PHASE_LOGIN = 2              # a stranger: its first message is awaited, or checked
    PHASE_OPEN = 3               # a client
    PHASE_LEAVING = 4            # the peer has closed; what it sent before is handled first
    PHASE_CLOSING = 5            # what the peer is still to get, then the close frame, are on their way
    PHASE_LINGERING = 6          # all is sent; the peer may read it and close
    PHASE_GONE = 7
    N_PHASES = 8

cdef enum happening_t:
    ON_UPGRADE = 0               # the handshake is done
    ON_REFUSAL = 1               # the handshake was answered with a refusal
    ON_LOGIN = 2                 # the hub has let the client in
    ON_PEER_CLOSE = 3            # the peer's close frame came
    ON_HANDLED = 4               # all that a leaving peer had sent is handled, or waits no longer
    ON_CLOSE = 5                 # we have queued our close frame
    ON_EVICT = 6                 # the core has, for what the client did not read
    ON_CLOSE_SENT = 7            # the kernel has it
    ON_DUE = 8                   # the deadline has come
    ON_DEPARTURE = 9             # the peer went while it wasn't read
    ON_LOST = 10                 # the transport is about to close its socket
    N_HAPPENINGS = 11

cdef enum action_t:
    DO_NOTHING = 0
    DO_AWAIT_LOGIN = 1           # so long for the first message
    DO_AWAIT_SILENCE = 2         # a ping after the first interval
    DO_AWAIT_PEER = 3            # a moment for the peer to read and close
    DO_JUDGE_LOGIN = 4           # no login came: close, unless one is being checked
    DO_JUDGE_PEER = 5            # ping it, or close for want of a pong
    DO_FINISH = 6                # handle what the peer sent before its close, in bounded time
    DO_ANSWER = 7                # answer the peer's close, then as DO_BEGIN_CLOSE
    DO_BEGIN_CLOSE = 8           # out of the hub; nothing more from the peer
    DO_SAY_EOF = 9               # and as DO_AWAIT_PEER
    DO_CUT_OFF = 10              # the transport, with a reset if something is unsent
    DO_CUT_OFF_LATE = 11         # the transport, as its handshake had its time
    DO_FORGET = 12               # all there is; the hub is told
    DO_RECORD_LOSS = 13          # as an end without a close frame, then as DO_FORGET
    N_ACTIONS = 14

ctypedef struct row_t:
    uint8_t is_there
    uint8_t to_phase
    uint8_t action

cdef row_t row_of(phase_t phase, happening_t happening) except *
