"""Patterns of names, in which `*` stands for any characters, none included. Pure.

A pattern is cut at its stars once, and compared by `startswith`, `find` and `endswith`: no regular expressions, so
nothing in a name can make a check slow.
"""

__all__ = ["Pattern", "cut", "matches"]

Pattern = tuple[str, ...]
"""A pattern cut at its stars; one part means that it has none."""


def cut(pattern: str) -> Pattern:
    """A pattern, ready for `matches`."""
    return tuple(pattern.split("*"))


def matches(pattern: Pattern, name: str) -> bool:
    """Whether a name fits a pattern."""
    first, last = pattern[0], pattern[-1]
    if len(pattern) == 1:
        return name == first
    if len(name) < len(first) + len(last) or not (name.startswith(first) and name.endswith(last)):
        return False
    at, end = len(first), len(name) - len(last)
    for part in pattern[1:-1]:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
