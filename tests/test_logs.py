"""starlight.logs: what is written, what is left out, and what clients can't do to it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from starlight import logs
from starlight.logs import LINES_PER_S, Handler, RateLimit, escape
from tests.support_manager import Manager
from tests.wire_client import WireClient

ROOT = Path(__file__).parent.parent

HOSTILE = (
    "a\nERROR forged",
    "a\r\nERROR forged",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\x00\x08\x7f",
    "a\u2028b\u2029c",
    "\u202egnp.exe\u2066",
    "half \ud800",
    "'\"\\{}%s%n",
    "x" * 100_000,
)

SetUp = Callable[..., tuple[logging.Logger, io.StringIO]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def set_up() -> Iterator[SetUp]:
    """Logging as a process of its own has it, into a stream; as it was before at the end."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def start(
        format: str, level: str = "info", stream: io.StringIO | None = None
    ) -> tuple[logging.Logger, io.StringIO]:
        root.handlers.clear()
        stream = stream or io.StringIO()
        handler = logs.set_up(level, format, stream)
        assert root.handlers == [handler]
        return logging.getLogger("starlight.test"), stream

    try:
        yield start
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def is_clean(text: str) -> bool:
    """Whether it is lines of printable characters."""
    return all(line.isprintable() for line in text.split("\n"))


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_line_for_people(set_up: SetUp):
    log, stream = set_up("console")
    log.info("%d connections", 3)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z \[info +\] 3 connections \[starlight\.test\]\n", stream.getvalue()
    )


def test_a_line_of_json(set_up: SetUp):
    log, stream = set_up("json")
    log.warning("%d connections", 3)
    line = json.loads(stream.getvalue())
    assert list(line) == ["time", "level", "logger", "event"]
    assert (line["level"], line["logger"], line["event"]) == ("warning", "starlight.test", "3 connections")


def test_auto_is_console_on_a_terminal_and_json_elsewhere(set_up: SetUp, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    log, stream = set_up("auto", stream=Terminal())
    log.info("hi")
    assert "[info     ] hi" in stream.getvalue()
    log, stream = set_up("auto")
    log.info("hi")
    assert json.loads(stream.getvalue())["event"] == "hi"


def test_levels(set_up: SetUp):
    log, stream = set_up("json", level="warning")
    log.info("no")
    log.warning("yes")
    logs.set_level("debug")
    log.debug("now")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["yes", "now"]


def test_logging_that_was_set_up_stays(set_up: SetUp):
    root = logging.getLogger()
    mine = logging.NullHandler()
    root.handlers[:] = [mine]
    assert logs.set_up("info", "json", io.StringIO()) is None
    assert root.handlers == [mine]


def test_to_set_up_twice_is_once(set_up: SetUp):
    log, stream = set_up("json")
    assert isinstance(logs.set_up("info", "json", stream), Handler)
    log.info("hi")
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("format", ["console", "json"])
def test_an_application_that_uses_structlog_itself(set_up: SetUp, format: str):
    import structlog

    _, stream = set_up(format)
    structlog.get_logger("mine").info("sold", user="ann\n\x1b[2J", price=3)
    (line,) = stream.getvalue().splitlines()
    assert is_clean(line)
    if format == "json":
        assert (json.loads(line)["user"], json.loads(line)["price"]) == ("ann\\n\\x1b[2J", 3)
    else:
        assert "sold" in line and "price=3" in line and r"ann\n\x1b[2J" in line


# --- hostile texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:20])
@pytest.mark.parametrize("format", ["console", "json"])
def test_no_text_gets_out_of_its_line(set_up: SetUp, format: str, text: str):
    log, stream = set_up(format)
    log.info("user %s came", text)
    log.info(text)
    lines = stream.getvalue().removesuffix("\n").split("\n")
    assert len(lines) == 2
    for line in lines:
        assert is_clean(line)
        assert len(line) < 2 * logs.TEXT_LIMIT
        if format == "json":
            assert is_clean(json.loads(line)["event"]), "what a reader shows of it is not safe"


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:20])
@pytest.mark.parametrize("format", ["console", "json"])
def test_no_text_gets_out_of_its_traceback(set_up: SetUp, format: str, text: str):
    log, stream = set_up(format)
    try:
        raise ValueError(text)
    except ValueError as error:
        log.error("handler failed", exc_info=error)
    first, *rest = stream.getvalue().removesuffix("\n").split("\n")
    assert is_clean(stream.getvalue())
    assert "handler failed" in first
    if format == "json":
        assert not rest
        assert "Traceback (most recent call last)" in json.loads(first)["exception"]
    else:
        assert all(line.startswith("  | ") for line in rest)
        assert any("ValueError: " in line or "left out" in line for line in rest)


def test_escape_keeps_what_people_write():
    for text in ("Grüße, 東京, naïve, שלום, 🙂", "back\\slash 'quotes'"):
        assert escape(text) == text
    assert escape("a\nb\x1b\u202e") == r"a\nb\x1b\u202e"


# --- the limit -------------------------------------------------------------------------------------------------------


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def record(name: str = "starlight.x", lineno: int = 1, text: str = "refused %d") -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, __file__, lineno, text, (1,), None)


def test_lines_of_a_kind_are_counted_within_a_second():
    clock = Clock()
    limit = RateLimit(3, clock)
    assert [limit.admits(record()) for _ in range(5)] == [True] * 3 + [False] * 2
    assert limit.admits(record(lineno=2))
    assert limit.left_out() == []  # the second isn't over
    clock.now_s += 1
    assert limit.left_out() == [(2, "refused %d")]
    assert limit.left_out() == []
    assert [limit.admits(record()) for _ in range(4)] == [True] * 3 + [False]
    assert limit.left_out(at_end=True) == [(1, "refused %d")]


def test_lines_of_the_application_are_not_limited():
    limit = RateLimit(1, Clock())
    assert all(limit.admits(record("mine.module")) for _ in range(10))


def test_failures_in_different_places_are_different_kinds():
    def fail(how: Callable[[], Any]) -> logging.LogRecord:
        try:
            how()
        except Exception:
            return logging.LogRecord("starlight.handlers", logging.ERROR, "", 7, "failed", (), sys.exc_info())
        raise AssertionError

    def first() -> None:
        raise ValueError(1)

    def second() -> None:
        raise ValueError(2)

    limit = RateLimit(1, Clock())
    assert [limit.admits(fail(first)) for _ in range(3)] == [True, False, False]
    assert limit.admits(fail(second))
    assert limit.admits(fail(lambda: 1 / 0))


def test_the_memory_of_the_limit_is_bounded():
    limit = RateLimit(1, Clock())
    for lineno in range(5 * logs.KINDS_LIMIT):
        limit.admits(record(lineno=lineno))
    assert len(limit._counts) <= logs.KINDS_LIMIT + 1
    assert len(limit._texts) <= logs.KINDS_LIMIT + 1


def test_what_was_left_out_is_said(set_up: SetUp):
    stream, clock = io.StringIO(), Clock()
    handler = Handler(stream, RateLimit(clock=clock))
    for _ in range(1_000):
        handler.handle(record())
    assert stream.getvalue().splitlines() == ["refused 1"] * LINES_PER_S
    clock.now_s += 1.5
    handler.tell()
    handler.tell()
    assert stream.getvalue().splitlines()[LINES_PER_S:] == [
        f"{1_000 - LINES_PER_S} more like this were left out: refused %d"
    ]


# --- a node ----------------------------------------------------------------------------------------------------------

APPLICATION = """
from starlight import Starlight
app = Starlight(port=0, drain_timeout_s=2)

@app.on("fail")
def fail(client, data):
    raise ValueError(data)

@app.on_login
def check(client, login):
    if login.get("password") != "right":
        raise RuntimeError("for " + client.user)

app.run()
"""


@pytest.mark.parametrize("format", ["console", "json"])
async def test_a_node_writes_little_of_what_many_clients_provoke(tmp_path: Path, format: str):
    """Failing handlers, failing logins, failed handshakes, 300 of each: within the limits, and nothing unescaped."""
    async with Manager(tmp_path) as manager:
        process = await manager.start(sys.executable, "-c", APPLICATION, STARLIGHT_LOG_FORMAT=format)
        assert process.stderr is not None
        first = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
        found = re.search(r"listens on (ws://\S+:(\d+)/\S+)", first)
        assert found, first
        started_s = asyncio.get_running_loop().time()
        ann = await WireClient.login(found[1], "ann", password="right")
        for number in range(300):
            reply = await ann.ask("fail", data=HOSTILE[number % 7] + str(number))
            assert reply["type"] == "error"
        for number in range(300):
            if number % 3 == 0:
                eve = WireClient(await connect(found[1], compression=None))
                await eve.say("login", user=f"eve{number}")
                assert (await eve.closed())[0] == 1011
            _, writer = await asyncio.open_connection("127.0.0.1", int(found[2]))
            writer.write(b"GET /\x1b[2J HTTP/1.1\r\n\r\n")
            writer.close()
        await ann.close()
        took_s = asyncio.get_running_loop().time() - started_s
        status, log = await manager.end(process, signal.SIGTERM)
    assert status == 0
    assert is_clean(log)
    lines = [line for line in log.splitlines() if not line.startswith("  | ")]
    kinds = 8
    assert len(lines) < kinds * (LINES_PER_S + 1) * (took_s + 3)
    assert sum("failed" in line for line in lines) >= 3
    assert any("more like this were left out" in line for line in lines), (took_s, log)
    if format == "json":
        for line in lines:
            assert {"time", "level", "logger", "event"} <= set(json.loads(line))


def test_the_write_path_logs_nothing():
    for name in ("_fanout.pyx", "_core.pxd", "_flush.pxd", "_outbox.pxd", "_arena.pxd", "_wire.pxd"):
        text = (ROOT / "starlight" / name).read_text()
        assert not re.search(r"\blogging\b|\blog\.|\bprint\(", text), name


def test_a_program_that_serves_in_its_own_loop_keeps_its_logging():
    program = """
import asyncio, logging, sys
from starlight import Starlight

async def main():
    async with Starlight(port=0).serve():
        print(logging.getLogger().handlers, "structlog" in sys.modules)

asyncio.run(main())
"""
    import subprocess

    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.stdout == "[] False\n"
    assert run.stderr == ""
