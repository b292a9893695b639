"""docs/security.md: its flags exist, its groups can be read, its limits are true, its commands work."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from starlight.auth.limits import Limits
from starlight.auth.permissions import read_groups
from starlight.cli import main as cli
from starlight.config.settings import Settings, entries
from starlight.config.units import format_size

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_its_flags_exist(capsys: pytest.CaptureFixture[str]):
    known = ""
    for command in (["serve"], ["token", "new"], ["token", "check"]):
        assert cli.main([*command, "--help"]) == 0
        known += capsys.readouterr().out
    shell = "\n".join(blocks("sh")) + "\n".join(re.findall(r"`(--[^`]*)`", PAGE))
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", shell)):
        assert f"{flag} " in known, flag


def test_its_groups_can_be_read(tmp_path: Path):
    (text,) = blocks("toml")
    path = tmp_path / "starlight.toml"
    path.write_text(text)
    assert set(read_groups(str(path))) == set(tomllib.loads(text)["groups"]) == {"default", "trader", "admin"}
    assert set(read_groups(str(ROOT / "examples" / "auction.toml"))) == {"default", "seller"}


def test_its_table_of_limits_is_true():
    rows = dict(re.findall(r"^\| `(--[a-z-]+)` \| ([^|]+?) \|", PAGE, re.MULTILINE))
    fields = {entry.flag: entry.name for entry in entries()}
    for flag, shown in rows.items():
        if flag.startswith("--jwt"):
            continue
        value = getattr(Settings(), fields[flag])
        number = format_size(value) if fields[flag].endswith("_bytes") and flag != "--name-limit" else f"{value:,}"
        expected = "none" if value == 0 else number.replace("MiB", " MiB").replace("KiB", " KiB")
        assert shown.removesuffix(" a second").removesuffix(" bytes") == expected, flag


def test_a_limit_from_the_environment_holds_without_tokens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STARLIGHT_MESSAGE_RATE", "7")
    assert Limits.of(Settings()).message_rate == 7


@contextlib.contextmanager
def serving(shell: str, directory: Path, environment: dict[str, str]) -> Iterator[str]:
    """What a terminal of the page runs, which ends in a server; its address, as it says it."""
    child = subprocess.Popen(
        ["sh", "-c", shell.replace("starlight serve", "exec starlight serve")], cwd=directory, env=environment,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stderr is not None
        said = ""
        while (found := re.search(r"listens on ws://([^/]+)/", said)) is None:
            line = child.stderr.readline()
            assert line, said
            said += line
        yield found[1]
    finally:
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=30)


def test_the_auction_runs_with_tokens_and_groups_from_the_page_alone(tmp_path: Path):
    section = PAGE[PAGE.index("## The auction") : PAGE.index("## Who may come in")]
    found = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    shells = [text for language, text in found if language == "sh"]
    program, expected = dict(found)["python"], dict(found)[""]
    for name, module in (("starlight", "-m starlight"), ("python", "")):
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        (tmp_path / name).chmod(0o755)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with serving(shells[0], tmp_path, {**environment, "STARLIGHT_PORT": "0"}) as address:
        (tmp_path / "session.py").write_text(program.replace("127.0.0.1:8765", address))
        run = subprocess.run(
            ["sh", "-c", shells[1]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
    assert (run.stdout, run.stderr, run.returncode) == (expected, "", 0)


def test_its_commands_without_an_identity_provider_work(tmp_path: Path):
    (tmp_path / "secret").write_bytes(os.urandom(48).hex().encode())
    (tmp_path / "secret").chmod(0o600)
    last = next(block for block in blocks("sh") if "token check" in block).splitlines()[-1]
    assert last.startswith("starlight token new") and "| starlight token check" in last
    shell = last.replace("starlight token", f"{sys.executable} -m starlight token")
    run = subprocess.run(
        ["sh", "-c", shell], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith('accepted: {"user": "ann"')
