"""Memory that a crowd has left behind goes back to the system.

The allocator keeps what was freed for the next one who asks. That is right for a node whose load goes up and down, and
wrong for one where a million channels were joined and left: a third of their memory would stay. So when most of a crowd
has gone, glibc is asked once to give back the pages that nothing stands on (malloc_trim(3)). Elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

__all__ = ["CROWD", "Trimmer", "trim"]

CROWD: Final = 50_000
"""Fewer channels than these are not worth it: about 30 MB."""


def trim() -> None:
    """Ask the C library. About 20 ms for a million channels, without the GIL; from a thread."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return


class Trimmer:
    """Says when most of a crowd has gone.

    Args:
        act: what to do then.
    """

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self._most = 0

    def look(self, present: int) -> None:
        """Tell how many there are now; to be called now and then."""
        if self._most >= CROWD and present <= self._most // 4:
            self._most = 0
            self._act()
        self._most = max(self._most, present)
