"""docs/configuration.md: its table is that of the model, its file can be read, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from starlight import ChannelOptions
from starlight.auth.permissions import read_groups
from starlight.channels.options import read_channel_options
from starlight.cli import main as cli
from starlight.config.settings import Settings, entries
from tests.support.settings import channel_table, clean_environment, table  # noqa: F401  # pytest finds fixtures by name

pytestmark = pytest.mark.usefixtures("clean_environment")

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
MARK = "<!-- made by: python -m tests.support.settings -->\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_table_is_that_of_the_model():
    """If this fails, put what `python -m tests.support.settings` prints behind the mark."""
    *_, settings = PAGE.split(MARK)
    assert settings == table()


def test_the_options_of_channels_are_those_of_the_model():
    """As above."""
    _, options, _ = PAGE.split(MARK)
    assert options.strip().startswith(channel_table())


def test_the_file_can_be_read(tmp_path: Path):
    (text,) = blocks("toml")
    path = tmp_path / "starlight.toml"
    path.write_text(text)
    settings = Settings(config_file=str(path))
    assert (settings.ping_interval_s, settings.byte_rate_bytes) == (30.0, 256 * 2**10)
    assert set(read_groups(str(path))) == {"default", "staff"}
    assert read_channel_options(str(path)) == {"room:*": ChannelOptions(announce="users")}


def test_the_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    lines = [line.partition("#")[0].split()[1:] for line in blocks("sh")[0].splitlines()]
    assert [line[:2] for line in lines] == [
        ["config", "init"],
        ["config", "check"],
        ["serve", "--config"],
        ["config", "show"],
    ]
    for line in lines:
        assert cli.main([*line, *(["--help"] if line[0] == "serve" else [])]) == 0
    for name in set(re.findall(r"`config (\w+)`", PAGE)):
        assert cli.main(["config", name, "--help"]) == 0


def test_what_it_says_of_flags():
    flags = {entry.flag: entry.name for entry in entries()}
    for flag in re.findall(r"`(--[a-z-]+)[ `]", PAGE):
        assert flag in flags or flag == "--config", flag
    for entry in entries():
        unit = re.search(r"_(s|bytes)$", entry.name)
        plain = "--" + entry.name.replace("_", "-")
        if entry.flag and entry.name not in ("outbox_bytes", "config_file"):
            assert entry.flag in (plain, plain.removesuffix(unit[0].replace("_", "-")) if unit else "")
