"""The settings of a node: each with its unit, its default and the reason for it.

Values come from keyword arguments (the CLI's flags, `Starlight(...)`), then from the environment as
``STARLIGHT_<FIELD>``, then from the defaults here. Sizes are written ``64KiB``, ``1MB`` or plain bytes, durations
``250ms``, ``10s``, ``2m``, ``1h`` or plain seconds, in flags, arguments and environment alike. A wrong value raises
`ConfigError`, which names the setting, the value and what is allowed; nothing is ever clamped silently.
"""

import math
import os
import re
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from starlight.errors import ConfigError

__all__ = ["Settings", "format_duration", "format_size", "parse_duration", "parse_size"]

ENV_PREFIX: Final = "STARLIGHT_"

SIZE_RULE: Final = "a size such as 64KiB, 1MiB, 64KB or a whole number of bytes"
DURATION_RULE: Final = "a duration such as 250ms, 10s, 2m or a number of seconds"

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


def _path(value: str) -> str:
    if not re.fullmatch(r"/[A-Za-z0-9_\-.~/]{0,254}", value):
        raise ValueError(_PATH_RULE)
    return value


_PATH_RULE: Final = "a path such as /ws, of letters, digits and _ - . ~ /"

Size = Annotated[int, BeforeValidator(parse_size)]
Duration = Annotated[float, BeforeValidator(parse_duration)]


class Settings(BaseSettings):
    """What a node runs with; immutable.

    Raises:
        ConfigError: for the first wrong value, or for a name that is no setting.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, validate_default=False)

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        max_length=255,
        description="Address to listen on. Loopback, so that nothing is open to a network before somebody says so.",
    )
    port: int = Field(8765, ge=0, le=65_535, description="TCP port to listen on; 0 lets the kernel pick a free one.")
    path: Annotated[str, AfterValidator(_path)] = Field(
        "/ws", description="Path of the WebSocket endpoint; any other path is answered with 404."
    )
    auth: Literal["none", "jwt"] = Field(
        "none", description="How a client proves who it is: none believes the user it names; jwt wants a signed token."
    )
    outbox_messages: int = Field(
        256,
        ge=1,
        le=1_000_000,
        description="Messages an outbox may hold before its subscriber, once its socket is full, is evicted after "
        "evict_after. 256 is the buffer of the channel that the Go pattern gives each client.",
    )
    outbox_bytes: Size = Field(
        2**20,
        ge=2**10,
        le=2**30,
        description="Bytes an outbox may hold; a subscriber with a full socket is evicted at once above it. 1 MiB is "
        "about 0.1 s of a 100 Mbit/s line, and bounds what one client can cost.",
    )
    evict_after_s: Duration = Field(
        0.25,
        ge=0,
        le=60,
        description="How long a socket may be full without a break before the message limit evicts. 250 ms lets a "
        "healthy reader get through a burst or a pause of its own; 0 evicts at the limit at once.",
    )
    coalesce_delay_s: Duration = Field(
        0.0,
        ge=0,
        le=1,
        description="How much longer a loop turn collects before it flushes. 0 adds no latency: what is read in one "
        "turn is written together anyway.",
    )
    read_limit_bytes: Size = Field(
        64 * 2**10,
        ge=128,
        le=64 * 2**20,
        description="The largest message, or frame of lines, a client may send; 1009 above it. Read buffers grow to it "
        "and do not shrink, so it also bounds idle memory.",
    )
    send_buffer_bytes: Size = Field(
        64 * 2**10,
        ge=4 * 2**10,
        le=64 * 2**20,
        description="SO_SNDBUF of each connection. At the kernel's own choice a stalled reader takes 4 MiB before it "
        "is noticed, at 64 KiB about 230 KiB.",
    )
    handshake_timeout_s: Duration = Field(
        5.0, ge=0.01, le=300, description="From accept to the end of the HTTP request. A browser needs milliseconds."
    )
    login_timeout_s: Duration = Field(
        5.0, ge=0.01, le=300, description="From the handshake to the login message; 4502 after it."
    )
    ping_interval_s: Duration = Field(
        25.0,
        ge=0.01,
        le=3_600,
        description="Between pings to one client. 25 s is below the 30 s at which the strictest proxies cut an idle "
        "connection.",
    )
    pong_timeout_s: Duration = Field(
        10.0, ge=0.01, le=300, description="How long a pong may take; 4012 after it. Covers a change of mobile network."
    )
    write_timeout_s: Duration = Field(
        10.0, ge=0.01, le=300, description="How long a full socket may take nothing at all; 4009 after it."
    )
    max_connections: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Connections at once; more are refused at accept. Keep it below the limit of open files.",
    )
    memory_budget_bytes: Size = Field(
        512 * 2**20,
        ge=2**20,
        le=2**40,
        description="Memory that all outboxes together may hold, counted in whole chunks. Half of a 1 GiB container.",
    )
    drain_timeout_s: Duration = Field(
        10.0,
        ge=0,
        le=3_600,
        description="How long SIGTERM waits for outboxes to empty before it leaves anyway; below the 30 s that "
        "Kubernetes waits. 0 leaves at once.",
    )
    log_level: Annotated[
        Literal["critical", "error", "warning", "info", "debug"],
        BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
    ] = Field("info", description="The least severe log line that is written.")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ConfigError:
            raise
        except ValidationError as failure:
            raise _config_error(failure, values) from None


def _config_error(failure: ValidationError, given: dict[str, Any]) -> ConfigError:
    """The first of pydantic's complaints, in terms of what the user wrote."""
    first = failure.errors(include_url=False)[0]
    field = str(first["loc"][0])
    if field not in Settings.model_fields:
        return ConfigError(field, given.get(field), "the name of a setting")
    if field in given:
        return ConfigError(field, given[field], allowed(field), field)
    key = ENV_PREFIX + field.upper()
    return ConfigError(key, os.environ.get(key, first["input"]), allowed(field), field)


def allowed(field: str) -> str:
    """What a field of `Settings` may be, for error messages and the CLI's help: kind and bounds."""
    info = Settings.model_fields[field]
    if field == "path":
        return _PATH_RULE
    choices = getattr(info.annotation, "__args__", None)
    if choices:
        return "one of " + ", ".join(choices)
    low, high = _bounds(info.metadata)
    if field.endswith("_bytes"):
        return f"{SIZE_RULE}, {format_size(int(low))} to {format_size(int(high))}"
    if field.endswith("_s"):
        return f"{DURATION_RULE}, {format_duration(low)} to {format_duration(high)}"
    if info.annotation is int:
        return f"a whole number from {int(low)} to {int(high)}"
    return "1 to 255 characters"


def _bounds(metadata: list[Any]) -> tuple[float, float]:
    low = next((item.ge for item in metadata if hasattr(item, "ge")), 0.0)
    high = next((item.le for item in metadata if hasattr(item, "le")), 0.0)
    return low, high
