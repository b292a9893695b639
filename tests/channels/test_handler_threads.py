"""starlight.channels.handler_threads: whose calls start, whose wait, and that everything is bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from starlight.channels.handler_threads import HandlerThreads
from starlight.errors import CloseConnection, RequestError
from tests.support.fakes import eventually


class Calls:
    """Calls that wait in their threads until they are let go."""

    def __init__(self, **options: int) -> None:
        self.threads = HandlerThreads(**options)
        self.begun: list[str] = []
        self._lock = threading.Lock()
        self._gates: dict[str, threading.Semaphore] = {}

    def call(self, user: str, wanted: bool = True) -> asyncio.Future[Any]:
        gate = self._gates.setdefault(user, threading.Semaphore(0))

        def work() -> str:
            with self._lock:
                self.begun.append(user)
            gate.acquire()
            return user

        return asyncio.ensure_future(self.threads.run(user, work, (), lambda: wanted))

    def let_go(self, user: str, times: int = 1) -> None:
        self._gates[user].release(times)

    def end(self) -> None:
        for gate in self._gates.values():
            gate.release(10_000)
        self.threads.close()


@pytest.fixture
async def calls() -> AsyncIterator[Calls]:
    calls = Calls(threads=8, waiting_per_user=10, waiting_limit=25)
    yield calls
    calls.end()


async def begun(calls: Calls, **users: int) -> None:
    """Wait until exactly so many calls of each user have begun."""
    await eventually(lambda: {user: calls.begun.count(user) for user in set(calls.begun)} == users)


async def test_one_user_gets_half_and_each_further_one_half_of_the_rest(calls: Calls):
    eve = [calls.call("eve") for _ in range(10)]
    await begun(calls, eve=4)
    for _ in range(4):
        calls.call("ann")
    await begun(calls, eve=4, ann=2)
    calls.call("bob")
    calls.call("dan")
    await begun(calls, eve=4, ann=2, bob=1, dan=1)
    assert calls.threads.waiting == 6 + 2
    calls.let_go("eve", 10)
    assert await asyncio.gather(*eve) == ["eve"] * 10


async def test_who_waits_goes_on_in_turn(calls: Calls):
    for user in ("a", "a", "a", "a", "b", "b", "c", "d"):
        calls.call(user)
    await begun(calls, a=4, b=2, c=1, d=1)
    late = [calls.call(user) for user in ("e", "e", "e", "f", "g")]
    for number, user in enumerate(("e", "f", "g")):
        calls.let_go("a")
        await eventually(lambda number=number: len(calls.begun) == 9 + number)
        assert calls.begun[-1] == user
    for user in ("e", "f", "g"):
        calls.let_go(user, 10)
    assert await asyncio.gather(*late) == ["e", "e", "e", "f", "g"]


async def test_the_only_thread_serves_all(calls: Calls):
    calls.threads = HandlerThreads(1)
    for user in ("a", "a", "b"):
        calls.call(user)
    await begun(calls, a=1)
    calls.let_go("a")
    await begun(calls, a=2)
    calls.let_go("a")
    await begun(calls, a=2, b=1)
    calls.let_go("b")


async def test_what_waits_is_bounded_per_user_and_in_all(calls: Calls):
    for _ in range(4 + 10):
        calls.call("eve")
    with pytest.raises(RequestError) as refused:
        calls.threads.run("eve", print, ())
    assert refused.value.code == 111
    for number in range(4 + 15):
        calls.call(f"u{number}")
    with pytest.raises(RequestError):
        calls.threads.run("new", print, ())


async def test_calls_of_who_has_gone_are_not_started_and_make_room(calls: Calls):
    for _ in range(4):
        calls.call("eve")
    gone = [calls.call("eve", wanted=False) for _ in range(10)]
    assert calls.threads.waiting == 10
    calls.call("eve")
    assert calls.threads.waiting == 1
    for outcome in gone:
        with pytest.raises(CloseConnection):
            await outcome
    last = calls.call("eve", wanted=False)
    calls.let_go("eve", 5)
    with pytest.raises(CloseConnection):
        await last
    await begun(calls, eve=5)


async def test_a_call_that_was_cancelled_while_it_waited_is_not_started(calls: Calls):
    for _ in range(4):
        calls.call("eve")
    waiting = calls.call("eve")
    waiting.cancel()
    last = calls.call("eve")
    calls.let_go("eve", 5)
    assert await last == "eve"
    assert len(calls.begun) == 5


async def test_a_call_that_was_cancelled_under_way_gives_its_thread_back(calls: Calls):
    eve = [calls.call("eve") for _ in range(8)]
    await begun(calls, eve=4)
    for call in eve[:4]:
        call.cancel()
    assert calls.threads.waiting == 4  # the threads are still busy
    calls.let_go("eve", 8)
    assert await asyncio.gather(*eve[4:]) == ["eve"] * 4


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ZeroDivisionError, ZeroDivisionError),
        (StopIteration, RuntimeError),
        (SystemExit, RuntimeError),
        (KeyboardInterrupt, RuntimeError),
        (CancelledError, CancelledError),
        (asyncio.CancelledError, asyncio.CancelledError),
    ],
)
async def test_whatever_a_call_raises_its_caller_hears_of_it(
    calls: Calls, raised: type[BaseException], expected: type[BaseException]
):
    def fail() -> None:
        raise raised

    with pytest.raises(expected):
        await calls.threads.run("ann", fail, ())
    assert await calls.threads.run("ann", lambda: "next", ()) == "next"


async def test_close_cancels_who_waits_and_tells_of_who_is_under_way(calls: Calls):
    eve = [calls.call("eve") for _ in range(6)]
    await begun(calls, eve=4)
    assert calls.threads.close() is True
    results = await asyncio.gather(*eve[4:], return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    calls.let_go("eve", 4)
    assert await asyncio.gather(*eve[:4]) == ["eve"] * 4
    await eventually(lambda: calls.threads.close() is False)
