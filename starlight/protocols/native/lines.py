"""The two subprotocols.

``starlight.v1`` has one JSON message per text frame. ``starlight.v1.lines`` may carry several, separated by ``\\n``. No
JSON text needs a raw newline, so cutting them apart (`_lines`) is exact, and it leaves every piece valid UTF-8. The
other direction, joining messages into a frame, is the core's: it replaces newlines inside spliced data by spaces.
"""

from typing import Final

__all__ = ["LINES", "SUBPROTOCOLS", "V1"]

V1: Final = "starlight.v1"
LINES: Final = "starlight.v1.lines"
SUBPROTOCOLS: Final = (V1, LINES)
"""What the server speaks."""
