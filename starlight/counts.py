"""Totals by code, with a bound on how many codes are told apart."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

__all__ = ["OTHER", "CodeCounts"]

OTHER: Final = "other"
"""What stands for every code that is in no table, in what is shown."""


class CodeCounts:
    """How often each code of a table occurred. All others are counted together, so that nobody can make up counters.

    Args:
        table: the codes that are told apart.

    Attributes:
        other: how often a code occurred that is not in the table.
    """

    __slots__ = ("_counts", "other")

    def __init__(self, table: Iterable[int]) -> None:
        self._counts = dict.fromkeys(map(int, table), 0)
        self.other = 0

    def add(self, code: int) -> None:
        """Count one more."""
        if code in self._counts:
            self._counts[code] += 1
        else:
            self.other += 1

    def __getitem__(self, code: int) -> int:
        """How often a code of the table occurred. Raises KeyError for any other."""
        return self._counts[code]

    def shown(self, without: Collection[int] = ()) -> dict[str, int]:
        """The codes that occurred, as text, with how often; those in no table together as `OTHER`.

        Args:
            without: codes to leave out.
        """
        rows = {str(code): count for code, count in self._counts.items() if count and code not in without}
        if self.other:
            rows[OTHER] = self.other
        return rows
