"""How a stranger's text may be shown on a terminal: with everything escaped that would do something there."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, most: int = 1_000) -> str:
    """The text with each character that is not printable escaped as Python writes it, such as ``\\x1b``.

    That are control characters, line breaks, what turns the line around, and what is invisible: it stays one line.

    Args:
        text: of a stranger.
        most: characters of it that are shown, by default about ten lines of a terminal; then comes an ellipsis.
    """
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    return shown + "…" if len(text) > most else shown
