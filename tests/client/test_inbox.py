"""What waits for the application on the client's side."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.client.inbox import Inbox
from starlight.protocols.native.client import Publication


def publication(number: int) -> Publication:
    return Publication("news", number)


async def test_messages_come_out_in_order_and_then_the_end() -> None:
    inbox: Inbox[Publication] = Inbox(10, 1000)
    for number in range(3):
        inbox.put(publication(number), 1)
    inbox.end()
    inbox.put(publication(3), 1)  # too late
    assert [(await inbox.get()).data for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StopAsyncIteration):
        await inbox.get()


async def test_the_end_may_be_an_error_and_the_first_one_stands() -> None:
    inbox: Inbox[Publication] = Inbox(10, 1000)
    inbox.end(ZeroDivisionError())
    inbox.end()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await inbox.get()


async def test_readers_wait_and_each_message_goes_to_one_of_them() -> None:
    inbox: Inbox[Publication] = Inbox(10, 1000)
    readers = [asyncio.create_task(inbox.get()) for _ in range(3)]
    await asyncio.sleep(0)
    for number in range(2):
        inbox.put(publication(number), 1)
    await asyncio.sleep(0.01)
    assert sorted(reader.result().data for reader in readers if reader.done()) == [0, 1]
    inbox.end()
    outcomes = await asyncio.gather(*readers, return_exceptions=True)
    assert sum(isinstance(outcome, StopAsyncIteration) for outcome in outcomes) == 1


@given(
    st.integers(1, 5),
    st.integers(1, 50),
    st.lists(st.one_of(st.integers(0, 60), st.none()), max_size=40),
)
def test_bounds_hold_and_every_drop_is_told(limit_messages: int, limit_bytes: int, actions: list[int | None]) -> None:
    """A number puts a message of that size, None takes one; compared with a plain list."""

    async def run() -> None:
        inbox: Inbox[Publication] = Inbox(limit_messages, limit_bytes)
        model: list[tuple[int, int]] = []
        dropped = missed = 0
        for number, size_bytes in enumerate(actions):
            if size_bytes is None:
                if model:
                    got = await inbox.get()
                    assert (got.data, got.missed) == (model.pop(0)[0], missed)
                    missed = 0
                continue
            inbox.put(publication(number), size_bytes)
            model.append((number, size_bytes))
            while len(model) > limit_messages or (len(model) > 1 and sum(size for _, size in model) > limit_bytes):
                model.pop(0)
                dropped, missed = dropped + 1, missed + 1
            assert (len(inbox), inbox.size_bytes) == (len(model), sum(size for _, size in model))
            assert inbox.dropped_messages == dropped

    asyncio.run(run())
