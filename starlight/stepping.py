"""Coroutines that are begun at once: what may have to wait is written once, with `await`, and mostly needs no task.

`begin` runs a coroutine to its first await, on the caller's stack. Most logins and handlers end before that: their
result is there, and no task was made. What is left of the others (`Begun`) goes on in a task.

The law: that first step belongs to no task. An application's awaitable may ask for its task (`asyncio.timeout` does),
so it is awaited by `settled`, which ends the first step before.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, TypeVar

__all__ = ["Begun", "begin", "is_awaitable", "settled"]

T = TypeVar("T")


class Begun(Coroutine[Any, Any, T]):
    """What is left of a coroutine after its first step, to be awaited or made a task.

    It is a coroutine itself, so that a task which is cancelled before it has begun cancels what the coroutine waits
    for.

    Args:
        coroutine: after its first step.
        waits_for: what that step has yielded: a future, or None to be called again.
    """

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, T], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        return self

    def __iter__(self) -> Begun[T]:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """Yield what the first step has yielded, then go on."""
        waits_for, self._waits_for = self._waits_for, None
        return self._coroutine.send(value) if waits_for is None else waits_for

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        """Raise in the coroutine where it waits, such as CancelledError, and run it to its next await."""
        self._waits_for = None
        if value is None and traceback is None:
            return self._coroutine.throw(kind)
        return self._coroutine.throw(kind, value, traceback)

    def close(self) -> None:
        """End the coroutine where it waits."""
        self._coroutine.close()


def begin(coroutine: Coroutine[Any, Any, T]) -> T | Begun[T]:
    """Run a coroutine to its first await: its result if it ends before that, else what is left of it.

    Raises what the coroutine raises in this step.
    """
    try:
        waits_for = coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    return Begun(coroutine, waits_for)


async def settled(result: T | Awaitable[T]) -> T:
    """What a function has returned; if that is an awaitable, what it comes to in a task, not in the step of `begin`."""
    if not is_awaitable(result):
        return result  # type: ignore[return-value]
    await _next_step()
    return await result  # type: ignore[misc,no-any-return]


def is_awaitable(result: object) -> bool:
    """Whether a function's result has to be awaited (a coroutine, a future, a task)."""
    return hasattr(result, "__await__")


@types.coroutine
def _next_step() -> Generator[None, None, None]:
    yield
