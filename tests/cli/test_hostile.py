"""`starlight sub`, `pub` and `send` against a server that writes to the terminal of who runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support.hostile_server import Guest, frame, hostile_server, text

TRICKS = "\x1b]0;PWNED\x07\x1b[31mRED\x9b\u202e\r\nfake line"
LIMIT_S = 60.0


def command(script: Callable[[Guest], None], *words: str) -> subprocess.CompletedProcess[str]:
    """One of the clients for the terminal, with everything it printed."""
    with hostile_server(script) as port:
        return subprocess.run(
            [sys.executable, "-m", "starlight", *words, "--url", f"ws://127.0.0.1:{port}/ws"],
            capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip


def is_harmless(shown: str) -> bool:
    return all(line.isprintable() for line in shown.split("\n")) and "\nfake line" not in shown


def answering(**reply: object) -> Callable[[Guest], None]:
    """A script that logs in and answers each request with this."""

    def script(guest: Guest) -> None:
        guest.shake_hands()
        guest.log_in()
        while True:
            guest.send(text(**({"id": guest.read_message().get("id")} | reply)))

    return script


@pytest.mark.parametrize("as_json", [False, True])
def test_sub_shows_names_and_data_escaped(as_json: bool) -> None:
    def script(guest: Guest) -> None:
        guest.shake_hands()
        guest.log_in(user=TRICKS)
        guest.send(text(type="ok", id=guest.read_message()["id"], channel="news"))
        guest.send(text(type="publication", channel="news", **{"from": TRICKS}, data=TRICKS))
        guest.drain()

    run = command(script, "sub", "news", "--count", "1", *(["--json"] if as_json else []))
    assert run.returncode == 0, run.stderr
    assert is_harmless(run.stdout) and is_harmless(run.stderr)
    assert r"\x1b]0;PWNED" in run.stderr and r"\u001b]0;PWNED" in run.stdout
    assert not as_json or json.loads(run.stdout)["data"] == TRICKS


@pytest.mark.parametrize("words", [("pub", "news", "hi"), ("send", "ada", "hi"), ("sub", "news")])
def test_errors_are_shown_escaped_and_cut(words: tuple[str, ...]) -> None:
    reply = {"type": "error", "code": 103, "name": TRICKS, "message": TRICKS + "x" * 50_000}
    run = command(answering(**reply), *words)
    assert run.returncode == 1 and is_harmless(run.stderr) and r"\x1b]0;PWNED" in run.stderr
    assert len(run.stderr) < 10_000


def refused(guest: Guest) -> None:
    guest.read_request()
    guest.send(f"HTTP/1.1 403 {TRICKS[:20]}\r\nContent-Type: text/plain\r\n\r\n{TRICKS}".encode())


def closed(guest: Guest) -> None:
    guest.shake_hands()
    guest.read_message()
    guest.send(frame(8, (4501).to_bytes(2, "big") + TRICKS.encode()))


def said_bye(guest: Guest) -> None:
    guest.shake_hands()
    guest.read_message()
    guest.send(text(type="bye", code=4501, reason=TRICKS))
    guest.send(frame(8, (4501).to_bytes(2, "big")))


@pytest.mark.parametrize("script", [refused, closed, said_bye])
def test_refusals_are_shown_escaped(script: Callable[[Guest], None]) -> None:
    run = command(script, "pub", "news", "hi")
    assert run.returncode in (1, 2) and is_harmless(run.stdout) and is_harmless(run.stderr)
    assert run.stderr.startswith("starlight: ") and "Traceback" not in run.stderr


@pytest.mark.parametrize("depth", [100, 900])
def test_deep_data_ends_no_command(depth: int) -> None:
    def script(guest: Guest) -> None:
        guest.shake_hands()
        guest.log_in()
        guest.send(text(type="ok", id=guest.read_message()["id"], channel="news"))
        deep = b"[" * depth + b"]" * depth
        guest.send(frame(1, b'{"type":"publication","channel":"news","data":' + deep + b"}"))
        guest.send(text(type="publication", channel="news", data="after"))
        guest.drain()

    run = command(script, "sub", "news", "--count", "1")
    assert "Traceback" not in run.stderr, run.stderr[-2_000:]


def test_a_reply_that_nobody_can_read_is_one_line() -> None:
    def script(guest: Guest) -> None:
        guest.shake_hands()
        guest.log_in()
        guest.send(b"".join(text(type="ok", id=number, subscribers=TRICKS) for number in range(1, 10)))
        guest.drain()

    run = command(script, "pub", "news", "hi")
    assert run.returncode == 1 and run.stderr.splitlines()[-1].startswith("starlight: ")
    assert "Traceback" not in run.stderr and is_harmless(run.stderr)
