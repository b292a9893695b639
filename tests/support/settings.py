"""A clean environment, and for each setting values that are not its default."""

from __future__ import annotations

import os
from typing import Any

import pytest
from pydantic import SecretStr

from starlight.channels.options import option_entries
from starlight.config.fields import Entry
from starlight.config.settings import entries


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of whoever runs the tests reaches them."""
    for name in list(os.environ):
        if name.upper().startswith("STARLIGHT_"):
            monkeypatch.delenv(name)


def other_values(entry: Entry) -> list[Any]:
    """Three values that a setting may have and that are not its default; of a switch or choice some are the same."""
    if entry.is_secret:
        return [SecretStr("a" * 32), SecretStr("b" * 32), SecretStr("c" * 32)]
    if entry.is_switch:
        return [not entry.default] * 3
    if entry.name.endswith("host"):
        return ["127.0.0.2", "::1", "localhost"]
    if entry.choices:
        others = [word for word in entry.choices if word != entry.default]
        return [others[0], others[-1], others[len(others) // 2]]
    if entry.among:
        return [*entry.among[:2], ", ".join(entry.among[1:])]
    low, high = entry.bounds
    if low is not None and high is not None:
        middle = [low + (high - low) * part / 8 for part in (1, 2, 3, 4)]
        values = [round(value, 3) if entry.type is float else int(value) for value in middle]
        return [value for value in values if value != entry.default][:3]
    return ["/a", "/b", "/c"]


def table() -> str:
    """The settings as docs/configuration.md has them."""
    lines = []
    panel = ""
    for entry in entries():
        if entry.panel != panel:
            panel = entry.panel
            lines += ["", f"### {panel}", "", "| setting | default | |", "|---|---|---|"]
        default = f"`{entry.text(entry.default)}`" if entry.text(entry.default) else ""
        shown = default if default.strip("`") == entry.default_text else entry.default_text
        reload = " *reload*" if entry.reloads else ""
        lines.append(f"| `{entry.name}` | {shown} | {entry.description}{reload} |")
    return "\n".join(lines) + "\n"


def channel_table() -> str:
    """The options of channels as docs/configuration.md has them."""
    lines = ["| option | default | |", "|---|---|---|"]
    for entry in option_entries():
        description = entry.description.replace('"users"', '`"users"`')
        lines.append(f"| `{entry.name}` | `{entry.toml(entry.default)}` | {description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(channel_table())
    print(table(), end="")
