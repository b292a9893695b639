"""The application's own logic: what its decorators register, and how it is called.

The law: a failing handler costs its caller an error reply and the log a traceback, nothing else. No exception of a
handler ends a connection, except one that says so (`CloseConnection`) and except at login, where a check that
failed must not let anybody in.

A handler is a function, a coroutine function, or (`thread=True`) a function that runs in a pool of threads, which
users share fairly (`handler_threads`). A call returns either the result or an awaitable of it; the hub hands awaitables
on to the connection, which holds back later messages until they are done. Nothing here does I/O; asyncio is used for
tasks that nobody awaits.

What holds the loop is logged by name: a function that takes long, and each step of a coroutine that does, which is what
it does from one await to the next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from inspect import iscoroutinefunction
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

from orjson import dumps

from starlight import close_codes
from starlight.auth.login import read_login
from starlight.channels.handler_threads import THREADS, HandlerThreads
from starlight.close_codes import ErrorCode
from starlight.errors import CloseConnection, LoginRefused, RequestError
from starlight.protocols.native import commands
from starlight.stepping import Begun, begin, settled

if TYPE_CHECKING:
    from starlight.channels.client import Client

__all__ = ["BUILT_IN_TYPES", "FAILURES", "SLOW_HANDLER_MS", "Handler", "Handlers", "Timer"]

log = logging.getLogger(__name__)

SLOW_HANDLER_MS: Final = 50
"""A function that holds the loop longer than this is logged by name: every client of the node waited that long, and at
50 ms a person begins to notice."""

DISCONNECT_TIMEOUT_S: Final = 30.0
"""How long an async `on_disconnect` may take: nothing else ends it, and clients that come and go would leave any number
of them behind. Time enough for a few tries to reach a backend."""

SLOW_HANDLER_NS: Final = SLOW_HANDLER_MS * 1_000_000

BUILT_IN_TYPES: Final = frozenset(
    str(command.__struct_config__.tag) for command in get_args(commands.Command) if command is not commands.Custom
)
"""Message types of the protocol, for which no application handler can be registered."""

FAILURES: Final = (Exception, asyncio.CancelledError)
"""What a function fails with. The second is no `Exception`, but what `result()` of a cancelled future raises."""

_FUNCTION_ADVICE: Final = (
    "nobody else is served meanwhile; use thread=True, or await asyncio.to_thread for the part that waits or computes"
)
_HOOK_ADVICE: Final = (
    "nobody else is served meanwhile; make it async, and await asyncio.to_thread for the part that waits or computes"
)
_AUTHORIZE_ADVICE: Final = "nobody else is served meanwhile; keep what it looks up in memory"
_COROUTINE_ADVICE: Final = (
    "nobody else is served between two of its awaits; await asyncio.to_thread for the part that waits or computes"
)

Function = TypeVar("Function", bound=Callable[..., Any])


class Handler:
    """One registered function, with all that a call needs to know about it."""

    __slots__ = ("_advice", "_clock_ns", "_pool", "function", "name")

    def __init__(
        self,
        function: Callable[..., Any],
        clock_ns: Callable[[], int],
        pool: HandlerThreads | None = None,
        advice: str = _HOOK_ADVICE,
    ) -> None:
        self._advice = advice
        self.function = function
        self.name = f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
        self._clock_ns = clock_ns
        self._pool = pool

    def call(self, *args: object) -> Any:
        """The function's result, or an awaitable of it. Raises what the function raises."""
        if self._pool is not None:
            client: Client = args[0]  # type: ignore[assignment]  # only handlers of messages have a pool
            return self._pool.run(client.user, self.function, args, lambda: client.is_connected)
        started_ns = self._clock_ns()
        try:
            result = self.function(*args)
        finally:
            elapsed_ns = self._clock_ns() - started_ns
            if elapsed_ns > SLOW_HANDLER_NS:
                self.log_slow(elapsed_ns, self._advice)
        return Steps(result, self, self._clock_ns) if type(result) is CoroutineType else result

    def log_slow(self, elapsed_ns: int, advice: str) -> None:
        """Log that it has held the loop for too long, and what helps."""
        log.warning(
            "handler %s held the loop for %.0f ms (limit %d): %s", self.name, elapsed_ns / 1e6, SLOW_HANDLER_MS, advice
        )

    async def outcome(self, *args: object) -> Any:
        """What a call comes to, awaited if it has to be. Raises `RequestError` or `CloseConnection`, see `failure`."""
        try:
            return await settled(self.call(*args))
        except FAILURES as error:
            if is_our_end(error):
                raise
            raise self.failure(error) from None

    async def run_logged(self, *args: object) -> None:
        """A call whose exceptions are logged and nothing else."""
        try:
            await settled(self.call(*args))
        except FAILURES as error:
            if is_our_end(error):
                raise
            self.log_failure(error)

    def failure(self, error: BaseException) -> RequestError | CloseConnection:
        """What an exception of this handler means for its caller: itself if it says so, else a logged `internal`."""
        if isinstance(error, CloseConnection):
            return self._close(error)
        if isinstance(error, RequestError) and _is_sendable(error):
            return error
        self.log_failure(error)
        return RequestError(ErrorCode.INTERNAL, "internal error")

    def _close(self, close: CloseConnection) -> CloseConnection:
        """A close that this handler wants, with that in it for operators."""
        close.cause = close.cause or "application"
        close.detail = close.detail or f"by handler {self.name}"
        return close

    def log_failure(self, error: BaseException) -> None:
        """Log an exception of this handler with its traceback."""
        log.error("handler %s failed", self.name, exc_info=error)


class Steps(Coroutine[Any, Any, Any]):
    """A handler's coroutine, of which each step is timed: about 0.3 µs a step.

    It is a coroutine itself, so that it can be a task, be cancelled before it has begun, and be seen through.

    Args:
        coroutine: what the handler returned.
        handler: whose it is.
        clock_ns: monotonic clock in nanoseconds.
    """

    __slots__ = ("_clock_ns", "_coroutine", "_handler")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], handler: Handler, clock_ns: Callable[[], int]) -> None:
        self._coroutine = coroutine
        self._handler = handler
        self._clock_ns = clock_ns

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """Run the coroutine to its next await."""
        started_ns = self._clock_ns()
        try:
            return self._coroutine.send(value)
        finally:
            elapsed_ns = self._clock_ns() - started_ns
            if elapsed_ns > SLOW_HANDLER_NS:
                self._handler.log_slow(elapsed_ns, _COROUTINE_ADVICE)

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        """Raise in the coroutine where it waits, such as CancelledError, and run it to its next await."""
        started_ns = self._clock_ns()
        try:
            if value is None and traceback is None:
                return self._coroutine.throw(kind)
            return self._coroutine.throw(kind, value, traceback)
        finally:
            elapsed_ns = self._clock_ns() - started_ns
            if elapsed_ns > SLOW_HANDLER_NS:
                self._handler.log_slow(elapsed_ns, _COROUTINE_ADVICE)

    def close(self) -> None:
        """End the coroutine where it waits."""
        self._coroutine.close()

    def __getattr__(self, name: str) -> Any:
        """What tools ask a coroutine for, such as `cr_frame`, `cr_await` and `__qualname__`: the handler's."""
        return getattr(self._coroutine, name)


class Timer:
    """A handler without arguments to be called every `seconds`; the node runs it while it serves."""

    __slots__ = ("handler", "seconds")

    def __init__(self, handler: Handler, seconds: float) -> None:
        self.handler = handler
        self.seconds = seconds


class Handlers:
    """The registry of one application.

    Args:
        clock_ns: monotonic clock in nanoseconds, for finding handlers that hold the loop.
        threads: most threads for `thread=True` handlers.
        disconnect_timeout_s: how long an async `on_disconnect` may take.
    """

    def __init__(
        self,
        *,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        threads: int = THREADS,
        disconnect_timeout_s: float = DISCONNECT_TIMEOUT_S,
    ) -> None:
        self._clock_ns = clock_ns
        self._disconnect_timeout_s = disconnect_timeout_s
        self._pool = HandlerThreads(threads)
        self._by_type: dict[str, Handler] = {}
        self._login: list[Handler] = []
        self._connect: list[Handler] = []
        self._disconnect: list[Handler] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.authorizer: Callable[[Client, Any, str], bool | None] | None = None
        """What `authorize` registered."""
        self.timers: list[Timer] = []
        """What `every` registered."""

    # --- registration: the decorators of `Starlight` -------------------------------------------------------------

    def on_login(self, function: Function) -> Function:
        """Decorator: `function(client, login)` runs before a login is accepted; sync or async.

        `client.user` is who wants to log in, `login` the whole login message as a dict (so an application may ask for
        fields of its own, a password say). The client can't be reached yet. To refuse, return False or raise
        `LoginRefused(4500)` (or `CloseConnection`) with the close code of your choice; False is 4500. Any other
        exception refuses too, with 1011, and is logged: a check that failed lets nobody in. Several are run in order.
        It may set `client.groups`. Where tokens are used it also runs for logins with a session token, which carry no
        other credential: `client.is_resumed` tells.
        """
        self._login.append(self._handler(function))
        return function

    def authorize(self, function: Function) -> Function:
        """Decorator: `function(client, action, name)` has the last word on what a client may do.

        It is asked before every `direct`, `join`, `publish`, `broadcast` and `presence`; `name` is the channel, the
        user, or "". True allows and False refuses (103), None leaves it to the groups. It must be quick and not async;
        an exception is logged and refuses. Raises ValueError if there is one already, TypeError for an async function.
        """
        if self.authorizer is not None:
            raise ValueError("there is one authorize hook; let it call whatever it needs")
        if iscoroutinefunction(function):
            raise TypeError("the authorize hook is asked for every command, so it can't be async")
        self.authorizer = Handler(function, self._clock_ns, advice=_AUTHORIZE_ADVICE).call
        return function

    def on_connect(self, function: Function) -> Function:
        """Decorator: `function(client)` runs when a client has been welcomed, before its first message is handled.

        An exception is logged, and the client stays; `CloseConnection` ends it. An async one may take as long as a
        login (`--login-timeout`); then it is cancelled and the client closed with 1013, after which it tries again. If
        the client goes meanwhile, the function goes on within that time, and `on_disconnect` comes after it.
        """
        self._connect.append(self._handler(function))
        return function

    def on_disconnect(self, function: Function) -> Function:
        """Decorator: `function(client)` runs once for each client that was welcomed, after it has left its channels.

        It runs after whatever handler of that client is still under way, which has no time limit; the client is out of
        its channels and counts before. Nothing can be sent to it any more. An async one is cancelled after 30 s.
        """
        self._disconnect.append(self._handler(function))
        return function

    def on(self, type: str, *, thread: bool = False) -> Callable[[Function], Function]:
        """Decorator: `function(client, data)` handles messages of `type`; its return value is the reply's `data`.

        Args:
            type: a type that the protocol doesn't use itself.
            thread: run it in a pool of threads, for functions that wait without asyncio. Such a function must not
                touch the hub; `publish_threadsafe` exists for it. There are 16 threads. One user gets half of those
                that are free at most, and what waits for one is started user by user; 256 calls of a user and 4,096
                in all may wait, one more is error 111. A call that still waits when its client goes is not started.

        `data` is the message's `data` as Python objects, None if it has none. An exception becomes the error reply 100
        `internal` and a logged traceback; a `RequestError` becomes the reply it describes. Raises ValueError for a
        type of the protocol or one that has a handler, TypeError for an async function with `thread=True`.
        """

        def register(function: Function) -> Function:
            if not type or type in BUILT_IN_TYPES:
                raise ValueError(f"{type!r} is not a message type an application can handle")
            if type in self._by_type:
                raise ValueError(f"{type!r} already has the handler {self._by_type[type].name}")
            if thread and iscoroutinefunction(function):
                raise TypeError("thread=True is for plain functions; an async one doesn't need it")
            self._by_type[type] = Handler(function, self._clock_ns, self._pool if thread else None, _FUNCTION_ADVICE)
            return function

        return register

    def every(self, seconds: float) -> Callable[[Function], Function]:
        """Decorator: `function()`, sync or async, is called every `seconds` while the node serves.

        The first call comes after that time. One that takes longer than the interval skips the ticks it missed.
        Exceptions are logged, and the timer goes on. Raises ValueError unless `seconds` is positive.
        """
        if not seconds > 0:
            raise ValueError(f"every({seconds!r}): expected a positive number of seconds")

        def register(function: Function) -> Function:
            self.timers.append(Timer(self._handler(function), seconds))
            return function

        return register

    def _handler(self, function: Callable[..., Any]) -> Handler:
        return Handler(function, self._clock_ns)

    # --- calls: by the hub ---------------------------------------------------------------------------------------

    def get(self, type: str) -> Handler | None:
        """The handler for messages of `type`, or None."""
        return self._by_type.get(type)

    async def login(self, client: Client, message: bytes) -> None:
        """Run the `on_login` handlers. Raises `CloseConnection` to refuse: whatever is no plain return does."""
        if not self._login:
            return
        login = read_login(message)
        for handler in self._login:
            try:
                accepted = await settled(handler.call(client, login))
            except FAILURES as error:
                if is_our_end(error):
                    raise
                raise _refusal(handler, error) from None
            if accepted is False:
                raise _refused_by(handler, CloseConnection(close_codes.INVALID_TOKEN))

    async def connect(self, client: Client) -> None:
        """Run the `on_connect` handlers; exceptions are logged. Raises `CloseConnection` of one that says so."""
        for handler in self._connect:
            try:
                await settled(handler.call(client))
            except CloseConnection:
                raise
            except FAILURES as error:
                if is_our_end(error):
                    raise
                handler.log_failure(error)

    def disconnect(self, client: Client) -> None:
        """Run the `on_disconnect` handlers; async ones go on in a task of their own, which `settle` waits for."""
        begun = begin(self._run_disconnect(client))
        if isinstance(begun, Begun):
            task = asyncio.get_running_loop().create_task(self._in_time(begun, client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run_disconnect(self, client: Client) -> None:
        for handler in self._disconnect:
            await handler.run_logged(client)

    async def _in_time(self, pending: Awaitable[None], client: Client) -> None:
        try:
            async with asyncio.timeout(self._disconnect_timeout_s):
                await pending
        except TimeoutError:
            log.error("on_disconnect of %r took more than %g s and was cancelled", client, self._disconnect_timeout_s)

    async def settle(self, timeout_s: float) -> None:
        """Wait for what `disconnect` left running, `timeout_s` at most; what is late is cancelled."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()

    def close(self) -> bool:
        """Let go of the threads: calls that wait for one are cancelled. True if some are still under way."""
        return self._pool.close()


def is_our_end(error: BaseException) -> bool:
    """Whether it means that the running task is being cancelled, as opposed to a CancelledError out of a handler."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop, so that nothing can be cancelled
        return False
    return task is not None and task.cancelling() > 0


def _is_sendable(error: RequestError) -> bool:
    """Whether an application's error can be told: JSON may not express its code or message."""
    try:
        dumps((error.id, int(error.code), error.message))
    except (TypeError, ValueError):
        return False
    return isinstance(error.message, str)


def _refused_by(handler: Handler, close: CloseConnection) -> CloseConnection:
    """A refusal of a login, with the handler in it for operators."""
    close.cause = "login"
    close.detail = close.detail or f"refused by handler {handler.name}"
    return close


def _refusal(handler: Handler, error: BaseException) -> CloseConnection:
    """What an exception of an `on_login` handler means for the connection."""
    if isinstance(error, CloseConnection):
        return _refused_by(handler, error)
    if isinstance(error, LoginRefused):
        return _refused_by(handler, CloseConnection(error.code, error.reason or None))
    if isinstance(error, RequestError):
        return _refused_by(handler, CloseConnection(close_codes.INVALID_TOKEN))
    log.error("handler %s failed; the login is refused", handler.name, exc_info=error)
    return CloseConnection(close_codes.INTERNAL, cause="error", detail=f"handler {handler.name} failed")
