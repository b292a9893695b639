"""Sizes and durations as people write them: ``64KiB``, ``250ms``. Pure.

Sizes are written ``64KiB``, ``1MB`` or plain bytes, durations ``250ms``, ``10s``, ``2m``, ``1h`` or plain seconds, in
flags, variables, files and code alike; what `format_size` and `format_duration` write is read back as the same.
"""

import math
import re
from decimal import Decimal
from typing import Final

from starlight.errors import ConfigError

__all__ = [
    "DURATION_PATTERN",
    "DURATION_RULE",
    "SIZE_PATTERN",
    "SIZE_RULE",
    "format_duration",
    "format_size",
    "parse_duration",
    "parse_size",
]

SIZE_RULE: Final = "a size such as 64KiB, 1MiB, 64KB or a whole number of bytes"
DURATION_RULE: Final = "a duration such as 250ms, 10s, 2m or a number of seconds"

SIZE_PATTERN: Final = r"^\s*[0-9]{1,18}(\.[0-9]{1,9})?\s*([bB]|[kKmMgG][iI]?[bB])?\s*$"
DURATION_PATTERN: Final = r"^\s*[0-9]{1,18}(\.[0-9]{1,9})?\s*([mM][sS]|[sSmMhH])?\s*$"
"""The two as a JSON schema has them."""

_NUMBER: Final = r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*"  # bounded, so that no input costs time
_SIZE: Final = re.compile(_NUMBER + r"(B|[KMG]i?B)?\s*", re.IGNORECASE | re.ASCII)
_DURATION: Final = re.compile(_NUMBER + r"(ms|s|m|h)?\s*", re.IGNORECASE | re.ASCII)
_SIZE_UNITS: Final = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_DURATION_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}


def parse_size(value: str | int | float, key: str = "size") -> int:
    """A size in bytes from ``64KiB``, ``1.5MiB``, ``64KB`` (1,000s) or a plain number of bytes, in any case.

    Args:
        value: text or a number.
        key: what the error names.

    Raises:
        ConfigError: it is none of these, negative, or not a whole number of bytes.
    """
    if isinstance(value, str):
        found = _SIZE.fullmatch(value)
        if found:
            size = Decimal(found[1]) * _SIZE_UNITS[(found[2] or "B").lower()]
            if size == int(size):
                return int(size)
    elif _is_amount(value) and value == int(value):
        return int(value)
    raise ConfigError(key, value, SIZE_RULE)


def parse_duration(value: str | int | float, key: str = "duration") -> float:
    """A duration in seconds from ``250ms``, ``10s``, ``1.5s``, ``2m``, ``1h`` or a plain number of seconds.

    Args:
        value: text or a number.
        key: what the error names.

    Raises:
        ConfigError: it is none of these, or negative, or not finite.
    """
    if isinstance(value, str):
        found = _DURATION.fullmatch(value)
        if found:
            return float(Decimal(found[1]) * _DURATION_UNITS_MS[(found[2] or "s").lower()] / 1_000)
    elif _is_amount(value):
        return float(value)
    raise ConfigError(key, value, DURATION_RULE)


def _is_amount(value: object) -> bool:
    """Whether it is a number from zero up; pydantic passes on whatever it was given."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def format_size(size_bytes: int) -> str:
    """The shortest exact text that `parse_size` reads back: ``64KiB``, ``1MiB``, ``1000B``."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes}B"


def format_duration(seconds: float) -> str:
    """Text that `parse_duration` reads back, to the microsecond: ``250ms``, ``10s``, ``2m``, ``1h``."""
    duration_us = round(seconds * 1e6)
    for unit, factor_us in (("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000)):
        if duration_us and duration_us % factor_us == 0:
            return f"{duration_us // factor_us}{unit}"
    if duration_us > 1_000_000:
        return f"{Decimal(duration_us) / 1_000_000:f}s"
    return f"{Decimal(duration_us) / 1_000:f}ms" if duration_us else "0s"
