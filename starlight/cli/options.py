"""What the modules of the command line share: how a command fails, and flags made of the settings.

A flag for each setting comes from `config.entries()`; none is written by hand, so a new field of `Settings` is a flag
of every command that `takes_settings`. The help shows them in the panels of the model, as plain text: importing rich
would take longer than everything else.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeAlias

import typer
import typer.core

from starlight.config.printable import printable

if TYPE_CHECKING:
    from starlight.config.fields import Entry
    from starlight.errors import ConfigError

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_REFUSED",
    "EXIT_USAGE",
    "Application",
    "Failure",
    "KeyFile",
    "Nodes",
    "PanelCommand",
    "complain",
    "counted",
    "describe",
    "fail",
    "make_app",
    "takes_settings",
    "whole_number",
    "words_of",
]

EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

COMPLAINT_LIMIT: Final = 4_000
"""Characters of one complaint: a server's message in it may be as long as the server likes."""

HELP_COLUMNS: Final = 120
"""The help is as wide as the terminal, and not wider than this."""

Application: TypeAlias = Annotated[
    str | None, typer.Argument(metavar="APP", help="Your application, as module:app.", show_default=False)
]
Nodes: TypeAlias = Annotated[
    list[str],
    typer.Option("--node", envvar="STARLIGHT_NODE", metavar="URL", help="A node's internal port; repeatable."),
]
KeyFile: TypeAlias = Annotated[
    str, typer.Option("--key-file", envvar="STARLIGHT_INTERNAL_KEY_FILE", metavar="FILE", help="The port's key.")
]
"""Arguments and options that several commands have."""


class Failure(Exception):
    """Ends the command with some lines on stderr and an exit code."""

    def __init__(self, messages: Sequence[str], code: int) -> None:
        super().__init__(*messages)
        self.messages = messages
        self.code = code


def fail(*messages: str, code: int = EXIT_USAGE) -> NoReturn:
    """End the command with a line for each message."""
    raise Failure(messages, code)


def complain(*messages: str, code: int = EXIT_USAGE) -> int:
    """Write each message to stderr in one line, which can do nothing to a terminal; returns the exit code."""
    for message in messages:
        print(f"starlight: {printable(' '.join(message.split()), COMPLAINT_LIMIT)}", file=sys.stderr)
    return code


def counted(number: int, thing: str) -> str:
    """``1 client``, ``2 clients``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def whole_number(flag: str, word: str, most: int) -> int:
    """A number from 1 up, as it stands on the command line."""
    if not (word.isascii() and word.isdecimal() and 1 <= int(word[:19]) <= most):
        fail(f"{flag} {word}: expected a whole number from 1 to {most}")
    return int(word)


def make_app(help: str, group: type[typer.core.TyperGroup] | None = None) -> typer.Typer:
    """A Typer application as all of ours are: no completion, no rich.

    Args:
        help: what it is for, in a sentence.
        group: finds the commands; by default those that are registered.
    """
    return typer.Typer(
        cls=group,
        help=help,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_COLUMNS},
    )


class PanelCommand(typer.core.TyperCommand):
    """A command whose help shows its options under the title of their panel."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments first, then the options without a panel, then the panels in the order of their first option."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            is_option = param.param_type_name == "option"
            title = getattr(param, "rich_help_panel", None) or ("Options" if is_option else "Arguments")
            sections.setdefault(title, []).append((record[0].split(" / ")[0] if is_option else record[0], record[1]))
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def takes_settings(command: Callable[..., int]) -> Callable[..., int]:
    """Decorator: a flag for each setting; the command gets their words as keyword arguments, None where left out.

    Every flag but a switch is text here: `Settings` parses it, so that flags, variables, the file and code follow one
    set of rules.
    """
    from starlight.config.settings import entries

    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    flags = [
        inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(entry))
        for entry in entries()
        if entry.flag
    ]

    def run(**given: Any) -> int:
        return command(**given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *flags]}
    return run


def _annotation(entry: Entry) -> Any:
    if entry.is_switch:
        option = typer.Option(
            f"{entry.flag}/--no-{entry.flag.removeprefix('--')}",  # the second turns off what a variable turned on
            help=entry.short,
            rich_help_panel=entry.panel,
            show_default=False,
        )
        return Annotated[bool | None, option]
    default = f" [default: {entry.default_text}]" if entry.default_text else ""
    option = typer.Option(
        entry.flag,
        help=entry.short + default,
        metavar=entry.metavar,
        rich_help_panel=entry.panel,
        show_default=False,
    )
    return Annotated[str | None, option]


def words_of(flags: dict[str, Any]) -> dict[str, str]:
    """What was given on the command line, as settings."""
    return {
        name: ("true" if word else "false") if isinstance(word, bool) else str(word)
        for name, word in flags.items()
        if word is not None
    }


def describe(error: ConfigError, words: dict[str, str], given: dict[str, Any] | None = None) -> list[str]:
    """A line for all that is wrong, in terms of where it came from.

    Such as ``--port abc: expected a whole number``, or ``starlight.toml:7: port='abc': expected a whole number``.

    Args:
        error: with its `others`.
        words: what was given on the command line.
        given: what was given in code.
    """
    return [_describe_one(one, words, {**(given or {}), **words}) for one in (error, *error.others)]


def _describe_one(error: ConfigError, words: dict[str, str], arguments: dict[str, Any]) -> str:
    from starlight.config.settings import entries, origins
    from starlight.errors import ConfigError

    if error.key in words:
        flag = next((entry.flag for entry in entries() if entry.name == error.field), error.key)
        return f"{flag} {error.value}: expected {error.allowed}"
    try:
        origin = origins(arguments).get(error.key)
    except ConfigError:  # it is about the file itself
        origin = None
    if origin is None or origin.kind == "default":
        return error.line
    return ConfigError(origin.key, error.value, error.allowed).line
