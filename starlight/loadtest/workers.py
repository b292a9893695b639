"""Engines and where they run: one in a thread of this process, or one in each of several forked processes.

The engine's loop runs without the GIL, so a thread is enough for one; a second core needs a second process. All share
one Arena, made before the fork. A worker takes method calls in order; Fleet calls all of them and waits in short
steps, so that Ctrl-C and progress get their turn.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Protocol

from starlight.loadtest._engine import Arena, Engine
from starlight.loadtest.errors import LoadTestError

STOP_GRACE_S = 2.0
REPLY_GRACE_S = 15.0
"""A forked worker that is this late with an answer is given up."""


class Worker(Protocol):
    """Something that runs methods of an Engine."""

    def call(self, method: str, *arguments: Any) -> Future[Any]: ...

    def close(self) -> None: ...


class ThreadWorker:
    """The engine in a thread of this process."""

    def __init__(self, make: Callable[[int], Engine]) -> None:
        self._engine = make(0)
        self._executor = ThreadPoolExecutor(1, "loadtest")

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        return self._executor.submit(getattr(self._engine, method), *arguments)

    def close(self) -> None:
        self._executor.shutdown()


class ProcessWorker:
    """The engine in a forked process."""

    def __init__(self, make: Callable[[int], Engine], process: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, make, process), daemon=True)
        self._process.start()
        child.close()
        self._executor: ThreadPoolExecutor | None = None

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "loadtest")
        return self._executor.submit(self._ask, method, arguments)

    def _ask(self, method: str, arguments: tuple[Any, ...]) -> Any:
        seconds = float(arguments[1]) if method == "run" else 0.0
        try:
            self._pipe.send((method, arguments))
            if not self._pipe.poll(seconds + REPLY_GRACE_S):
                raise LoadTestError(f"a generator process did not answer for {seconds + REPLY_GRACE_S:.0f} s")
            good, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise LoadTestError("a generator process ended early") from error
        if not good:
            raise LoadTestError(f"a generator process failed: {value}")
        return value

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
        with contextlib.suppress(OSError):
            self._pipe.send(None)  # closing alone is no end of file: later forks hold copies of our end
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(2)


def _serve(pipe: Any, make: Callable[[int], Engine], process: int) -> None:
    """A forked process: take calls until the pipe closes. Ctrl-C is the parent's business."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    engine = make(process)
    while True:
        try:
            asked = pipe.recv()
        except (EOFError, OSError):
            asked = None
        if asked is None:
            os._exit(0)
        method, arguments = asked
        try:
            answer = (True, getattr(engine, method)(*arguments))
        except Exception as error:  # whatever it is, the parent has to hear of it
            answer = (False, f"{type(error).__name__}: {error}")
        pipe.send(answer)


class Fleet:
    """All workers of a run."""

    def __init__(self, arena: Arena, workers: list[Worker]) -> None:
        self.arena = arena
        self.workers = workers

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method on every engine and wait."""
        return self.wait([worker.call(method, *arguments) for worker in self.workers])

    def wait(
        self, futures: list[Future[Any]], step_s: float = 0.25, on_step: Callable[[], None] = lambda: None
    ) -> list[Any]:
        """Wait for answers; call `on_step` about every `step_s`. An exception (Ctrl-C too) stops the engines and
        passes on."""
        due = time.monotonic() + step_s
        try:
            for future in futures:
                while True:
                    try:
                        future.result(timeout=max(due - time.monotonic(), 0.001))
                        break
                    except TimeoutError:
                        if future.done():
                            raise
                        if time.monotonic() >= due:
                            due += step_s
                            on_step()
        except BaseException:
            self.arena.stop()
            wait(futures, timeout=STOP_GRACE_S)  # so that a later resume() doesn't come before they have seen it
            raise
        return [future.result() for future in futures]


@contextmanager
def fleet(arena: Arena, make: Callable[[int], Engine], processes: int) -> Iterator[Fleet]:
    """Start the workers; end them, whatever happened."""
    workers: list[Worker] = []
    try:
        if processes == 1:
            workers.append(ThreadWorker(make))
        else:
            for process in range(processes):
                workers.append(ProcessWorker(make, process))
        yield Fleet(arena, workers)
    finally:
        arena.stop()
        for worker in workers:
            worker.close()
