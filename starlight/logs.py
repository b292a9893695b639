"""The log of a node that has a process of its own: one handler, through which every line goes.

Strategy: modules log through the standard library, so that in somebody else's program their lines are the program's.
Only `Node.run` comes here. The handler does three things, each in one place for all lines, tracebacks included:

- It leaves out what is too much. What clients can provoke comes from the loggers in `LIMITED`; from each line of source
  that logs, and for each place where an exception comes from, `LINES_PER_S` lines a second are written, and then one
  that says how many were left out. Lines of the application itself are the application's to bound.
- It escapes. No character of a text that has another meaning to a terminal or to a reader of lines is written as it is.
- It renders, by structlog: a line for people, or JSON.

The fan-out logs nothing, so none of this is ever on a message's way. structlog is imported at `set_up`, for 15 ms.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, MutableMapping
from types import ModuleType, TracebackType
from typing import Any, Final, TextIO

__all__ = ["LINES_PER_S", "Handler", "RateLimit", "escape", "set_level", "set_up"]

LINES_PER_S: Final = 5
"""Lines a second of each kind. Five show whether it is always the same; a flood at this rate is 30 MB a day."""

KINDS_LIMIT: Final = 1_000
"""Kinds of lines that are counted apart within a second; all others count as one. The sources have fewer than 200."""

LIMITED: Final = ("starlight", "asyncio", "aiohttp", "picows", "aiofastnet")
"""The loggers whose lines clients can provoke. An exception of a handler is logged by `starlight.handlers`."""

TEXT_LIMIT: Final = 8_192
"""The longest text in a line, in characters; the middle of a longer one is cut. A traceback is 1,000 to 4,000."""

UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters of ASCII (newline and escape among them) and of Latin-1, line separators, marks that turn the
direction of writing, and halves of characters."""

_UNSAFE_IN_TRACEBACK: Final = re.compile(UNSAFE.pattern.replace(r"\x00-\x1f", r"\x00-\x09\x0b-\x1f"))

Kind = tuple[object, ...]
EventDict = MutableMapping[str, Any]


def escape(text: str, unsafe: re.Pattern[str] = UNSAFE) -> str:
    r"""The text with what is unsafe written as Python does: ``\n``, ``\x1b``, ``\u202e``; cut to `TEXT_LIMIT`."""
    if len(text) > TEXT_LIMIT:
        half = TEXT_LIMIT // 2
        text = f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"
    return unsafe.sub(lambda found: ascii(found[0])[1:-1], text)


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
    """Where the line was logged, and where its exception was raised: all of it is in sources, none is a client's."""
    site = (record.name, record.lineno, record.levelno)
    if not isinstance(record.exc_info, tuple) or record.exc_info[0] is None:
        return site
    return (*site, record.exc_info[0].__qualname__, *_raised_at(record.exc_info[2]))


def _raised_at(traceback: TracebackType | None) -> tuple[object, ...]:
    if traceback is None:
        return ()
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)


class Handler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream, within a `RateLimit`."""

    def __init__(self, stream: TextIO, limit: RateLimit) -> None:
        super().__init__(stream)
        self.limit = limit

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a line unless there were too many of its kind in this second."""
        self.tell()
        self.acquire()
        try:
            is_admitted = self.limit.admits(record)
        finally:
            self.release()
        return bool(super().handle(record)) if is_admitted else False

    def tell(self, *, at_end: bool = False) -> None:
        """Write what the last second left out, if it is over, or if the process ends."""
        self.acquire()
        try:
            left_out = self.limit.left_out(at_end=at_end)
        finally:
            self.release()
        for count, text in left_out:
            what = "%d more like this were left out: %s"
            super().handle(logging.LogRecord(__name__, logging.WARNING, __file__, 0, what, (count, text), None))


def set_level(level: str) -> None:
    """The least severe line that is written from now on: debug, info, warning, error or critical."""
    logging.getLogger().setLevel(level.upper())


def set_up(level: str, format: str, stream: TextIO | None = None) -> Handler | None:
    """Send all lines of the process to a stream, unless logging has been set up: then it stays as it is.

    Args:
        level: the least severe that is written.
        format: console, json, or auto: console if the stream is a terminal, else json.
        stream: stderr by default.

    Returns the handler; None if logging was set up by somebody else.
    """
    root = logging.getLogger()
    if root.handlers:
        return next((handler for handler in root.handlers if isinstance(handler, Handler)), None)
    stream = stream or sys.stderr
    is_terminal = stream.isatty()
    handler = Handler(stream, RateLimit())
    handler.setFormatter(
        _formatter(is_json=format == "json" or (format == "auto" and not is_terminal), colors=is_terminal)
    )
    root.addHandler(handler)
    set_level(level)
    return handler


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
