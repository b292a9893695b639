# What the core tells about itself, as Python objects: for `Core.counters` and `_gauges.pyx`, never on the way of a message.

from libc.stdint cimport uint32_t, uint64_t
from starlight.core.records cimport core_t
from starlight.core.flush cimport flusher_t
from starlight.core.outbox cimport REASON_BUDGET, REASON_SLOW, REASON_TIMEOUT, outbox_age_ms, subscriber_t


cdef inline dict core_counters(core_t* c):
    """The dict of `Core.counters`; one walk over all subscribers."""
    cdef flusher_t* f = &c.flusher
    cdef uint64_t n_bytes = 0, n_messages = 0, n_spans = 0
    cdef uint32_t i, age_ms, oldest_ms = 0
    cdef subscriber_t* sub
    for i in range(c.all.n):
        sub = <subscriber_t*>c.all.items[i]
        if sub.n_spans == 0:
            continue
        n_bytes += sub.out_bytes
        n_messages += sub.out_messages
        n_spans += sub.n_spans
        age_ms = outbox_age_ms(sub, f.now_ms)
        if age_ms > oldest_ms:
            oldest_ms = age_ms
    return {
        "subscribers": c.all.n, "full": c.full.n, "channels": c.n_channels - 1, "memberships": c.n_memberships,
        "chunks": c.arena.n_chunks, "free_chunks": c.arena.n_free, "chunk_bytes": c.arena.held_bytes,
        "transport_bytes": c.transport_bytes, "spans": n_spans, "outbox_messages": n_messages,
        "outbox_bytes": n_bytes, "oldest_ms": oldest_ms,
        "messages_total": c.totals.messages, "publications_total": c.totals.publications,
        "deliveries_total": c.totals.deliveries, "sends_total": f.sends,
        "short_sends_total": f.short_sends, "sent_bytes_total": f.sent_bytes, "sent_spans_total": f.spans,
        "settles_total": c.totals.settles, "turns_total": c.totals.turns, "slices_total": c.totals.slices,
        "evicted_slow_total": c.totals.evicted[REASON_SLOW],
        "evicted_timeout_total": c.totals.evicted[REASON_TIMEOUT],
        "evicted_budget_total": c.totals.evicted[REASON_BUDGET],
        "dropped_slow_messages_total": c.totals.dropped_messages[REASON_SLOW],
        "dropped_slow_bytes_total": c.totals.dropped_bytes[REASON_SLOW],
        "dropped_timeout_messages_total": c.totals.dropped_messages[REASON_TIMEOUT],
        "dropped_timeout_bytes_total": c.totals.dropped_bytes[REASON_TIMEOUT],
        "dropped_budget_messages_total": c.totals.dropped_messages[REASON_BUDGET],
        "dropped_budget_bytes_total": c.totals.dropped_bytes[REASON_BUDGET],
        "broken_total": c.totals.broken,
        "compacted_bytes_total": c.totals.compacted_bytes,
    }
