"""The client's side of the protocol, against the server's: what one writes the other reads."""

import json
from typing import Any

import pytest

from starlight.errors import RequestError
from starlight.protocols.native import client as wire
from starlight.protocols.native import commands, pushes, replies

DATA = [None, True, -1.5, "é\n\u2028", [1, [2]], {"a": {"b": None}}, ""]


@pytest.mark.parametrize("data", DATA)
def test_commands_are_what_the_server_reads(data: Any) -> None:
    direct = commands.decode(wire.encode("direct", 1, to="bob", data=data))
    assert isinstance(direct, commands.SendDirect)
    assert (direct.to, direct.id, json.loads(bytes(direct.data))) == ("bob", 1, data)
    publish = commands.decode(wire.encode("publish", channel="news", data=data))
    assert isinstance(publish, commands.Publish)
    assert (publish.channel, publish.id, json.loads(bytes(publish.data))) == ("news", None, data)
    custom = commands.decode(wire.encode("bid", 2, data=data))
    assert isinstance(custom, commands.Custom)
    assert custom.type == "bid"


def test_commands_without_data() -> None:
    assert wire.encode("ping") == b'{"type":"ping"}'
    assert wire.encode("login", 1, user="ada", token=None) == b'{"type":"login","id":1,"user":"ada"}'
    assert wire.encode("presence", 2, channel="a", limit=None) == b'{"type":"presence","id":2,"channel":"a"}'


def test_bytes_are_spliced_as_they_are_but_never_carry_a_newline() -> None:
    assert wire.encode("publish", channel="a", data=b'{"x":\r\n1.0}') == (
        b'{"type":"publish","channel":"a","data":{"x":  1.0}}'
    )


def test_data_that_is_no_json_is_refused_here() -> None:
    with pytest.raises(TypeError):
        wire.encode("publish", channel="a", data=object())


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (replies.ok_id(1), wire.Ok(id=1)),
        (replies.ok_publish(1, 3), wire.Ok(id=1, subscribers=3, scope="node")),
        (replies.ok_count(1, 2), wire.Ok(id=1, clients=2)),
        (replies.ok_join(1, "a"), wire.Ok(id=1, channel="a")),
        (
            replies.ok_joins(1, [("a", None), ("b", RequestError(103, "no"))]),
            wire.Ok(
                id=1,
                channels=[wire.JoinedItem("a"), wire.JoinedItem("b", wire.Refusal(103, "permission_denied", "no"))],
            ),
        ),
        (replies.ok_presence(1, ["b"], 2), wire.Ok(id=1, users=["b"], clients=2)),
        (replies.ok_data(1, {"x": 1}), wire.Ok(id=1, data={"x": 1})),
        (replies.error(1, 120, "gone"), wire.Error(120, "not_connected", "gone", 1)),
        (replies.error(None, 107, "bad"), wire.Error(107, "bad_request", "bad")),
        (replies.pong(), wire.Pong()),
        (replies.pong(5), wire.Pong(5)),
        (
            replies.welcome(1, user="u", client="c", node="n", ping_s=25, pong_s=2.5),
            wire.Welcome("u", "c", "n", ping=25, pong=2.5, id=1),
        ),
        (replies.bye(1001, "drain", 500), wire.Bye(1001, "drain", 500)),
        (replies.bye(4500, "invalid token"), wire.Bye(4500, "invalid token")),
        (pushes.publication_head("a", "u") + b"[1]" + pushes.TAIL, wire.Publication("a", [1], "u")),
        (pushes.publication_head("a", None) + b"null" + pushes.TAIL, wire.Publication("a", None)),
        (pushes.direct_head("u") + b"1" + pushes.TAIL, wire.Direct(1, "u")),
        (pushes.broadcast_head("u") + b'"x"' + pushes.TAIL, wire.Broadcast("x", "u")),
        (pushes.server_head() + b"{}" + pushes.TAIL, wire.Server({})),
        (pushes.joined("a", "u"), wire.Joined("a", "u")),
        (pushes.left("a", "u"), wire.Left("a", "u")),
        (b'{"type":"gap","channel":"a","from":1,"to":3,"reason":"slow"}', wire.Gap("a", 1, 3, "slow")),
        (b'{"type":"expiring","seconds":60,"new":1}', wire.Expiring(60)),
    ],
)
def test_what_the_server_writes_is_read(message: bytes, expected: wire.Received) -> None:
    assert wire.decode(message) == expected


def test_an_unknown_type_is_none_and_a_wrong_field_unreadable() -> None:
    assert wire.decode(b'{"type":"nova","x":[]}') is None
    for wrong in (b'{"type":"direct"}', b'{"type":"error","code":"x"}', b"{}", b"[]", b"", b"\xff", b'{"type":1}'):
        assert isinstance(wire.decode(wrong), wire.Unreadable)


@pytest.mark.parametrize(
    ("message", "id"),
    [
        (b'{"type":"ok","id":7,"data":1e400}', 7),
        (b'{"data":{"a":[-1e400]},"id":7,"type":"ok"}', 7),
        (b'{"type":"ok","id":7,"data":%b}' % (b"9" * 5_000), 7),
        (b'{"type":"ok","id":7,"data":"\xff"}', 7),
        (b'{"type":"ok","id":7,"data":%b%b}' % (b"[" * 100_000, b"]" * 100_000), 7),
        (b'{"type":"ok","data":%b%b,"id":7}' % (b"[" * 100_000, b"]" * 100_000), 7),
        (b'{"type":"ok","id":7,"data":%b' % (b"[" * 100_000), 7),
        (b'{"type":"error","id":7,"code":"x"}', 7),
        (b'{"type":"error","id":7}', 7),
        (b'{"type":"welcome","id":7,"user":5}', 7),
        (b'{"type":"ok","users":5,"id":7}', 7),
        (b'{"type":"ok","id":"7","users":5}', None),
        (b'{"type":"ok","id":{"id":7},"data":1}', None),
        (b'{"type":"ok","data":%b{"id":7}%b}' % (b"[" * 100_000, b"]" * 100_000), None),
        (b'{"a":' * 100_000 + b'{"id":7' + b"}" * 100_001, None),
        (b'"' + b"\\" * 200_000, None),
        (b'{"type":"expiring","seconds":1%b}' % (b"0" * 400), None),
    ],
)
def test_what_can_be_read_of_what_python_cannot_hold(message: bytes, id: int | None) -> None:
    decoded = wire.decode(message)
    assert isinstance(decoded, wire.Unreadable)
    assert decoded.id == id and decoded.why


@pytest.mark.parametrize("retry", [b"-5", b"1e308", b"1" + b"0" * 400, b'"x"', b"null", b"[]", b"true"])
def test_any_retry_of_a_bye_is_read(retry: bytes) -> None:
    assert isinstance(wire.decode(b'{"type":"bye","code":1012,"retry_ms":%b}' % retry), wire.Bye)


@pytest.mark.parametrize("data", [b"nope", b"", b"[", b"1 2", b'"\xff"', b"NaN", b"'a'", b"[" * 100_000])
def test_bytes_that_are_no_json_are_refused_here(data: bytes) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        wire.encode("publish", channel="a", data=data)


@pytest.mark.parametrize("limits", [None, 5, [], {}, {"message_bytes": None}, {"message_bytes": "x"}])
def test_limits_that_are_none(limits: object) -> None:
    text = json.dumps({"type": "welcome", "id": 1, "user": "u", "limits": limits, "previous": limits}).encode()
    welcome = wire.decode(text)
    assert isinstance(welcome, wire.Welcome)
    assert welcome.limit_of("message_bytes") is None
