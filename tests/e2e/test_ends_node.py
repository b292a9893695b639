"""Why was ada disconnected? Every kind of end of a real node, found at `/endz`, in the log, and by the next login."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from starlight.errors import CloseConnection, LoginRefused
from tests.support.fakes import TEXT, eventually
from tests.support.inside import KEY, Inside, inside
from tests.support.raw_client import RawClient, close_frame, frame
from tests.support.tls import speak_tls
from tests.support.tokens import AUDIENCE, ISSUER, SECRET, token
from tests.support.wire_client import WireClient

HOSTILE = 'eve\u202e" cause=client'
BEARER = f"Bearer {KEY}"


async def ends(on: Inside, query: str = "") -> list[dict[str, Any]]:
    """The rows of /endz, the latest first."""
    page = await on.get(f"/endz{query}", Authorization=BEARER)
    assert page["total"] >= len(page["ends"])
    rows: list[dict[str, Any]] = page["ends"]
    return rows


async def the_end(on: Inside, user: str) -> dict[str, Any]:
    """The latest end of a user, once there is one."""
    await eventually(lambda: on.node.ends.find(user)[0])
    return (await ends(on, f"?user={user}"))[0]


async def welcome(on: Inside, user: str, previous: str | None = None) -> dict[str, Any]:
    """What a login that names its previous connection is told; it closes at once."""
    client = WireClient(await connect(on.node.url, compression=None, max_queue=None))
    told = await client.ask("login", user=user, **({"previous": previous} if previous is not None else {}))
    assert told["type"] == "welcome"
    await client.close()
    return told


def lines(caplog: pytest.LogCaptureFixture, *words: str) -> list[str]:
    """The lines of the log that hold all of these."""
    found = [record.getMessage() for record in caplog.records]
    return [line for line in found if all(word in line for word in words)]


async def evict(on: Inside, raw: RawClient, user: str, channel: str) -> None:
    """Send one that doesn't read more than it may have, until it is gone."""
    for _ in range(600):
        on.node.hub.push_to_channel(channel, b'"%b"' % (b"x" * 10_000))
        await asyncio.sleep(0.005)
        if on.node.ends.find(user)[0]:
            return
    raise AssertionError("it was never evicted")


async def test_an_evicted_reader(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    before_s = time.time()
    async with inside(tmp_path, outbox_bytes=65_536, send_buffer_bytes=4_096, evict_after_s=0.05) as on:
        raw = await on.stalled("slow", "news")
        await raw.ask("join", channel="news")  # an error: it has joined
        await evict(on, raw, "slow", "news")
        end = await the_end(on, "slow")
        assert (end["code"], end["reason"], end["cause"]) == (4008, "slow consumer", "slow")
        assert end["outbox_messages"] > 0 and end["outbox_bytes"] > 65_536 and end["oldest_ms"] >= 0
        assert end["last_error"] == 105
        assert end["messages_in"] == 3 and end["connected_s"] > 0
        assert end["address"].startswith("127.0.0.1:")
        assert before_s - 1 <= end["at"] <= time.time() + 1
        assert lines(caplog, "ended: user=slow", "code=4008", "cause=slow", f"outbox={end['outbox_messages']}/")
        told = await welcome(on, "slow", end["client"])
        assert told["previous"] == {"code": 4008, "reason": "slow consumer", "at": round(end["at"] * 1000)}
        assert "previous" not in await welcome(on, "slow")
        assert "previous" not in await welcome(on, "other", end["client"])  # other users' ends are not told
        assert "previous" not in await welcome(on, "slow", "of-nobody")
        totals = await on.totals()
        assert totals["ends"]["slow"] == 1


async def test_one_evicted_for_the_budget_and_one_for_the_write_timeout(tmp_path: Path):
    async with inside(
        tmp_path, outbox_bytes=2**30, outbox_messages=1_000_000, memory_budget_bytes=2**20, send_buffer_bytes=4_096
    ) as on:
        await on.stalled("big", "news")
        for _ in range(300):
            on.node.hub.push_to_channel("news", b'"%b"' % (b"x" * 20_000))
            await asyncio.sleep(0)
        assert (await the_end(on, "big"))["cause"] == "budget"
    async with inside(tmp_path, write_timeout_s=0.2, send_buffer_bytes=4_096) as on:
        await on.stalled("still", "news")
        for _ in range(60):
            on.node.hub.push_to_channel("news", b'"%b"' % (b"x" * 15_000))
        end = await the_end(on, "still")
        assert (end["code"], end["cause"]) == (4009, "stalled")


@pytest.mark.parametrize("wire", ["ws", "wss"])
async def test_a_lost_peer_and_one_that_closes(wire: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if wire == "wss":
        speak_tls(monkeypatch, tmp_path)
    async with inside(tmp_path) as on:
        raw = await on.stalled("lost", "news")
        raw.reset()
        end = await the_end(on, "lost")
        assert (end["code"], end["reason"], end["cause"]) == (1006, "connection lost", "lost")
        assert end["address"].startswith("127.0.0.1:") and not end["address"].endswith(":0")
        told = await welcome(on, "lost", end["client"])
        assert (told["previous"]["code"], told["previous"]["reason"]) == (1006, "connection lost")
        raw = await on.stalled("polite")
        await raw.send(close_frame(3_456, "fini\u202e".encode()))
        end = await the_end(on, "polite")
        assert (end["code"], end["reason"], end["cause"]) == (3_456, "fini\u202e", "client")


async def test_a_lost_peer_is_recorded_with_what_it_never_got(tmp_path: Path):
    async with inside(tmp_path, send_buffer_bytes=4_096) as on:
        raw = await on.stalled("lost", "news")
        for _ in range(60):
            on.node.hub.push_to_channel("news", b'"%b"' % (b"x" * 15_000))
        await asyncio.sleep(0.05)
        raw.reset()
        end = await the_end(on, "lost")
        assert end["cause"] == "lost"
        assert end["outbox_messages"] > 0 and end["outbox_bytes"] > 0


async def test_a_kick_with_a_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    async with inside(tmp_path) as on:
        ada, eve = await on.login("ada"), await on.login(HOSTILE)
        body = {"user": "ada", "code": 4011, "reason": "moved to another node"}
        assert await on.post("/api/disconnect", body) == {"clients": 1}
        assert await ada.closed() == (4011, "moved to another node")
        end = await the_end(on, "ada")
        assert (end["code"], end["reason"], end["cause"]) == (4011, "moved to another node", "operator")
        assert end["detail"].startswith("by the API from 127.0.0.1:") and "internal.key" in end["detail"]
        (action,) = lines(caplog, "operator: disconnect", "user=ada", "code=4011", "clients=1")
        assert "127.0.0.1:" in action and "moved to another node" in action
        async with on.http.post(
            "/api/disconnect",
            json={"user": HOSTILE},
            headers={"Authorization": BEARER, "X-Starlight-Operator": "root"},
        ) as response:
            assert response.status == 200
        assert await eve.closed() == (4503, "disconnected by the operator")
        await eventually(lambda: on.node.ends.find(HOSTILE)[0])
        (end,) = [row for row in await ends(on) if row["user"] == HOSTILE]
        assert end["detail"].startswith("by root, over the API from 127.0.0.1:")
        for line in lines(caplog, "eve"):
            assert line.isprintable()
        (row,) = await ends(on, f"?code=4011&since={int(end['at']) - 60}")
        assert row["user"] == "ada"
        for reason in ("\x1b[31m", "a\nb", "é", "x" * 124, 5):
            await on.post("/api/disconnect", {"user": "ada", "reason": reason}, 400)


async def test_a_header_of_the_caller_puts_nothing_of_its_own_into_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    async with inside(tmp_path) as on:
        for name in ("x" * 65, "caf\u00e9", "a\tb"):
            headers = {"Authorization": BEARER, "X-Starlight-Operator": name}
            async with on.http.post("/api/disconnect", json={"user": "ada"}, headers=headers) as response:
                assert response.status == 200
        found = lines(caplog, "operator: disconnect")
        assert len(found) == 3
        assert all("by the API from" in line for line in found)


async def test_revoked_users_and_refused_logins_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    async with inside(tmp_path, auth="jwt", jwt_secret=SECRET, jwt_issuer=ISSUER, jwt_audience=AUDIENCE) as on:
        ada = await on.stranger()
        await ada.ask("login", token=token(sub="ada"))
        assert await on.post("/api/revoke", {"user": "ada"}) == {"clients": 1}
        assert (await ada.closed())[0] == 4503
        end = await the_end(on, "ada")
        assert (end["code"], end["cause"]) == (4503, "revoked")
        assert end["detail"].startswith("by the API from 127.0.0.1:")
        assert lines(caplog, "operator: revoke user=ada seconds=86400 by the API from 127.0.0.1:")
        again = await on.stranger()
        await again.say("login", token=token(sub="ada"))
        assert (await again.closed())[0] == 4503
        end = await the_end(on, "ada")
        assert (end["cause"], end["detail"]) == ("login", "the user or its token was revoked")


async def test_refused_logins_say_why(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """To the operator: the client is told no more than before."""
    caplog.set_level(logging.INFO)
    good, other = token(sub="ada"), token(sub="ada", key="x" * 64)
    refusals = [
        (b"not JSON", 4501, "not a login: not JSON"),
        (b'{"type":"publish","channel":"c","data":1}', 4501, "the first message is not a login"),
        (b'{"type":"login"}', 4501, "the login has no token"),
        (b'{"type":"login","token":5}', 4501, "not a login: token: "),
        (json.dumps({"type": "login", "token": "nonsense"}).encode(), 4500, "token: "),
        (json.dumps({"type": "login", "token": other}).encode(), 4500, "token: "),
        (json.dumps({"type": "login", "token": token(sub="ada", exp=1)}).encode(), 4500, "token: expired"),
    ]
    async with inside(
        tmp_path,
        auth="jwt",
        jwt_secret=SECRET,
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        connections_per_user=1,
        login_timeout_s=2,
    ) as on:
        for message, code, detail in refusals:
            client = await on.stranger()
            await client.socket.send(message.decode())
            assert (await client.closed())[0] == code
            end = (await ends(on))[0]
            user = "ada" if detail == "token: expired" else None  # only a signed name is believed
            assert (end["code"], end["cause"], end["user"]) == (code, "login", user)
            assert end["detail"].startswith(detail), (end["detail"], detail)
            assert end["address"].startswith("127.0.0.1:")
            for secret in (other, "nonsense"):
                assert secret not in end["detail"]
            assert lines(caplog, f"address={end['address']}", f"code={code}", "cause=login", end["detail"])
        first, second = await on.stranger(), await on.stranger()
        await first.ask("login", token=good)
        await second.say("login", token=good)
        assert (await second.closed())[0] == 4016
        end = await the_end(on, "ada")
        assert (end["code"], end["user"]) == (4016, "ada")
        assert end["detail"] == "the user has 1 connections: connections_per_user=1"
        silent = await on.stranger()
        assert (await silent.closed())[0] == 4015
        end = (await ends(on))[0]
        assert (end["code"], end["cause"], end["detail"]) == (4015, "login", "no login came within login_timeout")
        assert (await on.totals())["ends"]["login"] == len(refusals) + 2


async def test_what_handlers_end_names_the_handler(tmp_path: Path):
    async with inside(tmp_path) as on:
        handlers = on.node.handlers

        @handlers.on_login
        async def check(client: Any, login: Any) -> None:
            if client.user == "mallory":
                raise LoginRefused(4500, "go away")

        @handlers.on("leave-me")
        def leave_me(client: Any, data: Any) -> None:
            raise CloseConnection(4000, "done")

        @handlers.on("close-me")
        async def close_me(client: Any, data: Any) -> None:
            client.connection.close(4001, "closed")

        mallory = await on.stranger()
        await mallory.say("login", user="mallory")
        assert await mallory.closed() == (4500, "go away")
        end = await the_end(on, "mallory")
        assert (end["cause"], end["client"] is not None) == ("login", True)
        assert end["detail"].startswith("refused by handler ") and end["detail"].endswith("check")
        for type, code in (("leave-me", 4000), ("close-me", 4001)):
            ada = await on.login("ada")
            await ada.say(type)
            assert (await ada.closed())[0] == code
            end = (await ends(on, "?user=ada"))[0]
            assert (end["code"], end["cause"]) == (code, "application")
        assert (await ends(on, "?user=ada"))[1]["detail"].endswith("leave_me")


async def test_broken_clients(tmp_path: Path):
    async with inside(tmp_path, ping_interval_s=0.2, pong_timeout_s=0.2) as on:
        for wrong, code in ((frame(TEXT, b"\xff"), 1007), (frame(3), 1002), (frame(TEXT, b"x" * 70_000), 1009)):
            raw = await on.stalled(f"u{code}")
            await raw.send(wrong)
            end = await the_end(on, f"u{code}")
            assert (end["code"], end["cause"]) == (code, "protocol")
        raw = await on.stalled("silent")
        end = await the_end(on, "silent")
        assert (end["code"], end["cause"]) == (4012, "silent")
        raw = await on.stalled("wrong")
        for number in range(21):
            await raw.say("nonsense", id=number)
        end = await the_end(on, "wrong")
        assert (end["code"], end["cause"], end["last_error"]) == (4509, "faults", 104)


async def test_a_drain_over_the_api(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    async with inside(tmp_path) as on:
        node = on.node
        clients = [await on.login(f"user-{number}") for number in range(3)]
        await on.post("/api/drain", {}, 202)
        for client in clients:
            assert (await client.closed())[0] == 1001
        _, found = node.ends.find()
        assert sorted(end.user or "" for end in found) == ["user-0", "user-1", "user-2"]
        assert {(end.code, end.cause) for end in found} == {(1001, "drain")}
        assert all(end.detail.startswith("by the API from 127.0.0.1:") for end in found)
        assert all(end.reason.startswith("drain;retry=") for end in found)
        assert lines(caplog, "operator: drain by the API from 127.0.0.1:")


async def test_endz_always_needs_the_key(tmp_path: Path):
    async with inside(tmp_path) as on:
        missing = await on.get("/endz", 401)
        wrong = await on.get("/endz", 401, Authorization="Bearer " + "x" * 40)
        assert "missing" in missing["error"]["message"]
        assert "wrong" in wrong["error"]["message"]
        for query in ("?limit=0", "?limit=1001", "?code=1", "?since=x", "?user=", "?offset=10001"):
            await on.get(f"/endz{query}", 400, Authorization=BEARER)
        asked = await on.post("/api/ends", {"user": "ada", "code": 4008, "since": 1.5, "limit": 5})
        assert asked["ends"] == [] and asked["total"] == 0
        await on.post("/api/ends", {"limit": 0}, 400)
        await on.post("/api/ends", {}, 401, key=None)
    async with inside(tmp_path, key=None) as on:
        assert "internal-key-file" in (await on.get("/endz", 403))["error"]["message"]


async def test_ten_thousand_attempts_are_bounded_and_leave_the_ends_of_others(tmp_path: Path):
    """Refused logins as long as they may be, over sockets; the memory of what is remembered stays within its bound."""
    async with inside(tmp_path) as on:
        await (await on.login("ada")).close()
        await the_end(on, "ada")
        padding = "\U0001f600" * 3_000
        for number in range(300):
            raw = await RawClient.upgraded(on.node.port)
            await raw.say("login", user=padding + str(number))
            raw.close()
        await eventually(lambda: on.node.ends.counts.total() >= 301)
        assert on.node.ends.held_bytes < 301 * 1_500
        assert (await the_end(on, "ada"))["code"] == 1000
        page = await on.get("/endz?limit=1000", Authorization=BEARER)
        assert padding not in json.dumps(page, ensure_ascii=False)
