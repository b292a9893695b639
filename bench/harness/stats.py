"""Medians and their intervals. Pure functions of lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

CONFIDENCE = 0.90


@dataclass(frozen=True)
class Estimate:
    """A median with its 90% interval and the number of values it is made of."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def coverage(count: int, rank: int) -> float:
    """How sure it is that the true median lies between the ``rank``-th smallest and the ``rank``-th largest value."""
    return 1 - 2.0 * sum(math.comb(count, below) for below in range(rank)) / float(2**count)


def estimate(values: Sequence[float]) -> Estimate:
    """Return the median with its 90% interval, by order statistics.

    The exact coverages jump (9 values: 0.961 or 0.820), so the ends are interpolated between the two ranks around
    0.90 as in Hettmansperger and Sheather (1986). Nothing about the distribution is assumed. Fewer than 5 values
    cannot give 90%: their interval is their range.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    count = len(ordered)
    rank = 1
    while 2 * (rank + 1) <= count and coverage(count, rank + 1) >= CONFIDENCE:
        rank += 1
    outer = coverage(count, rank)
    if outer <= CONFIDENCE or 2 * (rank + 1) > count:
        return Estimate(median(ordered), ordered[0], ordered[-1], count)
    inner = coverage(count, rank + 1)
    step = (outer - CONFIDENCE) / (outer - inner)
    weight = (count - rank) * step / (rank + (count - 2 * rank) * step)
    low = (1 - weight) * ordered[rank - 1] + weight * ordered[rank]
    high = (1 - weight) * ordered[count - rank] + weight * ordered[count - rank - 1]
    return Estimate(median(ordered), low, high, count)
