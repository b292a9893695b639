"""Says what holds the loop while it is held: a handler that never comes back is never timed by itself.

Strategy: the loop beats once a second, and a thread looks now and then how long ago that was. A loop that does not beat
is shown with the innermost functions that its thread is in. Code in C that keeps the interpreter's lock keeps this
thread from looking, too; what that held is logged by `handlers` when it comes back.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from typing import Final

__all__ = ["StallWatch"]

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""How often the thread looks: 0.02 ms of CPU each time."""

HELD_S: Final = 3.0
"""A loop that has not beaten for so long is held: two beats and a second for a machine that is busy."""

FRAMES: Final = 4
"""Innermost functions that are named: the one that loops, and some of its callers, the handler among them."""


class StallWatch:
    """Watches the loop of the thread that makes it, from `start` to `stop`. `beat` is called by the loop."""

    def __init__(self) -> None:
        self._watched = threading.get_ident()
        self._beat_s = time.monotonic()
        self._stopped = threading.Event()

    def beat(self) -> None:
        """The loop turns."""
        self._beat_s = time.monotonic()

    def start(self) -> None:
        """Look from now on."""
        self.beat()
        threading.Thread(target=self._run, name="starlight-stall", daemon=True).start()

    def stop(self) -> None:
        """Look no more; without waiting for the thread."""
        self._stopped.set()

    def _run(self) -> None:
        looked_s = time.monotonic()
        told_s = HELD_S
        while not self._stopped.wait(LOOK_S):
            now_s = time.monotonic()
            stood_still = now_s - looked_s > 2 * LOOK_S  # the whole process did, so the loop may not be to blame
            looked_s = now_s
            held_s = now_s - self._beat_s
            if held_s < HELD_S:
                told_s = HELD_S
            elif held_s >= told_s and not stood_still:
                told_s *= 2  # 3, 6, 12 s and so on: a line each, and not one a second
                log.error("the loop has been held for %.0f s, and nobody is served: %s", held_s, self._place())

    def _place(self) -> str:
        """The innermost functions of the loop's thread, the innermost first."""
        frame = sys._current_frames().get(self._watched)
        if frame is None:
            return "its thread has ended"
        frames = traceback.extract_stack(frame, limit=FRAMES)
        return ", called by ".join(f"{one.name} ({one.filename}:{one.lineno})" for one in reversed(frames))
