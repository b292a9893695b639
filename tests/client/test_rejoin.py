"""Channels that are joined again: many in one message, paced, and given up only for what is wrong with them."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import starlight
from starlight.client import rejoin as _client_rejoin
from starlight.client.pace import JOINS_LIMIT, Pace
from starlight.client.rejoin import PATIENCE_S, Rejoin
from starlight.errors import ClientError, MessageTooBig, RequestFailed
from starlight.protocols.native.client import JoinedItem, Ok, Refusal
from tests.support.fakes import eventually

Answer = Callable[[str], int | None]


class Scene:
    """A client's channels, and a server that answers each channel with an error code or None."""

    def __init__(self, *channels: str, **limits: int) -> None:
        self.channels: dict[str, object] = dict.fromkeys(channels)
        self.asked: list[list[str]] = []
        self.whole: list[int] = []  # codes for whole messages, one after the other
        self.refused: dict[str, int] = {}
        self.left: list[str] = []
        self.answer: Answer = lambda name: None
        self.now_s = 0.0
        self.rejoin = Rejoin(
            self.channels,
            ask=self.ask,
            leave=self.left.append,
            refuse=self.refuse,
            clock=lambda: self.now_s,
            pace=Pace(**limits),
        )

    async def ask(self, fields: dict[str, Any]) -> Ok:
        names = [fields["channel"]] if "channel" in fields else [item["channel"] for item in fields["channels"]]
        self.asked.append(names)
        if self.whole:
            raise RequestFailed(self.whole.pop(0), "whole")
        codes = {name: self.answer(name) for name in names}
        if "channel" in fields:
            code = codes[names[0]]
            if code is not None:
                raise RequestFailed(code, "one")
            return Ok()
        return Ok(channels=[JoinedItem(name, None if code is None else Refusal(code)) for name, code in codes.items()])

    def refuse(self, name: str, error: ClientError) -> None:
        assert isinstance(error, RequestFailed)
        del self.channels[name]
        self.refused[name] = error.code


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited; nothing is."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waited


async def test_six_hundred_are_three_messages_no_faster_than_allowed(pauses: list[float]) -> None:
    scene = Scene(*(f"c{number}" for number in range(600)), message_rate=4)
    await scene.rejoin.round()
    assert [len(names) for names in scene.asked] == [JOINS_LIMIT, JOINS_LIMIT, 600 - 2 * JOINS_LIMIT]
    assert [name for names in scene.asked for name in names] == [f"c{number}" for number in range(600)]
    assert pauses == [0, 0.25, 0.25]
    assert scene.rejoin.is_done


async def test_messages_stay_below_the_servers_limit(pauses: list[float]) -> None:
    scene = Scene(*(f"{number:0255}" for number in range(20)), message_bytes=2_000)
    await scene.rejoin.round()
    assert {len(names) for names in scene.asked} == {7, 6}
    assert scene.rejoin.is_done


@pytest.mark.parametrize("limit_bytes", [512, 1_000, 5_000])
async def test_channels_come_back_whatever_the_nodes_limit(limit_bytes: int) -> None:
    """A name that the node's limit doesn't allow ends alone."""
    app = starlight.Starlight(port=0, drain_timeout_s=2)
    async with app.serve() as first:
        client = await starlight.connect(first.url, user="ada", backoff_s=0.01, backoff_max_s=0.05)
        channels = [await client.join(f"{number:0255}" if number else "x") for number in range(20)]
        port = first.port
        for one in list(first.hub.clients()):
            one.connection.close(4011, None, 10)
    async with app.serve(port=port, read_limit_bytes=limit_bytes) as second, client:
        await eventually(lambda: second.hub.counters()["channels"] == 20)
        await client.publish("x", 1)
        assert (await anext(channels[0])).data == 1
    async with app.serve(port=port, read_limit_bytes=200) as third:
        client = await starlight.connect(third.url, user="ada")
        channel = client.join("y" * 255)
        channel._enter()  # as if another node had allowed it
        rejoin = client._make_rejoin(client._link, client._link.welcome)
        await rejoin.round()
        with pytest.raises(MessageTooBig):
            await anext(channel)
        assert rejoin.is_done and client.is_connected
        await client.close()


async def test_a_rate_never_gives_a_channel_up(pauses: list[float]) -> None:
    scene = Scene("a", "b", "c")
    scene.whole = [111] * 100
    await scene.rejoin.round()
    assert len(scene.asked) == 1
    scene.now_s = 100 * PATIENCE_S
    await scene.rejoin.rounds()
    assert (len(scene.asked), scene.refused, scene.rejoin.is_done) == (101, {}, True)
    assert _client_rejoin.RETRY_LIMIT_S / 2 <= max(pauses) <= _client_rejoin.RETRY_LIMIT_S


async def test_one_channel_of_many_that_is_refused_for_a_rate_is_tried_again_alone(pauses: list[float]) -> None:
    scene = Scene("a", "b", "c")
    codes = {"b": [111, 111]}
    scene.answer = lambda name: codes[name].pop() if codes.get(name) else None
    await scene.rejoin.round()
    await scene.rejoin.rounds()
    assert scene.asked == [["a", "b", "c"], ["b"], ["b"]]
    assert scene.refused == {}


@pytest.mark.parametrize("code", [102, 103, 107, 108, 999])
async def test_what_is_final_ends_that_channel_alone_and_once(code: int, pauses: list[float]) -> None:
    scene = Scene("a", "b", "c")
    scene.answer = lambda name: code if name == "b" else None
    await scene.rejoin.round()
    assert (scene.refused, scene.rejoin.is_done, list(scene.channels)) == ({"b": code}, True, ["a", "c"])


@pytest.mark.parametrize("code", [100, 106])
async def test_a_limit_is_tried_again_for_a_while(code: int, pauses: list[float]) -> None:
    scene = Scene("a", "b")
    scene.answer = lambda name: code if name == "b" else None
    await scene.rejoin.round()
    assert not scene.rejoin.is_done and not scene.refused
    scene.now_s = PATIENCE_S
    await scene.rejoin.round()
    assert scene.refused == {"b": code} and scene.rejoin.is_done


async def test_a_server_that_refuses_the_whole_message_is_asked_one_by_one(pauses: list[float]) -> None:
    scene = Scene("a", "b", "c")
    scene.whole = [107]
    scene.answer = lambda name: 103 if name == "b" else None
    await scene.rejoin.round()
    await scene.rejoin.rounds()
    assert scene.asked == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    assert scene.refused == {"b": 103}


async def test_already_joined_is_joined_and_what_was_left_meanwhile_is_left(pauses: list[float]) -> None:
    scene = Scene("a", "b", "c")
    scene.answer = lambda name: scene.channels.pop("c", None) or (105 if name == "a" else None)
    await scene.rejoin.round()
    assert (scene.refused, scene.left) == ({}, ["c"])
    scene = Scene("a", "b")
    scene.whole = [111]
    await scene.rejoin.round()
    del scene.channels["a"]
    await scene.rejoin.rounds()
    assert scene.asked[1:] == [["b"]]
