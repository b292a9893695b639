"""Rows 33-40 of the fault table: whole messages that are no good, over the wire of a real node."""

from __future__ import annotations

import json
from typing import Any

import pytest
import uvloop

from starlight.channels.client import Client
from starlight.config.settings import Settings
from starlight.server.node import Node
from tests.support.fakes import eventually
from tests.support.raw_client import BINARY, CONTINUATION, TEXT, RawClient, frame, message, stage

WIRES = ("ws", "wss")
LOOPS = {"uvloop": uvloop.new_event_loop}  # as in production

NOT_OBJECTS = [
    b"",
    b" ",
    b"x",
    b"{",
    b"}",
    b"[]",
    b'["login"]',
    b"1",
    b'"login"',
    b"null",
    b"true",
    b"{}{}",
    b'{"type"}',
]
DEEP = 100_000


async def error_for(client: RawClient, text: bytes) -> dict[str, Any]:
    """The one error reply to a text frame; the connection still answers behind it."""
    await client.send(frame(TEXT, text) + message("ping", id="behind"))
    told = await client.hear()
    assert (await client.hear())["id"] == "behind", told
    return told


@pytest.mark.parametrize(
    "text", [*NOT_OBJECTS, b'{"type":"ping"}', b'{"type":"login"}', b'{"user":"x"}', b'{"type":5}']
)
async def test_33_before_the_login_anything_else_is_4501(text: bytes):
    async with stage() as on_stage:
        client = await on_stage.upgraded()
        await client.send(frame(TEXT, text))
        assert await client.close_code() == 4501
        client.close()
        await on_stage.alone()


@pytest.mark.parametrize("text", NOT_OBJECTS)
async def test_33_after_the_login_it_is_107(text: bytes):
    async with stage() as on_stage:
        client = await on_stage.login()
        told = await error_for(client, text)
        assert (told["type"], told["code"], "id" in told) == ("error", 107, False)


def nested(depth: int, opening: str, closing: str) -> bytes:
    return (opening * depth + "1" + closing * depth).encode()


@pytest.mark.parametrize(
    "text",
    [
        nested(30_000, "[", "]"),
        b"[" * 60_000,
        b'{"type":"publish","channel":"c","data":' + nested(30_000, "[", "]") + b"}",
        b'{"type":"publish","channel":"c","data":' + nested(10_000, '{"a":', "}") + b"}",
        b'{"type":"ping","x":' + nested(30_000, "[", "]") + b"}",
        b'{"type":"app","data":' + nested(30_000, "[", "]") + b"}",
        b'"' + b"[" * 60_000 + b'"',
        b'{"type":"direct","to":"raw","data":"' + b"[" * 60_000 + b'"}',
    ],
    ids=lambda text: f"{text[:40].decode()}…",
)
async def test_34_nesting_is_an_error_and_no_crash(text: bytes):
    def node(settings: Settings) -> Node:
        made = Node(settings)
        made.handlers.on("app")(lambda client, data: data)
        return made

    async with stage(node=node) as on_stage:
        client = await on_stage.login()
        told = await error_for(client, text)
        if b'"direct"' in text:  # brackets in a string nest nothing
            assert told["type"] == "direct"
        else:
            assert (told["type"], told["code"]) == ("error", 107)


async def test_34_a_hundred_thousand_deep():
    async with stage(read_limit_bytes=1 << 20) as on_stage:
        client = await on_stage.login()
        for data in (nested(DEEP, "[", "]"), nested(DEEP, '{"a":', "}"), b"[" * DEEP):
            text = b'{"type":"publish","channel":"c","data":' + data + b"}"
            assert (await error_for(client, text))["code"] == 107


@pytest.mark.parametrize(
    "number", [b"NaN", b"Infinity", b"-Infinity", b"01", b"1.", b".5", b"+1", b"0x1", b"1e", b'"\\ud800"']
)
async def test_35_what_is_no_number_and_a_lone_surrogate_is_107(number: bytes):
    async with stage() as on_stage:
        client = await on_stage.login()
        text = b'{"type":"direct","to":"raw","data":' + number + b"}"
        assert (await error_for(client, text))["code"] == 107


async def test_35_odd_but_valid_json_is_passed_on_as_it_is():
    """1e400 and duplicate keys are valid JSON texts; what they mean is the receiver's affair."""
    async with stage() as on_stage:
        client = await on_stage.login()
        for data in (
            b"1e400",
            b'{"a":1,"a":2}',
            b'"\\ud83e\\udd8a"',
            b"-0",
            b"123456789012345678901234567890",
            b'"\\u0000"',
        ):
            await client.send(frame(TEXT, b'{"type":"direct","to":"raw","data":' + data + b"}"))
            _, payload = await client.next_frame()
            assert payload.endswith(b'"data":' + data + b"}")
        # Of a duplicate field of ours the last one counts.
        await client.send(frame(TEXT, b'{"type":"direct","to":"nobody","to":"raw","data":1,"data":2}'))
        assert (await client.hear())["data"] == 2


async def test_36_an_unknown_type_is_104_and_a_wrong_field_is_107_and_named():
    async with stage() as on_stage:
        client = await on_stage.login()
        assert (await client.ask("no_such_type"))["code"] == 104
        for fields, name in (
            ({"type": "join", "channel": 5}, "channel"),
            ({"type": "publish", "channel": "c"}, "data"),
            ({"type": "direct", "to": ["raw"], "data": 1}, "to"),
            ({"type": "join", "channel": None}, "channel"),
            ({"type": "presence", "channel": "c", "limit": "many", "id": 1}, "limit"),
        ):
            told = await error_for(client, json.dumps(fields).encode())
            assert told["code"] == 107 and name in told["message"], told


@pytest.mark.parametrize("name", ["", "x" * 256, "a\0", "a*", "a>", "a b", " ", "ä", "a\n", "🦊", "a?", "a,b"])
async def test_37_impossible_channel_names_are_107(name: str):
    async with stage() as on_stage:
        client = await on_stage.login()
        for type in ("join", "publish", "presence"):
            told = await client.ask(type, channel=name, data=1)
            assert told["code"] == 107, (type, told)
        assert (await client.ask("join", channel="x" * 255))["type"] == "ok"


class OnlyReading:
    def allows(self, client: Client, action: str, name: str) -> bool:
        return action == "join" and name != "secret"


async def test_38_without_permission_it_is_103_whether_the_channel_exists_or_not():
    def node(settings: Settings) -> Node:
        return Node(settings, permissions=OnlyReading())

    async with stage(node=node) as on_stage:
        client = await on_stage.login()
        assert (await client.ask("join", channel="there"))["type"] == "ok"
        told = [await client.ask("publish", channel=name, data=1) for name in ("there", "not_there")]
        told += [await client.ask("direct", to=name, data=1) for name in ("raw", "nobody")]
        told += [await client.ask("presence", channel=name) for name in ("there", "not_there")]
        assert {answer["code"] for answer in told} == {103}
        assert len({answer["message"] for answer in told}) == 1


@pytest.mark.parametrize("protocols", ["", "starlight.v1.lines"])
@pytest.mark.parametrize("logged_in", [False, True])
async def test_39_binary_is_1003(protocols: str, logged_in: bool):
    async with stage() as on_stage:
        for wire in (frame(BINARY, b"{}"), frame(BINARY, b"{", fin=False) + frame(CONTINUATION, b"\xff")):
            client = await (on_stage.login if logged_in else on_stage.upgraded)(protocols=protocols)
            await client.send(wire)
            assert await client.close_code() == 1003
            client.close()
        await on_stage.alone()


async def test_40_what_only_the_server_may_say_is_overwritten():
    async with stage() as on_stage:
        client = await on_stage.login("mallory")
        await client.ask("join", channel="c")
        forged = {"from": "ann", "offset": 7, "epoch": "e", "user": "ann", "client": "ann-1", "node": "n"}
        for fields in (
            {"type": "publish", "channel": "c"},
            {"type": "direct", "to": "mallory"},
            {"type": "broadcast"},
        ):
            await client.say(**fields, data="x", **forged)
            told = await client.hear()
            told.pop("channel", None)
            assert told == {"type": told["type"], "from": "mallory", "data": "x"}
        await eventually(lambda: on_stage.strays)
        assert on_stage.strays == [{"type": "broadcast", "from": "mallory", "data": "x"}]
        on_stage.strays.clear()


async def test_twenty_one_faults_are_one_too_many():
    async with stage() as on_stage:
        client = await on_stage.login()
        await client.send(frame(TEXT, b"?") * 40)
        frames, end = await client.to_the_end()
        assert end == "eof"
        assert frames[-1][1][:2] == (4509).to_bytes(2, "big")
        errors = [payload for opcode, payload in frames if opcode == TEXT and b'"error"' in payload]
        assert len(errors) == 21
        client.close()
        await on_stage.alone()


async def test_lines_bad_ones_among_good_ones():
    async with stage() as on_stage:
        client = await on_stage.login(protocols="starlight.v1.lines")
        lines = b'{"type":"ping","id":1}\n\n?\r\n{"type":"ping","id":2}\r\n\r\n[]\n{"type":"ping","id":3}'
        await client.send(frame(TEXT, lines))
        told: list[dict[str, Any]] = []
        while len(told) < 5:
            _, payload = await client.next_frame()
            told += [json.loads(line) for line in payload.split(b"\n")]
        assert [answer.get("id") or answer["code"] for answer in told] == [1, 107, 2, 107, 3]
