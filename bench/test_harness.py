"""The arithmetic of the comparison: intervals, ratios, verdicts, selection of rows. Nothing here starts a server."""

from __future__ import annotations

import pytest
from harness import chart, rows
from harness.campaign import RowResult
from harness.quiet import Ticks, noise_between
from harness.report import glance, number, row_record, row_text
from harness.rows import CPU, MEMORY, RATE, Bar, Cell, Row, Work
from harness.sample import Sample, judge, ratio, summary
from harness.servers import LISTENING, SERVERS
from harness.stats import coverage, estimate

TWO = Row(
    "r", "two cells", (Cell("starlight", "starlight", Work("broadcast")), Cell("floor", "floor", Work("broadcast")))
)


def sample(rate: float, server_us: float, share: float = 0.5) -> Sample:
    return Sample(rate=rate, server_us=server_us, generator_share=share)


class TestEstimate:
    def test_coverage_of_nine_values(self) -> None:
        assert coverage(9, 2) == pytest.approx(0.9609, abs=1e-4)
        assert coverage(9, 3) == pytest.approx(0.8203, abs=1e-4)

    def test_interval_lies_between_the_neighbouring_ranks(self) -> None:
        found = estimate([float(value) for value in range(1, 10)])
        assert found.median == 5
        assert 2 < found.low < 3
        assert 7 < found.high < 8

    def test_few_values_give_their_range(self) -> None:
        found = estimate([3.0, 1.0, 2.0])
        assert (found.low, found.median, found.high) == (1, 2, 3)

    def test_no_values(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            estimate([])


class TestRatio:
    def test_rate(self) -> None:
        bar = Bar(RATE, "starlight", ("floor",), at_least=0.9)
        assert ratio(bar, {"starlight": sample(90, 2), "floor": sample(100, 1)}) == (0.9, RATE)

    def test_saturated_generator_compares_cpu(self) -> None:
        bar = Bar(RATE, "starlight", ("floor",), at_least=0.9)
        found = ratio(bar, {"starlight": sample(100, 2.0), "floor": sample(100, 1.0, share=0.95)})
        assert found == (0.5, "1/server_us")

    def test_best_of_several(self) -> None:
        repetition = {"a": sample(50, 1), "b": sample(80, 1), "c": sample(100, 1)}
        assert ratio(Bar(RATE, "a", ("b", "c"), at_least=0.5), repetition) == (0.5, RATE)
        assert ratio(Bar(RATE, "c", ("a", "b"), at_most=2.0), repetition) == (2.0, RATE)

    def test_missing_run_or_figure(self) -> None:
        bar = Bar(MEMORY, "starlight", ("floor",), at_most=1.0)
        assert ratio(bar, {"starlight": sample(1, 1)}) is None
        assert ratio(bar, {"starlight": sample(1, 1), "floor": sample(1, 1)}) is None


class TestJudge:
    def test_interval_that_reaches_the_bar_meets_it(self) -> None:
        repetitions = [{"starlight": sample(90 + at, 1), "floor": sample(100, 1)} for at in range(-4, 5)]
        met = judge(Bar(RATE, "starlight", ("floor",), at_least=0.92), repetitions)
        missed = judge(Bar(RATE, "starlight", ("floor",), at_least=0.97), repetitions)
        assert met is not None
        assert met.is_met
        assert missed is not None
        assert not missed.is_met

    def test_saturated_now_and_then_goes_by_cpu_throughout(self) -> None:
        repetitions = [
            {"starlight": sample(100, 2.0, share), "floor": sample(100, 1.0)} for share in (0.5, 0.95, 0.5, 0.95, 0.5)
        ]
        found = judge(Bar(RATE, "starlight", ("floor",), at_least=0.9), repetitions)
        assert found is not None
        assert (found.metric, found.value.median, found.value.count) == ("1/server_us", 0.5, 5)
        assert found.by_cpu == found.value

    def test_plain_figure(self) -> None:
        repetitions = [{"starlight": Sample(memory_kib=9.0)}] * 5
        found = judge(Bar(MEMORY, "starlight", at_most=10.0), repetitions)
        assert found is not None
        assert found.is_met
        assert summary("starlight", CPU, repetitions) is None


class TestRows:
    def test_every_bar_has_its_cells_and_every_server_exists(self) -> None:
        for row in rows.all_rows():
            keys = {cell.key for cell in row.cells}
            assert all({bar.key, *bar.against} <= keys for bar in row.bars), row.name
            assert all(cell.server in SERVERS for cell in row.cells), row.name

    def test_selection_by_beginning_and_server(self) -> None:
        chosen = rows.selected(["broadcast-w64"], ["starlight", "floor"])
        assert [row.name for row in chosen] == ["broadcast-w64-n100", "broadcast-w64-n1000", "broadcast-w64-n5000"]
        assert all({cell.server for cell in row.cells} == {"starlight", "floor"} for row in chosen)
        assert all(bar.against == ("floor",) for row in chosen for bar in row.bars)

    def test_unknown_row(self) -> None:
        with pytest.raises(ValueError, match="no row 'nonsense'"):
            rows.selected(["nonsense"], [])


def test_noise_is_what_is_neither_ours_nor_idle() -> None:
    noise = noise_between(Ticks(10.0, 100.0, 50.0, 1.0), Ticks(12.0, 103.0, 52.8, 1.02))
    assert noise.foreign == pytest.approx(0.1)
    assert noise.steal == pytest.approx(0.01)
    assert noise.is_too_much


@pytest.mark.parametrize(
    ("line", "port"),
    [
        ("listening 34567", "34567"),
        ("INFO starlight 0.1.0 node a1 listens on ws://127.0.0.1:40123/ws auth=none max_connections=10000", "40123"),
    ],
)
def test_port_of_a_start_line(line: str, port: str) -> None:
    found = LISTENING.search(line)
    assert found is not None
    assert found.group(1) == port


def test_text_record_and_chart() -> None:
    row = rows.selected(["broadcast-w64-n1000"], ["starlight", "floor", "gorilla"])[0]
    repetitions = [
        {"starlight": sample(6.5e6, 0.15), "floor": sample(7.8e6, 0.12), "gorilla": sample(8.5e5, 1.1)}
        for _ in range(9)
    ]
    result = RowResult(row, repetitions, discarded=2, skipped={"gorilla": "no go"})
    assert "runs discarded for noise: 2" in row_text(result)
    machine = {"processor": "a <fast> one", "kernel": "6.1", "python": "3.11"}
    assert "| `broadcast-w64-n1000` | starlight |" in glance({"rows": {row.name: row_record(result)}})
    drawn = chart.draw({"date": "2026-11-23", "machine": machine, "rows": {row.name: row_record(result)}})
    assert drawn is not None
    assert "a &lt;fast&gt; one" in drawn
    assert chart.draw({"rows": {}}) is None


@pytest.mark.parametrize(
    ("value", "shown"), [(0.1234, "0.123"), (12.34, "12.3"), (1234, "1,230"), (7_812_345, "7,810,000")]
)
def test_number(value: float, shown: str) -> None:
    assert number(value) == shown
