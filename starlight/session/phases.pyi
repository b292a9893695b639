"""Stubs of the phases. What each thing means stands in phases.pyx."""

from typing import Final

PHASES: Final[tuple[str, ...]]
HAPPENINGS: Final[tuple[str, ...]]
ACTIONS: Final[tuple[str, ...]]
TABLE: Final[tuple[tuple[int, int, int, int], ...]]

class IllegalTransition(Exception): ...

def transition(phase: int, happening: int) -> tuple[int, int]: ...
