"""Sizes, durations and settings: what is read, what is refused, and how the refusal reads."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from starlight.config import Settings, allowed, format_duration, format_size, parse_duration, parse_size
from starlight.errors import ConfigError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of whoever runs the tests reaches them."""
    for field in Settings.model_fields:
        monkeypatch.delenv(f"STARLIGHT_{field.upper()}", raising=False)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("64KiB", 65_536),
        ("1MiB", 1_048_576),
        ("2GiB", 2**31),
        ("64KB", 64_000),
        ("1MB", 1_000_000),
        ("1.5KiB", 1536),
        ("100", 100),
        ("100B", 100),
        (" 64 kib ", 65_536),
        ("0", 0),
        (100, 100),
        (100.0, 100),
    ],
)
def test_sizes(text: str | float, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes
    assert type(parse_size(text)) is int


WRONG_ANYWHERE = ["", " ", "-1", "abc", "1e3", "0x10", "nan", "inf", "1_000", "1,5", "٣", "9" * 5000, "1 2", "1.", ".5"]
WRONG_NUMBERS: list[object] = [-1, -0.5, math.nan, math.inf, True, None, [], b"1"]


@pytest.mark.parametrize("text", [*WRONG_ANYWHERE, *WRONG_NUMBERS, "64K", "64KiBs", "0.5", "1.1KiB", 0.5, "10s"])
def test_wrong_sizes(text: object) -> None:
    with pytest.raises(ConfigError, match=r"outbox.*expected a size such as 64KiB"):
        parse_size(text, "outbox")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("10s", 10),
        ("1.5s", 1.5),
        ("2m", 120),
        ("1h", 3600),
        ("10", 10),
        (" 1 S ", 1),
        (0.25, 0.25),
        (0, 0),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert type(parse_duration(text)) is float


@pytest.mark.parametrize("text", [*WRONG_ANYWHERE, *WRONG_NUMBERS, "1d", "10sec", "64KiB"])
def test_wrong_durations(text: object) -> None:
    with pytest.raises(ConfigError, match=r"pause.*expected a duration such as 250ms"):
        parse_duration(text, "pause")  # type: ignore[arg-type]


def test_formats() -> None:
    assert [format_size(n) for n in (0, 1, 1000, 1024, 65_536, 2**20, 3 * 2**30)] == [
        *("0B", "1B", "1000B", "1KiB", "64KiB", "1MiB", "3GiB")
    ]
    assert [format_duration(s) for s in (0, 0.0005, 0.25, 1, 1.5, 10, 90, 120, 3600)] == [
        *("0s", "0.5ms", "250ms", "1s", "1.5s", "10s", "90s", "2m", "1h")
    ]


@given(st.integers(0, 2**50))
def test_a_formatted_size_reads_back(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@given(st.floats(0, 1e6))
def test_a_formatted_duration_reads_back_to_the_microsecond(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-6)


def test_defaults_are_those_of_the_documents() -> None:
    assert Settings().model_dump() == {
        "host": "127.0.0.1",
        "port": 8765,
        "path": "/ws",
        "auth": "none",
        "insecure_no_auth": False,
        "config_file": "",
        "jwt_secret": SecretStr(""),
        "jwt_secret_file": "",
        "jwt_key_file": "",
        "jwt_jwks_url": "",
        "jwt_algorithms": "",
        "jwt_issuer": "",
        "jwt_audience": "",
        "jwt_leeway_s": 10.0,
        "jwt_groups_claim": "groups",
        "session_secret_file": "",
        "session_ttl_s": 3600.0,
        "connections_per_user": 20,
        "connections_per_address": 500,
        "connection_rate": 50,
        "message_rate": 200,
        "byte_rate_bytes": 2**20,
        "channels_per_client": 1000,
        "clients_per_channel": 0,
        "name_limit_bytes": 255,
        "allowed_origins": "",
        "trusted_proxies": "",
        "tls_cert": "",
        "tls_key": "",
        "outbox_messages": 256,
        "outbox_bytes": 2**20,
        "evict_after_s": 0.25,
        "coalesce_delay_s": 0.0,
        "read_limit_bytes": 65_536,
        "send_buffer_bytes": 65_536,
        "handshake_timeout_s": 5.0,
        "login_timeout_s": 5.0,
        "ping_interval_s": 25.0,
        "pong_timeout_s": 10.0,
        "write_timeout_s": 10.0,
        "max_connections": 10_000,
        "memory_budget_bytes": 512 * 2**20,
        "drain_timeout_s": 10.0,
        "drain_notice_s": 0.0,
        "drain_rate": 1_500,
        "reuse_port": False,
        "internal_host": "127.0.0.1",
        "internal_port": None,
        "internal_key_file": "",
        "log_format": "auto",
        "log_level": "info",
    }


def test_defaults_are_within_their_own_bounds() -> None:
    assert Settings(**Settings().model_dump()) == Settings()


@pytest.mark.parametrize("field", list(Settings.model_fields))
def test_every_setting_says_what_it_is(field: str) -> None:
    assert len(Settings.model_fields[field].description or "") > 20
    assert allowed(field)


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARLIGHT_OUTBOX_BYTES", "2MiB")
    monkeypatch.setenv("STARLIGHT_EVICT_AFTER_S", "0")
    monkeypatch.setenv("STARLIGHT_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("STARLIGHT_PORT", "0")
    monkeypatch.setenv("STARLIGHT_SOMETHING_ELSE", "1")
    settings = Settings(outbox_bytes="3MiB", ping_interval_s="500ms")
    assert (settings.outbox_bytes, settings.ping_interval_s) == (3 * 2**20, 0.5)
    assert (settings.evict_after_s, settings.log_level, settings.port) == (0.0, "debug", 0)


WRONG_SETTINGS = [
    ("port", 65_536, "a whole number from 0 to 65535"),
    ("port", "http", "a whole number from 0 to 65535"),
    ("host", "", "1 to 255 characters"),
    ("path", "ws", "a path such as /ws"),
    ("path", "/ws?x=1", "a path such as /ws"),
    ("path", "/w\r\ns", "a path such as /ws"),
    ("auth", "basic", "one of none, jwt"),
    ("log_level", "loud", "one of critical, error, warning, info, debug"),
    ("outbox_messages", 0, "a whole number from 1 to 1000000"),
    ("outbox_bytes", "1XB", "a size such as 64KiB, 1MiB, 64KB or a whole number of bytes, 1KiB to 1GiB"),
    ("outbox_bytes", "2GiB", "1KiB to 1GiB"),
    ("evict_after_s", "2m", "a duration such as 250ms, 10s, 2m or a number of seconds, 0s to 1m"),
    ("login_timeout_s", 0, "10ms to 5m"),
    ("drain_timeout_s", -1, "0s to 1h"),
    ("max_connections", None, "a whole number"),
    ("nonsense", 1, "the name of a setting"),
]


@pytest.mark.parametrize(("field", "value", "expected"), WRONG_SETTINGS)
def test_wrong_arguments(field: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        Settings(**{field: value})
    assert (caught.value.key, caught.value.field, caught.value.value) == (field, field, value)
    assert str(caught.value).startswith(f"{field}={value!r}: expected ")


@pytest.mark.parametrize(("field", "value", "expected"), [row for row in WRONG_SETTINGS if isinstance(row[1], str)])
def test_wrong_environment(field: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"STARLIGHT_{field.upper()}", value)
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        Settings()
    assert (caught.value.key, caught.value.field) == (f"STARLIGHT_{field.upper()}", field)
    assert caught.value.value == value  # as it was written, not as it was parsed


@pytest.mark.parametrize("field", ["evict_after_s", "coalesce_delay_s", "drain_timeout_s", "port"])
def test_zero_where_it_means_something(field: str) -> None:
    assert getattr(Settings(**{field: 0}), field) == 0


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1
