"""starlight.server.logs: what is written, what is left out, and what clients can't do to it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest
from websockets.asyncio.client import connect

from starlight.config.printable import TEXT_LIMIT, escape
from starlight.config.settings import Settings
from starlight.errors import ConfigError
from starlight.server import logs
from starlight.server.logs import LINES_PER_S, LogHandler, RateLimit
from tests.support.fakes import eventually
from tests.support.manager import Manager, activated, listening_socket
from tests.support.wire_client import WireClient

ROOT = Path(__file__).parents[2]

HOSTILE = (
    "a\nERROR forged",
    "a\r\nERROR forged",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\x00\x08\x7f",
    "a\u2028b\u2029c",
    "\u202egnp.exe\u2066",
    "a\u061c1",
    "half \ud800",
    "'\"\\{}%s%n",
    "x" * 100_000,
)

SetUp = Callable[..., tuple[logging.Logger, io.StringIO]]


class Stream(io.StringIO):
    """What has been written, when all of it is."""

    def getvalue(self) -> str:
        for handler in logging.getLogger().handlers:
            handler.flush()
        return super().getvalue()


class Terminal(Stream):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def set_up() -> Iterator[SetUp]:
    """Logging as a process of its own has it, into a stream; as it was before at the end."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    made: list[LogHandler] = []

    def start(
        format: str, level: str = "info", stream: io.StringIO | None = None
    ) -> tuple[logging.Logger, io.StringIO]:
        root.handlers.clear()
        stream = stream or Stream()
        handler = logs.set_up(level, format, stream)
        assert handler is not None
        assert root.handlers == [handler]
        made.append(handler)
        return logging.getLogger("starlight.test"), stream

    try:
        yield start
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        for handler in made:
            handler.close()


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
    logs.reconfigure(Settings(log_level="debug"))()
    log.debug("now")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["yes", "now"]


def test_logging_that_was_set_up_stays(set_up: SetUp):
    root = logging.getLogger()
    mine = logging.NullHandler()
    root.handlers[:] = [mine]
    root.setLevel("ERROR")
    assert logs.set_up("info", "json", io.StringIO()) is None
    logs.reconfigure(Settings(log_level="debug"))()
    assert root.handlers == [mine]
    assert root.level == logging.ERROR


def test_to_set_up_twice_is_once(set_up: SetUp):
    log, stream = set_up("json")
    assert isinstance(logs.set_up("info", "json", stream), LogHandler)
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
        assert len(line) < 2 * TEXT_LIMIT
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
            return logging.LogRecord("starlight.channels.handlers", logging.ERROR, "", 7, "failed", (), sys.exc_info())
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


@pytest.fixture
def make_handler() -> Iterator[Callable[[TextIO, RateLimit], LogHandler]]:
    made: list[LogHandler] = []

    def make(stream: TextIO, limit: RateLimit) -> LogHandler:
        made.append(LogHandler(stream, limit))
        return made[-1]

    try:
        yield make
    finally:
        for handler in made:
            handler.close()


MakeHandler = Callable[[TextIO, RateLimit], LogHandler]


def test_what_was_left_out_is_said(make_handler: MakeHandler):
    stream, clock = io.StringIO(), Clock()
    handler = make_handler(stream, RateLimit(clock=clock))
    for _ in range(1_000):
        handler.handle(record())
    handler.flush()
    assert stream.getvalue().splitlines() == ["refused 1"] * LINES_PER_S
    clock.now_s += 1.5
    handler.tell()
    handler.tell()
    handler.flush()
    assert stream.getvalue().splitlines()[LINES_PER_S:] == [
        f"{1_000 - LINES_PER_S} more like this were left out: refused %d"
    ]


# --- slow readers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe: the end to read, and the other one as a stream."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        try:
            yield reading, stream
        finally:
            os.close(reading)


def mine(text: str) -> logging.LogRecord:
    return record("mine", text=text + " %d")


def read_until(fd: int, end: bytes) -> list[str]:
    found = b""
    while not found.endswith(end):
        found += os.read(fd, 2**20)
    return found.decode().splitlines()


def test_a_reader_that_pauses_loses_nothing_and_the_order_is_kept(make_handler: MakeHandler, pipe: tuple[int, TextIO]):
    reading, stream = pipe
    handler = make_handler(stream, RateLimit())
    lines = [f"{number} {'x' * 200}" for number in range(5_000)]  # 1 MB, and a pipe holds 64 KiB
    for line in lines:
        handler.handle(mine(line))
    assert read_until(reading, b"4999 " + b"x" * 200 + b" 1\n") == [line + " 1" for line in lines]


def test_what_a_slow_reader_lost_is_said_at_its_place(
    make_handler: MakeHandler, pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logs, "WAITING_LIMIT_BYTES", 300_000)
    reading, stream = pipe
    handler = make_handler(stream, RateLimit())
    handler.handle(mine("x" * 200_000))  # more than the pipe holds, so nothing goes on before it is read
    for number in range(5_000):
        handler.handle(mine(f"{number} {'x' * 200}"))
    kept = b""
    while select.select([reading], [], [], 0.2)[0]:
        kept += os.read(reading, 2**20)
    handler.handle(mine("again"))
    (said, again) = read_until(reading, b"again 1\n")
    numbers = [int(line.split()[0]) for line in kept.splitlines()[1:]]
    assert numbers == list(range(len(numbers)))
    assert 100_000 // 220 < len(numbers) < 100_000 // 200
    assert said == f"{5_000 - len(numbers)} lines were lost, as the log was not read fast enough"
    assert again == "again 1"


def test_the_end_does_not_wait_long_for_a_reader_that_does_not_read(
    make_handler: MakeHandler, pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logs, "FLUSH_TIMEOUT_S", 0.05)
    reading, stream = pipe
    handler = make_handler(stream, RateLimit())
    handler.handle(mine("x" * 100_000))
    handler.flush()
    handler.close()
    assert len(read_until(reading, b" 1\n")) == 1


def test_a_pipe_that_others_made_non_blocking_loses_nothing(make_handler: MakeHandler, pipe: tuple[int, TextIO]):
    reading, stream = pipe
    os.set_blocking(stream.fileno(), False)
    handler = make_handler(stream, RateLimit())
    for number in range(1_000):
        handler.handle(mine(f"{number} {'x' * 200}"))
    handler.handle(mine("end"))
    assert len(read_until(reading, b"end 1\n")) == 1_001


def test_a_full_disk_and_a_closed_stream_hurt_nobody(make_handler: MakeHandler):
    with open("/dev/full", "w") as full:
        handler = make_handler(full, RateLimit())
        handler.handle(mine("no"))
        handler.flush()
    closed = io.StringIO()
    closed.close()
    handler = make_handler(closed, RateLimit())
    handler.handle(mine("no"))
    handler.flush()


def test_a_line_that_cannot_be_made_is_said(set_up: SetUp, capsys: pytest.CaptureFixture[str]):
    log, stream = set_up("json")
    log.info("%d connections", "\x1b[2J")
    line = json.loads(stream.getvalue())
    assert "test_logs.py" in line["event"] and "could not be written" in line["event"]
    assert "TypeError" in line["exception"]
    assert capsys.readouterr().err == ""


def test_a_child_made_by_fork_writes_its_lines_itself(make_handler: MakeHandler, pipe: tuple[int, TextIO]):
    reading, stream = pipe
    handler = make_handler(stream, RateLimit())
    child = os.fork()
    if child == 0:
        handler.handle(mine("child"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    handler.handle(mine("parent"))
    assert read_until(reading, b"parent 1\n") == ["child 1", "parent 1"]


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


CHATTY = """
import logging
from starlight import Starlight
app = Starlight()

@app.on("say")
def say(client, data):
    logging.getLogger("mine").error(data)
    return len(data)

@app.on("fail")
def fail(client, data):
    raise ValueError(data)

app.run()
"""


@asynccontextmanager
async def node_with_stderr(stderr: int, redirect: str = "") -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A node in a process of its own, whose log nobody reads: process and address."""
    with listening_socket() as sock:
        command = activated(sock, "sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-c", CHATTY)
        process = await asyncio.create_subprocess_exec(
            *command, pass_fds=(sock.fileno(),), stderr=stderr, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        try:
            yield process, f"ws://127.0.0.1:{sock.getsockname()[1]}/ws"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def provoke(url: str) -> None:
    """4 MB of log and more, in which every request is answered."""
    ann = await WireClient.login(url, "ann")
    eve = await WireClient.login(url, "eve")
    await eve.ask("join", channel="news")
    for number in range(50):
        for _ in range(100):
            await ann.say("say", data="x" * 1_000)
        assert (await ann.ask("fail", data=number))["type"] == "error"
        assert (await ann.ask("publish", channel="news", data=number))["type"] == "ok"
        assert (await eve.hear())["data"] == number
        _, writer = await asyncio.open_connection(*url.removeprefix("ws://").removesuffix("/ws").split(":"))
        writer.write(b"\x16\x03\x01")
        writer.close()
    await ann.close()
    await eve.close()


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_full_pipe_on_stderr_stops_nobody_and_does_not_keep_the_process(signals: int):
    reading, writing = os.pipe()
    with open(reading, "rb") as log:
        async with node_with_stderr(writing) as (process, url):
            os.close(writing)
            await provoke(url)
            if signals == 2:
                held = await WireClient.login(url, "held")
                process.send_signal(signal.SIGTERM)
                assert (await held.hear())["type"] == "bye"
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(15):
                status = await process.wait()
            assert status in ((0,) if signals == 1 else (0, 128 + signal.SIGTERM))
        found = log.read().splitlines()  # what the pipe held, whole lines but for the last
        assert b"listens on" in found[0]
        assert all(json.loads(line) for line in found[:-1])


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", "2>/dev/null"])
async def test_stderr_closed_or_its_disk_full_and_serving_goes_on(redirect: str):
    async with node_with_stderr(subprocess.DEVNULL, redirect) as (process, url):
        await provoke(url)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            assert await process.wait() == 0


async def test_a_log_whose_reader_is_gone_and_serving_goes_on():
    reading, writing = os.pipe()
    async with node_with_stderr(writing) as (process, url):
        os.close(writing)
        os.close(reading)
        await provoke(url)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            assert await process.wait() == 0


async def test_a_log_that_is_read_late_has_every_line(tmp_path: Path):
    """300 lines of the application's own, 300 KB, while nobody reads; then all of them in their order, and the end."""
    async with Manager(tmp_path) as manager:
        with listening_socket() as sock:
            process = await manager.start(sys.executable, "-c", CHATTY, listening=sock)
            ann = await WireClient.login(f"ws://127.0.0.1:{sock.getsockname()[1]}/ws", "ann")
            for number in range(300):
                assert (await ann.ask("say", data=f"{number} {'x' * 1_000}"))["type"] == "ok"
            await ann.close()
            status, log = await manager.end(process, signal.SIGTERM)
    events = [json.loads(line)["event"] for line in log.splitlines()]
    said = [int(event.split()[0]) for event in events if event.endswith("xxx")]
    assert (status, said, events[-1]) == (0, list(range(300)), "drained")


# --- rotation --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def node_that_logs_to(path: Path, how: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A node whose log is this file: by the shell or by a setting."""
    redirect, settings = f"{how}'{path}' 2>&1", {}
    if how == "log_file":
        redirect, settings = "", {"STARLIGHT_LOG_FILE": str(path)}
    with listening_socket() as sock:
        command = activated(sock, "sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-c", CHATTY)
        process = await asyncio.create_subprocess_exec(
            *command, pass_fds=(sock.fileno(),), cwd=ROOT, env={**os.environ, **settings, "PYTHONPATH": str(ROOT)}
        )
        try:
            await eventually(lambda: path.exists() and "listens on" in path.read_text(), 30)
            yield process, f"ws://127.0.0.1:{sock.getsockname()[1]}/ws"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def say(url: str, *texts: str) -> None:
    ann = await WireClient.login(url, "ann")
    for text in texts:
        await ann.ask("say", data=text)
    await ann.close()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
@pytest.mark.parametrize("how", [">>", ">", "log_file"])
async def test_a_log_that_is_renamed_goes_on_under_its_name_after_a_signal(
    tmp_path: Path, how: str, number: signal.Signals
):
    path, old = tmp_path / "node.log", tmp_path / "node.log.1"
    async with node_that_logs_to(path, how) as (process, url):
        await say(url, "before")
        await eventually(lambda: "before" in path.read_text())
        path.rename(old)
        process.send_signal(number)
        await eventually(path.exists)
        await say(url, "behind")
        await eventually(lambda: "behind" in path.read_text())
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 15) == 0
    assert "before" in old.read_text() and "behind" not in old.read_text()
    lines = path.read_text().splitlines()
    assert all(json.loads(line) for line in lines)
    assert "drained" in lines[-1]


async def test_a_log_file_that_is_renamed_is_made_again_without_a_signal(tmp_path: Path):
    path, old = tmp_path / "node.log", tmp_path / "node.log.1"
    async with node_that_logs_to(path, "log_file") as (process, url):
        path.rename(old)
        for number in range(1_000):
            await say(url, f"line {number}")
            if path.exists():
                break
            await asyncio.sleep(0.05)
        await eventually(lambda: f"line {number}" in path.read_text())
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 15) == 0


@pytest.mark.parametrize("how", [">>", ">", "log_file"])
async def test_a_log_that_is_cut_by_copytruncate_has_no_hole(tmp_path: Path, how: str):
    path = tmp_path / "node.log"
    async with node_that_logs_to(path, how) as (_, url):
        os.truncate(path, 0)
        await say(url, "behind")
        await eventually(lambda: "behind" in path.read_text())
        assert "\0" not in path.read_text()


async def test_a_log_file_that_can_not_be_opened_again_is_told_in_the_one_there_is(tmp_path: Path):
    directory = tmp_path / "logs"
    directory.mkdir()
    path, moved = directory / "node.log", tmp_path / "moved"
    async with node_that_logs_to(path, "log_file") as (process, url):
        directory.rename(moved)
        process.send_signal(signal.SIGUSR1)
        await eventually(lambda: "could not be opened again" in (moved / "node.log").read_text())
        await say(url, "behind")
        await eventually(lambda: "behind" in (moved / "node.log").read_text())


def test_a_log_file_that_can_not_be_written_is_a_wrong_setting(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "starlight", "serve", "--port", "0", "--log-file", str(tmp_path / "none" / "log")],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"--log-file {tmp_path / 'none' / 'log'}: expected a file that can be written (no such file" in done.stderr
    with pytest.raises(ConfigError, match="log_file"):
        logs.check_file(str(tmp_path / "none" / "log"))
    with pytest.raises(ConfigError, match="is a directory"):
        logs.check_file(str(tmp_path))
    logs.check_file(str(tmp_path / "log"))
    assert not (tmp_path / "log").exists()


def test_the_write_path_logs_nothing():
    package = ROOT / "starlight"
    for path in (package / "_fanout.pyx", *(package / "core").glob("*.pxd")):
        assert not re.search(r"\blogging\b|\blog\.|\bprint\(", path.read_text()), path.name


def test_a_program_that_serves_in_its_own_loop_keeps_its_logging():
    program = """
import asyncio, logging, sys
from starlight import Starlight

async def main():
    async with Starlight(port=0).serve():
        print(logging.getLogger().handlers, "structlog" in sys.modules)

asyncio.run(main())
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.stdout == "[] False\n"
    assert run.stderr == ""
