"""The command ``starlight doctor``: say whether this machine can carry what the settings promise, and what to change.

It takes the words of `serve`, so that a service's command line can be tried by changing one word. Exit codes: 0 nothing
is wrong (there may be advice), 1 something is; 2 the settings themselves can't be read, as for `serve`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starlight.cli.options import (
    EXIT_REFUSED,
    Application,
    PanelCommand,
    describe,
    fail,
    make_app,
    takes_settings,
    words_of,
)
from starlight.config.printable import printable

if TYPE_CHECKING:
    from starlight.cli.doctor.checks import Check
    from starlight.config.settings import Settings

__all__ = ["app", "examine", "to_json", "to_text"]

app = make_app("Say whether this machine can carry what the settings promise.")


@app.command(cls=PanelCommand, short_help="Say whether this machine can carry what the settings promise.")
@takes_settings
def doctor(
    application: Application = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **flags: Any,
) -> int:
    """Look at this machine with the words of `serve`, and say what to change.

    Open files, the kernel's settings, memory, processors, the clock, TLS files, groups, and who may read secrets.
    Nothing is changed, and nothing listens. Exit code 1 if something is wrong; advice is no failure.
    """
    from starlight.cli.load_app import load
    from starlight.config.settings import Settings
    from starlight.errors import ConfigError

    words = words_of(flags)
    given = load(application).given if application else {}
    try:
        settings = Settings(**{**given, **words})
    except ConfigError as error:
        fail(*describe(error, words, given))
    return examine(settings, as_json=as_json)


def examine(settings: Settings, *, as_json: bool = False) -> int:
    """Look at this machine with these settings, print the report, and return the exit code.

    Args:
        settings: what a node would be started with.
        as_json: one JSON object instead of text: ``{"verdict", "checks": [{"name", "verdict", "found", ...}]}``.
    """
    from starlight.cli.doctor.checks import diagnose, worst
    from starlight.config.machine import read_machine

    logging.getLogger("starlight").addHandler(logging.NullHandler())  # what would be logged at start, the report says
    checks = diagnose(settings, read_machine())
    print(to_json(checks) if as_json else to_text(checks))
    return EXIT_REFUSED if worst(checks) == "wrong" else 0


def to_json(checks: list[Check]) -> str:
    """The report for programs."""
    from starlight.cli.doctor.checks import worst

    return json.dumps({"verdict": worst(checks), "checks": [asdict(check) for check in checks]}, indent=2)


def to_text(checks: list[Check]) -> str:
    """The report for people: a line for each check, and for what is not ok what it should be and what to change."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.verdict:8} {check.name:{width}}  {printable(check.found)}")
        if check.verdict not in ("ok", "unknown"):
            lines.append(f"{'':8} {'':{width}}  should be: {printable(check.expected)}")
            lines.append(f"{'':8} {'':{width}}  change: {printable(check.change)}")
    counts = [f"{number} {name}" for name in ("ok", "unknown", "advice", "wrong") if (number := _count(checks, name))]
    return "\n".join([*lines, "", ", ".join(counts)])


def _count(checks: list[Check], verdict: str) -> int:
    return sum(check.verdict == verdict for check in checks)
