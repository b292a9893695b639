"""Figures after the run: latency, assertions, comparison, find-max, files and the HTML page."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from starlight.loadtest import assertions, compare, findmax, html, procstat, summary
from starlight.loadtest._engine import COUNTER_NAMES, Arena
from starlight.loadtest.errors import BadScenario
from starlight.loadtest.result import (
    HIGHEST_NS,
    DeliveryCheck,
    Generator,
    Latency,
    Point,
    Result,
    ServerUse,
    histogram_of,
    read_json,
    write_json,
)
from starlight.loadtest.scenario import Scenario, build


def latency_of(values_ns: list[int]) -> Latency:
    histogram = HdrHistogram(1, HIGHEST_NS, 3)
    for value in values_ns:
        histogram.record_value(value)
    return Latency.of(
        [(slot, histogram.counts[slot]) for slot in range(histogram.counts_len) if histogram.counts[slot]]
    )


def result_of(p99_ms: float = 5.0, rate: float = 1000.0, share: float = 0.5, lost: int = 0) -> Result:
    points = [
        Point(
            time_s=t / 4,
            rate=rate + t,
            sent_rate=10,
            p50_ms=1,
            p99_ms=p99_ms,
            max_ms=9,
            ready=5,
            errors=0,
            useful_share=share,
        )
        for t in range(1, 9)
    ]
    return Result(
        scenario=msgspec.structs.asdict(build("broadcast", {})),
        url="ws://x/<&>",
        dialect="native",
        started="2026-11-23T00:00:00+00:00",
        duration_s=2.0,
        rate=rate,
        sent_rate=10.0,
        deliveries=2000,
        latency=Latency(count=5, p50_ms=1.0, p99_ms=p99_ms, max_ms=9.0, curve=[(0.0, 1.0), (90.0, 2.0), (100.0, 9.0)]),
        latency_actual=Latency(count=5, p99_ms=1.0, curve=[(0.0, 1.0), (100.0, 1.5)]),
        check=DeliveryCheck(deliveries=2000, checked=2000, lost=lost),
        server=ServerUse(cpu_us_per_delivery=0.5, connect_us=100.0, rss_bytes=1 << 20),
        generator=Generator(useful_share=share),
        series=points,
    )


# ---- latency


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, HIGHEST_NS), min_size=1, max_size=200))
def test_percentiles_are_those_of_hdrhistogram(values: list[int]) -> None:
    histogram = HdrHistogram(1, HIGHEST_NS, 3)
    for value in values:
        histogram.record_value(value)
    latency = latency_of(values)
    assert latency.count == len(values)
    for percentile, ms in [(50.0, latency.p50_ms), (99.0, latency.p99_ms), (100.0, latency.max_ms), *latency.curve]:
        assert ms == pytest.approx(histogram.get_value_at_percentile(percentile) / 1e6)
    again = HdrHistogram.decode(latency.hdr)
    assert again.get_total_count() == len(values)


def test_no_values() -> None:
    assert Latency.of([]).count == 0 and histogram_of([]).get_total_count() == 0


def test_an_arena_starts_empty() -> None:
    arena = Arena(3, [(0, 0), (0, 1)], [[0, 1]], [0], 2)
    assert arena.counters() == dict.fromkeys(COUNTER_NAMES, 0) and arena.histogram(0) == []
    assert arena.interval(0) == (0, 0, 0, 0) and arena.under_way() == 0
    with pytest.raises(ValueError, match="streams"):
        Arena(1, [(0, 0)] * ((1 << 18) + 1), [[0]], [0], 1)
    for streams, orders in (([(1, 0)], [[0]]), ([(0, 3)], [[0]]), ([(0, 0)], [[1]])):
        with pytest.raises(ValueError, match="unknown"):
            Arena(3, streams, orders, [0], 1)


# ---- assertions


@pytest.mark.parametrize(
    "text,metric,value",
    [
        ("p99<20ms", "p99", 20.0),
        (" p99.9 <= 1.5s ", "p99.9", 1500.0),
        ("p50<800us", "p50", 0.8),
        ("P50<800µs", "p50", 0.8),
        ("loss==0", "loss", 0.0),
        ("rate>1.5M/s", "rate", 1.5e6),
        ("rate >= 20k", "rate", 20e3),
        ("cpu<80%", "cpu", 0.8),
        ("connection_memory<10KiB", "connection_memory", 10240.0),
        ("cpu_per_delivery<0.5us", "cpu_per_delivery", 0.0005),
    ],
)
def test_assertions_are_read(text: str, metric: str, value: float) -> None:
    read = assertions.parse(text)
    assert read.metric == metric and read.value == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "p99", "p99<", "p98<3ms", "p99<20", "p99=20ms", "loss==0ms", "p99<-3ms", "rate>5 apples"]
)
def test_assertions_that_make_no_sense(text: str) -> None:
    with pytest.raises(BadScenario, match="assertion"):
        assertions.parse(text)


@pytest.mark.parametrize(
    "texts,result,code,outcomes",
    [
        (["p99<20ms", "loss==0"], result_of(), 0, ["held", "held"]),
        (["p99<2ms", "loss==0"], result_of(), 1, ["failed", "held"]),
        (["p99<20ms", "cpu_per_delivery<1us"], result_of(share=0.95), 3, ["refused", "held"]),
        (["p99<20ms", "cpu_per_delivery<0.1us"], result_of(share=0.95), 1, ["refused", "failed"]),
        (["ack_p99<1s"], result_of(), 1, ["failed"]),
        ([], result_of(lost=1), 1, []),
        ([], result_of(share=0.95), 0, []),
    ],
)
def test_verdicts_and_exit_codes(texts: list[str], result: Result, code: int, outcomes: list[str]) -> None:
    verdicts = assertions.judge([assertions.parse(text) for text in texts], result)
    assert [verdict.outcome for verdict in verdicts] == outcomes
    assert assertions.exit_code(verdicts, result) == code
    assert all(verdict.assertion.text in verdict.line for verdict in verdicts)


# ---- comparison


def test_ratios_with_spread() -> None:
    ratios = {ratio.metric: ratio for ratio in compare.compare([result_of()], [result_of(rate=2000.0, p99_ms=10.0)])}
    assert ratios["rate"].ratio == 2.0 and ratios["p99"].ratio == 2.0
    rate = ratios["rate"]
    assert rate.low is not None and rate.high is not None and rate.low < 2.0 < rate.high and rate.is_clear
    assert ratios["cpu_per_delivery"].low is None and not ratios["cpu_per_delivery"].is_clear
    many = compare.compare([result_of(), result_of(rate=900.0)], [result_of(rate=1800.0)])
    assert (many[0].low, many[0].high) == (1.8, 2.0)


def test_comparison_says_what_forbids_it() -> None:
    notes = "\n".join(compare.notes([result_of(lost=3)], [result_of(share=0.99)]))
    assert "saturated in B" in notes and "not right in A" in notes and "3 lost" in notes
    other = msgspec.structs.replace(result_of(), scenario=msgspec.structs.asdict(build("broadcast", {"size": 16})))
    assert "not the same work: size" in "\n".join(compare.notes([result_of()], [other]))


# ---- find-max


@pytest.mark.parametrize("limit", [150.0, 1000.0, 3333.0])
def test_find_max_closes_in_on_the_limit(limit: float) -> None:
    def run(scenario: Scenario) -> Result:
        slow = 100.0 if scenario.rate > limit else 1.0
        return msgspec.structs.replace(result_of(p99_ms=slow), sent_rate=scenario.rate)

    found = findmax.find_max(build("broadcast", {}), [assertions.parse("p99<20ms")], run, start=100)
    assert found.rate is not None and 0.94 * limit <= found.rate <= limit and not found.is_generator_limit
    assert [probe.rate for probe in found.probes] == sorted(probe.rate for probe in found.probes)


def test_find_max_stops_where_the_generator_does() -> None:
    def run(scenario: Scenario) -> Result:
        return msgspec.structs.replace(result_of(share=0.95 if scenario.rate > 500 else 0.3), sent_rate=scenario.rate)

    found = findmax.find_max(build("broadcast", {}), [], run, start=100, max_probes=20)
    assert found.is_generator_limit and found.rate is not None and 450 < found.rate <= 500


def test_find_max_that_is_interrupted_claims_no_limit() -> None:
    def run(scenario: Scenario) -> Result:
        return msgspec.structs.replace(result_of(), sent_rate=scenario.rate, interrupted=scenario.rate > 300)

    found = findmax.find_max(build("broadcast", {}), [], run, start=100)
    assert found.is_interrupted and found.rate == 200 and [probe.rate for probe in found.probes] == [100, 200]


def test_a_run_of_which_nothing_arrived_proves_nothing() -> None:
    void = msgspec.structs.replace(
        result_of(), check=DeliveryCheck(), scenario=msgspec.structs.asdict(build("broadcast", {}))
    )
    assert assertions.exit_code([], void) == 1
    idle = msgspec.structs.replace(void, scenario=msgspec.structs.asdict(build("idle", {})))
    assert assertions.exit_code([], idle) == 0


def test_find_max_is_bounded() -> None:
    def always_bad(scenario: Scenario) -> Result:
        return msgspec.structs.replace(result_of(lost=1), sent_rate=scenario.rate)

    found = findmax.find_max(build("broadcast", {}), [], always_bad, start=1e6, max_probes=5)
    assert found.rate is None and len(found.probes) <= 5

    def always_good(scenario: Scenario) -> Result:
        return msgspec.structs.replace(result_of(), sent_rate=scenario.rate)

    assert findmax.find_max(build("broadcast", {}), [], always_good, start=100, most=1000).rate == 1000


# ---- files and the page


def test_json_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    runs = [result_of(), result_of(lost=2)]
    write_json(path, runs)
    assert read_json(path) == runs
    for text in ("{}", "no", '{"format":"x","runs":[]}'):
        path.write_text(text)
        with pytest.raises(BadScenario, match=r"a\.json"):
            read_json(path)


def test_csv_has_a_line_for_each_run() -> None:
    rows = list(csv.DictReader(io.StringIO(summary.to_csv([result_of(), result_of(p99_ms=7.0)]))))
    assert [row["p99"] for row in rows] == ["5", "7"] and rows[0]["ack_p99"] == ""


@pytest.mark.parametrize(
    "result", [result_of(), result_of(lost=1), msgspec.structs.replace(result_of(), series=[], latency=Latency())]
)
def test_the_page_is_well_formed_and_self_contained(result: Result) -> None:
    page = html.page(result, [("held: p99<20ms & more", True), ("FAILED: x", False)])
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    text = "".join(root.itertext())
    assert "ws://x/<&>" in text and "held: p99<20ms & more" in text
    assert "src=" not in page and "href=" not in page and "<script" not in page and "url(" not in page
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == (4 if result.series else 1)


def test_summary_names_what_matters() -> None:
    rows = dict(summary.figures(result_of()))
    assert (
        "1,000/s" in rows["delivered"]
        and "0.500 µs" in rows["server CPU"]
        and "p99 5.00 ms" in rows["latency, intended"]
    )
    assert str(result_of(lost=1).check).startswith("FAULTS: 1 lost")
    assert "nothing lost, doubled, reordered" in str(result_of().check)


def test_procstat_sees_this_process() -> None:
    before = procstat.usage([1 << 30])
    now = procstat.usage(procstat.descendants(__import__("os").getpid()))
    assert before.rss_bytes == 0 and now.cpu_s_since(before) > 0 and now.rss_bytes >= now.pss_bytes > 0
    assert procstat.system().busy_s > 0 and procstat.cpu_model()
