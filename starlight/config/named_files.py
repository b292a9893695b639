"""What is in the files that settings name, remembered as hashes, so that a reload can say which have changed.

Only hashes are kept: secrets stay where they are. Only the first `LIMIT_BYTES` of a file are looked at, as none that is
good for anything here is longer.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from starlight.config.file import TABLES, ConfigFile
from starlight.config.settings import Settings, entries
from starlight.errors import ConfigError

__all__ = ["Contents", "changes", "contents"]

LIMIT_BYTES: Final = 1 << 20


class Contents(NamedTuple):
    """What was read at one time.

    Attributes:
        files: name and hash by setting; no hash for a file that can't be read.
        tables: groups and channels of the configuration file, each by name.
    """

    files: dict[str, tuple[str, bytes | None]]
    tables: dict[str, dict[str, object]]


def contents(settings: Settings) -> Contents:
    """Read all files that are read again at a reload, of those that the settings name. Never raises."""
    names = {entry.name: getattr(settings, entry.name) for entry in entries() if entry.is_file and entry.reloads}
    files = {name: (path, _hash(path)) for name, path in names.items() if path}
    document: dict[str, object] = {}
    try:
        if settings.config_file:
            document = ConfigFile.read(settings.config_file).document
    except ConfigError:
        pass  # told by whoever reads it in earnest
    tables = {key: document.get(key) for key in TABLES}
    return Contents(files, {key: table if isinstance(table, dict) else {} for key, table in tables.items()})


def changes(old: Contents, new: Contents) -> tuple[list[str], list[str]]:
    """What has changed in the files, and which files are as they were; each in words, without anything of a secret."""
    changed = []
    same = []
    for name, (path, digest) in new.files.items():
        if digest != old.files.get(name, (path, None))[1]:
            changed.append(f"the content of {name} ({path})")
        else:
            same.append(f"{name} ({path})")
    for key in TABLES:
        was, becomes = old.tables[key], new.tables[key]
        for verb, names in (
            ("new", becomes.keys() - was.keys()),
            ("gone", was.keys() - becomes.keys()),
            ("changed", {name for name in becomes.keys() & was.keys() if becomes[name] != was[name]}),
        ):
            if names:
                changed.append(f"{key} {verb}: {', '.join(sorted(names))}")
    return changed, same


def _hash(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read(LIMIT_BYTES)).digest()
    except (OSError, ValueError):
        return None
