"""The tuning guide's charts: an SVG written by hand, one panel for each figure, medians as a line over their range.

The values of a setting stand at equal distances, in the order they were measured: what counts is which side of a
default a figure lies on, and settings are chosen by doubling. Every panel has its own scale from zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.chart import FAINT, FLOOR_INK, INK, OURS, text
from harness.stats import Estimate

WIDTH_PX = 640
PLOT_LEFT_PX, PLOT_RIGHT_PX = 64, 620
PLOT_PX = 130
PANEL_PX = 190
HEAD_PX = 82
FOOT_PX = 44
SCALE_STEPS = 4


@dataclass(frozen=True)
class Panel:
    """One figure over the values of a setting: its title with the unit, and an estimate for each value or None."""

    title: str
    points: Sequence[Estimate | None]


def ceiling(most: float) -> float:
    """The end of a scale: 1, 2, 2.5 or 5 times a power of ten, not below `most`."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(power * step for step in (1, 2, 2.5, 5, 10) if power * step >= most * (1 - 1e-9))


def draw(
    title: str, setting: str, values: Sequence[str], default: str, panels: Sequence[Panel], notes: Sequence[str]
) -> str:
    """Return the chart.

    Args:
        title: what is shown.
        setting: the flag that was changed.
        values: what it was set to; one of them is the `default`, which is marked.
        panels: from top to bottom.
        notes: two lines below the title: the load, and the machine with the date.
    """
    height = HEAD_PX + PANEL_PX * len(panels) + FOOT_PX
    step = (PLOT_RIGHT_PX - PLOT_LEFT_PX) / max(1, len(values))
    places = [PLOT_LEFT_PX + step * (number + 0.5) for number in range(len(values))]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {height}" width="{WIDTH_PX}" '
        f'height="{height}" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img">',
        f"<title>{title}</title>",
        f'<rect width="{WIDTH_PX}" height="{height}" rx="8" fill="#ffffff"/>',
        text(20, 30, title, size=16, bold=True),
        *(text(20, 49 + 16 * number, note, size=11, ink=FAINT) for number, note in enumerate(notes)),
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, HEAD_PX + number * PANEL_PX, places)
    bottom = height - FOOT_PX + 2
    for place, value in zip(places, values, strict=True):
        parts.append(text(place, bottom, value, anchor="middle", bold=value == default))
    parts.append(text(20, bottom + 26, f"{setting}; the default is bold; bars show the range of the runs", ink=FAINT))
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, top: float, places: Sequence[float]) -> list[str]:
    """A panel: title, scale, line and ranges."""
    most = ceiling(max((point.high for point in panel.points if point is not None), default=1.0))
    base = top + 30 + PLOT_PX

    def height(value: float) -> float:
        return base - PLOT_PX * value / most

    parts = [text(20, top + 16, panel.title, size=13, bold=True)]
    for number in range(SCALE_STEPS + 1):
        value = most * number / SCALE_STEPS
        y = height(value)
        parts.append(f'<line x1="{PLOT_LEFT_PX}" y1="{y:.1f}" x2="{PLOT_RIGHT_PX}" y2="{y:.1f}" stroke="{FLOOR_INK}"/>')
        parts.append(text(PLOT_LEFT_PX - 8, y + 4, f"{value:g}", size=11, ink=FAINT, anchor="end"))
    known = [(place, point) for place, point in zip(places, panel.points, strict=True) if point is not None]
    line = " ".join(f"{place:.1f},{height(point.median):.1f}" for place, point in known)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{OURS}" stroke-width="2"/>')
    for place, point in known:
        low, high = height(point.low), height(point.high)
        parts.append(
            f'<line x1="{place:.1f}" y1="{low:.1f}" x2="{place:.1f}" y2="{high:.1f}" stroke="{INK}" opacity="0.5"/>'
        )
        parts.append(f'<circle cx="{place:.1f}" cy="{height(point.median):.1f}" r="3.5" fill="{OURS}"/>')
    return parts
