"""What a channel does beyond passing publications on, by patterns of names: ``[channels."ticker:*"]``.

The most specific pattern alone decides about a channel; nothing is inherited from a wider one. A name without a star is
more specific than any pattern; then the longest text before the first star wins, then the longest pattern, then the one
that stands first. An option is described once, at its field here: the error messages, `starlight config` and the
documentation read it from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from starlight.config.fields import Duration, Entry
from starlight.config.file import CHANNELS, ConfigFile, nearest
from starlight.config.patterns import Pattern, cut, matches
from starlight.config.settings import Settings
from starlight.errors import ConfigError

__all__ = [
    "PATTERN",
    "PATTERNS_LIMIT",
    "ChannelOptions",
    "OptionsByPattern",
    "make_channel_options",
    "option_entries",
    "read_channel_options",
    "to_channel_options",
]

PATTERNS_LIMIT: Final = 256
"""Patterns of one node: each costs about 0.2 µs when a channel comes to be."""

PATTERN: Final = re.compile(r"[A-Za-z0-9_\-.:/@#*]{1,255}")
"""What a pattern may be."""

_PATTERN_RULE: Final = "a channel's name or a pattern such as ticker:*, of letters, digits and _ - . : / @ # *"


class ChannelOptions(BaseModel):
    """The options of a channel; immutable. Without any it keeps who is in it, and announces nobody.

    Raises `ConfigError` for the first wrong value or name; its `others` are the rest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    announce: Literal[False, "users"] = Field(
        False,
        description='Whether members are told who comes and goes. "users": joined when the first client of a user '
        "joins, left when the last one has gone. False, as each is a message to everyone in the channel.",
    )
    announce_delay: Duration = Field(
        2.0,
        ge=0,
        le=60,
        description="How long after its last client has gone a user is announced as left. Who is back by then is not "
        "announced at all, and is in presence meanwhile. 2 s is enough to load a page again or to change the network.",
    )
    presence: bool = Field(
        True,
        description="Whether clients may ask who is in the channel. False: 108, and nothing is kept for it, which "
        "spares about 40 bytes a user in large channels.",
    )
    clients_limit: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Clients the channel may have; 0 for any number. 106 beyond. No limit but max_connections, as "
        "large channels are what a node is for.",
    )

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as failure:
            wrong = {detail["loc"][0] for detail in failure.errors(include_url=False)}
            errors = [ConfigError(name, options[name], _allowed(name), CHANNELS) for name in options if name in wrong]
            raise ConfigError.all_of(errors) from None


@cache
def option_entries() -> list[Entry]:
    """All options in their order, as people meet them."""
    return [Entry(name, info, "Channels") for name, info in ChannelOptions.model_fields.items()]


def _allowed(name: str) -> str:
    """What an option may be, for error messages; for an unknown one, which there are."""
    known = {entry.name: entry for entry in option_entries()}
    if name in known:
        return known[name].allowed
    return f"an option of a channel: {', '.join(known)}{nearest(name, known)}"


_DEFAULT: Final = ChannelOptions()


class OptionsByPattern:
    """Says which options a channel has.

    Args:
        options: by pattern, each of them right.
    """

    def __init__(self, options: Mapping[str, ChannelOptions] | None = None) -> None:
        self._options = dict(options or {})
        self._by_rank: list[tuple[Pattern, ChannelOptions]] = [
            (cut(pattern), self._options[pattern]) for pattern in sorted(self._options, key=_rank)
        ]

    def items(self) -> Iterable[tuple[str, ChannelOptions]]:
        """All of them, by pattern."""
        return self._options.items()

    def of(self, channel: str) -> ChannelOptions:
        """The options of the channel of this name."""
        for pattern, options in self._by_rank:
            if matches(pattern, channel):
                return options
        return _DEFAULT

    def never_winning(self) -> list[tuple[str, str]]:
        """Patterns that decide about no channel at all, each with one that goes before it wherever it fits."""
        return [
            (pattern, winner)
            for pattern in self._options
            for winner in [_covering(pattern, self._options)]
            if winner is not None
        ]


def _rank(pattern: str) -> tuple[bool, int, int]:
    """What goes first is least."""
    prefix, star, _ = pattern.partition("*")
    return bool(star), -len(prefix), -len(pattern)


def _covering(pattern: str, patterns: Iterable[str]) -> str | None:
    """A pattern that goes before this one and fits every name that it fits; None if there is none.

    Such a one has to take, with one of its own stars, whatever stands for a star of this one: a letter that is in no
    name stands for that.
    """
    name = pattern.replace("*", "\0")
    ranked = sorted(patterns, key=_rank)
    return next((other for other in ranked[: ranked.index(pattern)] if matches(cut(other), name)), None)


def make_channel_options(settings: Settings, given: Mapping[str, Any]) -> OptionsByPattern:
    """The options that the settings' file and an application come to; for one pattern, the file goes before `given`.

    Raises `ConfigError`.
    """
    in_file = read_channel_options(settings.config_file) if settings.config_file else {}
    return OptionsByPattern({**in_file, **{
        pattern: options for pattern, options in to_channel_options(given, CHANNELS).items() if pattern not in in_file
    }})  # fmt: skip


def read_channel_options(path: str) -> dict[str, ChannelOptions]:
    """The options in a configuration file; what else is in it is the settings' business. Raises `ConfigError`."""
    file = ConfigFile.read(path)
    tables = file.document.get(CHANNELS, {})
    if not isinstance(tables, dict):
        raise ConfigError(file.place(CHANNELS), tables, f'[{CHANNELS}."<pattern>"] tables', CHANNELS)
    return to_channel_options(tables, CHANNELS, file.place)


def to_channel_options(
    tables: Mapping[str, Any], key: str, place: Callable[..., str] | None = None
) -> dict[str, ChannelOptions]:
    """Options from tables such as the configuration's.

    Args:
        tables: the tables, or options, by pattern.
        key: what they are called together.
        place: says where ``(key, pattern, option)`` stands, for errors; by default these with dots between.

    Raises `ConfigError` naming the pattern and the option, with all that is wrong.
    """
    where = place or (lambda *keys: ".".join(keys))
    made: dict[str, ChannelOptions] = {}
    errors: list[ConfigError] = []
    if len(tables) > PATTERNS_LIMIT:
        errors.append(ConfigError(key, len(tables), f"at most {PATTERNS_LIMIT} patterns", CHANNELS))
    for pattern, table in tables.items():
        at = (key, str(pattern))
        if not isinstance(pattern, str) or not PATTERN.fullmatch(pattern):
            errors.append(ConfigError(where(*at), pattern, _PATTERN_RULE, CHANNELS))
        if isinstance(table, ChannelOptions):
            made[pattern] = table
        elif not isinstance(table, dict):
            rule = "a table with some of " + ", ".join(ChannelOptions.model_fields)
            errors.append(ConfigError(where(*at), table, rule, CHANNELS))
        else:
            try:
                made[pattern] = ChannelOptions(**{str(name): value for name, value in table.items()})
            except ConfigError as error:
                errors += [
                    ConfigError(where(*at, one.key), one.value, one.allowed, CHANNELS) for one in (error, *error.others)
                ]
    if errors:
        raise ConfigError.all_of(errors)
    return made
