"""What a field of `Settings` is made of: its type with its unit, how it is written, and what else people are told.

The law: a setting is described once, at its field. Its flag, its variable, its key in the file, its line in the help
and in the documentation are read from there by `Entry`, so a new field has all of them.

Markers go into a field's `Annotated`: `Panel` begins a group of settings, `Flag` names a flag that can't be made of the
field's name, `Shown` puts a default into words, and `RELOADS` says that SIGHUP applies a change. The first sentence of
a description is the help of the flag.
"""

import ipaddress
import re
from dataclasses import dataclass
from functools import cached_property
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from starlight.config.units import DURATION_RULE, SIZE_RULE, format_duration, format_size, parse_duration, parse_size

__all__ = [
    "ENV_PREFIX",
    "RELOADS",
    "DryRuns",
    "Duration",
    "Entry",
    "FileName",
    "Flag",
    "Host",
    "Panel",
    "Shown",
    "Size",
    "TextList",
    "Url",
    "UrlPath",
    "is_optional",
]

ENV_PREFIX: Final = "STARLIGHT_"

HIDDEN: Final = "(hidden)"
"""What is shown of a secret."""


@dataclass(frozen=True)
class Panel:
    """This field and those after it belong together, under this title."""

    title: str


@dataclass(frozen=True)
class Flag:
    """The name of the flag."""

    name: str


@dataclass(frozen=True)
class Shown:
    """The default in words; ``{}`` stands for its value."""

    text: str


@dataclass(frozen=True)
class Among:
    """The words that a list may have."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Reloads:
    """SIGHUP applies a change; all other settings need a restart."""


@dataclass(frozen=True)
class Words:
    """How a type is named in the help, and what is allowed."""

    metavar: str
    rule: str


RELOADS: Final = Reloads()

_PATH_RULE: Final = "a path such as /ws, of letters, digits and _ - . ~ /"


def _check_path(value: str) -> str:
    if not re.fullmatch(r"/[A-Za-z0-9_\-.~/]{0,254}", value):
        raise ValueError(_PATH_RULE)
    return value


_HOST_RULE: Final = (
    "one address such as 127.0.0.1 or ::1, or a host's name; 0.0.0.0 is every address of IPv4, :: those of IPv6 too "
    "(no list, no Unix socket)"
)


def _check_host(value: str) -> str:
    """An address without brackets, one of IPv4 as such, or a name."""
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        if re.fullmatch(r"(?!-)[\w.-]{1,255}", value) and not value.startswith("."):
            return value
        raise ValueError(_HOST_RULE) from None
    mapped = getattr(address, "ipv4_mapped", None)
    return bare if mapped is None else str(mapped)


def _check_file_name(value: str) -> str:
    if "\0" in value:  # open(2) can't, and Python says so by an error of another kind than for other files
        raise ValueError("a file's name")
    return value


def _join(value: object) -> object:
    """A list of texts as one text with commas."""
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value


_DRY_RUNS: Final = ("evict", "rates", "connections")
_DRY_RUN_RULE: Final = f"some of {', '.join(_DRY_RUNS)}, with commas between"


def _check_dry_run(value: str) -> str:
    if not set(value.replace(",", " ").split()) <= set(_DRY_RUNS):
        raise ValueError(_DRY_RUN_RULE)
    return value


Size = Annotated[int, BeforeValidator(parse_size), Words("SIZE", SIZE_RULE)]
Duration = Annotated[float, BeforeValidator(parse_duration), Words("DURATION", DURATION_RULE)]
Host = Annotated[str, AfterValidator(_check_host), Words("HOST", _HOST_RULE)]
FileName = Annotated[str, AfterValidator(_check_file_name), Words("FILE", "a file's name")]
Url = Annotated[str, Words("URL", "a URL")]
UrlPath = Annotated[str, AfterValidator(_check_path), Words("PATH", _PATH_RULE)]
TextList = Annotated[str, BeforeValidator(_join), Words("LIST", "text with commas between, or a list of texts")]
DryRuns = Annotated[
    str, BeforeValidator(_join), AfterValidator(_check_dry_run), Among(_DRY_RUNS), Words("LIST", _DRY_RUN_RULE)
]


class Entry:
    """One setting as people meet it.

    Args:
        name: the field of `Settings`, which is also the key in the file.
        info: what pydantic knows of it.
        panel: the title of its group.

    Attributes:
        variable: the environment variable, such as ``STARLIGHT_OUTBOX_BYTES``.
        is_optional: it may be None, which is written as an empty text.
    """

    def __init__(self, name: str, info: FieldInfo, panel: str) -> None:
        self.name = name
        self.panel = panel
        self.variable = ENV_PREFIX + name.upper()
        self.default: Any = None if info.default is PydanticUndefined else info.default
        self.description = info.description or ""
        self.is_optional = is_optional(info.annotation)
        self.type, inner = _without_none(info.annotation)
        self._metadata = [*inner, *info.metadata]

    def _marker(self, kind: type) -> Any:
        return next((item for item in self._metadata if isinstance(item, kind)), None)

    @property
    def is_secret(self) -> bool:
        """It is never shown, has no flag (everybody may read a command line), and stays out of the file."""
        return self.type is SecretStr

    @property
    def is_switch(self) -> bool:
        """It is true or false."""
        return self.type is bool

    @property
    def is_size(self) -> bool:
        """It is a number of bytes that is written with a unit."""
        return BeforeValidator(parse_size) in self._metadata

    @property
    def is_duration(self) -> bool:
        """It is a number of seconds that is written with a unit."""
        return BeforeValidator(parse_duration) in self._metadata

    @property
    def is_list(self) -> bool:
        """It is text with commas, or a list."""
        return BeforeValidator(_join) in self._metadata

    @property
    def among(self) -> tuple[str, ...]:
        """The words that a list may have; none if it may have any."""
        marker = self._marker(Among)
        return marker.words if marker is not None else ()

    @property
    def is_file(self) -> bool:
        """It is the name of a file."""
        return self._words.metavar == "FILE"

    @property
    def reloads(self) -> bool:
        """SIGHUP applies a change of it."""
        return self._marker(Reloads) is not None

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values it may be, mostly words; none if it is no choice."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @cached_property
    def bounds(self) -> tuple[float | None, float | None]:
        """The least and the greatest number it may be."""
        low = next((item.ge for item in self._metadata if hasattr(item, "ge")), None)
        high = next((item.le for item in self._metadata if hasattr(item, "le")), None)
        return low, high

    @property
    def flag(self) -> str:
        """``--outbox-bytes``; without the unit where the value says its own. A secret has none: ""."""
        if self.is_secret:
            return ""
        marker = self._marker(Flag)
        if marker is not None:
            return str(marker.name)
        name = self.name
        if self.is_duration:
            name = name.removesuffix("_s")
        elif self.name.endswith("_bytes"):
            name = name.removesuffix("_bytes")
        return "--" + name.replace("_", "-")

    @property
    def short(self) -> str:
        """The first sentence of its description."""
        return re.split(r"(?<=\.)\s+(?=[A-Z0-9])", self.description, maxsplit=1)[0]

    @property
    def metavar(self) -> str:
        """What stands for the value in the help: ``SIZE``, ``none|jwt``."""
        if self.choices:
            return "|".join(map(self.text, self.choices))
        return self._words.metavar

    @property
    def _words(self) -> Words:
        words = self._marker(Words)
        if words is not None:
            return words  # type: ignore[no-any-return]
        if self.is_switch:
            return Words("true|false", "true or false")
        if self.type is int:
            return Words("INTEGER", "a whole number")
        if self.type is float:
            return Words("NUMBER", "a number")
        return Words("TEXT", "text")

    @property
    def allowed(self) -> str:
        """What it may be, for error messages and the documentation: kind and bounds."""
        if self.choices:
            return "one of " + ", ".join(map(self.text, self.choices))
        low, high = self.bounds
        if low is not None and high is not None:
            joint = "from " if self.type is int and not self.is_size else ""
            comma = " " if joint else ", "
            return f"{self._words.rule}{comma}{joint}{self.text(low)} to {self.text(high)}"
        return self._lengths() if self._words.metavar == "TEXT" and not self.is_secret else self._words.rule

    def _lengths(self) -> str:
        low = next((item.min_length for item in self._metadata if hasattr(item, "min_length")), 0)
        high = next((item.max_length for item in self._metadata if hasattr(item, "max_length")), None)
        if high is None:
            return self._words.rule
        return f"{low} to {high} characters" if low else f"at most {high} characters"

    def text(self, value: Any) -> str:
        """A value as it would be written in a flag or a variable; secrets are hidden."""
        if self.is_secret:
            return HIDDEN if value is not None and value.get_secret_value() else ""
        if value is None:
            return ""
        if self.is_size:
            return format_size(int(value))
        if self.is_duration:
            return format_duration(value)
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)

    def toml(self, value: Any) -> str:
        """A value as it would be written in the file."""
        if value is None:
            return '""'
        if isinstance(value, bool) or (self.type in (int, float) and not (self.is_size or self.is_duration)):
            return self.text(value)
        return _quote(self.text(value))

    @property
    def default_text(self) -> str:
        """The default for people: its value, or words where that would say too little; "" for nothing."""
        text = self.text(self.default)
        marker = self._marker(Shown)
        return marker.text.format(text) if marker is not None else text


def is_optional(annotation: Any) -> bool:
    """Whether it is ``T | None``."""
    return get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation)


def _without_none(annotation: Any) -> tuple[Any, list[Any]]:
    """The type in ``T | None``, with what its `Annotated` says; any other as it is."""
    if is_optional(annotation):
        annotation = next(part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return inner, metadata
    return annotation, []


_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _quote(text: str) -> str:
    """A basic string of TOML."""
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in text) + '"'
