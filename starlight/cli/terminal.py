"""How what a node says becomes text for a terminal: escaped, short, and in columns.

Law: every word that came from outside goes through `clean` before it is printed, so that no client's name can move the
cursor, colour the screen, or turn the line around. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len, chop_cells, set_cell_size

__all__ = ["Column", "clean", "count", "crop", "duration", "fields", "fitting", "rate", "rows", "size"]

GAP: Final = "  "
_COUNT_UNITS: Final = ("", "k", "M", "G", "T", "P")
_SIZE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Column(NamedTuple):
    """A column of a table that has to fit.

    Attributes:
        title: its heading.
        width: cells it takes; of a flexible one, at least.
        rank: when there is no room, columns go by rank, the highest first.
        is_left: text to the left; numbers go to the right.
        width_max: of a flexible column, which takes what is left; 0 for a column that isn't.
    """

    title: str
    width: int
    rank: int = 0
    is_left: bool = False
    width_max: int = 0


def clean(word: object, is_ascii: bool = False) -> str:
    """A word as it is if every character of it is printable, otherwise as a JSON string in ASCII.

    Args:
        word: of a stranger; what is missing or empty becomes ``-``.
        is_ascii: the terminal shows ASCII only.
    """
    if word is None or word == "":
        return "-"
    text = str(word)
    harmless = text.isprintable() and (text.isascii() or not is_ascii)
    return text if harmless else json.dumps(text)


def crop(text: str, cells: int) -> str:
    """The text in at most so many cells of a terminal; the last is an ellipsis if some was left out."""
    if cells <= 0:
        return ""
    if cell_len(text) <= cells:
        return text
    return (chop_cells(text, cells - 1)[0] if cells > 1 else "") + "…"


def _scaled(number: float, base: int, units: Sequence[str]) -> tuple[float, str]:
    """A number of three digits or so, and its unit."""
    for unit in units[:-1]:
        if abs(number) < base * 0.9995:
            return number, unit
        number /= base
    return number, units[-1]


def count(number: float | None) -> str:
    """``9,876``, ``12.3k``, ``4.56M``; a dash for None."""
    if number is None:
        return "-"
    if abs(number) < 9_999.5:
        return f"{round(number):,}"
    scaled, unit = _scaled(number, 1_000, _COUNT_UNITS)
    return f"{_digits(scaled)}{unit}"


def rate(number: float | None) -> str:
    """Like `count`, with a decimal below 10: what happens every few seconds is not nothing."""
    if number is not None and 0 < number < 9.95:
        return f"{number:.1f}"
    return count(number)


def size(number: float | None) -> str:
    """``512B``, ``64.0KiB``, ``1.25GiB``; a dash for None."""
    if number is None:
        return "-"
    scaled, unit = _scaled(number, 1_024, _SIZE_UNITS)
    return f"{_digits(scaled) if unit != 'B' else round(scaled)}{unit}"


def _digits(number: float) -> str:
    """Three significant digits."""
    return f"{number:.2f}" if abs(number) < 9.995 else f"{number:.1f}" if abs(number) < 99.95 else f"{number:.0f}"


def duration(seconds: float | None) -> str:
    """``12ms``, ``1.5s``, ``3m20s``, ``2h05m``, ``4d03h``; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 0.9995:
        return f"{seconds * 1_000:.1f}ms" if 0 < seconds < 0.00995 else f"{seconds * 1_000:.0f}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3_600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3_600}h{whole % 3_600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3_600:02}h"


def fitting(columns: Sequence[Column], width: int) -> list[tuple[int, int]]:
    """Which columns fit into a line, as (index, cells) in their order; at least the one of the lowest rank."""
    chosen = sorted(range(len(columns)), key=lambda index: columns[index].rank)
    while len(chosen) > 1 and _needed([columns[index] for index in chosen]) > width:
        chosen.pop()
    left = max(0, width - _needed([columns[index] for index in chosen]))
    cells = []
    for index in sorted(chosen):
        more = min(left, max(0, columns[index].width_max - columns[index].width))
        left -= more
        cells.append((index, min(columns[index].width + more, max(1, width))))
    return cells


def _needed(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + len(GAP) * (len(columns) - 1)


def fields(columns: Sequence[Column], row: Sequence[str], cells: Sequence[tuple[int, int]]) -> list[str]:
    """The words of a row, each cropped and padded to its cells, in the columns that fit."""
    shown = []
    for index, width in cells:
        word = crop(row[index], width)
        shown.append(set_cell_size(word, width) if columns[index].is_left else " " * (width - cell_len(word)) + word)
    return shown


def rows(columns: Sequence[Column], table: Sequence[Sequence[str]]) -> list[str]:
    """A whole table with its heading, nothing cropped: for output that a program may read."""
    lines = [[column.title for column in columns], *table]
    widths = [max(cell_len(line[index]) for line in lines) for index in range(len(columns))]
    cells = list(enumerate(widths))
    return [GAP.join(fields(columns, line, cells)).rstrip() for line in lines]
