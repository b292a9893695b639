"""Threads for handlers that wait without asyncio, shared fairly among users.

Strategy: a user's call starts while the user has fewer calls under way than there are free threads ("dynamic
threshold", Choudhury and Hahne, 1998). One user alone gets half of the threads, the next half of the rest: however slow
one user's calls are, another one's find a thread. Calls that wait are started user by user in turn.

The law: what waits is bounded, per user and in all, and no call of a client that has gone is started.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from starlight import close_codes
from starlight.close_codes import ErrorCode
from starlight.errors import CloseConnection, RequestError

__all__ = ["THREADS", "WAITING_LIMIT", "WAITING_PER_USER", "HandlerThreads"]

THREADS: Final = 16
"""Threads for `thread=True` handlers, started as they are needed. Such handlers wait (a database, a file, another
service); more of them at once mostly move the queue elsewhere."""

WAITING_PER_USER: Final = 256
"""Calls of one user that may wait for a thread: 30 times what the user can have under way. One more is error 111."""

WAITING_LIMIT: Final = 4_096
"""Calls that may wait in all, about 1 KB each."""


class _Call:
    """A call that waits, or is under way."""

    __slots__ = ("args", "function", "is_wanted", "outcome", "user")

    def __init__(
        self, user: str, function: Callable[..., Any], args: tuple[object, ...], is_wanted: Callable[[], bool]
    ) -> None:
        self.user = user
        self.function = function
        self.args = args
        self.is_wanted = is_wanted
        self.outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class HandlerThreads:
    """A pool of threads. Belongs to the loop's thread.

    Args:
        threads: how many there are at most.
        waiting_per_user: calls of one user that may wait.
        waiting_limit: calls that may wait in all.
    """

    def __init__(
        self, threads: int = THREADS, waiting_per_user: int = WAITING_PER_USER, waiting_limit: int = WAITING_LIMIT
    ) -> None:
        self._threads = threads
        self._waiting_per_user = waiting_per_user
        self._waiting_limit = waiting_limit
        self._executor: ThreadPoolExecutor | None = None
        self._running: Counter[str] = Counter()  # by user; no zeros, or it would grow with every user there ever was
        self._under_way: set[Future[Any]] = set()
        self._waiting: dict[str, deque[_Call]] = {}  # by user, whose turn is next first; no empty ones
        self._n_waiting = 0

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return self._n_waiting

    def run(
        self,
        user: str,
        function: Callable[..., Any],
        args: tuple[object, ...],
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Awaitable[Any]:
        """Call a function in a thread, now or when it is the user's turn.

        Args:
            user: for whom.
            function: what is called.
            args: with these.
            is_wanted: asked before the call starts; False drops it with `CloseConnection`, which reaches nobody.

        Raises `RequestError` 111 if too many calls wait.
        """
        call = _Call(user, function, args, is_wanted)
        if self._may_start(user) and user not in self._waiting:
            self._start(call)
        else:
            self._wait(call)
        return call.outcome

    def close(self) -> bool:
        """Let go of the threads: calls that wait for one are cancelled. True if some are still under way."""
        for calls in self._waiting.values():
            for call in calls:
                call.outcome.cancel()
        self._waiting.clear()
        self._n_waiting = 0
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
        return any(future.running() for future in tuple(self._under_way))

    def _may_start(self, user: str) -> bool:
        return self._running[user] < self._threads - self._running.total() if self._running else self._threads > 0

    def _wait(self, call: _Call) -> None:
        calls = self._waiting.get(call.user)
        if self._n_waiting >= self._waiting_limit or (calls is not None and len(calls) >= self._waiting_per_user):
            self._drop_unwanted()
            calls = self._waiting.get(call.user)
            if self._n_waiting >= self._waiting_limit or (calls is not None and len(calls) >= self._waiting_per_user):
                raise RequestError(ErrorCode.TOO_MANY_REQUESTS, "too many calls wait for a thread")
        self._waiting.setdefault(call.user, deque()).append(call)
        self._n_waiting += 1

    def _drop_unwanted(self) -> None:
        """Drop the calls of clients that have gone."""
        for user, calls in list(self._waiting.items()):
            wanted = deque(call for call in calls if _is_wanted(call))
            self._n_waiting -= len(calls) - len(wanted)
            if wanted:
                self._waiting[user] = wanted
            else:
                del self._waiting[user]

    def _start(self, call: _Call) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="starlight-handler")
        loop = asyncio.get_running_loop()
        self._running[call.user] += 1
        future = self._executor.submit(_run, call.function, call.args)
        self._under_way.add(future)

        def finish(done: Future[Any]) -> None:  # in the thread
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._finish, call, done)

        future.add_done_callback(finish)

    def _finish(self, call: _Call, done: Future[Any]) -> None:
        """A call is over; who waits goes on."""
        self._under_way.discard(done)
        self._running[call.user] -= 1
        if not self._running[call.user]:
            del self._running[call.user]
        if not call.outcome.done():
            if done.cancelled():
                call.outcome.cancel()
            else:
                result, error = done.result()
                if error is None:
                    call.outcome.set_result(result)
                else:
                    call.outcome.set_exception(error)
        if self._executor is not None:
            self._start_waiting()

    def _start_waiting(self) -> None:
        """Start what may start, one call of each user in turn."""
        while (call := self._next()) is not None:
            self._start(call)

    def _next(self) -> _Call | None:
        for user in list(self._waiting):
            if not self._may_start(user):
                continue
            calls = self._waiting.pop(user)
            while calls:
                call = calls.popleft()
                self._n_waiting -= 1
                if _is_wanted(call):
                    if calls:
                        self._waiting[user] = calls  # at the end: the others are first now
                    return call
        return None


def _is_wanted(call: _Call) -> bool:
    """Whether to start it; one that isn't wanted any more is told so."""
    if call.outcome.done():  # cancelled
        return False
    if call.is_wanted():
        return True
    call.outcome.set_exception(CloseConnection(close_codes.ABNORMAL))
    call.outcome.exception()  # whoever waited for it may be gone as well: that is no error to be reported
    return False


def _run(function: Callable[..., Any], args: tuple[object, ...]) -> tuple[Any, BaseException | None]:
    """(result, None), or (None, what a future can be failed with)."""
    try:
        return function(*args), None
    except (StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        # a future refuses the first, and the others would end the loop when they come out of it
        failure = RuntimeError(f"the function raised {type(error).__name__}")
        failure.__cause__ = error
        return None, failure
    except BaseException as error:
        return None, error
