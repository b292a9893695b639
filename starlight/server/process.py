"""A node as all that its process does: log, signals, service manager, garbage collector, and the exit.

The first SIGTERM or SIGINT begins the drain, the second one ends the process at once; SIGHUP reads again what can be
read again, SIGUSR1 opens the log file again. As process 1 of a container, where the kernel drops signals that nobody
handles, it handles them from the first moment on. A program that serves in a loop of its own (`Starlight.serve`) gets
nothing of this.

The law: from the first signal on, or the beginning of any other drain, the process lives for the drain timeout and
`GRACE_S` at most. What the application left running (threads, tasks that swallow their cancellation, atexit handlers)
is left behind with a warning that names it, and the status stays 0, as all clients have been sent away. A loop that a
handler holds can't drain: then `_exit_guard`, which needs no Python, ends the process with `EXIT_STUCK`, and at a
second signal with 128 + its number. So the status says which it was.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import starlight.server.exit_guard as guard  # this way its absence is a ModuleNotFoundError, which has a hint
from starlight.config.reconfigure import Commit
from starlight.config.settings import Settings, unknown_variables
from starlight.net import activation
from starlight.server import logs
from starlight.server.stall import StallWatch

if TYPE_CHECKING:
    from starlight.server.node import Node

__all__ = ["run", "take_early_signals"]

log = logging.getLogger(__name__)

BEAT_S: Final = 1.0
"""How often the log says what it has left out, and at least as often a watchdog is told that the loop turns."""


EXIT_STUCK: Final = 70
"""The exit status of a process whose drain did not end in time: EX_SOFTWARE of sysexits.h."""

GRACE_S: Final = 3.0
"""How much longer than the drain timeout the process lives at most: a second for requests at the internal port, one for
the last lines of the log, and one to spare. Less than `activation.STOP_RESERVE_S`."""

LEFT_RUNNING_S: Final = 0.5
"""How long after the drain's end what the application left running may still take to end after its cancellation."""

AWAITS_LIMIT: Final = 100
"""Coroutines that wait for each other, as far as they are followed to say what a task runs."""

_ASYNCIO: Final = os.path.dirname(asyncio.__file__)

ENDING: Final = (signal.SIGTERM, signal.SIGINT)
OTHERS: Final = (signal.SIGHUP, signal.SIGUSR1)

_STUCK: Final = "the drain did not end in time, as the loop was held up: leaving without it"
_SECOND: Final = "a second signal: leaving at once"
_LEFT: Final = "drained, but the program did not end in time: leaving without what is still running"


def run(node: Node) -> None:
    """Serve until a signal or a drain, then return; blocking, on a uvloop of its own.

    In the main thread it takes the signals. It writes the log to stderr or `log_file` unless logging has been set up,
    takes the sockets of the service manager, tells it how it is, and tunes the garbage collector. After a signal the
    program has until the drain timeout and `GRACE_S` are over for what it does after it. Raises what `start` raises.
    """
    import uvloop

    if _is_main_thread():
        take_early_signals()
    settings = node.settings
    handler = logs.set_up(settings.log_level, settings.log_format, file=settings.log_file)
    for line in unknown_variables(os.environ):
        log.warning("%s", line)
    try:
        uvloop.run(_serve(node, activation.listening_sockets(), handler))
    finally:
        if handler is not None:
            handler.flush()  # what the program writes next comes behind it
        if _is_main_thread():
            _give_signals_back(handler)
    if node.has_stuck_threads:  # the interpreter would wait for them without end
        log.warning("handlers with thread=True are still under way; leaving without them")
        _leave(0)


async def _serve(node: Node, listening: Sequence[socket.socket], handler: logs.LogHandler | None) -> None:
    signalled = asyncio.Event()
    if _is_main_thread():
        _take_signals(node, signalled, handler)
    if not await _started(node, listening, signalled):
        return
    watch = StallWatch()
    watch.start()
    beating = asyncio.create_task(_beat(handler, watch))
    try:
        _tune_gc()
        activation.notify("READY=1", f"STATUS=serving, process {os.getpid()}")
        await _first_of(signalled, node)
        end_s = time.monotonic() + node.settings.drain_timeout_s
        if _is_main_thread():
            guard.leave_within(node.settings.drain_timeout_s + GRACE_S)
        activation.stopping(node.settings.drain_timeout_s)
    finally:
        await node.drain()
        watch.stop()
        beating.cancel()
        if handler is not None:
            handler.tell(at_end=True)
    if _is_main_thread():
        guard.change_late(_last_line(handler, _LEFT), 0)
    left = await _end_the_rest(end_s)
    if left:
        log.warning("leaving without what did not end: %s", ", ".join(left))
        _leave(0)


async def _started(node: Node, listening: Sequence[socket.socket], signalled: asyncio.Event) -> bool:
    """Start the node, or give that up at a signal; whether it serves. Raises what `start` raises."""
    starting = asyncio.ensure_future(node.start(listening))
    waiting = asyncio.ensure_future(signalled.wait())
    await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
    if starting.cancelled():
        return False
    starting.result()
    return True


async def _end_the_rest(end_s: float) -> list[str]:
    """Cancel the application's tasks and wait for its threads; what of them did not end in time.

    Args:
        end_s: the end of the drain by the monotonic clock, after which they have `LEFT_RUNNING_S`.
    """
    loop = asyncio.get_running_loop()
    end_s += LEFT_RUNNING_S
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    left = []
    for task in tasks:
        task.cancel()
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=max(0.0, end_s - time.monotonic()))
        left = [f"a task that goes on although it was cancelled ({_what_it_runs(task)})" for task in late]
    closing = asyncio.ensure_future(loop.shutdown_default_executor())
    done, _ = await asyncio.wait((closing,), timeout=max(LEFT_RUNNING_S, end_s - time.monotonic()))
    if not done:
        left.append("a call in a thread (asyncio.to_thread or run_in_executor)")
    return left


def _what_it_runs(task: asyncio.Task[object]) -> str:
    """Where a task waits: the innermost function that is not asyncio's own, and its line."""
    awaited: Any = task.get_coro()
    place = str(getattr(awaited, "__qualname__", awaited))
    for _ in range(AWAITS_LIMIT):
        if awaited is not None and not hasattr(awaited, "cr_await"):  # a wrapper, by which a compiled one awaits others
            awaited = next((inner for inner in gc.get_referents(awaited) if hasattr(inner, "cr_await")), None)
        frame = getattr(awaited, "cr_frame", None)
        if frame is not None and os.path.dirname(frame.f_code.co_filename) == _ASYNCIO:
            break  # the last one before it is the application's, or ours
        if frame is not None:
            place = f"{awaited.__qualname__}, {frame.f_code.co_filename}:{frame.f_lineno}"
        awaited = getattr(awaited, "cr_await", None)
    return place


def take_early_signals() -> None:
    """Before the loop has them: no signal is lost on process 1, and none that asks for something kills.

    What SIGHUP and SIGUSR1 would read is read by the start that is under way. In the main thread.
    """
    if os.getpid() == 1:
        for number in ENDING:
            signal.signal(number, _leave_early)
    _ignore_others()


def _ignore_others() -> None:
    """Do nothing at SIGHUP and SIGUSR1, which kill otherwise; children get them as ever."""
    for number in OTHERS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _do_nothing)


def _take_signals(node: Node, signalled: asyncio.Event, handler: logs.LogHandler | None) -> None:
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, _on_signal, number, signalled)
    loop.add_signal_handler(signal.SIGHUP, _on_reload, node, handler)
    loop.add_signal_handler(signal.SIGUSR1, _on_reopen, handler)
    guard.arm(
        ENDING,
        node.settings.drain_timeout_s + GRACE_S,
        handler.fd if handler is not None else _stderr_fd(),
        _last_line(handler, _SECOND),
        _last_line(handler, _STUCK),
        EXIT_STUCK,
    )


def _give_signals_back(handler: logs.LogHandler | None) -> None:
    """After the loop: the guard stays if a signal has come, as the process has to end; else the program goes on."""
    if guard.is_signalled():
        names = [thread.name for thread in threading.enumerate() if not thread.daemon and not _is_main(thread)]
        what = f"threads {', '.join(names)}" if names else "its own end, such as an atexit handler"
        guard.change_late(_last_line(handler, f"{_LEFT}: {what}"), 0)
        guard.take(ENDING)
        _ignore_others()
    else:
        guard.disarm()


def _last_line(handler: logs.LogHandler | None, text: str) -> bytes:
    """What the guard writes: a line of the log, or, where logging is the program's, a plain one on stderr."""
    return handler.last_line(text) if handler is not None else f"starlight: {text}\n".encode()


def _stderr_fd() -> int:
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return -1


async def _first_of(signalled: asyncio.Event, node: Node) -> None:
    """Return at a signal, or when something else, such as the internal port, has begun the drain."""
    waiting = [asyncio.ensure_future(signalled.wait()), asyncio.ensure_future(node.drain_begun())]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


async def _beat(handler: logs.LogHandler | None, watch: StallWatch) -> None:
    """Tell the watchdog that the loop turns, and the log's reader what was left out, until it is cancelled."""
    watchdog_s = activation.watchdog_interval_s()
    while True:
        await asyncio.sleep(min(BEAT_S, watchdog_s or BEAT_S))
        watch.beat()
        if watchdog_s is not None:
            activation.notify("WATCHDOG=1")
        if handler is not None:
            handler.tell()


def _on_signal(number: signal.Signals, signalled: asyncio.Event) -> None:
    """The first signal begins the drain, the second one ends the process."""
    if signalled.is_set():
        log.warning("%s: %s", number.name, _SECOND)
        _leave(128 + number)
    log.info("%s: draining; once more leaves at once", number.name)
    signalled.set()


def _on_reopen(handler: logs.LogHandler | None) -> None:
    """SIGUSR1."""
    if handler is not None and handler.reopen():
        log.info("SIGUSR1: the log file was opened again")
    else:
        log.info("SIGUSR1: nothing to do, as this log is no file")


def _on_reload(node: Node, handler: logs.LogHandler | None) -> None:
    """SIGHUP."""
    if handler is not None:
        handler.reopen()
    task = asyncio.ensure_future(_reload(node))
    _reloads.add(task)
    task.add_done_callback(_reloads.discard)


_reloads: Final[set[asyncio.Task[None]]] = set()
"""Under way: the loop itself holds tasks weakly."""


async def _reload(node: Node) -> None:
    activation.reloading()
    try:
        await node.reload(logs.reconfigure, _reconfigure)
    except Exception:
        log.exception("reading the configuration again failed")
    finally:
        activation.notify("READY=1")


def _reconfigure(settings: Settings) -> Commit:
    """How long the process lives after a signal: see `config.reconfigure`."""
    return partial(guard.change_leave_after, settings.drain_timeout_s + GRACE_S)


def _is_main_thread() -> bool:
    """Whether this thread is the one that may take signals."""
    return _is_main(threading.current_thread())


def _is_main(thread: threading.Thread) -> bool:
    return thread is threading.main_thread()


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """A signal that asks for something before there is anything to ask."""


def _leave_early(number: int, frame: FrameType | None) -> NoReturn:
    """A signal before the loop has it: there is nobody to drain."""
    _leave(128 + number)


def _leave(status: int) -> NoReturn:
    """End the process now: no waiting for threads, tasks or clients."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # no stream, its disk is full, or it is closed
            continue
    os._exit(status)


def _tune_gc() -> None:
    """Take what start-up left out of the collector's sight.

    The modules loaded so far are some 36,000 objects that never die; each full collection would walk them, a pause of
    about 15 ms for all clients where it was measured.
    """
    gc.collect()
    gc.freeze()
