"""The command ``starlight config``: make a configuration file, check it, and say where each value comes from.

All of it is written from `config.entries()`, so it knows every setting that there is.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from starlight.cli.options import (
    Application,
    PanelCommand,
    complain,
    describe,
    fail,
    make_app,
    takes_settings,
    words_of,
)

if TYPE_CHECKING:
    from starlight.channels.options import OptionsByPattern
    from starlight.config.fields import Entry
    from starlight.config.settings import Origin, Settings

__all__ = ["app"]

COLUMNS: Final = 100

HOST_PATTERN: Final = r"^\[?[\w.:%-]+\]?$"
"""What an editor can tell of an address or a host's name."""

CHANNELS_EXAMPLE: Final = """\
# --- Channels: what they are like, by patterns of names (docs/configuration.md); reload ---
# The most specific pattern alone decides about a channel: a name before any pattern, then the longest text before the
# first *, which stands for any characters, then the longest pattern. Here are the defaults.

# [channels."ticker:*"]
"""

app = make_app("Make, check and explain the configuration.")

GROUPS_EXAMPLE: Final = """\
# --- Groups: what users may do (docs/security.md) ---
# A client may do what any of its groups allows, and everybody what `default` allows. In a pattern, * stands for any
# characters and {user} for the client's own name.

# [groups.default]
# subscribe = ["user:{user}", "user:{user}:*"]
# publish = ["user:{user}", "user:{user}:*"]
# direct = true

# [groups.staff]
# publish = ["news", "room:*"]
# subscribe = ["news", "room:*"]
# presence = ["room:*"]
# broadcast = true
"""


# init


@app.command(short_help="Write a file with every setting, commented out.")
def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; standard output by default.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> int:
    """Write a file with every setting, its default, what it may be and the reason, all commented out."""
    text = "\n".join(_template())
    if not file:
        print(text, end="")
        return 0
    try:
        with open(file, "w" if force else "x") as target:
            target.write(text)
    except FileExistsError:
        fail(f"{file}: there is such a file; --force replaces it")
    except OSError as error:
        fail(f"{file}: {(error.strerror or 'error').lower()}")
    print(f"wrote {file}; check it with: starlight config check {file}")
    return 0


def _template() -> Iterator[str]:
    yield "# The configuration of a Starlight node: starlight serve --config FILE, or STARLIGHT_CONFIG_FILE=FILE."
    yield "# A flag goes before a variable, a variable before this file. What is commented out is the default."
    yield "# Settings marked `reload` change at SIGHUP, all others at a restart.\n"
    panel = ""
    for entry in _in_file():
        if entry.panel != panel:
            panel = entry.panel
            yield f"# --- {panel} ---\n"
        yield from (f"# {line}" for line in textwrap.wrap(entry.description, COLUMNS))
        notes = [f"# {entry.allowed[0].upper()}{entry.allowed[1:]}", f"flag {entry.flag}", f"variable {entry.variable}"]
        yield "; ".join([*notes, *(["reload"] if entry.reloads else [])]) + "."
        yield f"# {entry.name} = {entry.toml(entry.default)}\n"
    yield GROUPS_EXAMPLE
    yield CHANNELS_EXAMPLE + "\n".join(_channel_template())


def _channel_template() -> Iterator[str]:
    from starlight.channels.options import option_entries

    for entry in option_entries():
        yield from (f"# {line}" for line in textwrap.wrap(f"{entry.description} {_sentence(entry.allowed)}", COLUMNS))
        yield f"# {entry.name} = {entry.toml(entry.default)}\n"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _in_file() -> Iterator[Entry]:
    """The settings that may stand in a file."""
    from starlight.config.settings import entries

    return (entry for entry in entries() if not entry.is_secret and entry.name != "config_file")


# check


@app.command(short_help="Tell all that is wrong with a file and the environment.")
def check(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The file; that of STARLIGHT_CONFIG_FILE by default.")
    ] = "",
) -> int:
    """Tell all that is wrong with a file, with the environment, and with the files that they name; 2 if anything is.

    Nothing is started, and nothing fetched from a network. Unknown variables are warnings: an environment is shared.
    So are patterns of channels that never win.
    """
    from starlight.channels.options import OptionsByPattern, read_channel_options
    from starlight.config.file import CHANNELS, ConfigFile
    from starlight.config.settings import unknown_variables
    from starlight.errors import ConfigError
    from starlight.server.mistakes import all_mistakes

    for line in unknown_variables(os.environ):
        print(f"starlight: warning: {line}", file=sys.stderr)
    arguments = {"config_file": file} if file else {}
    errors = all_mistakes(arguments)
    if errors:
        return complain(*dict.fromkeys(describe(ConfigError.all_of(errors), {}, arguments)))
    path = file or os.environ.get("STARLIGHT_CONFIG_FILE") or ""
    if path:
        for pattern, winner in OptionsByPattern(read_channel_options(path)).never_winning():
            place = ConfigFile.read(path).place(CHANNELS, pattern)
            print(f"starlight: warning: {place} never wins: {winner} goes before it wherever it fits", file=sys.stderr)
    print(f"{path or 'the environment'}: ok")
    return 0


# show


@app.command(cls=PanelCommand, short_help="Show the values in force, and where they come from.")
@takes_settings
def show(
    application: Application = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    **flags: Any,
) -> int:
    """Show the values that `starlight serve` would have with the same words, file and environment.

    The output is TOML that a node can read, with the file's groups and the options of channels. Secrets are hidden.
    """
    from starlight.auth.permissions import read_groups
    from starlight.channels.options import make_channel_options
    from starlight.cli.load_app import load
    from starlight.config.settings import Settings, entries, origins
    from starlight.errors import ConfigError

    words = words_of(flags)
    loaded = load(application) if application else None
    given = loaded.given if loaded is not None else {}
    try:
        settings = Settings(**{**given, **words})
        found = origins({**given, **words})
        if settings.config_file:
            read_groups(settings.config_file)
        channels = make_channel_options(settings, loaded.channels if loaded is not None else {})
    except ConfigError as error:
        fail(*describe(error, words, given))
    lines = [(_assignment(entry, settings), _origin_of(entry, found[entry.name], words)) for entry in entries()]
    lines += _groups(settings.config_file)
    lines += _channels(settings.config_file, channels)
    width = min(max(len(line) for line, _ in lines), COLUMNS // 2)
    for line, place in lines:
        print(f"{line:{width}}  # {place}" if origin and place else line)
    return 0


def _groups(path: str) -> Iterator[tuple[str, str]]:
    """The groups of a file that is right, as TOML, and where each begins."""
    from starlight.config.file import GROUPS, ConfigFile

    if not path:
        return
    file = ConfigFile.read(path)
    for name, fields in file.document.get(GROUPS, {}).items():
        yield "", ""
        yield f'[{GROUPS}."{name}"]', file.place(GROUPS, name).removesuffix(f": {GROUPS}.{name}")
        for field, value in fields.items():  # texts without anything to escape, and truths: JSON is TOML here
            yield f"{field} = {json.dumps(value)}", ""


def _channels(path: str, channels: OptionsByPattern) -> Iterator[tuple[str, str]]:
    """The options of channels, all of each pattern, as TOML, and where each pattern stands."""
    from starlight.channels.options import option_entries
    from starlight.config.file import CHANNELS, ConfigFile

    file = ConfigFile.read(path) if path else None
    for pattern, options in channels.items():
        is_in_file = file is not None and pattern in file.document.get(CHANNELS, {})
        place = file.place(CHANNELS, pattern).removesuffix(f": {CHANNELS}.{pattern}") if file and is_in_file else "code"
        yield "", ""
        yield f'[{CHANNELS}."{pattern}"]', place
        for entry in option_entries():
            yield f"{entry.name} = {entry.toml(getattr(options, entry.name))}", ""


def _assignment(entry: Entry, settings: Settings) -> str:
    value = getattr(settings, entry.name)
    is_comment = entry.is_secret or entry.name == "config_file"  # neither may stand in a file
    return f"{'# ' if is_comment else ''}{entry.name} = {entry.toml(value)}"


def _origin_of(entry: Entry, origin: Origin, words: dict[str, str]) -> str:
    if origin.kind == "argument":
        return f"flag {entry.flag}" if entry.name in words else "code"
    if origin.kind == "file":
        return origin.key.removesuffix(f": {entry.name}")
    return f"variable {origin.key}" if origin.kind == "variable" else "default"


# env and schema


@app.command(short_help="List all environment variables with their defaults.")
def env() -> int:
    """List all environment variables with their defaults, commented out, as a file for systemd or Docker."""
    from starlight.config.settings import OTHER_VARIABLES, entries

    for entry in entries():
        print(f"# {entry.short}\n# {entry.variable}={entry.text(entry.default)}")
    print("\n# Not settings of a node:")
    for name, what in OTHER_VARIABLES.items():
        print(f"# {name}: {what}")
    return 0


@app.command(short_help="Print a JSON schema of the file, for editors.")
def schema() -> int:
    """Print a JSON schema of the file; editors complete and check TOML with it."""
    print(json.dumps(_schema(), indent=2))
    return 0


def _schema() -> dict[str, Any]:
    from starlight.channels.options import PATTERN, option_entries

    patterns = {"type": "array", "items": {"type": "string"}, "maxItems": 256}
    truth = {"type": "boolean"}
    group = dict.fromkeys(("publish", "subscribe", "presence"), patterns) | {"direct": truth, "broadcast": truth}
    groups = {
        "description": "What the members of a group may do, by the group's name.",
        "type": "object",
        "additionalProperties": {"type": "object", "properties": group, "additionalProperties": False},
    }
    options = {entry.name: _property(entry) for entry in option_entries()}
    channels = {
        "description": "What channels are like, by patterns of their names.",
        "type": "object",
        "propertyNames": {"pattern": f"^{PATTERN.pattern}$"},
        "additionalProperties": {"type": "object", "properties": options, "additionalProperties": False},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The configuration of a Starlight node",
        "type": "object",
        "properties": {
            **{entry.name: _property(entry) for entry in _in_file()},
            "groups": groups,
            "channels": channels,
        },
        "additionalProperties": False,
    }


def _property(entry: Entry) -> dict[str, Any]:
    described = _required(entry)
    if not entry.is_optional:
        return described
    description = described.pop("description")
    return {"description": description, "anyOf": [described, {"const": ""}]}


def _required(entry: Entry) -> dict[str, Any]:
    from starlight.config.units import DURATION_PATTERN, SIZE_PATTERN

    described: dict[str, Any] = {"description": entry.description}
    if entry.default is not None:
        described["default"] = entry.default
    low, high = entry.bounds
    number: dict[str, Any] = {"type": "integer" if entry.type is int else "number"}
    number |= {name: value for name, value in (("minimum", low), ("maximum", high)) if value is not None}
    if entry.choices:
        return described | {"enum": list(entry.choices)}
    if entry.is_switch:
        return described | {"type": "boolean"}
    if entry.is_size or entry.is_duration:
        pattern = SIZE_PATTERN if entry.is_size else DURATION_PATTERN
        return described | {"anyOf": [number, {"type": "string", "pattern": pattern}]}
    if entry.type in (int, float):
        return described | number
    if entry.among:
        word = "|".join(entry.among)
        text = {"type": "string", "pattern": rf"^[\s,]*({word})?([\s,]+({word}))*[\s,]*$"}
        return described | {"anyOf": [text, {"type": "array", "items": {"enum": list(entry.among)}}]}
    if entry.metavar == "HOST":
        return described | {"type": "string", "pattern": HOST_PATTERN}
    if entry.is_list:
        return described | {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    return described | {"type": "string"}
