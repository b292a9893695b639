"""One self-contained page about a run: figures, the latency percentile plot and the rate over time as inline SVG;
nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from starlight.loadtest.result import Result
from starlight.loadtest.summary import figures

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 44
COLOURS = ("#2563eb", "#d97706", "#059669")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 800px; padding: 0 1em;
  color: #1f2937; background: #fff; }
h1 { font-size: 1.5em; }
h2 { font-size: 1.1em; margin: 2em 0 .4em; }
table { border-collapse: collapse; }
td, th { padding: .2em 1.2em .2em 0; text-align: left; vertical-align: top; font-weight: normal; }
th { color: #6b7280; white-space: nowrap; }
svg { width: 100%; height: auto; }
svg text { font-size: 12px; fill: #4b5563; }
.good { color: #047857; }
.bad { color: #b91c1c; font-weight: 600; }
.notice { color: #b45309; }
@media (prefers-color-scheme: dark) {
  body { background: #111827; color: #e5e7eb; }
  th { color: #9ca3af; }
  svg text { fill: #9ca3af; }
  .good { color: #34d399; }
  .bad { color: #f87171; }
  .notice { color: #fbbf24; }
}
"""

Points = Sequence[tuple[float, float]]


def page(result: Result, verdicts: Sequence[tuple[str, bool]] = ()) -> str:
    """The page as XHTML-style HTML 5.

    Args:
        result: the run.
        verdicts: lines about service levels, and whether each is good.
    """
    title = f"{result.scenario['name']} on {result.url}"
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n" for name, value in figures(result))
    state = "bad" if result.check.faults else "good"
    lines = [f'<p class="{state}">{escape(str(result.check))}</p>']
    lines += [f'<p class="notice">{escape(notice)}</p>' for notice in result.notices]
    lines += [f'<p class="{"good" if good else "bad"}">{escape(line)}</p>' for line, good in verdicts]
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width"/>
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
{"".join(lines)}
<table>{rows}</table>
<h2>Latency by percentile, ms</h2>
{percentile_plot(result)}
<h2>Deliveries a second over time</h2>
{time_plot([(point.time_s, point.rate) for point in result.series])}
<h2>p99 latency over time, ms</h2>
{time_plot([(point.time_s, point.p99_ms) for point in result.series])}
</body></html>
"""


def percentile_plot(result: Result) -> str:
    """Latency against 1/(1-percentile) on a logarithmic axis, from the intended and from the actual time of sending."""
    curves = [("from the intended time", result.latency.curve)]
    if result.scenario.get("model") == "open":
        curves.append(("from the actual time", result.latency_actual.curve))
    lines = [(name, _by_nines(curve)) for name, curve in curves if curve]
    end = max((max(x for x, _ in line) for _, line in lines), default=2.0)
    ticks = [(float(n), _percent(n)) for n in range(int(end) + 1)]
    return _svg(lines, ticks, "percentile")


def _by_nines(curve: Points) -> list[tuple[float, float]]:
    """x is 0 for 0%, 1 for 90%, 2 for 99%; the maximum (100%) stands one step behind the last percentile."""
    points = [(-math.log10(1 - percentile / 100), ms) for percentile, ms in curve if percentile < 100]
    last = points[-1][0] if points else 0.0
    return points + [(last + 0.1, ms) for percentile, ms in curve if percentile == 100]


def _percent(nines: int) -> str:
    return f"{100 * (1 - 10**-nines):.{max(nines - 2, 0)}f}%"


def time_plot(points: Points) -> str:
    """A figure over the measured seconds."""
    end = max((x for x, _ in points), default=1.0)
    step = _round_step(end / 8)
    ticks = [(index * step, f"{index * step:g}") for index in range(int(end / step) + 1)]
    return _svg([("", list(points))] if points else [], ticks, "seconds")


def _round_step(value: float) -> float:
    """The next of 1, 2, 5, 10, … at or above a value."""
    power = 10 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next((factor * power for factor in (1, 2, 5, 10) if factor * power >= value * 0.999), 10 * power)


def _svg(lines: Sequence[tuple[str, Points]], ticks: Sequence[tuple[float, str]], x_name: str) -> str:
    """A line chart with a linear y axis from zero."""
    if not lines:
        return "<p>Nothing was measured.</p>"
    x_end = max(max(x for x, _ in points) for _, points in lines) or 1.0
    y_step = _round_step((max(max(y for _, y in points) for _, points in lines) or 1.0) / 5)
    y_end = y_step * max(1, math.ceil(max(max(y for _, y in points) for _, points in lines) / y_step))

    def place(x: float, y: float) -> tuple[float, float]:
        across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + across * x / x_end, TOP + down * (1 - y / y_end)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for index in range(round(y_end / y_step) + 1):
        _, y = place(0, index * y_step)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#9ca3af" stroke-opacity=".35"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(index * y_step)}</text>')
    for value, label in ticks:
        x, y = place(min(value, x_end), 0)
        anchor = "end" if x > WIDTH - RIGHT - 20 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="{anchor}">{escape(label)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>')
    for index, (name, points) in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if name:
            parts.append(f'<path d="M{LEFT + 20} {TOP + 14 + 18 * index}h24" stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<text x="{LEFT + 50}" y="{TOP + 18 + 18 * index}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _short(value: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{suffix}"
    return f"{value:.6g}"
