"""What Prometheus scrapes: a collector that reads `stats` at the scrape and keeps nothing of its own.

The law: the number of series depends on the tables of codes and on nothing a user does. There are no labels with users,
channels or addresses, and a code that is in no table is counted as ``other``: `SERIES_LIMIT` holds whatever happens.

Names follow Prometheus' conventions: ``starlight_`` first, base units (seconds, bytes), ``_total`` for what only grows.
`prometheus_client` takes a tenth of a second to import, so this module is imported only with the internal port.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from starlight.close_codes import error_name
from starlight.counts import OTHER
from starlight.ops.stats import EVICTION_REASONS, Stats

__all__ = ["CONTENT_TYPE", "SERIES_LIMIT", "StatsCollector", "exposition", "make_registry"]

SERIES_LIMIT: Final = 300
"""Series of one node at most."""

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""Of what `exposition` returns."""

_DURATION_POWERS: Final = range(4, 24)
"""Buckets of flush durations: up to 16 µs, which is two sends, then doubled until 8.4 s."""

_SIZE_POWERS: Final = range(6, 28)
"""Buckets of flush sizes: up to 64 bytes, which is one short message, then doubled until 128 MiB."""

_GAUGES: Final = (
    ("connections", "Sockets open now, logged in or not.", "connections"),
    ("clients", "Logged-in connections now.", "clients"),
    ("users", "Users with at least one client now.", "users"),
    ("channels", "Channels with at least one subscriber now.", "channels"),
    ("memberships", "Memberships of clients in channels now.", "memberships"),
    ("full_clients", "Clients whose socket takes no more now.", "full_clients"),
    ("uptime_seconds", "Time since the internal port began to listen.", "uptime_s"),
    ("outbox_messages", "Messages not yet handed to the kernel, over all outboxes.", "outbox.messages"),
    ("outbox_bytes", "Bytes not yet handed to the kernel, over all outboxes.", "outbox.bytes"),
    ("resident_memory_bytes", "Resident memory of the process.", "memory.rss_bytes"),
    ("memory_budget_bytes", "What all outboxes together may hold.", "memory.budget_bytes"),
    ("chunk_memory_bytes", "What they hold, in whole chunks.", "memory.chunk_bytes"),
    ("transport_memory_bytes", "What TLS transports of full clients hold; counts alike.", "memory.transport_bytes"),
)
"""Name, help, and where it is in `Stats.varz`."""

_COUNTERS: Final = (
    ("connections_accepted", "WebSocket handshakes completed.", "connections"),
    ("handshake_failures", "Connections that ended before their handshake was complete.", "handshake_failures"),
    ("received_messages", "Messages from clients.", "messages_in"),
    ("received_bytes", "Bytes read from sockets.", "bytes_in"),
    ("publications", "Publications accepted, by clients, handlers and the HTTP API.", "publications"),
    ("directs", "Messages accepted to one user.", "directs"),
    ("broadcasts", "Messages accepted to everyone.", "broadcasts"),
    ("deliveries", "Messages put into outboxes: one for each receiver, replies included.", "deliveries"),
    ("sends", "System calls that wrote to sockets.", "sends"),
    ("sent_bytes", "Bytes handed to the kernel.", "bytes_out"),
    ("revocations", "Users and tokens revoked.", "revocations"),
)
"""Name, help, and the key in the totals of `Stats.varz`."""


class StatsCollector(Collector):
    """The families of one node, made anew at each scrape.

    Args:
        stats: what the node knows.
    """

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """All families; to be called on the loop's thread."""
        varz = self._stats.varz()
        core = self._stats.node.core.counters()
        totals = varz["totals"]
        yield InfoMetricFamily(
            "starlight", "The node and its version.", value={"node": varz["node"], "version": varz["version"]}
        )
        yield GaugeMetricFamily(
            "starlight_ready", "Whether new clients should be sent here: 1 or 0.", int(not self._stats.not_ready())
        )
        for name, what, path in _GAUGES:
            yield GaugeMetricFamily(f"starlight_{name}", what, _at(varz, path))
        for name, what, key in _COUNTERS:
            yield CounterMetricFamily(f"starlight_{name}", what, totals[key])
        yield from self._times(varz)
        yield from self._ends(core)
        yield from self._by_code(totals["errors"])
        yield from self._flushes()

    def _times(self, varz: dict[str, Any]) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "starlight_outbox_oldest_seconds",
            "Age of the oldest message in any outbox; 0 if all are empty.",
            varz["outbox"]["oldest_ms"] / 1e3,
        )
        yield GaugeMetricFamily(
            "starlight_loop_lag_seconds",
            "How late the loop called what was due, at worst, in the last second.",
            varz["loop"]["lag_ms"] / 1e3,
        )
        yield GaugeMetricFamily(
            "starlight_loop_lag_max_seconds", "The same since the start.", varz["loop"]["lag_max_ms"] / 1e3
        )
        usage = resource.getrusage(resource.RUSAGE_SELF)
        yield CounterMetricFamily(
            "starlight_cpu_seconds", "Processor time of the process, user and system.", usage.ru_utime + usage.ru_stime
        )

    def _ends(self, core: dict[str, int]) -> Iterator[Metric]:
        """How connections were refused and ended."""
        counts = self._stats.node.acceptor.counts
        refused = CounterMetricFamily(
            "starlight_connections_refused", "Connections refused at accept.", labels=["reason"]
        )
        refused.add_metric(["full"], counts.refused_full)
        refused.add_metric(["address"], counts.refused_address)
        yield refused
        causes = CounterMetricFamily(
            "starlight_handshakes_refused",
            "Connections refused, or ended before their handshake was done, by cause.",
            labels=["cause"],
        )
        for cause, count in self._stats.refusals().items():
            causes.add_metric([cause], count)
        yield causes
        logins = CounterMetricFamily(
            "starlight_logins", "Logins, by result: ok, or the close code of a refusal.", labels=["result"]
        )
        logins.add_metric(["ok"], counts.logins)
        for code, count in sorted(self._stats.refused_logins().items()):
            logins.add_metric([code], count)
        yield logins
        evictions = CounterMetricFamily(
            "starlight_evictions", "Clients evicted, by reason and close code.", labels=["reason", "code"]
        )
        for reason, code in (("slow", "4008"), ("budget", "4008"), ("timeout", "4009")):
            evictions.add_metric([reason, code], core[f"evicted_{reason}_total"])
        yield evictions
        for unit in ("messages", "bytes"):
            dropped = CounterMetricFamily(
                f"starlight_dropped_{unit}",
                f"{unit.capitalize()} in the outboxes of evicted clients, which they never got, by reason.",
                labels=["reason"],
            )
            for reason in EVICTION_REASONS:
                dropped.add_metric([reason], core[f"dropped_{reason}_{unit}_total"])
            yield dropped
        closes = CounterMetricFamily(
            "starlight_closes", "Connections closed, by whom and with which code.", labels=["by", "code"]
        )
        for by in ("node", "client"):
            for code, count in sorted(self._stats.closes(by).items()):
                closes.add_metric([by, code], count)
        yield closes
        ends = CounterMetricFamily("starlight_ends", "Connections that ended, by cause.", labels=["cause"])
        for cause, count in self._stats.ends().items():
            ends.add_metric([cause], count)
        yield ends
        would = CounterMetricFamily(
            "starlight_would_have", "What limits in a dry run would have done, in episodes.", labels=["kind"]
        )
        for kind, count in self._stats.would_have().items():
            would.add_metric([kind], count)
        yield would

    def _by_code(self, errors: dict[str, int]) -> Iterator[Metric]:
        replies = CounterMetricFamily("starlight_errors", "Error replies, by code.", labels=["code", "name"])
        for code, count in sorted(errors.items()):
            replies.add_metric([code, OTHER if code == OTHER else error_name(int(code))], count)
        yield replies

    def _flushes(self) -> Iterator[Metric]:
        durations_us, sizes = self._stats.flush_histograms()
        yield _histogram(
            "starlight_flush_duration_seconds", "How long flushes took.", durations_us, _DURATION_POWERS, 1e-6
        )
        yield _histogram("starlight_flush_size_bytes", "What a flush handed to the kernel.", sizes, _SIZE_POWERS, 1)


def _at(varz: dict[str, Any], path: str) -> float:
    found: Any = varz
    for key in path.split("."):
        found = found[key]
    return float(found)


def _histogram(name: str, what: str, counted: tuple[list[int], int], powers: range, unit: float) -> Metric:
    """A histogram of Prometheus out of one of the core's, whose bucket i counts values up to 2**i."""
    counts, total = counted
    buckets = [(repr(2.0**power * unit), float(sum(counts[: power + 1]))) for power in powers]
    return HistogramMetricFamily(name, what, [*buckets, ("+Inf", float(sum(counts)))], total * unit)


def make_registry(stats: Stats) -> CollectorRegistry:
    """A registry with nothing but the collector of this node."""
    registry = CollectorRegistry()
    registry.register(StatsCollector(stats))
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """The text that Prometheus reads."""
    return generate_latest(registry)
