"""Limits in a dry run: what they would have done is counted once an episode and logged, and nothing is done."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from starlight.auth.dry_run import KINDS, DryRun
from starlight.auth.limits import BURST_S, FORGIVE_S, Addresses, Limits, Meter
from starlight.config.settings import Settings
from starlight.errors import ConfigError
from starlight.server.node import Node
from tests.support.fakes import Stage, eventually
from tests.support.inside import Inside, inside
from tests.support.raw_client import RawClient, frame
from tests.support.wire_client import WireClient


def would(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    return [line for line in found if line.startswith("dry run: would have ")]


async def counts(on: Inside) -> dict[str, int]:
    """Those above zero, as /varz has them; and the metrics say the same."""
    told: dict[str, int] = (await on.totals())["would_have"]
    assert set(told) == set(KINDS)
    async with on.http.get("/metrics") as response:
        text = await response.text()
    for kind, count in told.items():
        assert f'starlight_would_have_total{{kind="{kind}"}} {count}.0' in text
    return {kind: count for kind, count in told.items() if count}


async def flood(on: Inside, channel: str, messages: int = 100) -> None:
    for _ in range(messages):
        on.node.hub.push_to_channel(channel, b'"%b"' % (b"x" * 10_000))
        await asyncio.sleep(0.005)


async def test_nobody_is_evicted_and_each_episode_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    limits: dict[str, Any] = {"outbox_bytes": 65_536, "send_buffer_bytes": 4_096, "evict_after_s": 0.02}
    async with inside(tmp_path, dry_run="evict", **limits) as on:
        assert (await on.get("/varz"))["dry_run"] == ["evict"]
        stalled = await on.stalled("slow", "news")
        other = await on.stalled("slower", "news")
        await flood(on, "news")
        await eventually(lambda: on.node.dry_run.counts["evict"] >= 2)
        await flood(on, "news", 20)
        assert await counts(on) == {"evict": 2}
        assert len(would(caplog)) == 2
        assert {line.split("user=")[1].split()[0] for line in would(caplog)} == {"slow", "slower"}
        assert all("address=127.0.0.1:" in line and "evicted" in line for line in would(caplog))
        assert on.node.core.counters()["evicted_slow_total"] == 0
        assert on.node.ends.find()[0] == 0
        heard = 0
        while heard < 120:  # nothing was lost: it reads everything in the end
            heard += (await stalled.hear())["type"] == "publication"
        assert (await stalled.ask("ping"))["type"] == "pong"
        other.close()


async def test_the_write_timeout_and_the_budget_hold_in_a_dry_run(tmp_path: Path):
    limits: dict[str, Any] = {"outbox_bytes": 65_536, "send_buffer_bytes": 4_096, "evict_after_s": 0.02}
    async with inside(tmp_path, dry_run="evict", write_timeout_s=0.5, **limits) as on:
        await on.stalled("still", "news")
        await flood(on, "news", 60)
        await eventually(lambda: on.node.ends.find("still")[0])
        (end,) = on.node.ends.find("still")[1]
        assert (end.code, end.cause) == (4009, "stalled")
        assert await counts(on) == {"evict": 1}
    async with inside(tmp_path, dry_run="evict", memory_budget_bytes=2**20, **limits) as on:
        await on.stalled("big", "news")
        await flood(on, "news", 300)
        (end,) = on.node.ends.find("big")[1]
        assert (end.code, end.cause) == (4008, "budget")


async def test_the_end_of_a_dry_run_evicts_at_once_who_is_over(tmp_path: Path):
    """By SIGHUP's way: the file is read again."""
    config = tmp_path / "starlight.toml"
    config.write_text('dry_run = ["evict", "rates"]\n')
    made = {
        "port": 0, "config_file": str(config), "outbox_bytes": 65_536, "send_buffer_bytes": 4_096,
        "evict_after_s": 0.02, "drain_timeout_s": 2,
    }  # fmt: skip
    async with Node(Settings(**made), reread=lambda: Settings(**made)) as node:
        raw = await RawClient.login(node.port, "slow", receive_buffer_bytes=4_096)
        await raw.ask("join", channel="news")
        for _ in range(100):
            node.hub.push_to_channel("news", b'"%b"' % (b"x" * 10_000))
            await asyncio.sleep(0.005)
        await eventually(lambda: node.dry_run.counts["evict"] == 1)
        assert node.ends.find()[0] == 0
        config.write_text("")
        assert await node.reload()
        await eventually(lambda: node.ends.find("slow")[0])
        assert node.ends.find("slow")[1][0].cause == "slow"
        assert not node.dry_run.rates
        config.write_text('dry_run = "evictions"\n')
        assert await node.reload() is False
        raw.close()


async def test_rates_let_messages_through_and_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with inside(tmp_path, dry_run="rates", message_rate=5) as on:
        ada, bob = await on.login("ada", "news"), await on.login("bob", "news")
        for number in range(100):
            assert (await ada.ask("publish", channel="news", data=number))["type"] == "ok"
        heard = [await bob.hear() for _ in range(100)]
        assert [message["data"] for message in heard] == list(range(100))
        assert await counts(on) == {"rates": 1}
        (line,) = would(caplog)
        assert "user=ada" in line and "message_rate" in line
        for _ in range(50):
            await bob.ask("ping")
        assert await counts(on) == {"rates": 2}


async def test_a_flood_of_bytes_and_of_pings_is_let_through_and_is_one_episode(tmp_path: Path):
    async with inside(tmp_path, dry_run="rates", message_rate=5, byte_rate_bytes=1_000) as on:
        raw = await on.stalled("flood")
        for number in range(60):
            await raw.send(frame(9, b"%d" % number))
        for _ in range(60):
            assert (await raw.ask("publish", channel="c", data="x" * 5_000))["type"] == "ok"
        assert await counts(on) == {"rates": 1}
        assert on.node.ends.find()[0] == 0


async def test_without_the_word_a_limit_holds(tmp_path: Path):
    async with inside(tmp_path, dry_run="evict, connections", message_rate=5) as on:
        ada = await on.login("ada")
        replies = [await ada.ask("ping") for _ in range(15)]
        assert [reply.get("code") for reply in replies].count(111) > 0
        assert await counts(on) == {}


async def test_connections_of_a_user_and_of_an_address(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with inside(tmp_path, dry_run="connections", connections_per_user=2, connections_per_address=3) as on:
        clients = [await on.login("ada") for _ in range(5)]
        assert all([(await client.ask("ping"))["type"] == "pong" for client in clients])
        assert await counts(on) == {"connections_per_user": 1, "connections_per_address": 1}
        assert len(would(caplog)) == 2
        for client in clients[2:]:
            await client.close()
        await eventually(lambda: on.node.hub.counters()["clients"] == 2)
        await on.login("ada")  # another episode
        assert (await counts(on))["connections_per_user"] == 2
        assert on.node.acceptor.counts.refused_address == 0


async def test_the_rate_of_connections_of_an_address(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with inside(tmp_path, dry_run="connections", connection_rate=3) as on:
        for _ in range(20):
            await (await on.login("ada")).close()
        assert await counts(on) == {"connection_rate": 1}
        (line,) = would(caplog)
        assert "address=127.0.0.1" in line


async def test_max_connections_and_logins_hold_in_a_dry_run(tmp_path: Path):
    async with inside(tmp_path, dry_run="evict,rates,connections", max_connections=2) as on:
        await on.login("ada")
        wrong = await on.stranger()
        await wrong.say("publish", channel="c", data=1)
        assert (await wrong.closed())[0] == 4501
        await eventually(lambda: on.node.connections == 1)
        await on.login("bob")
        with pytest.raises((OSError, EOFError, WebSocketException)):
            await WireClient.login(on.node.url, "eve")
        assert on.node.acceptor.counts.refused_full == 1


def test_an_episode_of_a_rate_ends_after_a_minute_without():
    meter = Meter(10, 0, 0)
    assert meter.would_refuse(5.0)
    assert not meter.would_refuse(5.0 + FORGIVE_S)
    assert not meter.would_refuse(5.0 + 2 * FORGIVE_S)
    assert meter.would_refuse(5.1 + 3 * FORGIVE_S)


def test_an_address_is_counted_in_a_dry_run_as_ever(caplog: pytest.LogCaptureFixture):
    dry = DryRun("connections")
    now_s = [100.0]
    addresses = Addresses(2, 5, lambda: now_s[0], dry)
    assert all(addresses.admit("a") for _ in range(50))
    assert dry.counts == {"connections_per_address": 1, "connection_rate": 1}
    for _ in range(50):
        addresses.release("a")
    now_s[0] += BURST_S + 1
    assert addresses.admit("a") and addresses.admit("a")
    assert dry.counts == {"connections_per_address": 1, "connection_rate": 1}
    dry.reconfigure(Settings())()
    assert not addresses.admit("a")


def test_what_may_be_named(tmp_path: Path):
    assert Settings(dry_run=["evict", "rates"]).dry_run == "evict, rates"
    assert DryRun("evict,connections").connections
    for wrong in ("evictions", "evict;rates", "budget", "max_connections"):
        with pytest.raises(ConfigError, match="some of evict, rates, connections"):
            Settings(dry_run=wrong)


async def test_a_hub_alone_lets_through_what_it_would_refuse():
    stage = Stage(limits=Limits(message_rate=1), dry_run=DryRun("rates"))
    ada = stage.member("ada")
    assert [ada.ask("ping")["type"] for _ in range(10)] == ["pong"] * 10
    stage.close()


async def test_a_login_is_refused_by_the_number_of_connections_without_the_word(tmp_path: Path):
    async with inside(tmp_path, dry_run="evict,rates", connections_per_user=1) as on:
        await on.login("ada")
        second = WireClient(await connect(on.node.url, compression=None))
        await second.socket.send(json.dumps({"type": "login", "user": "ada"}))
        assert (await second.closed())[0] == 4016
