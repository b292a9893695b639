"""The core: from one written message to thousands of sockets, in C structs, without the GIL.

Only `.pxd` files: each is inlined into `starlight/_fanout.pyx`, the core's face, which no other module goes around.
Read them from the bottom up:

- `wire`: RFC 6455 headers and UTF-8. `histogram`: counts by powers of two.
  `clock`: the one clock, and which time it forgives.
- `arena`: wire frames in shared, append-only chunks. A publication is written here once.
- `outbox`: a subscriber's record. Its outbox is a few spans of frames in the arena.
- `flush`: from the outbox to the kernel, one call per client and turn. Nothing is torn but a frame in progress.
- `records`: the core's own record, the run, membership, the round of a flush, eviction, memory.
- `counters`: what is counted, for `Core.counters()`.
"""
