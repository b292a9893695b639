"""What a node knows about itself, as plain dicts: what the internal port shows and `metrics` exports.

Strategy: the core, the hub and the connections count while they work, in plain integers; everything here only reads,
and only when somebody asks. What may be long (a page of 10,000 connections) is read in slices, and the loop goes on
between them: so that a page is not of one moment, which nobody can see, but no client waits for it.

This module is the hub's confidant: it reads its registries of users and channels, and changes nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from starlight import close_codes, ends
from starlight._inspect import channel_counts, flush_histograms, over_budget, owners, subscribers
from starlight._version import __version__
from starlight.auth.dry_run import KINDS, DryRun
from starlight.ends import Ends, address_text
from starlight.net.refusals import CAUSES

if TYPE_CHECKING:
    from starlight._fanout import Core
    from starlight.channels.channel import ChannelRecord
    from starlight.channels.hub import Hub
    from starlight.config.settings import Settings
    from starlight.net.connection import Endpoint
    from starlight.session.session import Session

__all__ = [
    "CHANNEL_ORDERS",
    "CONNECTION_ORDERS",
    "EVICTION_REASONS",
    "LoopLag",
    "Source",
    "Stats",
    "not_ready",
]

SLICE: Final = 500
"""Connections or channels that are looked at between two turns of the loop: about half a millisecond of them."""

ROWS_SLICE: Final = 100
"""Rows of a page that are made between two turns, alike."""

LAG_INTERVAL_S: Final = 0.05
"""How often the loop's lag is measured: often enough to meet a stall of that length, too rare to be noticed itself."""

CONNECTION_ORDERS: Final = ("outbox", "oldest", "messages_in", "connected")
"""By what `Stats.connz` can sort, largest first."""

CHANNEL_ORDERS: Final = ("subscribers", "publications", "deliveries")
"""By what `Stats.channelz` can sort, largest first."""

EVICTION_REASONS: Final = ("slow", "timeout", "budget")
"""Why the core evicts: over a limit of the outbox; took nothing for the write timeout; largest when memory ran out."""

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_CLOCK_MASK: Final = 2**32 - 1  # the core dates messages modulo this

Item = TypeVar("Item")


class Source(Protocol):
    """What is asked of the node."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def core(self) -> Core: ...
    @property
    def hub(self) -> Hub: ...
    @property
    def acceptor(self) -> Endpoint: ...
    @property
    def ends(self) -> Ends: ...
    @property
    def dry_run(self) -> DryRun: ...
    @property
    def url(self) -> str: ...
    @property
    def is_draining(self) -> bool: ...
    @property
    def is_listening(self) -> bool: ...


def not_ready(node: Source) -> list[str]:
    """Why no client should be sent to a node now; empty if it is ready."""
    reasons = []
    if node.is_draining:
        reasons.append("draining")
    if over_budget(node.core):
        reasons.append("over budget")
    if not node.is_listening:
        reasons.append("not listening")
    return reasons


class LoopLag:
    """How late the loop calls what is due: the worst of the last second, and since the start."""

    def __init__(self) -> None:
        self.max_s = 0.0
        self._recent_s = [0.0] * round(1 / LAG_INTERVAL_S)
        self._ticks = 0
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def recent_s(self) -> float:
        """The worst of the last second, in seconds."""
        return max(self._recent_s)

    def start(self) -> None:
        """Begin to measure the running loop."""
        self._due_s = time.monotonic() + LAG_INTERVAL_S
        self._timer = asyncio.get_running_loop().call_later(LAG_INTERVAL_S, self._tick)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        lag_s = max(0.0, time.monotonic() - self._due_s)
        self._recent_s[self._ticks % len(self._recent_s)] = lag_s
        self._ticks += 1
        self.max_s = max(self.max_s, lag_s)
        self.start()


class Stats:
    """What a node knows about itself.

    Args:
        node: the node, started.
    """

    def __init__(self, node: Source) -> None:
        self.node = node
        self.lag = LoopLag()
        self._started_s = time.time()
        self._started_monotonic_s = time.monotonic()

    # --- the node as a whole -------------------------------------------------------------------------------------

    def not_ready(self) -> list[str]:
        """See `not_ready`."""
        return not_ready(self.node)

    def varz(self) -> dict[str, Any]:
        """The node in numbers: what there is now, and totals since the start."""
        node = self.node
        core = node.core.counters()
        clients, broadcasts, _ = channel_counts(node.core.everyone)
        return {
            "node": node.name,
            "version": __version__,
            "pid": os.getpid(),
            "started": round(self._started_s, 3),
            "now": round(time.time(), 3),
            "uptime_s": round(time.monotonic() - self._started_monotonic_s, 3),
            "state": "draining" if node.is_draining else "serving",
            "url": node.url if node.is_listening else "",
            "connections": node.acceptor.connections,
            "clients": clients,
            "users": len(node.hub.users),
            "channels": len(node.hub.channels),
            "memberships": core["memberships"] - clients,
            "full_clients": core["full"],
            "dry_run": node.settings.dry_run.replace(",", " ").split(),
            "totals": self._totals(core, broadcasts),
            "outbox": {
                "messages": core["outbox_messages"],
                "bytes": core["outbox_bytes"],
                "oldest_ms": core["oldest_ms"],
            },
            "memory": {
                "rss_bytes": resident_bytes(),
                "budget_bytes": node.settings.memory_budget_bytes,
                "chunk_bytes": core["chunk_bytes"],
                "transport_bytes": core["transport_bytes"],
            },
            "loop": {"lag_ms": round(self.lag.recent_s * 1e3, 3), "lag_max_ms": round(self.lag.max_s * 1e3, 3)},
        }

    def _totals(self, core: dict[str, int], broadcasts: int) -> dict[str, Any]:
        acceptor, hub = self.node.acceptor, self.node.hub
        counts = acceptor.counts
        closes = Counter(self.closes("node"))
        closes.update(self.closes("client"))
        return {
            "connections": counts.accepted,
            "refused_connections": counts.refused_full + counts.refused_address,
            "handshake_failures": counts.handshakes_failed,
            "refusals": self.refusals(),
            "logins": counts.logins,
            "logins_refused": sum(self.refused_logins().values()),
            "messages_in": acceptor.messages_in,
            "bytes_in": acceptor.bytes_in,
            "publications": core["publications_total"] - broadcasts + hub.counts.unheard,
            "directs": hub.counts.directs,
            "broadcasts": broadcasts,
            "deliveries": core["deliveries_total"],
            "sends": core["sends_total"],
            "bytes_out": core["sent_bytes_total"],
            "evictions": self.evictions(core),
            "dropped": dropped(core),
            "closes": dict(closes),
            "ends": self.ends(),
            "would_have": self.would_have(),
            "errors": self.errors(),
            "revocations": hub.logins.revocations.total,
        }

    def closes(self, by: str) -> dict[str, int]:
        """Closes by code. By the "node", those before the login included, or by the "client": 1006 if it just went."""
        counts = self.node.acceptor.counts
        if by == "client":
            return counts.left.shown()
        ended = Counter(counts.closed.shown())
        ended.update(counts.refused.shown())
        return dict(ended)

    def ends(self) -> dict[str, int]:
        """Ends by cause, in the order of `ends.CAUSES`; refused logins are among them, failed handshakes are not."""
        counts = self.node.ends.counts
        return {cause: counts[cause] for cause in ends.CAUSES}

    def would_have(self) -> dict[str, int]:
        """What limits in a dry run would have done, in episodes by kind."""
        counts = self.node.dry_run.counts
        return {kind: counts[kind] for kind in KINDS}

    def refusals(self) -> dict[str, int]:
        """Connections refused, or ended before their handshake was done, by cause: `refusals.CAUSES`, all of them."""
        return {cause: self.node.acceptor.gate.refusals.counts[cause] for cause in CAUSES}

    def refused_logins(self) -> dict[str, int]:
        """Connections that the node closed before they had logged in, by code; a drain is no refusal."""
        return self.node.acceptor.counts.refused.shown(without=(close_codes.GOING_AWAY,))

    def errors(self) -> dict[str, int]:
        """Error replies by code; those with codes of the application's own together."""
        return self.node.hub.counts.errors.shown()

    def evictions(self, core: dict[str, int]) -> dict[str, int]:
        """Evictions by close code, out of the core's counters."""
        return {
            "4008": core["evicted_slow_total"] + core["evicted_budget_total"],
            "4009": core["evicted_timeout_total"],
        }

    def flush_histograms(self) -> tuple[tuple[list[int], int], tuple[list[int], int]]:
        """Durations (µs) and sizes (bytes) of flushes: see `_inspect.flush_histograms`."""
        return flush_histograms(self.node.core)

    # --- connections ---------------------------------------------------------------------------------------------

    async def connz(
        self, order: str = "outbox", user: str | None = None, limit: int = 100, offset: int = 0
    ) -> dict[str, Any]:
        """A page of the connections, sorted.

        Args:
            order: one of `CONNECTION_ORDERS`; largest first, so ``connected`` begins with the one that is here longest.
            user: only those of this user.
            limit: at most so many.
            offset: leave out so many at the beginning.
        """
        weigh = _WEIGHTS[order]

        def weight(connection: Session) -> int | None:
            if user is not None and (connection.client is None or connection.client.user != user):
                return None
            return weigh(connection, now_ms)

        now_ms = self.node.core.now_ms()
        total, page = await _largest(self._connections(), weight, offset, limit)
        rows: list[dict[str, Any]] = []
        for start in range(0, len(page), ROWS_SLICE):
            now_ms = self.node.core.now_ms()
            rows += [_connection_row(connection, now_ms) for connection in page[start : start + ROWS_SLICE]]
            await asyncio.sleep(0)
        return {"now": round(time.time(), 3), "total": total, "offset": offset, "connections": rows}

    def _connections(self) -> Iterator[list[Session]]:
        """All connections in slices, each once; to be taken one by one, with turns of the loop between."""
        core = self.node.core
        seen: set[int] = set()
        end = subscribers(core)
        while end > 0:
            found = owners(core, max(0, end - SLICE), end)
            some = [connection for connection in found if connection.number not in seen]
            seen.update(connection.number for connection in some)
            yield some
            end = min(end - SLICE, subscribers(core))

    async def find_connection(self, number: int) -> Session | None:
        """The connection with this id in `connz`; None if it is gone."""
        for some in self._connections():
            for connection in some:
                if connection.number == number:
                    return connection
            await asyncio.sleep(0)
        return None

    async def endz(
        self, user: str | None = None, code: int | None = None, since_s: float = 0.0, limit: int = 100, offset: int = 0
    ) -> dict[str, Any]:
        """A page of the ends that are remembered, the latest first; see `Ends.find`."""
        total, page = self.node.ends.find(user, code, since_s, limit, offset)
        rows: list[dict[str, Any]] = []
        for start in range(0, len(page), ROWS_SLICE):
            rows += [end.row() for end in page[start : start + ROWS_SLICE]]
            await asyncio.sleep(0)
        return {
            "node": self.node.name,
            "now": round(time.time(), 3),
            "total": total,
            "offset": offset,
            "ends": rows,
        }

    # --- channels ------------------------------------------------------------------------------------------------

    async def channelz(self, order: str = "subscribers", limit: int = 100) -> dict[str, Any]:
        """The largest channels, with their options. Totals begin when a channel comes to be, mostly by its first join.

        Args:
            order: one of `CHANNEL_ORDERS`.
            limit: at most so many.
        """
        place = CHANNEL_ORDERS.index(order)
        records = self._channels()
        total, page = await _largest(records, lambda record: channel_counts(record.members)[place], 0, limit)
        rows = [
            {
                "channel": record.name,
                **dict(zip(CHANNEL_ORDERS, channel_counts(record.members), strict=True)),
                "options": record.options.model_dump(),
            }
            for record in page
        ]
        return {"now": round(time.time(), 3), "total": total, "channels": rows}

    async def channels(self, prefix: str = "", limit: int = 100) -> dict[str, Any]:
        """Names of the channels that there are, the oldest first, with how many clients and users; None: not kept.

        Args:
            prefix: only those that begin so.
            limit: at most so many.
        """
        found: list[dict[str, Any]] = []
        for some in self._channels():
            for record in some:
                if record.name.startswith(prefix) and len(found) < limit:
                    users = None if record.listed is None else len(record.listed)
                    found.append({"channel": record.name, "subscribers": len(record.members), "users": users})
            if len(found) >= limit:
                break
            await asyncio.sleep(0)
        return {"channels": found}

    def _channels(self) -> Iterator[list[ChannelRecord]]:
        """All channels in slices, the oldest first; to be taken one by one, with turns of the loop between.

        Only the copy of the registry is one step, as a dict can't be walked while it changes: 20 ms for a million
        channels, 2 ms for 100,000. A row beside the dict would spare that, and cost every new channel.
        """
        records = list(reversed(self.node.hub.channels.values()))
        while records:  # taken off its end, so that giving the copy back is no such step again
            some = records[: -SLICE - 1 : -1]
            del records[-SLICE:]
            yield some

    def presence(self, channel: str, limit: int) -> dict[str, Any] | None:
        """The first `limit` users of a channel, and how many clients and users it has; None where that isn't kept."""
        record = self.node.hub.channels.get(channel)
        if record is None:
            return {"users": [], "clients": 0, "total": 0} if self.node.hub.options.of(channel).presence else None
        presence = record.listed
        if presence is None:
            return None
        return {"users": presence.users(limit), "clients": len(record.members), "total": len(presence)}


# --- helpers -----------------------------------------------------------------------------------------------------


async def _largest(
    slices: Iterable[Sequence[Item]], weight: Callable[[Item], int | None], offset: int, limit: int
) -> tuple[int, list[Item]]:
    """How many items have a weight at all, and the page of them, heaviest first, with turns of the loop between slices.

    Each slice is sorted by itself; the page comes out of a merge that stops when it is complete. Of items that weigh
    the same the earlier one goes first.
    """
    total, place = 0, 0
    runs = []
    for some in slices:
        run = []
        for item in some:
            place -= 1
            heaviness = weight(item)
            if heaviness is not None:
                run.append((heaviness, place, item))  # the place is unique, so that items are never compared
        total += len(run)
        run.sort(reverse=True)
        runs.append(run[: offset + limit])
        await asyncio.sleep(0)
    merged = heapq.merge(*runs, reverse=True)
    page: list[Item] = []
    for place, (_, _, item) in enumerate(islice(merged, offset + limit)):
        if place >= offset:
            page.append(item)
        if place % SLICE == SLICE - 1:
            await asyncio.sleep(0)
    return total, page


def _age_ms(connection: Session, now_ms: int) -> int | None:
    """How long the oldest message in its outbox has waited."""
    oldest_ms = connection.subscriber.oldest_ms
    return None if oldest_ms is None else (now_ms - oldest_ms) & _CLOCK_MASK


def _age_or_nothing(connection: Session, now_ms: int) -> int:
    age_ms = _age_ms(connection, now_ms)
    return -1 if age_ms is None else age_ms


_WEIGHTS: Final[dict[str, Callable[[Session, int], int]]] = {
    "outbox": lambda connection, _: connection.subscriber.outbox_bytes,
    "oldest": _age_or_nothing,
    "messages_in": lambda connection, _: connection.messages_in,
    "connected": lambda connection, now_ms: now_ms - connection.connected_ms,
}


def _connection_row(connection: Session, now_ms: int) -> dict[str, Any]:
    client, subscriber = connection.client, connection.subscriber
    return {
        "id": connection.number,
        "user": None if client is None else client.user,
        "address": address_text(connection.peername),
        "subprotocol": connection.subprotocol,
        "connected_s": round((now_ms - connection.connected_ms) / 1e3, 3),
        "channels": 0 if client is None else client.n_channels,
        "messages_in": connection.messages_in,
        "outbox_messages": subscriber.outbox_messages,
        "outbox_bytes": subscriber.outbox_bytes,
        "oldest_ms": _age_ms(connection, now_ms),
        "is_full": bool(subscriber.is_full),
        "is_reading_paused": connection.is_paused,
    }


def dropped(core: dict[str, int]) -> dict[str, dict[str, int]]:
    """Messages and bytes that evicted clients never got, by the reason of the eviction, out of the core's counters."""
    return {
        reason: {unit: core[f"dropped_{reason}_{unit}_total"] for unit in ("messages", "bytes")}
        for reason in EVICTION_REASONS
    }


def resident_bytes() -> int:
    """What the process has in memory; 0 where there is no /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
