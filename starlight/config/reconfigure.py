"""How changed settings reach what serves: each part that can change has one method, ``reconfigure(settings)``.

The law is all or nothing. `reconfigure` does all that can fail: it reads files and makes what is new beside what is in
force, and changes nothing. It may run in any thread. What it returns is called on the loop's thread once all parts have
succeeded, puts the new in place, and can't fail. A part has no other setter for a setting that reloads.
"""

from __future__ import annotations

from collections.abc import Callable

from starlight.config.settings import Settings

__all__ = ["Commit", "Reconfigure"]

Commit = Callable[[], None]
"""Puts in place what `reconfigure` has made."""

Reconfigure = Callable[[Settings], Commit]
"""The method of a part. Raises `ConfigError`, and then nothing has changed."""
