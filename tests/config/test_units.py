"""Sizes and durations: what is read, what is refused, and how the refusal reads."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.config.units import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)
from starlight.errors import ConfigError


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


@pytest.mark.parametrize("text", ["64KiB", " 64 kib ", "1.5GiB", "100", *WRONG_ANYWHERE, "64K", "10s", "1kIB", "2GB"])
def test_the_pattern_of_a_size_fits_what_is_read_but_for_fractions_of_a_byte(text: str) -> None:
    try:
        parse_size(text)
    except ConfigError:
        assert not re.search(SIZE_PATTERN, text)
    else:
        assert re.search(SIZE_PATTERN, text)


@pytest.mark.parametrize("text", ["250ms", " 1 S ", "1.5s", "2M", "10", *WRONG_ANYWHERE, "1d", "10sec", "64KiB"])
def test_the_pattern_of_a_duration_fits_what_is_read(text: str) -> None:
    try:
        parse_duration(text)
    except ConfigError:
        assert not re.search(DURATION_PATTERN, text)
    else:
        assert re.search(DURATION_PATTERN, text)
