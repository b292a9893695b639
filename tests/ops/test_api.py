"""starlight.ops.api: what a backend can do over HTTP, and what its receipts say."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from starlight.ops.api import BATCH_LIMIT, ApiError, IdempotencyKeys, WriteReceipt
from tests.support.fakes import eventually
from tests.support.inside import inside


def receipt(subscribers: int, written: int, queued: int = 0, evicted: int = 0) -> dict[str, int]:
    return {"subscribers": subscribers, "written": written, "queued": queued, "evicted": evicted}


# --- messages --------------------------------------------------------------------------------------------------------


async def test_publish_reaches_the_channel_and_says_so(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann, bob = await on.login("ann", "news"), await on.login("bob", "news")
        await on.login("cat")
        assert await on.post("/api/publish", {"channel": "news", "data": {"a": [1, None]}}) == receipt(2, 2)
        for client in (ann, bob):
            assert await client.hear() == {
                "type": "publication", "channel": "news", "from": None, "data": {"a": [1, None]}
            }  # fmt: skip
        assert await on.post("/api/publish", {"channel": "empty", "data": 1}) == receipt(0, 0)


async def test_data_is_passed_on_as_it_was_written(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann = await on.login("ann", "news")
        for data in ("1e400", '"\\u00e9 é"', '{ "a" : 1 }', "123456789012345678901234567890", "null", '"\\n"'):
            await on.post("/api/publish", b'{"channel":"news","data":%b}' % data.encode())
            heard = await asyncio.wait_for(ann.socket.recv(), 10)
            assert str(heard).endswith(f'"from":null,"data":{data}}}')


async def test_a_batch_keeps_its_order_and_gets_a_receipt_for_each(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann, bob = await on.login("ann", "a", "b"), await on.login("bob", "b")
        messages = [{"channel": "ab"[number % 2], "data": number} for number in range(100)]
        messages.append({"channel": "nobody", "data": 1})
        receipts = (await on.post("/api/publish", {"messages": messages}))["receipts"]
        assert receipts == [receipt(1 + number % 2, 1 + number % 2) for number in range(100)] + [receipt(0, 0)]
        assert [(await ann.hear())["data"] for _ in range(100)] == list(range(100))
        assert [(await bob.hear())["data"] for _ in range(50)] == list(range(1, 100, 2))


async def test_direct_and_broadcast(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann, again, bob = await on.login("ann"), await on.login("ann"), await on.login("bob")
        assert await on.post("/api/direct", {"to": "ann", "data": 1}) == receipt(2, 2)
        assert await on.post("/api/direct", {"to": "nobody", "data": 1}) == receipt(0, 0)
        assert await on.post("/api/broadcast", {"data": "all"}) == receipt(3, 3)
        for client in (ann, again):
            assert await client.hear() == {"type": "server", "data": 1}
        for client in (ann, again, bob):
            assert await client.hear() == {"type": "broadcast", "from": None, "data": "all"}


async def test_what_a_slow_reader_does_not_take_is_queued(tmp_path: Path):
    async with inside(tmp_path, send_buffer_bytes=4096, outbox_bytes="128KiB", evict_after_s=60) as on:
        await on.stalled("slow", "c")
        receipts = [await on.post("/api/publish", {"channel": "c", "data": "x" * size}) for size in [9] + [20_000] * 39]
        assert receipts[0] == receipt(1, 1)
        assert receipts[-1] == receipt(1, 0, 1)
        assert (await on.totals())["evictions"] == {"4008": 0, "4009": 0}


async def test_a_receipt_tells_of_one_that_is_evicted_for_it(tmp_path: Path):
    async with inside(tmp_path, send_buffer_bytes=4096, outbox_bytes="1KiB", evict_after_s=0) as on:
        await on.stalled("slow", "c")
        receipts = [await on.post("/api/publish", {"channel": "c", "data": "x" * size}) for size in [9] + [20_000] * 39]
        assert receipts[0] == receipt(1, 1)
        reached = [one for one in receipts if one["subscribers"]]
        assert reached[-2:] == [receipt(1, 1), receipt(1, 0, 0, 1)]
        assert receipts[-1] == receipt(0, 0)
        assert (await on.totals())["evictions"] == {"4008": 1, "4009": 0}


async def test_receipts_of_many_receivers_are_complete(tmp_path: Path):
    async with inside(tmp_path) as on:
        await asyncio.gather(*(on.login(f"user{number}", "c") for number in range(120)))
        assert await on.post("/api/publish", {"channel": "c", "data": 1}) == receipt(120, 120)
        assert await on.post("/api/broadcast", {"data": 1}) == receipt(120, 120)
        answers = await asyncio.gather(*(on.post("/api/publish", {"channel": "c", "data": n}) for n in range(20)))
        assert answers == [receipt(120, 120)] * 20


async def test_receipts_wait_for_a_flush_that_is_put_off(tmp_path: Path):
    async with inside(tmp_path, coalesce_delay_s="50ms") as on:
        await on.login("ann", "c")
        assert await on.post("/api/publish", {"channel": "c", "data": 1}) == receipt(1, 1)


# --- idempotency -----------------------------------------------------------------------------------------------------


async def test_the_same_key_sends_once(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann = await on.login("ann", "c")
        message = {"channel": "c", "data": [1], "idempotency_key": "k1"}
        assert await on.post("/api/publish", message) == receipt(1, 1)
        await on.login("bob", "c")
        assert await on.post("/api/publish", message) == receipt(1, 1)  # that of the first time
        assert await asyncio.gather(*(on.post("/api/publish", message) for _ in range(5))) == [receipt(1, 1)] * 5
        error = await on.post("/api/publish", {**message, "data": [2]}, 409)
        assert error["error"]["code"] == 409
        await on.post("/api/direct", {"to": "ann", "data": [1], "idempotency_key": "k1"}, 409)
        await on.post("/api/publish", {**message, "idempotency_key": "k2", "data": "last"})
        assert [(await ann.hear())["data"] for _ in range(2)] == [[1], "last"]


async def test_the_same_key_at_the_same_time_sends_once(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann = await on.login("ann")
        body = {"to": "ann", "data": 1, "idempotency_key": "k"}
        assert await asyncio.gather(*(on.post("/api/direct", body) for _ in range(10))) == [receipt(1, 1)] * 10
        await on.post("/api/broadcast", {"data": 2, "idempotency_key": "b"})
        await on.post("/api/broadcast", {"data": 2, "idempotency_key": "b"})
        await on.post("/api/broadcast", {"data": 3})
        assert [(await ann.hear())["data"] for _ in range(3)] == [1, 2, 3]


async def test_keys_in_a_batch(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann = await on.login("ann", "c")

        def message(data: Any, key: str | None) -> dict[str, Any]:
            return {"channel": "c", "data": data, "idempotency_key": key}

        batch = {"messages": [message(1, "a"), message(1, "a"), message(2, None), message(2, None), message(3, "b")]}
        for _ in range(2):
            assert (await on.post("/api/publish", batch))["receipts"] == [receipt(1, 1)] * 5
        for wrong in ([message(9, "new"), message(8, "a")], [message(9, "new"), message(8, "new")]):
            await on.post("/api/publish", {"messages": wrong}, 409)  # and nothing of it was sent
        await on.post("/api/publish", message("last", None))
        assert [(await ann.hear())["data"] for _ in range(7)] == [1, 2, 2, 3, 2, 2, "last"]


async def test_a_key_whose_message_failed_is_free_and_those_before_it_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with inside(tmp_path) as on:
        ann = await on.login("ann", "c")
        messages = [{"channel": "c", "data": data, "idempotency_key": f"k{data}"} for data in (1, 2)]
        push = on.node.hub.push_to_channel

        def fail_at_2(channel: str, data: bytes) -> int:
            if data == b"2":
                raise MemoryError
            return push(channel, data)

        with monkeypatch.context() as broken:
            broken.setattr(on.node.hub, "push_to_channel", fail_at_2)
            await on.post("/api/publish", {"messages": messages}, 500)
        again = await on.post("/api/publish", {"messages": messages})
        assert again["receipts"] == [{"subscribers": 1, "written": 0, "queued": 1, "evicted": 0}, receipt(1, 1)]
        assert [(await ann.hear())["data"] for _ in range(2)] == [1, 2]


async def test_keys_are_bounded_in_number_and_time():
    now_s = 100.0
    keys = IdempotencyKeys(lambda: now_s, limit=3, ttl_s=10)
    first = keys.keep("a", b"1")
    first.set_result(WriteReceipt(1, 1, 0, 0))
    assert keys.find("a", b"1") is first
    with pytest.raises(ApiError) as conflict:
        keys.find("a", b"2")
    assert conflict.value.status == 409
    now_s += 5
    for name in "bcd":
        keys.keep(name, b"")
    assert len(keys) == 3 and keys.find("a", b"2") is None
    now_s += 10
    assert keys.find("b", b"other") is None
    keys.keep("e", b"")
    assert len(keys) == 1


# --- users and channels ----------------------------------------------------------------------------------------------


async def test_disconnect_by_user_and_by_id(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann, again, bob = await on.login("ann"), await on.login("ann"), await on.login("bob")
        assert await on.post("/api/disconnect", {"user": "ann"}) == {"clients": 2}
        assert [(await client.closed())[0] for client in (ann, again)] == [4503, 4503]
        (row,) = (await on.get("/connz?user=bob"))["connections"]
        assert await on.post("/api/disconnect", {"id": row["id"], "code": 4011}) == {"clients": 1}
        assert (await bob.closed())[0] == 4011
        eve = await on.login("eve")
        assert await on.post("/api/disconnect", {"user": "eve", "code": 3999, "reason": "as asked"}) == {"clients": 1}
        assert await eve.closed() == (3999, "as asked")
        await eventually(lambda: on.node.connections == 0)
        assert await on.post("/api/disconnect", {"id": row["id"]}) == {"clients": 0}
        assert await on.post("/api/disconnect", {"user": "ann"}) == {"clients": 0}


async def test_revoke(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann = await on.login("ann")
        assert await on.post("/api/revoke", {"user": "ann", "seconds": 60}) == {"clients": 1}
        assert (await ann.closed())[0] == 4503
        assert await on.post("/api/revoke", {"token_id": "abc"}) == {"clients": 0}
        assert (await on.totals())["revocations"] == 2


async def test_presence_is_409_and_null_where_the_channel_has_none(tmp_path: Path):
    channels = {"quiet": {"presence": False, "announce": "users"}, "big": {"presence": False}}
    async with inside(tmp_path, channels=channels) as on:
        await on.login("ann", "quiet")
        for channel in ("quiet", "big"):
            assert (await on.post("/api/presence", {"channel": channel}, 409))["error"]["message"].startswith(
                "channel: has"
            )
        assert (await on.post("/api/channels", {}))["channels"] == [
            {"channel": "quiet", "subscribers": 1, "users": None}
        ]


async def test_presence_and_channels(tmp_path: Path):
    async with inside(tmp_path) as on:
        await on.login("ann", "room.1", "room.2", "hall")
        await on.login("bob", "room.1")
        await on.login("bob", "room.1")
        assert await on.post("/api/presence", {"channel": "room.1"}) == {
            "users": ["ann", "bob"],
            "clients": 3,
            "total": 2,
        }
        assert await on.post("/api/presence", {"channel": "room.1", "limit": 1}) == {
            "users": ["ann"], "clients": 3, "total": 2
        }  # fmt: skip
        assert await on.post("/api/presence", {"channel": "nobody"}) == {"users": [], "clients": 0, "total": 0}
        channels = (await on.post("/api/channels", {}))["channels"]
        assert [one["channel"] for one in channels] == ["room.1", "room.2", "hall"]
        assert channels[0] == {"channel": "room.1", "subscribers": 3, "users": 2}
        assert len((await on.post("/api/channels", {"prefix": "room."}))["channels"]) == 2
        assert len((await on.post("/api/channels", {"limit": 1}))["channels"]) == 1


async def test_drain_answers_before_the_node_is_gone(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann = await on.login("ann")
        assert await on.post("/api/drain", {}, 202) == {"draining": True}
        assert (await ann.closed())[0] == 1001
        await eventually(lambda: not on.node.is_serving)


# --- refusals --------------------------------------------------------------------------------------------------------

WRONG: list[tuple[str, Any, str]] = [
    ("publish", b"", "JSON"),
    ("publish", b"nonsense", "JSON"),
    ("publish", b'{"channel":"c","data":"\xff"}', "JSON"),
    ("publish", b'{"channel":"c","data":' + b"[" * 100_000, "JSON"),
    ("publish", b'{"channel":"c","data":' + b"[" * 600 + b"]" * 600 + b"}", "nested"),
    ("publish", [], "object"),
    ("publish", {}, "channel"),
    ("publish", {"channel": "c"}, "data"),
    ("publish", {"channel": 1, "data": 1}, "channel"),
    ("publish", {"channel": "a b", "data": 1}, "channel"),
    ("publish", {"channel": "c", "data": 1, "from": "ann"}, "from"),
    ("publish", {"channel": "c", "data": 1, "idempotency_key": ""}, "idempotency_key"),
    ("publish", {"channel": "c", "data": 1, "idempotency_key": "k" * 256}, "idempotency_key"),
    ("publish", {"messages": []}, "messages"),
    ("publish", {"messages": None}, "messages"),
    ("publish", {"messages": [{"channel": "c", "data": 1}] * (BATCH_LIMIT + 1)}, "messages"),
    ("publish", {"messages": [{"channel": "c", "data": 1}, {"channel": "", "data": 1}]}, "channel"),
    ("publish", {"messages": [{"channel": "c", "data": 1}], "idempotency_key": "k"}, "idempotency_key"),
    ("direct", {"to": "", "data": 1}, "to"),
    ("direct", {"to": "a\nb", "data": 1}, "to"),
    ("direct", {"data": 1}, "to"),
    ("broadcast", {}, "data"),
    ("disconnect", {}, "user or id"),
    ("disconnect", {"user": "ann", "id": 1}, "user or id"),
    ("disconnect", {"id": 0}, "id"),
    ("disconnect", {"id": 1, "user": None}, "user"),
    ("disconnect", {"user": "ann", "code": 1006}, "code"),
    ("disconnect", {"user": "ann", "code": 77}, "code"),
    ("disconnect", {"user": "ann", "code": 1010}, "code"),
    ("disconnect", {"user": "ann", "code": 5000}, "code"),
    ("disconnect", {"user": "ann", "reason": "ü"}, "reason"),
    ("disconnect", {"user": "ann", "reason": "x" * 124}, "reason"),
    ("disconnect", {"id": 1, "reason": 5}, "reason"),
    ("revoke", {}, "user or token_id"),
    ("revoke", {"user": "ann", "seconds": 0}, "seconds"),
    ("presence", {"channel": "c", "limit": 1001}, "limit"),
    ("channels", {"limit": 0}, "limit"),
    ("drain", {"now": True}, "now"),
]


async def test_a_wrong_request_is_refused_by_field_and_does_nothing(tmp_path: Path):
    async with inside(tmp_path) as on:
        ann = await on.login("ann", "c")
        for route, body, word in WRONG:
            answer = await on.post(f"/api/{route}", body, 400)
            assert word in answer["error"]["message"], (route, str(body)[:80], answer)
        assert (await ann.ask("ping"))["type"] == "pong"
        totals = await on.totals()
        assert (totals["publications"], totals["directs"], totals["broadcasts"]) == (0, 0, 0)


async def test_a_message_is_no_larger_than_one_of_a_client(tmp_path: Path):
    async with inside(tmp_path, read_limit_bytes="1KiB") as on:
        await on.post("/api/broadcast", {"data": "x" * 1022})
        for route, body in (
            ("broadcast", {"data": "x" * 1023}),
            ("publish", {"messages": [{"channel": "c", "data": 1}, {"channel": "c", "data": "x" * 2000}]}),
            ("direct", {"to": "ann", "data": "x" * 2000}),
        ):
            assert "data" in (await on.post(f"/api/{route}", body, 413))["error"]["message"]
        assert json.dumps((await on.totals())["publications"]) == "0"
