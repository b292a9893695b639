"""starlight.config.fields: what people are told of a field follows from the field, also for one that is new."""

import tomllib
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, SecretStr

from starlight.config.fields import RELOADS, Duration, Entry, FileName, Flag, Shown, Size, TextList
from starlight.config.settings import Settings, entries


class Model(BaseModel):
    """As somebody might add fields to `Settings`, with markers and without."""

    inner_port: int | None = Field(None, ge=0, le=65_535, description="Port of it; 0 picks one. None: it is off.")
    named: FileName = Field("", description="A file.")
    closes_per_s: int = Field(100, ge=1, le=1_000, description="Closes a second. Bounded.")
    wait_s: Annotated[Duration, RELOADS] = Field(0.25, ge=0, le=60, description="How long. For a reason.")
    room_bytes: Size = Field(2**20, ge=0, le=2**30, description="How much.")
    total_bytes: Annotated[Size | None, Flag("--total")] = Field(None, description="All of it.")
    reuse_port: bool = Field(False, description="Share it.")
    form: Literal["auto", "json"] = Field("auto", description="Which form.")
    names: Annotated[TextList, Shown("everybody")] = Field("", description="Who.")
    ratio: float = Field(0.5, ge=0, le=1, description="A share.")
    title: str = Field("x", min_length=1, max_length=9, description="What. It is called.")
    password: SecretStr = Field(SecretStr(""), description="A secret.")


ENTRIES = {name: Entry(name, info, "Panel") for name, info in Model.model_fields.items()}

TABLE = {
    "inner_port": ("--inner-port", "INTEGER", "", "a whole number from 0 to 65535"),
    "named": ("--named", "FILE", "", "a file's name"),
    "closes_per_s": ("--closes-per-s", "INTEGER", "100", "a whole number from 1 to 1000"),
    "wait_s": ("--wait", "DURATION", "250ms", "number of seconds, 0s to 1m"),
    "room_bytes": ("--room", "SIZE", "1MiB", "number of bytes, 0B to 1GiB"),
    "total_bytes": ("--total", "SIZE", "", "a size such as"),
    "reuse_port": ("--reuse-port", "true|false", "false", "true or false"),
    "form": ("--form", "auto|json", "auto", "one of auto, json"),
    "names": ("--names", "LIST", "everybody", "text with commas between, or a list of texts"),
    "ratio": ("--ratio", "NUMBER", "0.5", "a number, 0 to 1"),
    "title": ("--title", "TEXT", "x", "1 to 9 characters"),
    "password": ("", "TEXT", "", "text"),
}


@pytest.mark.parametrize("name", list(Model.model_fields))
def test_an_entry_says_all_of_it(name: str) -> None:
    entry = ENTRIES[name]
    flag, metavar, default, allowed = TABLE[name]
    assert (entry.flag, entry.metavar, entry.default_text) == (flag, metavar, default)
    assert allowed in entry.allowed
    assert entry.variable == f"STARLIGHT_{name.upper()}"
    assert entry.reloads == (name == "wait_s")
    assert entry.is_secret == (name == "password")


def test_the_first_sentence_is_the_help() -> None:
    assert ENTRIES["inner_port"].short == "Port of it; 0 picks one."
    assert ENTRIES["title"].short == "What."
    assert ENTRIES["room_bytes"].short == "How much."


def test_values_as_text() -> None:
    assert ENTRIES["room_bytes"].text(1536) == "1536B"
    assert ENTRIES["wait_s"].text(90.0) == "90s"
    assert ENTRIES["reuse_port"].text(True) == "true"
    assert ENTRIES["inner_port"].text(None) == ""
    assert (ENTRIES["password"].text(SecretStr("x")), ENTRIES["password"].text(SecretStr(""))) == ("(hidden)", "")


@pytest.mark.parametrize("text", ["", "plain", 'a"b\\c\nd\te', "\x00\x7f\u2028é\U0001f600"])
def test_text_in_toml_reads_back(text: str) -> None:
    assert tomllib.loads(f"x = {ENTRIES['title'].toml(text)}") == {"x": text}


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_every_setting_has_a_help_of_one_short_sentence(entry: Entry) -> None:
    assert 15 <= len(entry.short) <= 80
    assert entry.short.endswith(".")
    assert entry.panel
    if not entry.is_secret:
        assert tomllib.loads(f"x = {entry.toml(entry.default)}")["x"] in (entry.default, entry.text(entry.default))


def test_no_two_settings_share_a_flag() -> None:
    flags = [entry.flag for entry in entries() if entry.flag]
    assert len(set(flags)) == len(flags) == len(Settings.model_fields) - 1
