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

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
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
    insecure_no_auth: bool = Field(
        False, description="Let auth=none listen where others than this machine can connect. Off: such a node is open."
    )
    config_file: str = Field(
        "", max_length=4096, description="TOML file with the groups of users: [groups.<name>] tables. Empty: no groups."
    )
    jwt_secret: SecretStr = Field(
        SecretStr(""),
        description="Secret that HS256, HS384 and HS512 tokens are signed with. From the environment or code only: a "
        "command line can be read by everybody on the machine. At least 32 bytes, as long as the hash.",
    )
    jwt_secret_file: str = Field(
        "", max_length=4096, description="File with that secret; line breaks at its end are cut."
    )
    jwt_key_file: str = Field(
        "", max_length=4096, description="Public key in PEM that RS, PS, ES or EdDSA tokens are checked with."
    )
    jwt_jwks_url: str = Field(
        "", max_length=2048, description="https URL of the issuer's keys; fetched at need and every 10 minutes."
    )
    jwt_algorithms: str = Field(
        "",
        max_length=255,
        description="Algorithms that are accepted, with commas between. Empty: all that the key fits, but never both "
        "kinds, secret and public.",
    )
    jwt_issuer: str = Field("", max_length=2048, description="The only issuer (iss) whose tokens are good; empty: any.")
    jwt_audience: str = Field(
        "",
        max_length=2048,
        description="What must be in a token's audience (aud). Empty: tokens with an audience are for somebody else.",
    )
    jwt_leeway_s: Duration = Field(
        10.0,
        ge=0,
        le=30,
        description="How far the issuer's clock may be from ours. Synchronised clocks differ by less than a second; "
        "10 s forgives one that is not.",
    )
    jwt_groups_claim: str = Field(
        "groups", min_length=1, max_length=255, description="The claim that names the user's groups."
    )
    session_secret_file: str = Field(
        "",
        max_length=4096,
        description="File with the key that session tokens are signed with; the same for all nodes. Empty: a random "
        "key, which ends all sessions at a restart.",
    )
    session_ttl_s: Duration = Field(
        3_600.0,
        ge=1,
        le=86_400,
        description="How long a login lasts at most before it needs a fresh token. An hour: what somebody loses who "
        "was sent away, and how long a stolen session token is good.",
    )
    connections_per_user: int = Field(
        20,
        ge=0,
        le=1_000_000,
        description="Connections of one user at once; 4504 beyond. A person has some devices and tabs, and dead ones "
        "count until their ping fails. 0: no limit, as is the default with auth=none.",
    )
    connections_per_address: int = Field(
        500,
        ge=0,
        le=1_000_000,
        description="Connections of one address (IPv6: /64) at once; refused at accept beyond. An office behind one "
        "address has hundreds of people. 0: no limit, as is the default with auth=none.",
    )
    connection_rate: int = Field(
        50,
        ge=0,
        le=100_000,
        description="New connections of one address a second, two seconds' worth at once; refused at accept beyond. "
        "50 cost a hundredth of a core. 0: no limit, as is the default with auth=none.",
    )
    message_rate: int = Field(
        200,
        ge=0,
        le=1_000_000,
        description="Messages of one client a second, two seconds' worth at once; 111 beyond, then 4013. Nobody types "
        "or drags faster; programs may. 0: no limit, as is the default with auth=none.",
    )
    byte_rate_bytes: Size = Field(
        2**20,
        ge=0,
        le=2**30,
        description="Bytes of messages of one client a second, alike. 1 MiB is 8 Mbit/s from each. 0: no limit, as is "
        "the default with auth=none.",
    )
    channels_per_client: int = Field(
        1_000,
        ge=1,
        le=1_000_000,
        description="Channels one client may have joined; 106 beyond. A membership takes about 250 bytes, people use "
        "tens of channels, programs rarely hundreds.",
    )
    clients_per_channel: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Clients one channel may have; 106 beyond. 0: no limit but max_connections, as large channels are "
        "what a node is for.",
    )
    name_limit_bytes: int = Field(
        255,
        ge=8,
        le=255,
        description="The longest name of a user or channel. 255 is the protocol's limit; channels that nobody is in "
        "cost nothing, so lower it only where names are stored elsewhere.",
    )
    allowed_origins: str = Field(
        "",
        max_length=65_536,
        description="Pages that may connect, as origins with commas between: https://app.example.com, "
        "https://*.example.com, or * for any. Empty: pages of the host they connect to.",
    )
    trusted_proxies: str = Field(
        "",
        max_length=65_536,
        description="Addresses or networks of proxies whose X-Forwarded-For is believed. Empty: none, as anybody can "
        "send that header.",
    )
    tls_cert: str = Field(
        "",
        max_length=4096,
        description="PEM file with certificate and chain for wss, with tls_key; read again at SIGHUP.",
    )
    tls_key: str = Field("", max_length=4096, description="PEM file with the private key of tls_cert.")
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
        5.0,
        ge=0.01,
        le=300,
        description="From the handshake to the login message, and then for the application's check of it; else 4502.",
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
    key = ENV_PREFIX + field.upper()
    if field == "jwt_secret":
        return ConfigError(field if field in given else key, "(hidden)", allowed(field), field)
    if field in given:
        return ConfigError(field, given[field], allowed(field), field)
    return ConfigError(key, os.environ.get(key, first["input"]), allowed(field), field)


_RULES: Final = {
    "path": _PATH_RULE,
    "insecure_no_auth": "true or false",
    "jwt_secret": "text",
    **dict.fromkeys(
        ("config_file", "jwt_secret_file", "jwt_key_file", "session_secret_file", "tls_cert", "tls_key"),
        "a file's name",
    ),
    "jwt_jwks_url": "a URL",
}


def allowed(field: str) -> str:
    """What a field of `Settings` may be, for error messages and the CLI's help: kind and bounds."""
    info = Settings.model_fields[field]
    if field in _RULES:
        return _RULES[field]
    if info.annotation is str and field != "host":
        return "text of a reasonable length"
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
