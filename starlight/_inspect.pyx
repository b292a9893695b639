"""What is read in the core from outside: counts of channels, histograms of flushes, and what became of a publication.

Strategy: the core counts in plain C fields while it works, and everything here only reads them, when somebody asks.
Law: nothing here changes the core. Each call is one walk without awaiting, so that what it returns fits together; walks
that may be long (`split`) take a list, which the caller cuts.
"""

from libc.stdint cimport uint32_t, uint64_t
from starlight.core.memory cimport budget_bytes
from starlight.core.records cimport channel_t, core_t
from starlight._fanout cimport Channel, Core, Subscriber
from starlight.core.histogram cimport HISTOGRAM_BUCKETS, histogram_t
from starlight.core.outbox cimport STATE_EVICTED, subscriber_t


def channel_counts(Channel channel not None):
    """(subscribers, publications, deliveries) of a channel: how many now, and the totals since it came to be."""
    return channel.c.n_members, channel.c.n_publications, channel.c.n_deliveries


def members(Channel channel not None):
    """The subscribers of a channel, in no particular order."""
    channel.core.check_thread()
    cdef uint32_t i
    return [<Subscriber>channel.c.members[i].sub.handle for i in range(channel.c.n_members)]


def owners(Core core not None, uint32_t start, uint32_t end):
    """The owners of the subscribers from `start` to `end`, or as far as there are any.

    Whoever walks all of them in slices goes from the end to the start: a subscriber that goes is replaced by the last
    one, which then is met a second time perhaps, but nobody is missed.
    """
    core.check_thread()
    cdef uint32_t i
    return [(<Subscriber>(<subscriber_t*>core.c.all.items[i]).handle).owner for i in range(start, min(end, core.c.all.n))]


def subscribers(Core core not None):
    """How many there are."""
    return core.c.all.n


def encoding_counts(Core core not None):
    """(publications, bytes) that were written in each encoding so far, by its number."""
    core.check_thread()
    cdef uint32_t i
    return [(core.c.encodings[i].n_publications, core.c.encodings[i].n_bytes) for i in range(core.c.n_encodings)]


def split(list subscribers not None):
    """(written, queued, evicted, waiting) of subscribers to which something was sent before.

    written: how many have nothing left in their outbox. queued: how many have, because their sockets are full. evicted:
    how many are evicted or gone. waiting: a list of those that were not flushed since.
    """
    cdef subscriber_t* sub
    cdef uint32_t written = 0, queued = 0, evicted = 0
    cdef list waiting = []
    for subscriber in subscribers:
        sub = (<Subscriber?>subscriber).s
        if sub == NULL or sub.state >= STATE_EVICTED:
            evicted += 1
        elif sub.events:                                 # the core is about to act on it: evict, or find it broken
            waiting.append(subscriber)
        elif sub.n_spans == 0:
            written += 1
        elif sub.is_full or sub.transport_busy:
            queued += 1
        else:
            waiting.append(subscriber)
    return written, queued, evicted, waiting


def over_budget(Core core not None):
    """Whether the chunks together take more than the memory budget."""
    return budget_bytes(&core.c) > core.c.limits.memory_budget_bytes


def flush_histograms(Core core not None):
    """How long flushes took (µs) and how much each handed over (bytes): two pairs (counts, sum), see _histogram.pxd."""
    core.check_thread()
    return read(&core.c.flush_us), read(&core.c.flush_bytes)


cdef tuple read(histogram_t* histogram):
    cdef int i
    return [histogram.counts[i] for i in range(HISTOGRAM_BUCKETS)], histogram.sum
