"""What the flags of `starlight serve` trade: the curves of docs/tuning.md.

    python bench/tuning.py                              every curve, 5 repetitions of 3 s: about 10 minutes
    python bench/tuning.py --curves coalesce-delay --repetitions 9
    python bench/tuning.py --quick --output /tmp/curves        one short repetition, to see that it works

Each point is a fresh `starlight serve` on core 0 with one flag changed, under a load of `starlight bench` from core 1.
Repetitions go through all values in turn, every other time backwards, so that a slow minute touches all points alike.
Writes tuning-<curve>.csv (one line a run) and tuning-<curve>.svg.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH))

from harness import curve as drawing  # noqa: E402
from harness.quiet import wait_for_quiet  # noqa: E402
from harness.stats import estimate  # noqa: E402
from scenarios import FAULTS, bench, running  # noqa: E402

Result = Mapping[str, Any]
Figure = Callable[[Result], float | None]


def cpu_us(result: Result) -> float | None:
    """Server CPU for a delivery, in µs."""
    value: float | None = result["server"]["cpu_us_per_delivery"]
    return value


def p99_ms(result: Result) -> float | None:
    """Latency of the healthy receivers, in ms."""
    value: float = result["latency"]["p99_ms"]
    return value


def p50_ms(result: Result) -> float | None:
    """Their median latency, in ms."""
    value: float = result["latency"]["p50_ms"]
    return value


def evicted_percent(result: Result) -> float | None:
    """Of the readers that pause, the percentage that the server sent away; nobody else is disconnected."""
    scenario = result["scenario"]
    pausing = scenario["connections"] * scenario["slow_share"]
    return 100.0 * min(1.0, float(result["disconnects"]) / pausing) if pausing else None


def rss_mib(result: Result) -> float | None:
    """Resident memory of the server at the end, in MiB."""
    return float(result["server"]["rss_bytes"]) / 2**20


FIGURES: dict[str, tuple[str, Figure]] = {
    "cpu_us": ("server CPU a delivery, µs", cpu_us),
    "p50_ms": ("median latency, ms", p50_ms),
    "p99_ms": ("99th percentile of latency, ms", p99_ms),
    "evicted_percent": ("readers evicted, % of those that pause", evicted_percent),
    "rss_mib": ("resident memory, MiB", rss_mib),
}


@dataclass(frozen=True)
class Curve:
    """One flag, the values it is given, and the load under which that shows.

    Attributes:
        flag: of `starlight serve`.
        values: as words; `default` is one of them.
        figures: names in `FIGURES`, a panel each.
        scenario: of `starlight bench`.
        load: its flags.
        told: the load in words.
    """

    flag: str
    values: tuple[str, ...]
    default: str
    figures: tuple[str, ...]
    scenario: str
    load: tuple[str, ...]
    told: str


PAUSING = (
    *("--connections", "200", "--rate", "1000", "--size", "256", "--slow-share", "0.2", "--slow-kind", "rate"),
    *("--slow-rate", "1000000", "--slow-tick", "1000"),
)
"""A fifth of the readers looks once a second, and then takes all that came: a busy page, a phone in a tunnel."""

PAUSING_TOLD = "200 subscribers, 1,000 broadcasts of 256 bytes a second, a fifth reads only once a second"

CURVES: dict[str, Curve] = {
    "coalesce-delay": Curve(
        "--coalesce-delay",
        ("0ms", "1ms", "2ms", "5ms", "10ms", "20ms"),
        "0ms",
        ("cpu_us", "p50_ms", "p99_ms"),
        "broadcast",
        ("--connections", "100", "--publishers", "20", "--rate", "500"),
        "100 subscribers, 500 broadcasts of 128 bytes a second from 20 of them",
    ),
    "outbox-messages": Curve(
        "--outbox-messages",
        ("64", "128", "256", "512", "1024", "2048"),
        "256",
        ("evicted_percent", "p99_ms"),
        "slow-readers",
        PAUSING,
        PAUSING_TOLD,
    ),
    "evict-after": Curve(
        "--evict-after",
        ("0ms", "100ms", "250ms", "500ms", "1s", "2s"),
        "500ms",
        ("evicted_percent", "p99_ms"),
        "slow-readers",
        PAUSING,
        PAUSING_TOLD,
    ),
    "send-buffer": Curve(
        "--send-buffer",
        ("8KiB", "16KiB", "32KiB", "64KiB", "128KiB", "256KiB", "1MiB"),
        "64KiB",
        ("cpu_us", "p99_ms", "evicted_percent"),
        "slow-readers",
        PAUSING,
        PAUSING_TOLD,
    ),
}


def measure(curve: Curve, value: str, seconds: float) -> Result:
    """One run of a curve's load against a server with its flag at `value`."""
    serve = [sys.executable, "-m", "starlight", "serve", "--port", "0", curve.flag, value]
    with running(serve, r"listens on (ws://\S+)") as (pid, url):
        return bench(pid, url, curve.scenario, [*curve.load, "--duration", f"{seconds:g}s"])


def runs_of(curve: Curve, repetitions: int, seconds: float, is_patient: bool) -> dict[str, list[Result]]:
    """All runs of a curve, by value."""
    runs: dict[str, list[Result]] = {value: [] for value in curve.values}
    for number in range(repetitions):
        for value in curve.values if number % 2 == 0 else reversed(curve.values):
            if is_patient:
                wait_for_quiet()
            result = measure(curve, value, seconds)
            runs[value].append(result)
            shown = ", ".join(f"{name} {shorten(FIGURES[name][1](result))}" for name in curve.figures)
            print(f"{curve.flag} {value}: {shown}", file=sys.stderr, flush=True)
    return runs


def shorten(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def to_csv(curve: Curve, runs: Mapping[str, Sequence[Result]]) -> str:
    """One line a run: value, all figures, the generator's share, faults."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([curve.flag.lstrip("-"), *FIGURES, "rate", "generator_share", "faults"])
    for value, results in runs.items():
        for result in results:
            figures = [FIGURES[name][1](result) for name in FIGURES]
            shown = ["" if figure is None else f"{figure:.4g}" for figure in figures]
            faults = sum(result["check"][fault] for fault in FAULTS)
            share = result["generator"]["useful_share"]
            writer.writerow([value, *shown, f"{result['rate']:.0f}", f"{share:.3f}", faults])
    return out.getvalue()


def to_svg(curve: Curve, runs: Mapping[str, Sequence[Result]], date: str) -> str:
    """The chart of a curve."""
    machine = next(results[0] for results in runs.values() if results)["machine"]
    panels = []
    for name in curve.figures:
        title, figure = FIGURES[name]
        found = [[value for result in runs[word] if (value := figure(result)) is not None] for word in curve.values]
        panels.append(drawing.Panel(title, [estimate(values) if values else None for values in found]))
    notes = (curve.told, f"{machine['cpu']} · Linux {machine['kernel']} · Python {machine['python']} · {date}")
    return drawing.draw(f"What {curve.flag} trades", curve.flag, curve.values, curve.default, panels, notes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", default=",".join(CURVES), help=f"of {', '.join(CURVES)}, with commas")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run, after its warm-up (3)")
    parser.add_argument("--quick", action="store_true", help="one repetition of 1 s, without waiting for quiet")
    parser.add_argument("--output", type=Path, default=BENCH.parent / "docs" / "images", help="where the files go")
    options = parser.parse_args()
    wanted = [name for name in options.curves.split(",") if name]
    if unknown := [name for name in wanted if name not in CURVES]:
        parser.error(f"no curve {', '.join(unknown)}; there are: {', '.join(CURVES)}")
    repetitions, seconds = (1, 1.0) if options.quick else (options.repetitions, options.seconds)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        runs = runs_of(CURVES[name], repetitions, seconds, is_patient=not options.quick)
        (options.output / f"tuning-{name}.csv").write_text(to_csv(CURVES[name], runs))
        drawn = to_svg(CURVES[name], runs, datetime.date.today().isoformat())
        (options.output / f"tuning-{name}.svg").write_text(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
