"""starlight.ops.metrics: what Prometheus reads, parsed by its own parser."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from starlight.close_codes import CLOSE_CODES, ErrorCode
from starlight.ops.metrics import SERIES_LIMIT, exposition, make_registry
from tests.support.inside import Inside, inside

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(on: Inside) -> Samples:
    """All samples by name and labels; each may be there once."""
    async with on.http.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await response.text()
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation.endswith("."), family.name
        assert family.type != "unknown", family.name
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples
            samples[key] = sample.value
    return samples


def value(samples: Samples, metric: str, /, **labels: str) -> float:
    return samples[f"starlight_{metric}", tuple(sorted(labels.items()))]


async def test_metrics_say_what_varz_says(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann, bob = await on.login("ann", "news"), await on.login("bob", "news")
        for number in range(10):
            await ann.ask("publish", channel="news", data=number)
        await ann.ask("nonsense")
        await bob.close()
        await (await on.stranger()).socket.close(1001)
        await ann.ask("ping")
        samples, totals = await scrape(on), await on.totals()
        for name, key in (
            ("received_messages_total", "messages_in"),
            ("received_bytes_total", "bytes_in"),
            ("publications_total", "publications"),
            ("deliveries_total", "deliveries"),
            ("sends_total", "sends"),
            ("sent_bytes_total", "bytes_out"),
            ("connections_accepted_total", "connections"),
        ):
            assert value(samples, name) == totals[key] > 0, name
        assert value(samples, "clients") == 1
        assert value(samples, "ready") == 1
        assert value(samples, "logins_total", result="ok") == 2
        assert value(samples, "errors_total", code="104", name="unknown_type") == 1
        assert value(samples, "closes_total", by="client", code="1000") == 1
        assert value(samples, "closes_total", by="client", code="1001") == 1
        assert value(samples, "evictions_total", reason="slow", code="4008") == 0
        assert value(samples, "resident_memory_bytes") > 10 * 2**20
        assert value(samples, "cpu_seconds_total") > 0
        assert value(samples, "info", node=on.node.name, version=(await on.get("/varz"))["version"]) == 1


async def test_histograms_add_up(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann = await on.login("ann", "news")
        for size in (10, 1_000, 100_000):
            on.node.hub.push_to_channel("news", b'"%b"' % (b"x" * size))
            await ann.hear()
        samples = await scrape(on)
        for name in ("flush_duration_seconds", "flush_size_bytes"):
            buckets = [
                (float(dict(labels)["le"]), count)
                for (sample, labels), count in samples.items()
                if sample == f"starlight_{name}_bucket"
            ]
            assert [edge for edge, _ in buckets] == sorted(edge for edge, _ in buckets)
            counts = [count for _, count in buckets]
            assert counts == sorted(counts)
            assert counts[-1] == value(samples, f"{name}_count") >= 5
        assert value(samples, "flush_size_bytes_sum") == value(samples, "sent_bytes_total")
        small = value(samples, "flush_size_bytes_bucket", le="65536.0")
        assert value(samples, "flush_size_bytes_count") - small == 1  # the one of 100,000


async def test_series_are_bounded_whatever_is_counted(tmp_path: Path):
    async with inside(tmp_path) as on:
        counts = on.node.acceptor.counts
        for code in {*CLOSE_CODES, *range(3000, 5000)}:
            for way in (counts.closed, counts.refused, counts.left):
                way.add(code)
        for error in (*ErrorCode, *range(1_000, 3_000)):
            on.node.hub.counts.errors.add(error)
        for number in range(20):
            await on.login(f"user-{number}", f"channel-{number}")
        samples = await scrape(on)
        assert len(samples) <= SERIES_LIMIT
        assert not any("user-1" in part or "channel-1" in part for part in map(str, samples))
        assert value(samples, "errors_total", code="other", name="other") == 2_000


async def test_names_follow_the_conventions(tmp_path: Path):
    async with inside(tmp_path) as on:
        await scrape(on)
        names = re.findall(rb"^# TYPE (\S+) (\S+)$", exposition(make_registry(on.stats)), re.MULTILINE)
        assert len(names) > 25
        for name, kind in names:
            assert re.fullmatch(rb"starlight_[a-z_]+", name)
            assert name.endswith(b"_total") == (kind == b"counter"), name
            assert not re.search(rb"_(ms|us|kib|mib)(_|$)", name)


async def test_what_the_dashboard_asks_for_is_there(tmp_path: Path):
    dashboard = (Path(__file__).parents[2] / "deploy" / "grafana" / "starlight.json").read_text()
    wanted = set(re.findall(r"starlight_[a-z_]+", dashboard))
    async with inside(tmp_path) as on:
        ann = await on.login("ann")
        await ann.ask("nonsense")
        await ann.close()  # an error and a close, as these have no series before the first one
        await (await on.login("bob")).ask("ping")
        there = {name for name, _ in await scrape(on)}
    assert len(wanted) > 20
    assert wanted - there == set()
