"""`starlight bench` against servers that break the protocol, flood, or write to the terminal of who measures them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from starlight.loadtest import BadTarget, Result, Target, run_scenario
from starlight.loadtest._engine import PROTOCOL_ERRORS, make_data
from starlight.loadtest.scenario import build
from tests.support.hostile_server import Guest, frame, hostile_server, text
from tests.support.loadtest import SHORT, short_run

Script = Callable[[Guest], None]
TRICKS = "\x1b]0;PWNED\x07\x1b[31mRED\u202e\r\nfake line"
LIMIT_S = 60.0


def url(port: int) -> str:
    return f"ws://127.0.0.1:{port}/ws"


def after_the_first_message(act: Script) -> Script:
    """A script that is a good server until the first publication comes, and then does something else."""

    def script(guest: Guest) -> None:
        guest.shake_hands()
        guest.log_in()
        guest.read_message()
        act(guest)
        guest.drain()

    return script


def run_against(script: Script, **changes: object) -> Result:
    """A run in which each of three connections publishes."""
    settings = {"connections": 3, "publishers": 3, "settle_s": 0.1} | changes
    with hostile_server(script) as port:
        return short_run(url(port), **settings)


def bench(script: Script, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it."""
    with hostile_server(script) as port:
        return subprocess.run(
            [sys.executable, "-m", "starlight", "bench", "broadcast", "-u", url(port), "-c", "3", "-d", "300ms",
             "--publishers", "3", "--warmup", "0s", "--settle", "100ms", "-q", *words],
            capture_output=True, text=True, timeout=LIMIT_S, check=False, env={**os.environ, "COLUMNS": "300"},
        )  # fmt: skip


FRAMES = {
    "masked frame": frame(1, b"hello", mask=True),
    "reserved bits": frame(1, b"hello", first=0xC0),
    "reserved opcode": frame(3, b"hello"),
    "control frame over 125 bytes": frame(9, bytes(126)),
    "fragmented control frame": frame(9, b"x", first=0),
    "fragments out of order": frame(1, b"a", first=0) + frame(1, b"b"),
    "length not in its shortest form": b"\x81\x7e\x00\x05hello",
    "length of over 63 bits": b"\x81\x7f" + b"\xff" * 8,
    "frame over 512 KiB": b"\x82\x7f" + (2**19 + 1).to_bytes(8, "big"),
    "message over 8 MiB": frame(1, b"a", first=0) + frame(0, bytes(2**19), first=0) * 17,
    "message of over 65,536 fragments": frame(1, b"", first=0) + frame(0, b"", first=0) * 65_536,
    "close frame of one byte": frame(8, b"\x03"),
    "close code that may not be sent": frame(8, (1005).to_bytes(2, "big")),
    "close reason that is not UTF-8": frame(8, b"\x03\xe8\xff"),
    "text that is not UTF-8": frame(1, b"\xed\xa0\x80"),
}
"""What breaks the protocol once the handshake is done, by what it is called."""


@pytest.mark.parametrize("kind", FRAMES)
def test_what_breaks_the_protocol_is_counted_by_kind(kind: str) -> None:
    result = run_against(after_the_first_message(lambda guest: guest.send(FRAMES[kind])))
    assert result.protocol_errors == {kind: 3}
    assert result.disconnects == 3 and kind in result.first_disconnect


@pytest.mark.parametrize("payload", [bytes(126), bytes(500_000)])
def test_a_long_ping_is_refused_by_its_header(payload: bytes) -> None:
    head = frame(9, payload)[:2]
    assert run_against(after_the_first_message(lambda guest: guest.send(head))).protocol_errors == {
        "control frame over 125 bytes": 3
    }


def test_continuation_without_a_beginning() -> None:
    result = run_against(after_the_first_message(lambda guest: guest.send(frame(0, b"x"))))
    assert result.protocol_errors == {"fragments out of order": 3}


def test_the_peer_is_told_by_a_close_frame() -> None:
    ends: list[tuple[int, bytes]] = []

    def act(guest: Guest) -> None:
        guest.send(frame(3))
        while not ends or ends[-1][0] != 8:
            ends.append(guest.read_frame())

    run_against(after_the_first_message(act), connections=1, publishers=1)
    assert ends[-1] == (8, (1002).to_bytes(2, "big"))


HANDSHAKES: dict[str, dict[str, str | None]] = {
    "101 without 'Upgrade: websocket' and 'Connection: Upgrade'": {"Upgrade": None},
    "101 without 'Upgrade: websocket' and 'Connection: Upgrade' ": {"Connection": "close"},
    "Sec-WebSocket-Accept is wrong": {"Sec-WebSocket-Accept": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="},
    "Sec-WebSocket-Accept is wrong ": {"Sec-WebSocket-Accept": None},
    "subprotocol that was not asked for": {"Sec-WebSocket-Protocol": "chat"},
    "extension that was not asked for": {"Sec-WebSocket-Extensions": "permessage-deflate"},
    "answer to the upgrade of over 16 KiB": {"X": "x" * 20_000},
}


@pytest.mark.parametrize("kind", HANDSHAKES)
def test_handshakes_are_checked(kind: str) -> None:
    with pytest.raises(BadTarget) as caught:
        run_against(lambda guest: guest.shake_hands(HANDSHAKES[kind]))
    assert f"protocol errors: {kind.strip()}: " in str(caught.value)


def test_an_answer_without_an_end_is_given_up() -> None:
    def script(guest: Guest) -> None:
        guest.read_request()
        for _ in range(1_000):
            guest.send(b"HTTP/1.1 101 X\r\n" + b"X: x\r\n" * 100)

    with pytest.raises(BadTarget, match="over 16 KiB"):
        run_against(script)


@pytest.mark.parametrize("taken", ["starlight.v1", None])
def test_servers_may_take_the_subprotocol_or_none(taken: str | None) -> None:
    def script(guest: Guest) -> None:
        guest.shake_hands({"Sec-WebSocket-Protocol": taken})
        guest.log_in()
        guest.drain()

    assert run_against(script).connections == 3


def test_refusals_redirects_and_retry_after_are_told_on_one_harmless_line() -> None:
    def script(guest: Guest) -> None:
        guest.read_request()
        guest.send(b"HTTP/1.1 302 \x1b[31mFound\r\nLocation: ws://\x1b]0;x\x07/\r\nRetry-After: 9\x07\r\n\r\n")

    with pytest.raises(BadTarget) as caught:
        run_against(script)
    told = str(caught.value)
    assert r"302 \x1b[31mFound; redirects are not followed, this one is to ws://\x1b]0;x\x07/" in told
    assert r"Retry-After: 9\x07" in told and told.isprintable()


# ---- the terminal


def says(shown: str) -> bool:
    """Whether the tricks are there, escaped, and nothing of them is not."""
    return r"\x1b]0;PWNED\x07\x1b[31mRED\u202e fake line" in shown and not set("\x1b\x07\u202e\r") & set(shown)


def http_answer(guest: Guest) -> None:
    guest.read_request()
    guest.send(f"HTTP/1.1 500 {TRICKS.replace(chr(13) + chr(10), ' ')}\r\n\r\n".encode())


def close_reason(guest: Guest) -> None:
    guest.shake_hands()
    guest.send(frame(8, (1008).to_bytes(2, "big") + TRICKS.encode()))


def refused_login(guest: Guest) -> None:
    guest.shake_hands()
    guest.read_message()
    guest.send(frame(1, b'{"type":"error","message":"' + TRICKS.encode() + b'"}'))


def close_while_measured(guest: Guest) -> None:
    guest.send(frame(8, (1008).to_bytes(2, "big") + TRICKS.encode()))


def errors_while_measured(guest: Guest) -> None:
    guest.send(frame(1, b'{"type":"error","id":1,"name":"' + TRICKS.encode() + b'"}'))


@pytest.mark.parametrize("script", [http_answer, close_reason, refused_login])
def test_what_a_server_says_while_connecting_is_shown_escaped(script: Script) -> None:
    run = bench(script)
    assert run.returncode == 2 and says(run.stderr.removesuffix("\n")), run.stderr


@pytest.mark.parametrize("act", [close_while_measured, errors_while_measured])
def test_what_a_server_says_while_measured_is_shown_escaped(act: Script, tmp_path: Path) -> None:
    page, recording = tmp_path / "run.html", tmp_path / "run.json"
    run = bench(after_the_first_message(act), "--html", str(page), "--json", str(recording))
    assert run.returncode == 1 and says(run.stdout), run.stdout + run.stderr
    assert says(page.read_text())
    assert json.loads(recording.read_text())["runs"][0]["close_codes" if act is close_while_measured else "errors"]


def test_the_report_names_the_kinds_and_fails() -> None:
    run = bench(after_the_first_message(lambda guest: guest.send(frame(9, bytes(200)))))
    assert run.returncode == 1
    assert "protocol errors" in run.stdout and "control frame over 125 bytes: 3" in run.stdout


# ---- floods and odd bytes


def run_until_done(act: Script) -> Result:
    """A run of one connection that goes on until `act` has ended."""
    done = threading.Event()

    def acting(guest: Guest) -> None:
        try:
            act(guest)
        finally:
            done.set()

    scenario = build("broadcast", SHORT | {"connections": 1, "duration_s": LIMIT_S, "settle_s": 0.1})
    with hostile_server(after_the_first_message(acting)) as port:
        return run_scenario(scenario, Target(url(port)), stop=done)


def test_pings_whose_answers_are_not_read_are_not_all_answered() -> None:
    """What the kernel doesn't take of the answers to 43 MB of pings is not kept, but for the last."""
    chunks, per_chunk = 40, 8_192
    pongs: list[bytes] = []

    def act(guest: Guest) -> None:
        for number in range(chunks):
            guest.send(frame(9, b"%0125d" % number) * per_chunk)
        while not pongs or int(pongs[-1]) < chunks - 1:
            opcode, payload = guest.read_frame()
            if opcode == 10:
                pongs.append(payload)

    result = run_until_done(act)
    assert not result.protocol_errors and pongs and int(pongs[-1]) == chunks - 1
    assert result.counters["pings"] == chunks * per_chunk > 2 * len(pongs)


def test_the_last_of_many_pings_is_answered() -> None:
    pongs: list[bytes] = []

    def act(guest: Guest) -> None:
        guest.send(b"".join(frame(9, b"%06d" % number) for number in range(20_000)))
        while not pongs or pongs[-1] != b"019999":
            opcode, payload = guest.read_frame()
            if opcode == 10:
                pongs.append(payload)

    run_until_done(act)
    assert pongs and pongs[-1] == b"019999" and pongs == sorted(pongs)


def test_empty_fragments_and_messages() -> None:
    odd = frame(1, b"", first=0) + frame(0, b"") + frame(1, b"") + frame(2, b"", first=0) + frame(0, b"") + frame(10)
    result = run_against(after_the_first_message(lambda guest: guest.send(odd)))
    assert not result.protocol_errors and result.disconnects == 0 and result.counters["damaged"] >= 9


def test_a_message_in_fragments_of_a_byte_with_pings_between() -> None:
    answer = json.dumps({"type": "error", "id": 1, "name": "in pieces"}).encode()
    pieces = frame(1, answer[:1], first=0) + b"".join(
        frame(0, bytes([b]), first=0) + frame(9, b"?") for b in answer[1:]
    )

    def act(guest: Guest) -> None:
        for byte in pieces + frame(0) + frame(9, b"end"):
            guest.send(bytes([byte]))
        while guest.read_frame() != (10, b"end"):
            pass

    result = run_until_done(act)
    assert "in pieces" in result.first_error and result.counters["pings"] == len(answer)


@pytest.mark.parametrize("tail", [b'"', b'""', b"", b"\\", b'"' * 40])
def test_stamps_of_messages_that_nobody_sent(tail: bytes) -> None:
    """A number that was never sent has no size: the checksum of what lies behind it must not be tried."""
    stamps = b"".join(frame(1, make_data(stream, 0, 16)[1:-1] + tail) for stream in range(3))
    result = run_against(after_the_first_message(lambda guest: guest.send(stamps)), rate=1.0)
    assert result.counters["sent"] <= 3 and result.disconnects == 0


def test_welcomes_and_replies_that_nobody_asked_for() -> None:
    ids = [0, 1_000_000_000, 1_000_000_001, 2_000_000_001, 3_000_000_009, 10**19, 2**64 + 1_000_000_001]
    replies = b"".join(text(type=kind, id=number) for kind in ("ok", "error", "welcome") for number in ids)
    cut = b"".join(frame(1, b'{"type":"erro'[:n]) + frame(1, b'{"type": "ok"'[:n]) for n in range(14))
    result = run_against(after_the_first_message(lambda guest: guest.send(replies + cut)))
    assert result.errors >= 3 * len(ids) and result.disconnects == 0 and not result.protocol_errors


def test_every_kind_has_a_name_of_its_own() -> None:
    assert len(set(PROTOCOL_ERRORS)) == len(PROTOCOL_ERRORS) and {*FRAMES} <= {*PROTOCOL_ERRORS}
