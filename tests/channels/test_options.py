"""channels.options: which pattern wins, which never does, and what is no option."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight import ChannelOptions
from starlight.channels.options import (
    PATTERNS_LIMIT,
    OptionsByPattern,
    make_channel_options,
    read_channel_options,
    to_channel_options,
)
from starlight.config.patterns import cut, matches
from starlight.config.settings import Settings
from starlight.errors import ConfigError


def winners(*patterns: str) -> OptionsByPattern:
    """Options that say by their limit of clients which pattern they are from, counted from 1."""
    return OptionsByPattern({pattern: ChannelOptions(clients_limit=n) for n, pattern in enumerate(patterns, 1)})


def test_without_options_a_channel_has_the_defaults():
    options = OptionsByPattern().of("news")
    assert options.model_dump() == {"announce": False, "announce_delay": 2.0, "presence": True, "clients_limit": 0}
    assert winners("a").of("b") == ChannelOptions()


@pytest.mark.parametrize(
    ("patterns", "channel", "winner"),
    [
        (["*", "ticker:*"], "ticker:a", 2),
        (["ticker:*", "*"], "ticker:a", 1),
        (["ticker:*", "*"], "news", 2),
        (["a*", "ab*"], "abc", 2),
        (["a*c", "ab*"], "abc", 2),  # the longer prefix, not the longer pattern
        (["a*", "a*c"], "abc", 2),
        (["a*", "a*c"], "abd", 1),
        (["news*", "news"], "news", 2),  # a name goes before any pattern
        (["a*cd", "a*d*"], "abcd", 1),  # as good: the one that stands first
        (["a*d*", "a*cd"], "abcd", 1),
    ],
)
def test_the_most_specific_pattern_wins(patterns: list[str], channel: str, winner: int):
    assert winners(*patterns).of(channel).clients_limit == winner


def test_nothing_is_inherited_from_a_wider_pattern():
    options = OptionsByPattern({"*": ChannelOptions(announce="users"), "a": ChannelOptions(clients_limit=1)})
    assert options.of("a").announce is False


@pytest.mark.parametrize(
    ("patterns", "never"),
    [
        (["*", "a*", "a"], []),
        (["**", "*"], [("*", "**")]),
        (["a*b", "a**b"], [("a*b", "a**b")]),
        (["x*yy", "x*y*y"], [("x*yy", "x*y*y")]),
        (["a*b", "a*c"], []),
    ],
)
def test_patterns_that_never_win_are_named(patterns: list[str], never: list[tuple[str, str]]):
    assert winners(*patterns).never_winning() == never


@given(st.lists(st.text("ab*", min_size=1, max_size=4), min_size=1, max_size=4, unique=True))
def test_a_pattern_that_never_wins_really_does_not(patterns: list[str]):
    options = winners(*patterns)
    names = ["".join(letters) for n in range(1, 7) for letters in product("abc", repeat=n)]
    won = {options.of(name).clients_limit for name in names}
    for pattern, winner in options.never_winning():
        assert patterns.index(pattern) + 1 not in won
        assert all(matches(cut(winner), name) for name in names if matches(cut(pattern), name))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"announce": "user"}, "announce='user': expected one of false, users"),
        ({"announce": True}, "announce=True: expected one of false, users"),
        ({"announce_delay": "2 years"}, "announce_delay='2 years': expected a duration such as 250ms"),
        ({"announce_delay": 61}, "announce_delay=61: expected a duration such as 250ms"),
        ({"announce_delay": True}, "announce_delay=True: expected a duration such as 250ms"),
        ({"presence": "false"}, "presence='false': expected true or false"),
        ({"presence": 0}, "presence=0: expected true or false"),
        ({"clients_limit": True}, "clients_limit=True: expected a whole number from 0 to 1000000"),
        ({"clients_limit": -1}, "clients_limit=-1: expected a whole number from 0 to 1000000"),
        ({"client_limit": 1}, "client_limit=1: expected an option of a channel: announce, announce_delay, presence, "
                              "clients_limit; did you mean clients_limit?"),
    ],
)  # fmt: skip
def test_what_is_no_option(table: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        ChannelOptions(**table)
    assert message in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        to_channel_options({"a:*": table}, "channels")
    assert f"channels.a:*.{message}" in str(caught.value)


def test_durations_are_text_or_seconds_and_options_do_not_change():
    options = ChannelOptions(announce_delay="500ms")
    assert (options.announce_delay, ChannelOptions(announce_delay=3).announce_delay) == (0.5, 3.0)
    with pytest.raises(ValueError, match="frozen"):
        options.announce_delay = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"a b": {}}, "channels.a b='a b': expected a channel's name or a pattern such as ticker:*"),
        ({"": {}}, "expected a channel's name or a pattern"),
        ({"x" * 256: {}}, "expected a channel's name or a pattern"),
        ({"user:{user}": {}}, "expected a channel's name or a pattern"),
        ({"a": 1}, "channels.a=1: expected a table with some of announce, announce_delay"),
        ({f"c{n}": {} for n in range(PATTERNS_LIMIT + 1)}, "channels=257: expected at most 256 patterns"),
    ],
)
def test_what_is_no_table(tables: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        to_channel_options(tables, "channels")
    assert message in str(caught.value)


def test_all_that_is_wrong_in_a_file_is_told_with_its_line(tmp_path: Path):
    path = tmp_path / "a.toml"
    path.write_text('[channels."a:*"]\nanounce = "users"\npresence = 1\n\n[channels.b]\nclients_limit = -1\n')
    with pytest.raises(ConfigError) as caught:
        read_channel_options(str(path))
    first, second, third = str(caught.value).splitlines()
    assert first.startswith(f"{path}:2: channels.a:*.anounce='users'") and first.endswith("did you mean announce?")
    assert second.startswith(f"{path}:3: channels.a:*.presence=1")
    assert third.startswith(f"{path}:6: channels.b.clients_limit=-1")
    path.write_text("channels = 1")
    with pytest.raises(ConfigError, match=r'channels=1: expected \[channels\."<pattern>"\] tables'):
        read_channel_options(str(path))


def test_the_file_goes_before_code_pattern_by_pattern(tmp_path: Path):
    path = tmp_path / "a.toml"
    path.write_text('[channels."a:*"]\nclients_limit = 1\n')
    given = {"a:*": ChannelOptions(clients_limit=2, announce="users"), "b": {"announce": "users"}}
    options = make_channel_options(Settings(config_file=str(path)), given)
    assert options.of("a:1") == ChannelOptions(clients_limit=1)
    assert options.of("b") == ChannelOptions(announce="users")
    assert make_channel_options(Settings(), given).of("a:1").clients_limit == 2
