"""The phases of a session as one table: from, what happens, to, what is done about it. All transitions are here.

::

    HANDSHAKE --upgrade--> LOGIN --login--> OPEN --close, evict--> CLOSING --close sent--> LINGERING --lost--> GONE
        |                    |               |                       ^
     refusal                 +--peer close---+--> LEAVING --handled--+
        v
     REFUSED                       every phase --lost--> GONE

What is not in the table can't happen: `IllegalTransition` is a bug of ours, never of a peer's.
"""

__all__ = ["ACTIONS", "HAPPENINGS", "PHASES", "TABLE", "IllegalTransition", "transition"]

PHASES = ("handshake", "refused", "login", "open", "leaving", "closing", "lingering", "gone")
HAPPENINGS = ("upgrade", "refusal", "login", "peer_close", "handled", "close", "evict", "close_sent", "due", "departure",
              "lost")
ACTIONS = ("nothing", "await_login", "await_silence", "await_peer", "judge_login", "judge_peer", "finish", "answer",
           "begin_close", "say_eof", "cut_off", "cut_off_late", "forget", "record_loss")

TABLE = (
    (PHASE_HANDSHAKE, ON_UPGRADE, PHASE_LOGIN, DO_AWAIT_LOGIN),
    (PHASE_HANDSHAKE, ON_REFUSAL, PHASE_REFUSED, DO_AWAIT_PEER),
    (PHASE_HANDSHAKE, ON_DUE, PHASE_HANDSHAKE, DO_CUT_OFF_LATE),
    (PHASE_HANDSHAKE, ON_LOST, PHASE_GONE, DO_FORGET),

    (PHASE_REFUSED, ON_DUE, PHASE_REFUSED, DO_CUT_OFF),
    (PHASE_REFUSED, ON_LOST, PHASE_GONE, DO_FORGET),

    (PHASE_LOGIN, ON_LOGIN, PHASE_OPEN, DO_AWAIT_SILENCE),
    (PHASE_LOGIN, ON_PEER_CLOSE, PHASE_LEAVING, DO_FINISH),
    (PHASE_LOGIN, ON_CLOSE, PHASE_CLOSING, DO_BEGIN_CLOSE),
    (PHASE_LOGIN, ON_EVICT, PHASE_CLOSING, DO_BEGIN_CLOSE),
    (PHASE_LOGIN, ON_DUE, PHASE_LOGIN, DO_JUDGE_LOGIN),
    (PHASE_LOGIN, ON_DEPARTURE, PHASE_LOGIN, DO_CUT_OFF),
    (PHASE_LOGIN, ON_LOST, PHASE_GONE, DO_RECORD_LOSS),

    (PHASE_OPEN, ON_PEER_CLOSE, PHASE_LEAVING, DO_FINISH),
    (PHASE_OPEN, ON_CLOSE, PHASE_CLOSING, DO_BEGIN_CLOSE),
    (PHASE_OPEN, ON_EVICT, PHASE_CLOSING, DO_BEGIN_CLOSE),
    (PHASE_OPEN, ON_DUE, PHASE_OPEN, DO_JUDGE_PEER),
    (PHASE_OPEN, ON_DEPARTURE, PHASE_OPEN, DO_CUT_OFF),
    (PHASE_OPEN, ON_LOST, PHASE_GONE, DO_RECORD_LOSS),

    (PHASE_LEAVING, ON_LOGIN, PHASE_LEAVING, DO_NOTHING),
    (PHASE_LEAVING, ON_HANDLED, PHASE_CLOSING, DO_ANSWER),
    (PHASE_LEAVING, ON_DUE, PHASE_CLOSING, DO_ANSWER),
    (PHASE_LEAVING, ON_DEPARTURE, PHASE_CLOSING, DO_ANSWER),
    (PHASE_LEAVING, ON_CLOSE, PHASE_CLOSING, DO_BEGIN_CLOSE),
    (PHASE_LEAVING, ON_EVICT, PHASE_CLOSING, DO_BEGIN_CLOSE),
    (PHASE_LEAVING, ON_LOST, PHASE_GONE, DO_RECORD_LOSS),

    (PHASE_CLOSING, ON_EVICT, PHASE_CLOSING, DO_NOTHING),
    (PHASE_CLOSING, ON_CLOSE_SENT, PHASE_LINGERING, DO_SAY_EOF),
    (PHASE_CLOSING, ON_DUE, PHASE_CLOSING, DO_CUT_OFF),
    (PHASE_CLOSING, ON_LOST, PHASE_GONE, DO_FORGET),

    (PHASE_LINGERING, ON_DUE, PHASE_LINGERING, DO_CUT_OFF),
    (PHASE_LINGERING, ON_LOST, PHASE_GONE, DO_FORGET),
)


cdef row_t rows[N_PHASES][N_HAPPENINGS]                  # filled from `TABLE` below, and never changed


class IllegalTransition(Exception):
    """Something happened that can't in this phase. It is a bug of ours."""


for _from, _happening, _to, _action in TABLE:
    rows[<int>_from][<int>_happening].is_there = True
    rows[<int>_from][<int>_happening].to_phase = _to
    rows[<int>_from][<int>_happening].action = _action


cdef row_t row_of(phase_t phase, happening_t happening) except *:
    """The row of the table. Raises `IllegalTransition` if there is none."""
    if not rows[<int>phase][<int>happening].is_there:
        raise IllegalTransition(f"{HAPPENINGS[<int>happening]} in phase {PHASES[<int>phase]}")
    return rows[<int>phase][<int>happening]


def transition(int phase, int happening):
    """(to, action) of a row, by the indexes of `PHASES` and `HAPPENINGS`. Raises `IllegalTransition` if there is none."""
    cdef row_t row = row_of(<phase_t>phase, <happening_t>happening)
    return row.to_phase, row.action
