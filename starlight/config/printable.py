"""How a stranger's text may be shown: with everything escaped that would do something in a terminal or in a log."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["TEXT_LIMIT", "UNSAFE", "escape", "printable"]

TEXT_LIMIT: Final = 8_192
"""The longest text in a line, in characters; the middle of a longer one is cut. A traceback is 1,000 to 4,000."""

UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters of ASCII (newline and escape among them) and of Latin-1, line separators, marks that turn the
direction of writing, and halves of characters."""


def printable(text: str, most: int = 1_000) -> str:
    """The text with each character that is not printable escaped as Python writes it, such as ``\\x1b``.

    That are control characters, line breaks, what turns the line around, and what is invisible: it stays one line.

    Args:
        text: of a stranger.
        most: characters of it that are shown, by default about ten lines of a terminal; then comes an ellipsis.
    """
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    return shown + "…" if len(text) > most else shown


def escape(text: str, unsafe: re.Pattern[str] = UNSAFE) -> str:
    r"""The text with what is unsafe written as Python does: ``\n``, ``\x1b``, ``\u202e``; cut to `TEXT_LIMIT`."""
    if len(text) > TEXT_LIMIT:
        half = TEXT_LIMIT // 2
        text = f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"
    return unsafe.sub(lambda found: ascii(found[0])[1:-1], text)
