"""starlight.stepping: coroutines that need no task where they wait for nothing, and go on in one where they do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from starlight.stepping import Begun, begin, settled


def test_what_waits_for_nothing_is_done_at_once_and_without_a_loop():
    async def inner() -> int:
        return await settled(3)

    async def outer() -> int:
        return 4 + await inner()

    assert begin(outer()) == 7


def test_what_fails_at_once_fails_in_begin():
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        begin(fail())


async def test_what_has_to_wait_goes_on_in_a_task_from_where_it_was():
    loop = asyncio.get_running_loop()
    come: asyncio.Future[int] = loop.create_future()
    steps: list[str] = []

    async def wait() -> int:
        steps.append("begun")
        number = await come
        steps.append("done")
        return number + 1

    begun = begin(wait())
    assert isinstance(begun, Begun)
    assert steps == ["begun"]
    task = loop.create_task(begun)
    await asyncio.sleep(0)
    come.set_result(1)
    assert await task == 2
    assert steps == ["begun", "done"]


async def test_a_future_that_is_done_before_the_task_begins_is_noticed():
    come: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait() -> int:
        return await come

    begun = begin(wait())
    assert isinstance(begun, Begun)
    come.set_result(5)
    assert await asyncio.ensure_future(begun) == 5


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_task_that_is_cancelled_cancels_what_the_coroutine_waits_for(turns: int):
    """Also if it is cancelled before its first step, when the coroutine has had one already."""
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    begun = begin(wait())
    assert isinstance(begun, Begun)
    task = asyncio.ensure_future(begun)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["cancelled"]


async def test_an_awaitable_of_an_application_runs_in_the_task_and_not_in_the_first_step():
    seen: list[asyncio.Task[Any] | None] = []

    async def application() -> str:
        seen.append(asyncio.current_task())
        async with asyncio.timeout(10):  # which wants a task of its own
            await asyncio.sleep(0)
        return "done"

    async def ours() -> str:
        return await settled(application())

    begun = begin(ours())
    assert isinstance(begun, Begun)
    assert seen == []
    task = asyncio.ensure_future(begun)
    assert await task == "done"
    assert seen == [task]


async def test_what_is_left_can_be_awaited_as_well():
    async def ours() -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return 9

    begun = begin(ours())
    assert isinstance(begun, Begun)
    assert await begun == 9
