"""starlight token: make a token, check it, and no secret in sight."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from starlight.cli import main as cli
from tests.support.tokens import SECRET, pair, write


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    return write(tmp_path / "secret", SECRET + "\n")


class Terminal:
    """Runs a command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys = capsys
        self.monkeypatch = monkeypatch

    def run(self, *words: str, typed: str = "") -> tuple[int, str, str]:
        self.monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        code = cli.main(["token", *words])
        out, err = self.capsys.readouterr()
        assert SECRET not in out + err
        return code, out.strip(), err.strip()


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.delenv("STARLIGHT_JWT_SECRET", raising=False)
    return Terminal(capsys, monkeypatch)


def test_new_and_check(terminal: Terminal, secret_file: str):
    options = ("--issuer", "https://me.test", "--audience", "us")
    _, text, _ = terminal.run(
        *("new", "--user", "ann", "--secret-file", secret_file, "--group", "a", "--group", "b", "--ttl", "5m"), *options
    )
    code, out, _ = terminal.run("check", "--secret-file", secret_file, *options, typed=text + "\n")
    assert code == 0
    said = json.loads(out.removeprefix("accepted: "))
    assert (said["user"], said["groups"]) == ("ann", ["a", "b"])
    assert 290 <= said["expires_in_s"] <= 300


def test_a_secret_from_the_environment(terminal: Terminal, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STARLIGHT_JWT_SECRET", SECRET)
    _, text, _ = terminal.run("new", "--user", "ann")
    assert terminal.run("check", typed=text)[0] == 0


@pytest.mark.parametrize("alg", ["RS256", "ES256", "ES384", "EdDSA"])
def test_key_pairs(terminal: Terminal, tmp_path: Path, alg: str):
    private = write(tmp_path / "private.pem", pair(alg).private_pem)
    public = write(tmp_path / "public.pem", pair(alg).public_pem)
    _, text, _ = terminal.run("new", "--user", "ann", "--private-key-file", private)
    assert terminal.run("check", "--key-file", public, typed=text)[1].startswith("accepted")


def test_what_is_refused_says_why(terminal: Terminal, secret_file: str):
    _, text, _ = terminal.run("new", "--user", "ann", "--secret-file", secret_file, "--audience", "us", "--ttl", "0")
    for typed, options, reason in (
        (text, ("--leeway", "0"), "expired"),
        (text, (), "for another audience"),
        (text[:-4] + "AAAA", (), "the signature is wrong"),
        ("x", (), "not a token"),
        (text, ("--algorithms", "HS512"), "an algorithm that is not allowed"),
    ):
        code, out, _ = terminal.run("check", "--secret-file", secret_file, *options, typed=typed)
        assert (code, out) == (1, f"refused: {reason}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("new", "--user", "ann"), "openssl rand"),
        (("new", "--user", "", "--secret-file", "FILE"), "a user name"),
        (("new", "--user", "ann", "--secret-file", "/nowhere"), "no such file"),
        (("new", "--user", "ann", "--private-key-file", "/nowhere"), "no such file"),
        (("new", "--user", "ann", "--secret-file", "FILE", "--ttl", "soon"), "a duration"),
        (("new", "--user", "ann", "--secret-file", "FILE", "--algorithm", "RS256"), "does not fit the key"),
        (("new", "--user", "ann", "--secret-file", "FILE", "--algorithm", "X"), "does not fit the key"),
        (("check",), "standard input"),
        (("new",), "--user"),
    ],
)
def test_wrong_words(terminal: Terminal, secret_file: str, words: tuple[str, ...], expected: str):
    code, _, err = terminal.run(*(secret_file if word == "FILE" else word for word in words))
    assert code == 2
    assert expected in err
    assert "\n" not in err


def test_check_needs_something_to_check_with(terminal: Terminal):
    code, _, err = terminal.run("check", typed="x")
    assert code == 2
    assert "something to verify tokens with" in err


def test_the_help_lists_it(terminal: Terminal):
    assert cli.main(["--help"]) == 0
    assert "token" in terminal.capsys.readouterr().out
