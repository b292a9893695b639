"""Words for a terminal: nothing of a stranger's gets through, numbers stay short, and columns fit."""

import pytest
from rich.cells import cell_len

from starlight.cli.terminal import Column, clean, count, crop, duration, fields, fitting, rate, rows, size

COLUMNS = (Column("NAME", 4, 0, True, 10), Column("A", 3, 2), Column("B", 5, 1))


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("ada", "ada"),
        ("日本", "日本"),
        ("a b", "a b"),
        ("\x1b[2J", r'"\u001b[2J"'),
        ("a\nb", r'"a\nb"'),
        ("\u202eevil", r'"\u202eevil"'),
        ("\x9b31m", r'"\u009b31m"'),
        ("\ud800", r'"\ud800"'),
        (None, "-"),
        (7, "7"),
    ],
)
def test_clean(word: object, shown: str) -> None:
    assert clean(word) == shown


def test_clean_for_a_terminal_of_ascii() -> None:
    assert clean("日", is_ascii=True) == r'"\u65e5"'
    assert clean("ada", is_ascii=True) == "ada"


@pytest.mark.parametrize(
    ("text", "cells", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("ab", 1, "…"),
        ("ab", 0, ""),
        ("", 0, ""),
    ],
)
def test_crop(text: str, cells: int, shown: str) -> None:
    assert crop(text, cells) == shown
    assert cell_len(shown) <= max(cells, 0)


def test_numbers() -> None:
    assert [count(n) for n in (None, 0, 987, 9_999, 9_999.6, 12_345, 999_940, 1e6, 4.56e9)] == [
        *("-", "0", "987", "9,999", "10.0k", "12.3k", "1.00M", "1.00M", "4.56G")
    ]
    assert [rate(n) for n in (None, 0, 0.25, 9.9, 9.96, 12_345)] == ["-", "0", "0.2", "9.9", "10", "12.3k"]
    assert [size(n) for n in (None, 0, 1_023, 1_024, 65_536, 1 << 30)] == [
        *("-", "0B", "1023B", "1.00KiB", "64.0KiB", "1.00GiB")
    ]
    assert [duration(s) for s in (None, 0, 0.004, 0.25, 0.9996, 59.96, 3_599, 7_500, 356_400)] == [
        *("-", "0ms", "4.0ms", "250ms", "1.0s", "1m00s", "59m59s", "2h05m", "4d03h")
    ]


@pytest.mark.parametrize("width", range(1, 30))
def test_columns_fit(width: int) -> None:
    cells = fitting(COLUMNS, width)
    line = "  ".join(fields(COLUMNS, ["a long name", "12", "3"], cells))
    assert cell_len(line) <= max(width, 1)
    assert cells[0][0] == 0


def test_columns_go_by_rank() -> None:
    assert [[COLUMNS[index].title for index, _ in fitting(COLUMNS, width)] for width in (16, 15, 10)] == [
        ["NAME", "A", "B"],
        ["NAME", "B"],
        ["NAME"],
    ]
    assert fitting(COLUMNS, 100)[0] == (0, 10)


def test_whole_tables_are_not_cropped() -> None:
    assert rows(COLUMNS, [["a very long name", "1", "2"]]) == ["NAME              A  B", "a very long name  1  2"]
