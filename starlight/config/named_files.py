"""What is in the files that settings name, remembered as hashes, so that a reload can say which have changed.

Only hashes are kept: secrets stay where they are. Only the first `LIMIT_BYTES` of a file are looked at, as none that is
good for anything here is longer.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from starlight.config.file import GROUPS, ConfigFile
from starlight.config.settings import Settings, entries
from starlight.errors import ConfigError

__all__ = ["Contents", "changes", "contents"]

LIMIT_BYTES: Final = 1 << 20


class Contents(NamedTuple):
    """What was read at one time.

    Attributes:
        files: name and hash by setting; no hash for a file that can't be read.
        groups: of the configuration file, by name.
    """

    files: dict[str, tuple[str, bytes | None]]
    groups: dict[str, object]


def contents(settings: Settings) -> Contents:
    """Read all files that are read again at a reload, of those that the settings name. Never raises."""
    names = {entry.name: getattr(settings, entry.name) for entry in entries() if entry.is_file and entry.reloads}
    files = {name: (path, _hash(path)) for name, path in names.items() if path}
    groups: object = {}
    try:
        if settings.config_file:
            groups = ConfigFile.read(settings.config_file).document.get(GROUPS, {})
    except ConfigError:
        pass  # told by whoever reads it in earnest
    return Contents(files, dict(groups) if isinstance(groups, dict) else {})


def changes(old: Contents, new: Contents) -> tuple[list[str], list[str]]:
    """What has changed in the files, and which files are as they were; each in words, without anything of a secret."""
    changed = []
    same = []
    for name, (path, digest) in new.files.items():
        if digest != old.files.get(name, (path, None))[1]:
            changed.append(f"the content of {name} ({path})")
        else:
            same.append(f"{name} ({path})")
    for verb, groups in (
        ("new", new.groups.keys() - old.groups.keys()),
        ("gone", old.groups.keys() - new.groups.keys()),
        ("changed", {name for name in new.groups.keys() & old.groups.keys() if new.groups[name] != old.groups[name]}),
    ):
        if groups:
            changed.append(f"groups {verb}: {', '.join(sorted(groups))}")
    return changed, same


def _hash(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read(LIMIT_BYTES)).digest()
    except (OSError, ValueError):
        return None
