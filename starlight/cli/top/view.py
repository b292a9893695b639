"""What `starlight top` shows: from two samples of each node to the lines of one frame.

Strategy: data in, lines out. A frame is cut to the terminal before it is drawn, never by it: columns go by rank and
sections by height, so that any size shows the most important part whole. The clock and the size are arguments.

Law: rates come from a node's own clock and from two samples of the same process; after a restart there is one frame
without rates. What clients named goes through `clean` and reaches the terminal as plain text, never as markup.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from starlight.cli.terminal import GAP, Column, clean, count, crop, duration, fields, fitting, rate, size
from starlight.ops.client import ChannelRow, ChannelsPage, ConnectionRow, ConnectionsPage, Varz

__all__ = ["LISTED", "NodeView", "Sample", "Screen", "frame"]

LISTED: Final = 100
"""How many connections and channels a sample holds: more than a screen shows, little for a node to sort."""

HISTORY: Final = 240
"""Samples a node's curves go back: as many as a very wide terminal has columns."""

SECTION_ROWS: Final = 10
"""Rows of a list where the height doesn't say: for output that isn't a terminal."""

ATTENTION_LAG_MS, ALARM_LAG_MS = 20.0, 250.0
"""A loop that is this late: a flush slice takes less than 20 ms; 250 ms are half of what a client may take nothing."""

ATTENTION_AGE_MS, ALARM_AGE_MS = 250.0, 2_000.0
"""An oldest message of this age: half of the default `evict_after`, and a fifth of the write timeout."""

ATTENTION_BUDGET, ALARM_BUDGET = 0.5, 0.8
"""This part of the memory budget in use: from half of it on the node compacts."""

BARS: Final = " ▁▂▃▄▅▆▇█"
_TO_ASCII: Final = str.maketrans({"…": "~", "·": "-", **dict(zip(BARS[1:], "._-~=+*#", strict=True))})


@dataclass(slots=True)
class Sample:
    """What one node said at one time; connections by age of their outbox, channels by deliveries."""

    varz: Varz
    connections: ConnectionsPage
    channels: ChannelsPage


class Screen(NamedTuple):
    """What a frame is cut to; `height` None for as long as it gets."""

    width: int
    height: int | None = None
    is_ascii: bool = False


class Rates(NamedTuple):
    """What happened in a second, between two samples."""

    messages_in: float
    deliveries: float
    bytes_out: float
    evictions: float


@dataclass(slots=True)
class NodeView:
    """A node as `top` knows it: its last two samples, and why there is no newer one."""

    url: str
    latest: Sample | None = None
    problem: str | None = None
    """Why the last question was not answered; None if it was."""
    rates: Rates | None = None
    channel_rates: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Publications and deliveries a second, by channel."""
    history: deque[Rates | None] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def add(self, sample: Sample) -> None:
        """A new sample has come."""
        before, self.latest, self.problem = self.latest, sample, None
        elapsed_s = _elapsed_s(before, sample)
        if before is None or elapsed_s is None:
            self.rates, self.channel_rates = None, {}
        else:
            self.rates = _rates(before.varz, sample.varz, elapsed_s)
            self.channel_rates = _channel_rates(before.channels, sample.channels, elapsed_s)
        self.history.append(self.rates)

    def fail(self, problem: str) -> None:
        """The node did not answer."""
        self.problem, self.rates, self.channel_rates = problem, None, {}
        self.history.append(None)

    @property
    def name(self) -> str:
        """Its own name, or its URL until it has said one."""
        return self.latest.varz.node if self.latest is not None else self.url


def _elapsed_s(before: Sample | None, after: Sample) -> float | None:
    """Seconds between two samples of one process; None if they are of two, or no time has passed."""
    if before is None or (before.varz.pid, before.varz.started) != (after.varz.pid, after.varz.started):
        return None
    elapsed_s = after.varz.now - before.varz.now
    return elapsed_s if elapsed_s > 0 else None


def _rates(before: Varz, after: Varz, elapsed_s: float) -> Rates:
    old, new = before.totals, after.totals

    def a_second(total: int, total_before: int) -> float:
        return max(0, total - total_before) / elapsed_s

    return Rates(
        messages_in=a_second(new.messages_in, old.messages_in),
        deliveries=a_second(new.deliveries, old.deliveries),
        bytes_out=a_second(new.bytes_out, old.bytes_out),
        evictions=a_second(sum(new.evictions.values()), sum(old.evictions.values())),
    )


def _channel_rates(before: ChannelsPage, after: ChannelsPage, elapsed_s: float) -> dict[str, tuple[float, float]]:
    """Rates of the channels that were in both samples; one that was made again since has none."""
    old = {row.channel: row for row in before.channels}
    return {
        row.channel: (
            (row.publications - then.publications) / elapsed_s,
            (row.deliveries - then.deliveries) / elapsed_s,
        )
        for row in after.channels
        if (then := old.get(row.channel)) is not None and row.publications >= then.publications
    }


# One frame

NODES: Final = (
    Column("NODE", 8, 0, True, 28),
    Column("STATE", 11, 1, True),
    Column("UP", 6, 8),
    Column("CONNS", 6, 10),
    Column("CLIENTS", 7, 2),
    Column("CHANNELS", 8, 11),
    Column("IN/S", 6, 4),
    Column("DELIV/S", 7, 3),
    Column("OUT/S", 8, 9),
    Column("EVICTED", 7, 7),
    Column("OUTBOX", 8, 12),
    Column("OLDEST", 7, 6),
    Column("LAG", 7, 5),
    Column("RSS", 8, 13),
    Column("BUDGET", 6, 14),
)
SLOWEST: Final = (
    Column("OLDEST", 8, 1),
    Column("USER", 14, 0, True, 32),
    Column("OUTBOX", 8, 2),
    Column("MSGS", 6, 3),
    Column("STATE", 6, 5, True),
    Column("ADDRESS", 15, 6, True, 30),
    Column("SINCE", 7, 7),
    Column("CHANNELS", 8, 9),
    Column("ID", 6, 8),
    Column("NODE", 8, 4, True, 20),
)
CHANNELS: Final = (
    Column("CHANNEL", 8, 0, True, 48),
    Column("DELIV/S", 8, 1),
    Column("PUB/S", 8, 3),
    Column("SUBSCR", 7, 2),
    Column("DELIVERED", 9, 5),
    Column("PUBLISHED", 9, 6),
    Column("NODE", 8, 4, True, 20),
)
CURVES: Final[tuple[tuple[str, Callable[[Rates], float], Callable[[float | None], str]], ...]] = (
    ("messages in/s", lambda rates: rates.messages_in, rate),
    ("deliveries/s", lambda rates: rates.deliveries, rate),
    ("bytes out/s", lambda rates: rates.bytes_out, size),
)
CURVE_LABEL_CELLS, CURVE_VALUE_CELLS = 13, 8

Line = tuple[str, str]
"""Text and its style."""


LOW: Final = 8
"""A terminal of fewer rows has none to spare for empty lines."""

LIST_LINES: Final = 3
"""What a list takes besides its rows: an empty line, its name, the heading of its columns."""


class RowPlan(NamedTuple):
    """How many rows each section gets."""

    nodes: int
    curves: int
    slowest: int
    channels: int


def frame(nodes: Sequence[NodeView], screen: Screen, title: str, hint: str = "") -> list[Text]:
    """The lines of one frame.

    Args:
        nodes: in the order they are shown.
        screen: what it is cut to.
        title: what stands at the top left, such as the time.
        hint: what stands at the top right, such as the keys, if there is room.
    """
    sections = _sections(nodes, screen, _plan(nodes, screen))
    lines = [_heading_line(f"starlight top · {_answering(nodes)} · {title}", hint, screen.width)]
    is_low = screen.height is not None and screen.height < LOW
    for section in sections:
        lines += [*([] if is_low else [[]]), *section]
    return [_to_text(line, screen) for line in lines[: screen.height]]


def _sections(nodes: Sequence[NodeView], screen: Screen, plan: RowPlan) -> list[list[list[Line]]]:
    sections = [_node_table(nodes, screen)[: plan.nodes + 1]]
    if plan.curves:
        sections.append(_curves(nodes, screen.width)[: plan.curves])
    if plan.slowest:
        sections.append(_slowest_table(nodes, screen, plan.slowest))
    if plan.channels:
        sections.append(_channel_table(nodes, screen, plan.channels))
    return sections


def _plan(nodes: Sequence[NodeView], screen: Screen) -> RowPlan:
    """Share out the height: nodes first, then the slowest clients, channels, curves, each only if it is worth it."""
    n_nodes = len(nodes) + (len(nodes) > 1)
    if screen.height is None:
        return RowPlan(n_nodes, len(CURVES), SECTION_ROWS, SECTION_ROWS)
    left = screen.height - 3 - n_nodes
    curves = len(CURVES) if left >= LIST_LINES * 2 + 8 and screen.width >= 40 else 0
    left -= curves + 1 if curves else 0
    if left < LIST_LINES * 2 + 2:
        return RowPlan(n_nodes, curves, max(0, left - LIST_LINES), 0)
    rows = left - LIST_LINES * 2
    return RowPlan(n_nodes, curves, (rows + 1) // 2, rows // 2)


def _answering(nodes: Sequence[NodeView]) -> str:
    well = sum(node.problem is None and node.latest is not None for node in nodes)
    return f"{well} of {len(nodes)} node{'s' if len(nodes) != 1 else ''}"


def _heading_line(left: str, right: str, width: int) -> list[Line]:
    room = width - len(left) - len(right)
    return [(left, "bold"), (" " * room + right, "dim")] if right and room > 1 else [(left, "bold")]


def _to_text(line: Iterable[Line], screen: Screen) -> Text:
    """A line as rich draws it: cut to the width, its words as they are."""
    text = Text(no_wrap=True, overflow="crop")
    left = screen.width
    for words, style in line:
        shown = crop(words, left)
        text.append(shown.translate(_TO_ASCII) if screen.is_ascii else shown, style)
        left -= cell_len(shown)
        if left <= 0:
            break
    return text


def _table(
    columns: Sequence[Column], table: Sequence[tuple[Sequence[str], Sequence[str]]], width: int
) -> list[list[Line]]:
    """A heading and rows of (words, styles), in the columns that fit."""
    cells = fitting(columns, width)
    lines: list[list[Line]] = [[(GAP.join(fields(columns, [column.title for column in columns], cells)), "dim")]]
    for words, styles in table:
        shown = fields(columns, words, cells)
        parts = [(word, styles[index]) for word, (index, _) in zip(shown, cells, strict=True)]
        lines.append([part for number, part in enumerate(parts) for part in (*([(GAP, "")] if number else []), part)])
    return lines


# Nodes


def _node_table(nodes: Sequence[NodeView], screen: Screen) -> list[list[Line]]:
    table = [_node_row(node, screen.is_ascii) for node in nodes]
    if len(nodes) > 1:
        table.append(_total_row(nodes))
    lines = _table(NODES, table, screen.width)
    for number, node in enumerate(nodes, 1):
        if node.problem is not None or node.latest is None:  # what it said before is not true any more
            name = f"{clean(node.name, screen.is_ascii)}{GAP}"
            lines[number] = [(name, "bold"), (_state(node), _state_style(node))]
            if node.problem is not None:
                lines[number].append((f"{GAP}{clean(node.problem, screen.is_ascii)}", "red"))
    return lines


def _state(node: NodeView) -> str:
    if node.problem is not None:
        return "unreachable"
    return node.latest.varz.state if node.latest is not None else "asking"


def _state_style(node: NodeView) -> str:
    return {"serving": "green", "draining": "yellow", "unreachable": "bold red"}.get(_state(node), "yellow")


def _node_row(node: NodeView, is_ascii: bool) -> tuple[list[str], list[str]]:
    """A node's words and their styles."""
    varz = node.latest.varz if node.latest is not None else Varz(node=node.url, now=0.0)
    rates, used, oldest_ms = node.rates, _used(varz), _oldest_ms(varz)
    words = [
        clean(varz.node, is_ascii),
        clean(_state(node), is_ascii),
        duration(varz.uptime_s),
        count(varz.connections),
        count(varz.clients),
        count(varz.channels),
        rate(rates and rates.messages_in),
        rate(rates and rates.deliveries),
        size(rates and rates.bytes_out),
        count(sum(varz.totals.evictions.values())),
        size(varz.outbox.bytes),
        duration(_seconds(oldest_ms)),
        duration(varz.loop.lag_ms / 1_000),
        size(varz.memory.rss_bytes),
        f"{used:.0%}" if used is not None else "-",
    ]
    styles = ["bold", _state_style(node), *[""] * (len(words) - 2)]
    styles[9] = "bold red" if rates is not None and rates.evictions else ""
    styles[11] = _level(oldest_ms, ATTENTION_AGE_MS, ALARM_AGE_MS)
    styles[12] = _level(varz.loop.lag_ms, ATTENTION_LAG_MS, ALARM_LAG_MS)
    styles[14] = _level(used, ATTENTION_BUDGET, ALARM_BUDGET)
    return words, styles


def _total_row(nodes: Sequence[NodeView]) -> tuple[list[str], list[str]]:
    """What the nodes that answer have together; ages and lags are the worst."""
    answering = [node for node in nodes if node.problem is None and node.latest is not None]
    all_varz = [node.latest.varz for node in answering if node.latest is not None]
    rates = [node.rates for node in answering if node.rates is not None]
    words = [
        "together",
        "",
        "",
        count(sum(varz.connections for varz in all_varz)),
        count(sum(varz.clients for varz in all_varz)),
        "",  # a channel may be on several nodes
        rate(sum(one.messages_in for one in rates) if rates else None),
        rate(sum(one.deliveries for one in rates) if rates else None),
        size(sum(one.bytes_out for one in rates) if rates else None),
        count(sum(sum(varz.totals.evictions.values()) for varz in all_varz)),
        size(sum(varz.outbox.bytes for varz in all_varz)),
        duration(_seconds(max((_oldest_ms(varz) or 0.0 for varz in all_varz), default=0.0) or None)),
        duration(max((varz.loop.lag_ms for varz in all_varz), default=0.0) / 1_000),
        size(sum(varz.memory.rss_bytes for varz in all_varz)),
        "",
    ]
    return words, ["italic"] * len(words)


def _used(varz: Varz) -> float | None:
    """The part of the memory budget that is in use; None without a budget."""
    return varz.memory.chunk_bytes / varz.memory.budget_bytes if varz.memory.budget_bytes else None


def _oldest_ms(varz: Varz) -> float | None:
    """How long the oldest message has waited; None if none waits."""
    return varz.outbox.oldest_ms if varz.outbox.messages else None


def _seconds(milliseconds: float | None) -> float | None:
    return milliseconds / 1_000 if milliseconds is not None else None


def _level(value: float | None, attention: float, alarm: float) -> str:
    if value is None or value < attention:
        return ""
    return "yellow" if value < alarm else "bold red"


# Curves


def _curves(nodes: Sequence[NodeView], width: int) -> list[list[Line]]:
    """The rates of all nodes together, now and as curves that end now."""
    room = width - CURVE_LABEL_CELLS - CURVE_VALUE_CELLS - 2 * len(GAP)
    lines: list[list[Line]] = []
    for label, of, shown in CURVES:
        values = _summed(nodes, of)
        now = shown(values[-1]) if values else "-"
        bars = _bars(values[-max(0, room) :]) if room > 0 else ""
        head = f"{label:<{CURVE_LABEL_CELLS}}{GAP}{now:>{CURVE_VALUE_CELLS}}{GAP}"
        lines.append([(head.rstrip() if not bars.strip() else head, ""), (bars, "cyan")])
    return lines


def _summed(nodes: Sequence[NodeView], of: Callable[[Rates], float]) -> list[float | None]:
    """Sample by sample from the last back, the sum over the nodes; None where no node had a rate."""
    length = max((len(node.history) for node in nodes), default=0)
    sums: list[float | None] = []
    for back in range(length, 0, -1):
        rates = [node.history[-back] for node in nodes if len(node.history) >= back]
        known = [of(one) for one in rates if one is not None]
        sums.append(sum(known) if known else None)
    return sums


def _bars(values: Sequence[float | None]) -> str:
    """One character a value, from nothing to the largest of them; a gap is blank."""
    top = max((value for value in values if value), default=0.0)
    if not top:
        return "".join(BARS[0] if value is None else BARS[1] for value in values)
    steps = len(BARS) - 2
    return "".join(BARS[0] if value is None else BARS[1 + round(value / top * steps)] for value in values)


# Lists


def _slowest_table(nodes: Sequence[NodeView], screen: Screen, limit: int) -> list[list[Line]]:
    """The clients of all nodes whose oldest message waits longest."""
    waiting = [(node, row) for node, sample in _answers(nodes) for row in sample.connections.connections]
    waiting = [(node, row) for node, row in waiting if row.oldest_ms is not None]
    waiting.sort(key=lambda pair: -(pair[1].oldest_ms or 0.0))
    table = [_slow_row(node, row, screen.is_ascii) for node, row in waiting[:limit]]
    lines = _table(_with_node(SLOWEST, nodes), table, screen.width)
    return [[("slowest clients", "bold")], *(lines if table else [[("no client waits for anything", "dim")]])]


def _slow_row(node: NodeView, row: ConnectionRow, is_ascii: bool) -> tuple[list[str], list[str]]:
    state = " ".join(word for word, holds in (("full", row.is_full), ("paused", row.is_reading_paused)) if holds)
    words = [
        duration(_seconds(row.oldest_ms)),
        clean(row.user, is_ascii),
        size(row.outbox_bytes),
        count(row.outbox_messages),
        state or "-",
        clean(row.address, is_ascii),
        duration(row.connected_s),
        count(row.channels),
        str(row.id),
        clean(node.name, is_ascii),
    ]
    styles = [""] * len(words)
    styles[0] = _level(row.oldest_ms, ATTENTION_AGE_MS, ALARM_AGE_MS)
    styles[4] = "yellow" if row.is_full else ""
    return words, styles


def _channel_table(nodes: Sequence[NodeView], screen: Screen, limit: int) -> list[list[Line]]:
    """The channels of all nodes by deliveries a second, then by deliveries so far."""
    busy = [
        (node, row, node.channel_rates.get(row.channel))
        for node, sample in _answers(nodes)
        for row in sample.channels.channels
    ]
    busy.sort(key=lambda entry: (-(entry[2][1] if entry[2] else 0.0), -entry[1].deliveries))
    table = [_channel_row(node, row, rates, screen.is_ascii) for node, row, rates in busy[:limit]]
    lines = _table(_with_node(CHANNELS, nodes), table, screen.width)
    return [[("channels by traffic", "bold")], *(lines if table else [[("no channel is joined", "dim")]])]


def _channel_row(
    node: NodeView, row: ChannelRow, rates: tuple[float, float] | None, is_ascii: bool
) -> tuple[list[str], list[str]]:
    words = [
        clean(row.channel, is_ascii),
        rate(rates[1] if rates else None),
        rate(rates[0] if rates else None),
        count(row.subscribers),
        count(row.deliveries),
        count(row.publications),
        clean(node.name, is_ascii),
    ]
    return words, [""] * len(words)


def _answers(nodes: Sequence[NodeView]) -> list[tuple[NodeView, Sample]]:
    """The nodes that answer, with what they said."""
    return [(node, node.latest) for node in nodes if node.problem is None and node.latest is not None]


def _with_node(columns: Sequence[Column], nodes: Sequence[NodeView]) -> Sequence[Column]:
    """The columns without the last, which names the node, if there is only one."""
    return columns if len(nodes) > 1 else columns[:-1]
