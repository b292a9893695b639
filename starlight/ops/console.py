"""The web console: its page, and the headers that say what the page may do.

The page is one file, and its script and style stand in it. The policy allows exactly these two, by their hashes, which
are computed from the file and so can't be forgotten; and it forbids the page to turn any string into markup.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import Final

__all__ = ["page"]

_BLOCK: Final = r"<{0}>(.*?)</{0}>"


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """The page in UTF-8, and the headers it needs besides those of every answer of the internal port."""
    text = resources.files("starlight.ops").joinpath("console.html").read_text(encoding="utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(text, "script"),
        "style-src": _hashes(text, "style"),
        "img-src": "data:",  # its icon
        "connect-src": "'self' ws: wss:",  # the node's WebSocket is on another port, and may be on another host
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return text.encode(), {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cross-Origin-Opener-Policy": "same-origin",
    }


def _hashes(text: str, tag: str) -> str:
    """The sources of a policy that allow the blocks of one tag in the page."""
    blocks = re.findall(_BLOCK.format(tag), text, re.DOTALL)
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks
    )
