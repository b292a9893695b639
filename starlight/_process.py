"""A node as all that its process does: log, signals, service manager, garbage collector, and the exit.

The first SIGTERM or SIGINT begins the drain, the second one ends the process at once; SIGHUP reads again what can be
read again. As process 1 of a container, where the kernel drops signals that nobody handles, it handles them from the
first moment on. A program that serves in a loop of its own (`Starlight.serve`) gets nothing of this.
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
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn, Protocol

from starlight import activation, logs
from starlight.config import Settings, unknown_variables

__all__ = ["Node", "run"]

log = logging.getLogger(__name__)

BEAT_S: Final = 1.0
"""How often the log says what it has left out, and at least as often a watchdog is told that the loop turns."""


class Node(Protocol):
    """What is asked of a node."""

    @property
    def settings(self) -> Settings: ...
    @property
    def has_stuck_threads(self) -> bool: ...
    async def start(self, listening: Sequence[socket.socket] = ()) -> None: ...
    async def drain_begun(self) -> None: ...
    async def drain(self) -> None: ...
    async def reload(self) -> bool: ...


def run(node: Node) -> None:
    """Serve until a signal or a drain, then return; blocking, on a uvloop of its own.

    In the main thread it takes the signals. It writes the log to stderr unless logging has been set up, takes the
    sockets of the service manager, tells it how it is, and tunes the garbage collector. Raises what `start` raises.
    """
    import uvloop

    if os.getpid() == 1 and _is_main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave_early)
    handler = logs.set_up(node.settings.log_level, node.settings.log_format)
    for line in unknown_variables(os.environ):
        log.warning("%s", line)
    try:
        uvloop.run(_serve(node, activation.listening_sockets(), handler))
    finally:
        if handler is not None:
            handler.flush()  # what the program writes next comes behind it
    if node.has_stuck_threads:  # the interpreter would wait for them without end
        log.warning("handlers with thread=True are still under way; leaving without them")
        _leave(0)


async def _serve(node: Node, listening: Sequence[socket.socket], handler: logs.Handler | None) -> None:
    signalled = asyncio.Event()
    if _is_main_thread():
        _take_signals(node, signalled)
    await node.start(listening)
    beating = asyncio.create_task(_beat(handler))
    try:
        _tune_gc()
        activation.notify("READY=1", f"STATUS=serving, process {os.getpid()}")
        await _first_of(signalled, node)
        activation.stopping(node.settings.drain_timeout_s)
    finally:
        await node.drain()
        beating.cancel()
        if handler is not None:
            handler.tell(at_end=True)


def _take_signals(node: Node, signalled: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, number, signalled)
    loop.add_signal_handler(signal.SIGHUP, _on_reload, node)


async def _first_of(signalled: asyncio.Event, node: Node) -> None:
    """Return at a signal, or when something else, such as the internal port, has begun the drain."""
    waiting = [asyncio.ensure_future(signalled.wait()), asyncio.ensure_future(node.drain_begun())]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


async def _beat(handler: logs.Handler | None) -> None:
    """Tell the watchdog that the loop turns, and the log's reader what was left out, until it is cancelled."""
    watchdog_s = activation.watchdog_interval_s()
    while True:
        await asyncio.sleep(min(BEAT_S, watchdog_s or BEAT_S))
        if watchdog_s is not None:
            activation.notify("WATCHDOG=1")
        if handler is not None:
            handler.tell()


def _on_signal(number: signal.Signals, signalled: asyncio.Event) -> None:
    """The first signal begins the drain, the second one ends the process."""
    if signalled.is_set():
        _leave(128 + number)
    log.info("%s: draining; once more leaves at once", number.name)
    signalled.set()


def _on_reload(node: Node) -> None:
    """SIGHUP."""
    task = asyncio.ensure_future(_reload(node))
    _reloads.add(task)
    task.add_done_callback(_reloads.discard)


_reloads: Final[set[asyncio.Task[None]]] = set()
"""Under way: the loop itself holds tasks weakly."""


async def _reload(node: Node) -> None:
    activation.reloading()
    try:
        if await node.reload():
            logs.set_level(node.settings.log_level)
    except Exception:
        log.exception("reading the configuration again failed")
    finally:
        activation.notify("READY=1")


def _is_main_thread() -> bool:
    """Whether this thread is the one that may take signals."""
    return threading.current_thread() is threading.main_thread()


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
