"""The README's chart: an SVG written by hand, three panels of horizontal bars, one for each window.

A bar is a server's broadcasts at 1,000 subscribers: deliveries per second of server CPU, the figure that holds whether
or not the generator was saturated. Every panel has its own scale from zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from harness.rows import SUBJECT
from harness.servers import SERVERS

WINDOWS = (1, 16, 64)
ROW_PX = 24
LABEL_PX = 212
BAR_PX = 300
VALUE_PX = 76
HEAD_PX = 74
PANEL_HEAD_PX = 34
MARGIN_PX = 20
INK, FAINT, PEER, OURS, FLOOR_INK = "#1f2328", "#656d76", "#9aa7b4", "#2f6fde", "#d5dae0"


def medians(record: Mapping[str, Any], window: int) -> dict[str, float]:
    """Return deliveries per second of server CPU by server, from a results record; servers without a run are absent."""
    row = record["rows"].get(f"broadcast-w{window}-n1000")
    if row is None:
        return {}
    found = {}
    for key in row["cells"]:
        costs = sorted(rep[key]["server_us"] for rep in row["repetitions"] if key in rep and rep[key]["server_us"])
        if costs:
            found[key] = 1e6 / costs[len(costs) // 2]
    return found


def short(rate: float) -> str:
    """7_800_000 -> 7.8 M/s."""
    for factor, unit in ((1e6, " M/s"), (1e3, " k/s")):
        if rate >= factor:
            return f"{rate / factor:.3g}{unit}"
    return f"{rate:.0f} /s"


def text(
    x: float, y: float, content: str, *, size: int = 12, ink: str = INK, anchor: str = "start", bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" fill="{ink}" text-anchor="{anchor}"'
    return f"<text {place}{weight}>{escape(content)}</text>"


def bar(name: str, y: float, rate: float, most: float) -> list[str]:
    """One server's line: its title, its bar and its figure."""
    ink = OURS if name == SUBJECT else FLOOR_INK if name.startswith("floor") else PEER
    width = max(BAR_PX * rate / most, 1.5)
    at = MARGIN_PX + LABEL_PX
    is_ours = name == SUBJECT
    return [
        text(at - 10, y + 15, SERVERS[name].title, anchor="end", bold=is_ours),
        f'<rect x="{at}" y="{y + 3:g}" width="{width:.1f}" height="{ROW_PX - 7}" rx="2" fill="{ink}"/>',
        text(at + width + 7, y + 15, short(rate), ink=INK if is_ours else FAINT, bold=is_ours),
    ]


def panel(window: int, rates: Mapping[str, float], y: float) -> list[str]:
    """One window's heading and bars, the fastest first."""
    noun = "broadcast" if window == 1 else "broadcasts"
    parts = [text(MARGIN_PX, y + 20, f"{window} {noun} under way at once", size=13, bold=True)]
    for number, (name, rate) in enumerate(sorted(rates.items(), key=lambda item: -item[1])):
        parts += bar(name, y + PANEL_HEAD_PX + number * ROW_PX, rate, max(rates.values()))
    return parts


def caption(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    return f"{record['date']} · {machine['processor']} · Linux {machine['kernel']} · Python {machine['python']}"


def draw(record: Mapping[str, Any], windows: Sequence[int] = WINDOWS) -> str | None:
    """Return the chart of a results record; None if it has none of the rows."""
    panels = [(window, rates) for window in windows if (rates := medians(record, window))]
    if not panels:
        return None
    y = float(HEAD_PX)
    parts = []
    for window, rates in panels:
        parts += panel(window, rates, y)
        y += PANEL_HEAD_PX + len(rates) * ROW_PX + 16
    width = 2 * MARGIN_PX + LABEL_PX + BAR_PX + VALUE_PX
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 8:g}" width="{width}" height="{y + 8:g}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img">',
        "<title>Deliveries per second of server CPU, broadcasts of 128 bytes to 1,000 subscribers</title>",
        f'<rect width="{width}" height="{y + 8:g}" rx="8" fill="#ffffff"/>',
        text(MARGIN_PX, 30, "Deliveries per second of one server core", size=16, bold=True),
        text(MARGIN_PX, 49, "broadcasts of 128 bytes to 1,000 subscribers; longer is better", ink=FAINT),
        text(MARGIN_PX, 65, caption(record), size=10, ink=FAINT),
    ]
    return "\n".join([*head, *parts, "</svg>", ""])
