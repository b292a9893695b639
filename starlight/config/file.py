"""The configuration file: TOML with the settings as top-level keys, the groups of users as ``[groups.<name>]``, and the
options of channels as ``[channels."<pattern>"]``.

`tomllib` doesn't say where a key stands, and an error that names a line is worth a search: the lines that look like the
key are found, and if there are several, the first before which the file is complete is the one. Only errors and
`starlight config show --origin` pay for that.
"""

import re
import tomllib
from collections.abc import Iterable
from typing import Any, Final

from starlight.errors import ConfigError

__all__ = ["CHANNELS", "GROUPS", "TABLES", "ConfigFile", "nearest", "read_file"]

GROUPS: Final = "groups"
CHANNELS: Final = "channels"
TABLES: Final = {GROUPS: "[groups.<name>]", CHANNELS: '[channels."<pattern>"]'}
"""The keys that are no settings, and how they are written."""

LIMIT_BYTES: Final = 1 << 20

_CANDIDATES_LIMIT: Final = 50
"""Lines that are looked at as the place of a key; each costs parsing what stands before it."""


def read_file(path: str, key: str, limit_bytes: int, *, kind: str = "a file", field: str | None = None) -> bytes:
    """What is in a file that a setting or an option names.

    Args:
        path: its name, from the working directory.
        key: who named it, for the error.
        limit_bytes: what comes behind these is not read.
        kind: what it should be, for the error.
        field: the field of `Settings`, if `key` isn't one.

    Raises `ConfigError` for a file that can't be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(limit_bytes)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = (getattr(error, "strerror", None) or "error").lower()
        raise ConfigError(key, path, f"{kind} that can be read ({reason})", field) from None


class ConfigFile:
    """A file that was read.

    Attributes:
        path: its name as it was given.
        document: all of it.
    """

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.document: dict[str, Any] = tomllib.loads(text)
        self._lines = text.splitlines(keepends=True)

    @classmethod
    def read(cls, path: str, key: str = "config_file") -> "ConfigFile":
        """The file of that name.

        Args:
            path: its name, from the working directory.
            key: who named it, for the error.

        Raises `ConfigError` for a file that can't be read or is no TOML.
        """
        data = read_file(path, key, LIMIT_BYTES + 1, kind="a TOML file", field="config_file")
        try:
            if len(data) > LIMIT_BYTES:
                raise ValueError("too large")
            return cls(path, data.decode())
        except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
            raise ConfigError(key, path, f"a TOML file ({str(error)[:120]})", "config_file") from None

    @property
    def settings(self) -> dict[str, Any]:
        """What it says of settings: everything but groups and channels."""
        return {key: value for key, value in self.document.items() if key not in TABLES}

    def place(self, *keys: str) -> str:
        """Where a key stands, ``starlight.toml:7: groups.staff.direct``; without the line if it can't be told."""
        line = self.line(*keys)
        return f"{self.path}:{line}: {'.'.join(keys)}" if line else f"{self.path}: {'.'.join(keys)}"

    def line(self, *keys: str) -> int:
        """The line on which a key stands, from 1; that of its table if need be, or 0."""
        *table, key = keys
        start = 0
        if table:
            start = self._find(rf"\[\s*{_dotted(table)}\s*\]", 0)
            if not start:
                return self._find(rf"{_dotted(keys)}\s*=", 0) or self._find(rf"\[\s*{_dotted(keys)}\s*\]", 0)
        found = self._find(rf"{_dotted([key])}\s*[=.]|\[\s*{_dotted(keys)}\s*[\].]", start)
        return found or start

    def _find(self, pattern: str, start: int) -> int:
        """The number of the first line from `start` that begins with the pattern and with something new, or 0."""
        begins = re.compile(r"\s*(?:" + pattern + ")")
        found = [number for number in range(start, len(self._lines)) if begins.match(self._lines[number])]
        if len(found) == 1:
            return found[0] + 1
        for number in found[:_CANDIDATES_LIMIT]:
            try:
                tomllib.loads("".join(self._lines[:number]))
            except tomllib.TOMLDecodeError:
                continue  # inside a text or list of several lines
            return number + 1
        return 0


def _dotted(keys: Iterable[str]) -> str:
    """A pattern for keys with dots between, each bare or in quotes."""
    return r"\s*\.\s*".join(rf"""["']?{re.escape(key)}["']?""" for key in keys)


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean outbox_bytes?`` if one of the known names is like it, otherwise nothing.

    Args:
        name: the unknown one; hyphens and case don't matter.
        known: those that there are.
        prefix: what all of them begin with, and what says nothing therefore.
    """
    from difflib import get_close_matches

    def plain(one: str) -> str:
        return one.lower().removeprefix(prefix.lower()).replace("-", "_")[:100]

    by_plain = {plain(one): one for one in known}
    found = get_close_matches(plain(name), by_plain, 1)
    return f"; did you mean {by_plain[found[0]]}?" if found else ""
