"""The core: from one written message to thousands of sockets, in C structs, without the GIL.

Only `.pxd` files: each is inlined into `starlight/_fanout.pyx`, the core's face, which no other module goes around.
Read them from the bottom up:

- `wire`: RFC 6455 headers and UTF-8. `histogram`: counts by powers of two.
  `clock`: the one clock, and which time it forgives.
- `arena`: wire frames in shared, append-only chunks. A publication is written here once.
- `encoding`: a codec and a framing; how a message becomes bytes in the arena.
- `outbox`: a subscriber's record. Its outbox is a few spans of frames in the arena.
- `flush`: from the outbox to the kernel, one call per client and turn. Nothing is torn but a frame in progress.
- `records`: the core's own structs, and what may stand in which list.
- `run`: what a publication costs: it is appended once, and settled into all outboxes once a turn.
- `membership`: who is in a channel. `round`: a flush, in slices. `policy`: who is evicted, and why.
- `memory`: compaction, and what the budget counts. `checks`: the invariants, for the debug build.
- `counters`: what is counted, for `Core.counters()`.
"""
