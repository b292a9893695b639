"""First joins: many at once go together, paced; each caller gets its own answer, and none is given up for a rate."""

import asyncio
from collections.abc import AsyncIterator

import pytest

import starlight
from starlight.client.connect import connect
from starlight.client.pace import JOINS_LIMIT
from starlight.errors import ConnectionClosed, RequestFailed
from tests.support import scripted_server as support_server
from tests.support.fakes import eventually
from tests.support.scripted_server import ScriptedServer

FAST = {"backoff_s": 0.01, "backoff_max_s": 0.05}


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with support_server.scripted_server() as running:
        yield running


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starlight.client.joins.RETRY_S", 0.02)
    monkeypatch.setattr("starlight.client.joins.RETRY_LIMIT_S", 0.1)


async def test_a_thousand_at_once_on_a_node_with_rates() -> None:
    """One message each would be refused from the 41st on, and end the connection with 4013."""
    app = starlight.Starlight(port=0, drain_timeout_s=2, message_rate=20, byte_rate_bytes=2**20)
    async with app.serve() as node, connect(node.url, user="ada") as client:
        channels = await asyncio.gather(*(client.join(f"c{number}")._join() for number in range(1_000)))
        [own] = list(node.hub.clients())
        assert len(own.channels) == 1_000
        assert node.hub.counts.errors[111] == 0
        await client.publish("c999", "there")
        assert (await anext(channels[999])).data == "there"
        assert client.is_connected


async def test_what_is_asked_for_at_once_goes_together(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada") as client:
        await asyncio.gather(*(client.join(f"c{number}")._join() for number in range(600)))
        sizes = [len(join.get("channels", [None])) for join in server.seen("join")]
        assert sizes == [JOINS_LIMIT, JOINS_LIMIT, 600 - 2 * JOINS_LIMIT]
        await client.join("one more")
        assert server.seen("join")[-1]["channel"] == "one more"


async def test_a_rate_is_waited_for_however_long_it_takes(server: ScriptedServer) -> None:
    """Longer than the timeout: that is for a server that does not answer."""
    async with connect(server.url, user="ada", timeout_s=1.5) as client:
        server.answer_joins_with = [111] * 40
        server.refuse_joins_once = {"c1": 111, "c3": 111}
        await asyncio.gather(*(client.join(f"c{number}")._join() for number in range(5)))
        assert server.joined == {f"c{number}" for number in range(5)}
        assert set(client._channels) == server.joined


async def test_each_gets_its_own_answer(server: ScriptedServer) -> None:
    server.refuse_joins_of = {"c2"}
    async with connect(server.url, user="ada") as client:
        joins = [client.join(name) for name in ("c0", "c1", "c2", "c1", "c3")]
        answers = await asyncio.gather(*(join._join() for join in joins), return_exceptions=True)
        codes = [answer.code if isinstance(answer, RequestFailed) else None for answer in answers]
        assert codes == [None, None, 103, None, None]  # a real node refuses the second join of c1 with 105
        assert set(client._channels) == {"c0", "c1", "c3"}


async def test_a_name_that_is_none_harms_no_other() -> None:
    app = starlight.Starlight(port=0, drain_timeout_s=2)
    async with app.serve() as node, connect(node.url, user="ada") as client:
        names = ["a", "b", "b", "", "no blanks", "ä" * 300, "\ud800", None, 5, "c"]
        joins = (client.join(name)._join() for name in names)  # type: ignore[arg-type]
        answers = await asyncio.gather(*joins, return_exceptions=True)
        codes = [answer.code if isinstance(answer, RequestFailed) else type(answer).__name__ for answer in answers]
        assert codes[:3] == ["JoinedChannel", "JoinedChannel", 105]
        assert codes[6:7] == ["TypeError"]
        assert codes[9] == "JoinedChannel"
        assert all(isinstance(code, int) for code in (*codes[3:6], *codes[7:9]))
        [own] = list(node.hub.clients())
        assert set(own.channels) == {"a", "b", "c"} == set(client._channels)


async def test_a_server_that_refuses_several_together_is_asked_one_by_one(server: ScriptedServer) -> None:
    server.refuse_several_with = 107
    async with connect(server.url, user="ada") as client:
        await asyncio.gather(*(client.join(f"c{number}")._join() for number in range(4)))
        assert server.joined == {"c0", "c1", "c2", "c3"}


async def test_one_that_was_given_up_is_left(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada") as client:
        server.silent_about = {"join"}
        joining = [asyncio.create_task(client.join("c0")._join())]
        await eventually(lambda: server.seen("join"))
        joining += [asyncio.create_task(client.join(name)._join()) for name in ("c1", "c2")]
        await client.ping()
        for task in joining:
            task.cancel()
        await asyncio.wait(joining)
        await client.ping()
        assert [leave["channel"] for leave in server.seen("leave")] == ["c0"]  # no other was asked for yet


async def test_a_leave_is_behind_the_join_that_was_asked_for_before(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada") as client:
        joining = [asyncio.create_task(client.join(f"c{number}")._join()) for number in range(3)]
        await asyncio.sleep(0)
        await client.leave("c2")
        await asyncio.gather(*joining)
        assert server.joined == {"c0", "c1"} == set(client._channels)


async def test_what_waits_for_a_turn_survives_a_loss_and_what_was_under_way_does_not(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada", **FAST) as client:
        server.silent_about = {"join"}
        joining = [asyncio.create_task(client.join("c0")._join())]
        await eventually(lambda: server.seen("join"))
        joining += [asyncio.create_task(client.join(name)._join()) for name in ("c1", "c2")]
        await client.ping()
        server.silent_about = set()
        server.drop_all()
        first, *others = await asyncio.gather(*joining, return_exceptions=True)
        assert isinstance(first, ConnectionClosed)
        assert [other.channel for other in others if not isinstance(other, BaseException)] == ["c1", "c2"]
        assert server.joined == {"c1", "c2"}


async def test_the_end_is_told_to_all_who_wait(server: ScriptedServer) -> None:
    client = await connect(server.url, user="ada")
    server.answer_joins_with = [111] * 1_000
    joining = [asyncio.create_task(client.join(f"c{number}")._join()) for number in range(3)]
    await eventually(lambda: server.seen("join"))
    await client.close()
    answers = await asyncio.gather(*joining, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ConnectionClosed] * 3
    with pytest.raises(ConnectionClosed):
        await client.join("late")
