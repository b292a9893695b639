"""The log of a node that has a process of its own: one handler, through which every line goes.

Strategy: modules log through the standard library, so that in somebody else's program their lines are the program's.
Only `Node.run` comes here. The handler does four things, each in one place for all lines, tracebacks included:

- It leaves out what is too much. What clients can provoke comes from the loggers in `LIMITED`; from each line of source
  that logs, and for each place where an exception comes from, `LINES_PER_S` lines a second are written, and then one
  that says how many were left out. Lines of the application itself are the application's to bound.
- It escapes. No character of a text that has another meaning to a terminal or to a reader of lines is written as it is.
- It renders, by structlog: a line for people, or JSON.
- It never waits. A thread of its own writes; a reader that is too slow for `WAITING_LIMIT_BYTES`, such as a terminal
  that somebody has stopped, loses lines and is told how many, and no client waits for it.

A log that is a file, by `log_file` or as the stderr that the shell has redirected, can be rotated: `LogHandler.reopen`
opens its name again, and a `log_file` is opened again by itself when another file, or none, has its name.

The fan-out logs nothing, so none of this is ever on a message's way. structlog is imported at `set_up`, for 15 ms.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import select
import stat
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from functools import partial
from queue import SimpleQueue
from types import ModuleType, TracebackType
from typing import Any, Final, TextIO

from starlight.config.printable import UNSAFE, escape
from starlight.config.reconfigure import Commit
from starlight.config.settings import Settings
from starlight.errors import ConfigError

__all__ = [
    "LINES_PER_S",
    "WAITING_LIMIT_BYTES",
    "LogHandler",
    "RateLimit",
    "Writer",
    "check_file",
    "reconfigure",
    "set_up",
]

log = logging.getLogger(__name__)

LINES_PER_S: Final = 5
"""Lines a second of each kind. Five show whether it is always the same; a flood at this rate is 30 MB a day."""

KINDS_LIMIT: Final = 1_000
"""Kinds of lines that are counted apart within a second; all others count as one. The sources have fewer than 200."""

WAITING_LIMIT_BYTES: Final = 4 * 2**20
"""What may wait for a slow reader, in bytes of lines: 20,000 lines, or 1,000 tracebacks; a pipe itself holds 64 KiB."""

FLUSH_TIMEOUT_S: Final = 1.0
"""How long the end of the process waits for a reader that does not read."""

LOOK_S: Final = 1.0
"""How often at most it is looked whether a log file still has its name: a system call or two."""

FILE_MODE: Final = 0o640
"""Of a log file that is made: who connected is nothing for everybody on the machine."""

LIMITED: Final = ("starlight", "asyncio", "aiohttp", "picows", "aiofastnet")
"""The loggers whose lines clients can provoke. An exception of a handler is logged by `starlight.channels.handlers`."""

_UNSAFE_IN_TRACEBACK: Final = re.compile(UNSAFE.pattern.replace(r"\x00-\x1f", r"\x00-\x09\x0b-\x1f"))

Kind = tuple[object, ...]
EventDict = MutableMapping[str, Any]


class RateLimit:
    """Counts lines by kind in seconds of the clock.

    Args:
        lines_per_s: of each kind.
        clock: monotonic seconds.
    """

    def __init__(self, lines_per_s: int = LINES_PER_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines_per_s = lines_per_s
        self._clock = clock
        self._second_s = clock()
        self._counts: dict[Kind, int] = {}
        self._texts: dict[Kind, str] = {}

    def admits(self, record: logging.LogRecord) -> bool:
        """Count a line; whether it is to be written. Ask `left_out` first."""
        if record.name.partition(".")[0] not in LIMITED:
            return True
        kind = _kind(record)
        if kind not in self._counts and len(self._counts) >= KINDS_LIMIT:
            kind = ("others",)
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count == self._lines_per_s + 1:
            self._texts[kind] = str(record.msg)
        return count <= self._lines_per_s

    def left_out(self, *, at_end: bool = False) -> list[tuple[int, str]]:
        """At the end of a second, how many lines of which kind it left out; the next second begins.

        Args:
            at_end: the process ends, and the second with it.
        """
        now_s = self._clock()
        if now_s - self._second_s < 1 and not at_end:
            return []
        left_out = [(self._counts[kind] - self._lines_per_s, text) for kind, text in self._texts.items()]
        self._second_s = now_s
        self._counts.clear()
        self._texts.clear()
        return left_out


def _kind(record: logging.LogRecord) -> Kind:
    """Where the line was logged, and where its exception was raised: all of it is in sources, none is a client's.

    A line may add a `kind` of its own (by `extra`), out of a table: one place logs every end of a connection.
    """
    site = (record.name, record.lineno, record.levelno, getattr(record, "kind", None))
    if not isinstance(record.exc_info, tuple) or record.exc_info[0] is None:
        return site
    return (*site, record.exc_info[0].__qualname__, *_raised_at(record.exc_info[2]))


def _raised_at(traceback: TracebackType | None) -> tuple[object, ...]:
    if traceback is None:
        return ()
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)


class Writer:
    """Writes texts to a stream, in their order, in a thread of its own.

    The queue is a `SimpleQueue`, as a signal handler or the garbage collector may log in the middle of a `put`: one
    with a lock in Python (`queue.Queue`, usual for `logging.handlers.QueueHandler`) would wait for itself then. And
    `QueueListener.stop` would wait without end for a reader that does not read.

    Args:
        stream: with a descriptor, which is written to directly: the interpreter's end would wait for the lock of a
            buffer. Or one without, such as a `StringIO`.
        path: its name if it is a file that can be opened again.
        is_watched: whether it is opened again by itself, when another file or none has the name.
    """

    def __init__(self, stream: TextIO, path: str | None = None, *, is_watched: bool = False) -> None:
        self._stream = stream
        self._fd = _descriptor(stream)
        self._path = path
        self._is_watched = is_watched
        self._looked_s = time.monotonic()
        self._queue: SimpleQueue[bytes | threading.Event | Callable[[], None] | None] = SimpleQueue()
        self._put_bytes = 0  # counted by whoever puts
        self._done_bytes = 0  # counted by the thread
        self._is_closed = False
        self._pid = os.getpid()
        threading.Thread(target=self._run, name="starlight-log", daemon=True).start()

    @property
    def fd(self) -> int:
        """The descriptor that is written to, the same as long as the process lives; -1 without one."""
        return -1 if self._fd is None else self._fd

    @property
    def waiting_bytes(self) -> int:
        """What has been put and is not written yet."""
        return self._put_bytes - self._done_bytes

    def put(self, text: str) -> None:
        """Have a text written. By one thread at a time."""
        data = text.encode("utf-8", "backslashreplace")
        if os.getpid() != self._pid:  # in a child made by fork there is no thread, and no client who waits
            self._write(data)
        elif not self._is_closed:
            self._put_bytes += len(data)
            self._queue.put(data)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was put is written; False if that took too long."""
        if self._is_closed or os.getpid() != self._pid:
            return True
        written = threading.Event()
        self._queue.put(written)
        return written.wait(timeout_s)

    def reopen(self) -> bool:
        """Have the file's name opened again, behind what waits; False if it is none. Failing is logged."""
        if self._path is None or self._is_closed:
            return False
        self._queue.put(self._reopen)
        return True

    def close(self) -> None:
        """End the thread, as soon as it has written all; nothing can be put any more."""
        self._is_closed = True
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, bytes):
                if self._is_watched:
                    self._look()
                self._write(item)
                self._done_bytes += len(item)
            elif isinstance(item, threading.Event):
                item.set()
            else:
                item()

    def _look(self) -> None:
        """Open the file again if it has lost its name. In the thread."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        if not _has_name(self._fd, self._path):
            self._reopen()

    def _reopen(self) -> None:
        """Let the descriptor be one of the file that has the name now, or that is made. In the thread.

        The standard streams move with it if they are the same file: the shell's ``>log 2>&1``.
        """
        assert self._fd is not None and self._path is not None
        try:
            fd = _open(self._path)
        except OSError as error:
            log.warning("the log file %s could not be opened again: %s", self._path, error.strerror)
            return
        try:
            old = os.fstat(self._fd)
            for other in (1, 2):
                if other != self._fd and _is_file(other, old):
                    os.dup2(fd, other)
            os.dup2(fd, self._fd, inheritable=self._fd <= 2)
        finally:
            os.close(fd)

    def _write(self, data: bytes) -> None:
        try:
            if self._fd is None:
                self._stream.write(data.decode())
                self._stream.flush()
            else:
                _write_all(self._fd, data)
        except (OSError, ValueError):  # its disk is full, its reader is gone, or it is closed: serving goes on
            pass


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, FILE_MODE)


def _is_file(fd: int, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), file)
    except OSError:
        return False


def _has_name(fd: int | None, path: str | None) -> bool:
    """Whether the file behind a descriptor is the one with the name."""
    try:
        return fd is not None and path is not None and _is_file(fd, os.stat(path))
    except FileNotFoundError:
        return False
    except OSError:  # as long as it can't be looked at, nothing better can be opened
        return True


def _name_of(stream: TextIO) -> str | None:
    """The name of the file that a shell has redirected stderr to; None if it is something else.

    Whoever truncates the file (copytruncate) shall not get a hole of zeros before the next line, so it is appended to.
    """
    fd = _descriptor(stream)
    try:
        if fd is None or not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
        path = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return None
    return path if _has_name(fd, path) else None


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:  # somebody with whom it is shared has made it so
            writable = select.poll()
            writable.register(fd, select.POLLOUT)
            writable.poll()


class LogHandler(logging.Handler):
    """Writes lines to a stream by a `Writer`, within a `RateLimit`; `path` and `is_watched` are the writer's."""

    def __init__(self, stream: TextIO, limit: RateLimit, path: str | None = None, *, is_watched: bool = False) -> None:
        super().__init__()
        self.limit = limit
        self._writer = Writer(stream, path, is_watched=is_watched)
        self._lost = 0

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a line unless there were too many of its kind in this second."""
        self.tell()
        self.acquire()
        try:
            is_admitted = self.limit.admits(record)
        finally:
            self.release()
        return bool(super().handle(record)) if is_admitted else False

    def emit(self, record: logging.LogRecord) -> None:
        """Have a line written; if too much waits already it is lost, and counted. Called with the handler's lock."""
        if not self._has_room():
            self._lost += 1
            return
        try:
            self._writer.put(self.format(record) + "\n")
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say that a line could not be made, as of wrong arguments; the one of logging writes to stderr itself."""
        where = _own_line("a line of %s:%d could not be written", record.pathname, record.lineno)
        where.exc_info = sys.exc_info()
        self._writer.put(self.format(where) + "\n")

    def tell(self, *, at_end: bool = False) -> None:
        """Write what a slow reader lost, and what the last second left out, if it is over or the process ends."""
        self.acquire()
        try:
            left_out = self.limit.left_out(at_end=at_end)
            lost, self._lost = (self._lost, 0) if self._has_room() else (0, self._lost)
        finally:
            self.release()
        if lost:
            super().handle(_own_line("%d lines were lost, as the log was not read fast enough", lost))
        for count, text in left_out:
            super().handle(_own_line("%d more like this were left out: %s", count, text))

    def _has_room(self) -> bool:
        """Whether a line may wait. After a loss there is room only when half of the others are written."""
        return self._writer.waiting_bytes < (WAITING_LIMIT_BYTES // 2 if self._lost else WAITING_LIMIT_BYTES)

    @property
    def fd(self) -> int:
        """The descriptor that lines are written to; -1 without one."""
        return self._writer.fd

    def reopen(self) -> bool:
        """Open the log's file by its name again, as after a rotation by rename; False if the log is no file."""
        return self._writer.reopen()

    def last_line(self, text: str) -> bytes:
        """A line that somebody without Python can write: a format for `time.strftime`, in UTC."""
        record = logging.LogRecord("starlight.server.process", logging.ERROR, __file__, 0, text, (), None)
        line = self.format(record).replace("%", "%%") + "\n"
        return _TIME.sub("%Y-%m-%dT%H:%M:%S.000000Z", line, count=1).encode()

    def flush(self) -> None:
        """Wait until all lines are written, for `FLUSH_TIMEOUT_S` at most."""
        self._writer.flush(FLUSH_TIMEOUT_S)

    def close(self) -> None:
        """Write no more after what is there; at the end of the process `logging.shutdown` calls it behind `flush`."""
        self._writer.close()
        super().close()


_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z")


def _own_line(what: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, what, args, None)


def reconfigure(settings: Settings) -> Commit:
    """Another `log_level`: see `config.reconfigure`.

    Nothing happens if logging was set up by somebody else: then the level is theirs, too.
    """
    return partial(_set_level, settings.log_level)


def _set_level(level: str) -> None:
    root = logging.getLogger()
    if any(isinstance(handler, LogHandler) for handler in root.handlers):
        root.setLevel(level.upper())


def set_up(level: str, format: str, stream: TextIO | None = None, *, file: str = "") -> LogHandler | None:
    """Send all lines of the process to a stream or a file, unless logging has been set up: then it stays as it is.

    Args:
        level: the least severe that is written.
        format: console, json, or auto: console if the stream is a terminal, else json.
        stream: stderr by default.
        file: the name of a file to append to instead.

    Returns the handler; None if logging was set up by somebody else. Raises `ConfigError` if the file can't be written.
    """
    root = logging.getLogger()
    if root.handlers:
        handler = next((handler for handler in root.handlers if isinstance(handler, LogHandler)), None)
        if handler is None and file:
            log.warning("log_file=%s is left alone: the program has set up logging", file)
        return handler
    stream = _open_file(file) if file else stream or sys.stderr or _nowhere()
    path = os.path.abspath(file) if file else _name_of(stream)
    is_terminal = stream.isatty()
    handler = LogHandler(stream, RateLimit(), path, is_watched=bool(file))
    handler.setFormatter(
        _formatter(is_json=format == "json" or (format == "auto" and not is_terminal), colors=is_terminal)
    )
    root.addHandler(handler)
    _set_level(level)
    return handler


def check_file(path: str) -> None:
    """Raise `ConfigError` if a log file of that name could not be written; nothing is made."""
    try:
        if os.path.exists(path):
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK))
        elif not os.access(os.path.dirname(path) or ".", os.W_OK | os.X_OK):
            raise PermissionError(0, "no such directory, or nothing may be made in it")
    except OSError as error:
        raise _not_writable(path, error) from None


def _open_file(path: str) -> TextIO:
    try:
        return os.fdopen(_open(path), "w")
    except OSError as error:
        raise _not_writable(path, error) from None


def _not_writable(path: str, error: OSError) -> ConfigError:
    return ConfigError("log_file", path, f"a file that can be written ({(error.strerror or 'error').lower()})")


def _nowhere() -> TextIO:
    """What takes the place of a stderr that was closed before the start: no connection may get its number."""
    while (fd := os.open(os.devnull, os.O_WRONLY)) <= 2:
        pass
    return os.fdopen(fd, "w")


def _formatter(is_json: bool, colors: bool) -> logging.Formatter:
    structlog = _import_structlog()
    shared = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
    ]
    if not structlog.is_configured():  # for an application that logs through structlog itself
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.stdlib.PositionalArgumentsFormatter(),
                *shared,
                structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
        )
    if is_json:
        last = [_escape_json, structlog.processors.JSONRenderer(default=repr)]
    else:
        colors = colors and not os.environ.get("NO_COLOR")
        plain = structlog.dev.plain_traceback
        last = [
            _escape_console,
            structlog.dev.ConsoleRenderer(
                colors=colors, pad_event_to=0, timestamp_key="time", exception_formatter=plain, sort_keys=False
            ),
        ]
    formatter: logging.Formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        use_get_message=True,
    )
    return formatter


def _import_structlog() -> ModuleType:
    """structlog without rich, which it would load for tracebacks that we don't want: 80 ms of a start instead of 15."""
    hides = "rich" not in sys.modules
    if hides:
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog
    finally:
        if hides:
            del sys.modules["rich"]
    return structlog


def _escape_json(logger: object, method: str, event: EventDict) -> EventDict:
    """Texts escaped before JSON does it, so that what a reader prints of them is safe; a traceback keeps its lines."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = escape(value, _UNSAFE_IN_TRACEBACK if key in _TRACEBACKS else UNSAFE)
    return {key: event.pop(key) for key in _FIRST if key in event} | dict(event)


def _escape_console(logger: object, method: str, event: EventDict) -> EventDict:
    """Texts escaped; a traceback's lines behind bars, so that no text in it looks like a line of the log."""
    for key, value in event.items():
        if key in _TRACEBACKS:
            event[key] = "\n".join("  | " + line for line in escape(str(value), _UNSAFE_IN_TRACEBACK).split("\n"))
        elif not isinstance(value, (bool, int, float, type(None))):
            event[key] = escape(value if isinstance(value, str) else repr(value))
    return event


_TRACEBACKS: Final = ("exception", "stack")
_FIRST: Final = ("time", "level", "logger", "event")
