"""starlight.ops.stats: what a node says about itself, against what its clients did."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import pytest
from websockets.exceptions import WebSocketException

from starlight.ops import stats
from starlight.ops.stats import LAG_INTERVAL_S, SLICE, LoopLag, _largest
from tests.support.fakes import eventually
from tests.support.inside import inside


async def test_varz_counts_what_clients_do(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann, bob = await on.login("ann", "news", "c"), await on.login("bob", "news")
        second = await on.login("bob")
        for number in range(5):
            assert (await ann.ask("publish", channel="news", data=number))["type"] == "ok"
        await ann.ask("publish", channel="nobody-is-here", data=0)
        await ann.ask("direct", to="bob", data=1)
        await ann.ask("broadcast", data=1)
        await bob.ask("join", channel="news")  # already joined: an error
        await bob.ask("nonsense")
        varz = await on.get("/varz")
        assert (varz["state"], varz["url"], varz["pid"]) == ("serving", on.node.url, os.getpid())
        assert varz["node"] == on.node.name
        assert (varz["connections"], varz["clients"], varz["users"]) == (3, 3, 2)
        assert (varz["channels"], varz["memberships"], varz["full_clients"]) == (2, 3, 0)
        totals = varz["totals"]
        assert (totals["connections"], totals["logins"], totals["logins_refused"]) == (3, 3, 0)
        assert (totals["publications"], totals["directs"], totals["broadcasts"]) == (6, 1, 1)
        requests = 3 + 3 + 5 + 1 + 1 + 1 + 2  # logins, joins, and the rest
        assert totals["messages_in"] == requests
        assert totals["deliveries"] == requests + 5 * 2 + 2 + 3  # every request has a reply
        assert totals["errors"] == {"105": 1, "104": 1}
        assert totals["bytes_in"] > 1_000 and totals["bytes_out"] > 1_000 and totals["sends"] > 10
        assert varz["outbox"] == {"messages": 0, "bytes": 0, "oldest_ms": 0}
        assert varz["memory"]["rss_bytes"] > 10 * 2**20
        assert varz["memory"]["budget_bytes"] == 512 * 2**20
        assert varz["started"] <= varz["now"] and varz["uptime_s"] >= 0
        await second.hear()


async def test_ends_are_counted_by_code_and_nobody_can_make_codes_up(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann, bob = await on.login("ann"), await on.login("bob")
        refused = await on.login("cat")
        await refused.close()  # 1000
        await ann.socket.close(3777)
        bob.socket.transport.abort()
        stranger = await on.stranger()
        await stranger.say("ping")  # before the login
        assert (await stranger.closed())[0] == 4501
        await eventually(lambda: on.node.connections == 0)
        totals = await on.totals()
        assert totals["closes"] == {"1000": 1, "other": 1, "1006": 1, "4501": 1}
        assert totals["logins_refused"] == 1
        assert on.stats.refused_logins() == {"4501": 1}
        assert on.stats.closes("node") == {"4501": 1}


async def test_revocations_and_refusals_are_counted(tmp_path: Path):
    async with inside(tmp_path, max_connections=1) as on:
        ann = await on.login("ann")
        with pytest.raises((OSError, WebSocketException)):
            await on.stranger()
        on.node.hub.revoke_user("ann", 60)
        assert (await ann.closed())[0] == 4503
        totals = await on.totals()
        assert (totals["revocations"], totals["refused_connections"]) == (1, 1)
        assert totals["closes"] == {"4503": 1}


# --- connections -----------------------------------------------------------------------------------------------------


async def test_connz_sorts_filters_and_pages(tmp_path: Path):
    async with inside(tmp_path) as on:
        clients = [await on.login(f"user{number % 3}", *(["c"] if number % 2 else [])) for number in range(7)]
        for number, client in enumerate(clients):
            for _ in range(number):
                await client.ask("ping")
        page = await on.get("/connz?sort=messages_in")
        assert (page["total"], page["offset"]) == (7, 0)
        rows = page["connections"]
        assert [row["messages_in"] for row in rows] == sorted((row["messages_in"] for row in rows), reverse=True)
        assert [row["id"] for row in (await on.get("/connz?sort=connected"))["connections"]] == list(range(1, 8))
        second = await on.get("/connz?sort=messages_in&limit=3&offset=3")
        assert (second["total"], second["connections"]) == (7, _same(second["connections"], rows[3:6]))
        of_one = await on.get("/connz?user=user0")
        assert of_one["total"] == 3 and {row["user"] for row in of_one["connections"]} == {"user0"}
        row = next(row for row in rows if row["id"] == 2)
        assert (row["user"], row["channels"], row["subprotocol"]) == ("user1", 1, "starlight.v1")
        assert row["address"].startswith("127.0.0.1:") and row["connected_s"] >= 0
        assert (row["outbox_messages"], row["outbox_bytes"], row["oldest_ms"]) == (0, 0, None)
        assert (row["is_full"], row["is_reading_paused"]) == (False, False)


def _same(rows: list[dict[str, object]], others: list[dict[str, object]]) -> list[dict[str, object]]:
    """The rows, if they are about the same connections."""
    assert [row["id"] for row in rows] == [other["id"] for other in others]
    return rows


async def test_connz_shows_who_does_not_read(tmp_path: Path):
    async with inside(tmp_path, send_buffer_bytes=4096, evict_after_s=60) as on:
        await on.login("ann", "c")
        await on.stalled("slow", "c")
        for _ in range(40):
            on.node.hub.push_to_channel("c", b'"%b"' % (b"x" * 10_000))
            await asyncio.sleep(0.002)
        page = await on.get("/connz")
        worst = page["connections"][0]
        assert (worst["user"], worst["is_full"]) == ("slow", True)
        assert worst["outbox_messages"] > 0 and worst["outbox_bytes"] > 10_000 and worst["oldest_ms"] >= 0
        assert (await on.get("/connz?sort=oldest&limit=1"))["connections"][0]["id"] == worst["id"]
        varz = await on.get("/varz")
        assert varz["full_clients"] >= 1
        assert varz["outbox"]["bytes"] >= worst["outbox_bytes"] and varz["outbox"]["oldest_ms"] >= worst["oldest_ms"]


async def test_what_evicted_clients_never_got_is_told_by_reason(tmp_path: Path):
    async with inside(tmp_path, send_buffer_bytes=4096, outbox_bytes="16KiB", evict_after_s=0.1) as on:
        await on.stalled("slow", "c")
        for _ in range(40):
            on.node.hub.push_to_channel("c", b'"%b"' % (b"x" * 10_000))
        await eventually(lambda: on.stats.varz()["totals"]["evictions"]["4008"] == 1)
        varz = await on.get("/varz")
        async with on.http.get("/metrics") as response:
            samples = await response.text()
        dropped = varz["totals"]["dropped"]
        assert set(dropped) == {"slow", "timeout", "budget"}
        assert 0 < dropped["slow"]["messages"] < 40
        assert dropped["slow"]["bytes"] >= 10_000 * dropped["slow"]["messages"]
        assert dropped["timeout"] == dropped["budget"] == {"messages": 0, "bytes": 0}
        assert f'starlight_dropped_messages_total{{reason="slow"}} {dropped["slow"]["messages"]}.0' in samples
        assert 'starlight_dropped_bytes_total{reason="budget"} 0.0' in samples


async def test_a_page_is_that_of_all_sorted_and_the_loop_goes_on_meanwhile():
    numbers = random.Random(7)
    items = [numbers.randrange(1_000) for _ in range(7 * SLICE + 3)]
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    for offset, limit in ((0, 1), (0, 100), (950, 120), (len(items) - 5, 100), (len(items), 10)):
        slices = (items[start : start + SLICE] for start in range(0, len(items), SLICE))
        total, page = await _largest(slices, lambda item: item if item % 2 else None, offset, limit)
        odd = sorted((item for item in items if item % 2), reverse=True)
        assert total == len(odd)
        assert page == odd[offset : offset + limit]
    counting.cancel()
    assert turns > 5 * 7


async def test_a_walk_over_the_connections_meets_each_once_whoever_goes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stats, "SLICE", 4)
    async with inside(tmp_path) as on:
        for number in range(15):
            await on.login(f"user{number}")
        gone, met = set(), []
        for turn, some in enumerate(on.stats._connections()):
            met += [connection.number for connection in some]
            for connection in list(on.node.core.owners())[turn % 2 :: 7]:  # some of either part
                gone.add(connection.number)
                connection.abort()
            await asyncio.sleep(0.01)
        assert len(met) == len(set(met)) and set(met) | gone == set(range(1, 16))
        assert set(range(1, 16)) - gone <= set(met)


async def test_find_connection(tmp_path: Path):
    async with inside(tmp_path) as on:
        await on.login("ann")
        found = await on.stats.find_connection(1)
        assert found is not None and found.client.user == "ann"
        assert await on.stats.find_connection(2) is None


# --- channels --------------------------------------------------------------------------------------------------------


async def test_channelz_sorts_by_any_of_its_counts(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann, bob = await on.login("ann", "a", "b", "c"), await on.login("bob", "b")
        for channel, times in (("a", 5), ("b", 1), ("c", 2)):
            for _ in range(times):
                await ann.ask("publish", channel=channel, data=1)
        rows = (await on.get("/channelz"))["channels"]
        options = {"announce": False, "announce_delay": 2.0, "presence": True, "clients_limit": 0}
        assert rows[0] == {"channel": "b", "subscribers": 2, "publications": 1, "deliveries": 2, "options": options}
        by_publications = await on.get("/channelz?sort=publications&limit=2")
        assert [row["channel"] for row in by_publications["channels"]] == ["a", "c"]
        assert by_publications["total"] == 3
        by_deliveries = (await on.get("/channelz?sort=deliveries"))["channels"]
        assert [row["deliveries"] for row in by_deliveries] == [5, 2, 2]
        await bob.hear()


async def test_all_channels_over_several_slices_the_oldest_first(tmp_path: Path):
    async with inside(tmp_path) as on:
        names = [f"room:{number}" for number in range(2 * SLICE + 50)]
        await on.login("ann", *names[:600])
        await on.login("bob", *names[600:])
        page = await on.get("/channelz?limit=1000")
        assert page["total"] == len(names)
        assert [row["channel"] for row in page["channels"]] == names[:1_000]


# --- the loop, and readiness -----------------------------------------------------------------------------------------


async def test_loop_lag_sees_a_stall():
    lag = LoopLag()
    lag.start()
    await asyncio.sleep(2 * LAG_INTERVAL_S)
    time.sleep(4 * LAG_INTERVAL_S)
    await eventually(lambda: lag.max_s >= 2 * LAG_INTERVAL_S)
    assert lag.recent_s == lag.max_s
    lag.stop()
    ticks = lag._ticks
    await asyncio.sleep(2 * LAG_INTERVAL_S)
    assert lag._ticks == ticks


async def test_a_node_is_ready_until_it_drains(tmp_path: Path):
    async with inside(tmp_path) as on:
        assert on.stats.not_ready() == []
        await on.node.drain()
        assert on.stats.not_ready() == ["draining", "not listening"]
        assert on.stats.varz()["state"] == "draining" and on.stats.varz()["url"] == ""


async def test_a_node_over_its_budget_is_not_ready(tmp_path: Path):
    async with inside(
        tmp_path, memory_budget_bytes="2MiB", outbox_bytes="16MiB", evict_after_s=60, send_buffer_bytes=4096
    ) as on:
        for number in range(3):
            await on.stalled(f"slow{number}", f"c{number}")
        for _ in range(2):  # it is looked after with each flush, so only what came since then can be too much
            on.node.core.flush()
            for number in range(3):
                for _ in range(6):
                    on.node.hub.push_to_channel(f"c{number}", b'"%b"' % (b"x" * 50_000))
        for _ in range(20):
            on.node.hub.push_to_channel("c0", b'"%b"' % (b"x" * 5_000))
            if on.stats.not_ready():
                break
        assert on.stats.not_ready() == ["over budget"]
        await eventually(lambda: on.stats.not_ready() == [])
