"""A result in words and rows: for the terminal, the HTML page and CSV."""

from __future__ import annotations

import csv
import io

from starlight.loadtest.assertions import METRICS
from starlight.loadtest.result import Latency, Result


def milliseconds(value_ms: float) -> str:
    """A latency with a fitting unit."""
    if value_ms >= 1000:
        return f"{value_ms / 1000:.2f} s"
    return f"{value_ms:.2f} ms" if value_ms >= 1 else f"{value_ms * 1000:.0f} µs"


def memory_text(value_bytes: float) -> str:
    """Memory with a fitting unit: MiB, or KiB below one."""
    if abs(value_bytes) >= 1 << 20:
        return f"{value_bytes / (1 << 20):.1f} MiB"
    return f"{value_bytes / 1024:.1f} KiB"


def _latency(latency: Latency) -> str:
    if not latency.count:
        return "not measured"
    names = (("p50", latency.p50_ms), ("p90", latency.p90_ms), ("p99", latency.p99_ms), ("p99.9", latency.p99_9_ms))
    return "  ".join(f"{name} {milliseconds(value)}" for name, value in (*names, ("max", latency.max_ms)))


def load_line(result: Result) -> str:
    """What was done, in one line."""
    scenario = result.scenario
    if not scenario["traffic"]:
        return f"{scenario['name']}: {result.connections:,} connections"
    if scenario["model"] == "open":
        load = f"open model, {scenario['rate']:,g} messages/s ({scenario['arrival']})"
    else:
        load = f"closed model, window {scenario['window']}"
    return f"{scenario['name']}: {result.connections:,} connections, {load}, {scenario['size']} bytes"


def figures(result: Result) -> list[tuple[str, str]]:
    """Name and value of everything worth showing, in reading order."""
    rows = [("load", load_line(result)), ("target", f"{result.url} ({result.dialect})")]
    rows.append(("measured", f"{result.duration_s:.2f} s{', interrupted' if result.interrupted else ''}"))
    if result.scenario["traffic"]:
        rows.append(("sent", f"{result.sent:,} messages, {result.sent_rate:,.0f}/s"))
        rows.append(("delivered", f"{result.deliveries:,}, {result.rate:,.0f}/s"))
        if result.scenario["model"] == "open":
            rows.append(("latency, intended", _latency(result.latency)))
            rows.append(("latency, actual", _latency(result.latency_actual)))
        else:
            rows.append(("latency", _latency(result.latency)))
    if result.acks:
        rows.append(("acknowledged", f"{result.acks:,}: {_latency(result.ack)}"))
    rows.append(
        ("connect and login", f"{result.connects:,}, {result.connects_per_s:,.0f}/s: {_latency(result.connect)}")
    )
    rows += _troubles(result) + _server(result) + _machine(result)
    return rows


def _troubles(result: Result) -> list[tuple[str, str]]:
    rows = []
    if result.churned or result.rejoins:
        rows.append(("churn", f"{result.churned:,} reconnects, {result.rejoins:,} leaves and joins"))
    if result.slow_deliveries:
        rows.append(("to slow readers", f"{result.slow_deliveries:,} deliveries (not in the latency)"))
    if result.errors:
        rows.append(("errors", f"{result.errors:,}; the first: {result.first_error[:200]}"))
    if result.disconnects or result.connect_failures:
        codes = ", ".join(f"{count:,} x {code}" for code, count in sorted(result.close_codes.items()))
        counts = (
            f"{result.disconnects:,} by the server ({codes or 'reset'}), {result.connect_failures:,} failed connects"
        )
        rows.append(("disconnects", f"{counts}; the first: {result.first_disconnect[:200]}"))
    if result.protocol_errors:
        rows.append(("protocol errors", protocol_errors_text(result.protocol_errors)))
    return rows


def protocol_errors_text(found: dict[str, int]) -> str:
    """``masked frame: 1, control frame over 125 bytes: 3``: by kind, the most frequent first."""
    return ", ".join(f"{kind}: {count:,}" for kind, count in sorted(found.items(), key=lambda item: -item[1]))


def _server(result: Result) -> list[tuple[str, str]]:
    server = result.server
    if server is None:
        return []
    each = server.cpu_us_per_delivery
    rows = [("server CPU", f"{server.cpu_share:.0%} of a core" + (f", {each:.3f} µs a delivery" if each else ""))]
    if server.connect_us:
        rows.append(("server CPU a connect", f"{server.connect_us:.0f} µs"))
    memory = f"{memory_text(server.rss_bytes)} resident"
    if server.connection_bytes is not None:
        memory += f", {memory_text(server.connection_bytes)} more per connection"
    return [*rows, ("server memory", memory)]


def _machine(result: Result) -> list[tuple[str, str]]:
    generator, machine = result.generator, result.machine
    spin = "spinning" if generator.spin else "sleeping"
    processes = f"{generator.processes} process{'es' if generator.processes > 1 else ''}"
    foreign = "" if machine.foreign_share is None else f"; others used {machine.foreign_share:.0%} of a core"
    return [
        ("generator", f"useful share {generator.useful_share:.2f} ({spin}, {processes})"),
        (
            "machine",
            f"{machine.cpu}, {machine.cores} cores, {machine.kernel}; steal {machine.steal_share:.1%}{foreign}",
        ),
    ]


CSV_FIELDS = ("started", "scenario", "url", "dialect", "connections", "duration_s", *METRICS)


def to_csv(runs: list[Result]) -> str:
    """One header and one line a run; every metric of the assertions in its unit (times in ms, memory in bytes)."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_FIELDS)
    for run in runs:
        values = [run.started, run.scenario["name"], run.url, run.dialect, run.connections, f"{run.duration_s:.3f}"]
        figures_ = (metric.read(run) for metric in METRICS.values())
        writer.writerow([*values, *("" if value is None else f"{value:.10g}" for value in figures_)])
    return text.getvalue()
