"""The tuning curves: what is measured exists, and what is drawn has every value. Nothing here starts a server."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree

import pytest
import tuning
from harness import curve as drawing
from harness.stats import estimate
from typer.testing import CliRunner

from starlight.config.settings import Settings, entries
from starlight.loadtest.cli import app as bench_app


def result(cpu_us: float, disconnects: int = 0) -> dict[str, object]:
    return {
        "scenario": {"connections": 10, "slow_share": 0.2},
        "server": {"cpu_us_per_delivery": cpu_us, "rss_bytes": 2**20},
        "latency": {"p50_ms": 1.0, "p99_ms": 2.0},
        "check": dict.fromkeys(tuning.FAULTS, 0),
        "generator": {"useful_share": 0.5},
        "machine": {"cpu": "A & B", "kernel": "6", "python": "3"},
        "disconnects": disconnects,
        "rate": 100.0,
    }


@pytest.mark.parametrize("name", tuning.CURVES)
def test_its_flags_and_values_exist(name: str) -> None:
    curve = tuning.CURVES[name]
    (entry,) = [entry for entry in entries() if entry.flag == curve.flag]
    values = [getattr(Settings(**{entry.name: value}), entry.name) for value in curve.values]
    assert values == sorted(values)
    assert getattr(Settings(**{entry.name: curve.default}), entry.name) == entry.default
    assert curve.default in curve.values
    assert set(curve.figures) <= set(tuning.FIGURES)
    shown = CliRunner().invoke(bench_app, [curve.scenario, "--help"], env={"COLUMNS": "200"}).output
    for word in curve.load:
        assert not word.startswith("--") or f"{word} " in shown, word


def test_a_chart_and_a_table_have_every_value() -> None:
    curve = tuning.CURVES["evict-after"]
    runs = {value: [result(1.0, disconnects=number)] for number, value in enumerate(curve.values)}
    root = ElementTree.fromstring(tuning.to_svg(curve, runs, "2026-01-01"))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert set(curve.values) <= set(texts)
    rows = list(csv.DictReader(tuning.to_csv(curve, runs).splitlines()))
    assert [row["evict-after"] for row in rows] == list(curve.values)
    assert [row["evicted_percent"] for row in rows] == ["0", "50", "100", "100", "100", "100"]


def test_a_value_without_a_figure_has_no_point() -> None:
    panel = drawing.Panel("t", [estimate([1.0]), None, estimate([3.0])])
    root = ElementTree.fromstring(drawing.draw("t", "--f", ["1", "2", "3"], "1", [panel], ["n"]))
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 2


@pytest.mark.parametrize(("most", "end"), [(0, 1), (0.9, 1), (1, 1), (1.1, 2), (23, 25), (26, 50), (700, 1000)])
def test_scales_end_at_round_numbers(most: float, end: float) -> None:
    assert drawing.ceiling(most) == pytest.approx(end)
