# Policy: which full subscribers have to go, and why.
#
# Strategy: what counts is progress, the time since the sink last took a byte. Full subscribers alone are judged: those that
# became full in the flush that ended a turn, and all of them in sweeps; never while messages are delivered.
# Law: a verdict is marked here and acted on after the loops. Whoever has to go is doomed: its whole frames are dropped at
# once and counted, it gets nothing more, and the rest follows with its event. Time in which only we were busy is forgiven.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from starlight.core.flush cimport flush_one, raise_event
from starlight.core.outbox cimport (EVENT_EVICT, REASON_DRY_RUN, REASON_NONE, REASON_SLOW, REASON_TIMEOUT, STATE_CLOSING,
                                    STATE_OPEN, outbox_age_ms, outbox_truncate, releases_apply, subscriber_t, torn_bytes)
from starlight.core.records cimport core_t, limits_t
from starlight.core.round cimport count_transport, full_remove
from starlight.core.run cimport count_dropped

cdef enum:
    HELD_UP_MS = 200             # sweeps come every 50 ms or so: four were missed
    EPISODE_MS = 60_000          # a dry run: so long without a verdict, and the next one is told again


cdef inline bint is_held_up(core_t* c) noexcept nogil:
    """Whether the last sweep was so long ago that the loop must have been busy with other things."""
    return c.flusher.now_ms - c.swept_ms > HELD_UP_MS


cdef inline uint8_t verdict_slow(core_t* c, uint32_t stalled_ms) noexcept nogil:
    """What becomes of one over the limits of outboxes: in a dry run only the write timeout is enforced."""
    if not c.limits.is_dry_run:
        return REASON_SLOW
    return REASON_TIMEOUT if stalled_ms >= c.limits.write_timeout_ms else REASON_DRY_RUN


cdef inline uint32_t patience_ms(core_t* c) noexcept nogil:
    """By how much messages may be older than the write timeout, as the loop was held up and wrote nothing meanwhile."""
    return max(c.patience_ms, c.flusher.now_ms - c.swept_ms)


cdef inline void sweep_begins(core_t* c) noexcept nogil:
    """A time in which the loop was held up is given back to clients once, and then runs out as time goes on."""
    cdef uint32_t passed_ms = c.flusher.now_ms - c.swept_ms
    c.patience_ms = max(passed_ms, c.patience_ms - min(c.patience_ms, passed_ms))
    c.swept_ms = c.flusher.now_ms


cdef inline uint8_t verdict(core_t* c, subscriber_t* sub) noexcept nogil:
    """Why a full subscriber has to go, by what is known of it now."""
    cdef limits_t* limits = &c.limits
    cdef uint32_t now_ms = c.flusher.now_ms
    cdef uint32_t stalled_ms = now_ms - sub.stalled_since_ms
    if not sub.is_full or sub.events or sub.state > STATE_CLOSING:
        return REASON_NONE
    if sub.state == STATE_OPEN and (sub.out_messages > limits.outbox_messages or sub.out_bytes > limits.outbox_bytes):
        if stalled_ms >= limits.evict_after_ms:
            return verdict_slow(c, stalled_ms)
        if outbox_age_ms(sub, now_ms) >= <uint64_t>limits.write_timeout_ms + patience_ms(c):
            return verdict_slow(c, stalled_ms)
    elif stalled_ms >= limits.write_timeout_ms:
        return REASON_TIMEOUT
    return REASON_NONE


cdef inline void write_once(core_t* c, subscriber_t* sub) noexcept nogil:
    """Offer a full socket more, though no event said that it takes more; `apply_flush` must follow."""
    full_remove(c, sub)
    flush_one(&c.flusher, sub)


cdef inline void note_end(core_t* c, subscriber_t* sub) noexcept nogil:
    """Its outbox is about to be dropped: remember for its owner what it held."""
    sub.end_messages = sub.out_messages
    sub.end_bytes = sub.out_bytes
    sub.end_oldest_ms = outbox_age_ms(sub, c.flusher.now_ms)


cdef inline void drop_outbox(core_t* c, subscriber_t* sub, uint64_t keep_bytes) noexcept nogil:
    """Give the outbox back, but for frames of which a byte is among the next `keep_bytes`, and count what went."""
    cdef uint32_t n_messages = sub.out_messages
    cdef uint64_t n_bytes = sub.out_bytes
    outbox_truncate(sub, keep_bytes, &c.flusher.releases)
    releases_apply(&c.flusher.releases, &c.arena)
    count_dropped(c, sub, n_messages - sub.out_messages, n_bytes - sub.out_bytes)


cdef inline void doom(core_t* c, subscriber_t* sub, uint8_t reason) noexcept nogil:
    """Decide that it goes: nothing more is delivered to it and its memory is free now; `act` does the rest."""
    sub.evict_reason = reason
    note_end(c, sub)
    drop_outbox(c, sub, torn_bytes(sub))
    count_transport(c, sub, 0)                           # it has a second to live: nobody pays for it
    raise_event(&c.flusher.eventful, sub, EVENT_EVICT)


cdef inline bint is_noted(core_t* c, subscriber_t* sub) noexcept nogil:
    """Whether it has been over the limits in a dry run within the last minute: that is one episode."""
    return sub.is_noted and c.flusher.now_ms - sub.noted_ms < EPISODE_MS


cdef inline void carry_out(core_t* c, subscriber_t* sub, uint8_t reason) noexcept nogil:
    """Do what a verdict says; in a dry run, note it, and have the owner told of each new episode."""
    if reason != REASON_DRY_RUN:
        doom(c, sub, reason)
        return
    if not is_noted(c, sub) and not sub.is_untold:
        sub.is_untold = True
        c.n_untold += 1
    sub.is_noted = True
    sub.noted_ms = c.flusher.now_ms


cdef inline void judge_new(core_t* c, uint32_t first) noexcept nogil:
    """Judge those that became full in the flush that has just ended: `full` from `first` on."""
    cdef subscriber_t* sub
    cdef uint8_t reason
    cdef uint32_t i
    for i in range(first, c.full.n):
        sub = <subscriber_t*>c.full.items[i]
        reason = verdict(c, sub)
        if reason:
            carry_out(c, sub, reason)
