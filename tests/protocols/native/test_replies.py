"""Replies on the wire: exact bytes, and any id comes back as it was."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.close_codes import ErrorCode
from starlight.errors import RequestError
from starlight.protocols.native.commands import decode
from starlight.protocols.native.replies import (
    ClientLimits,
    bye,
    error,
    ok,
    ok_count,
    ok_data,
    ok_id,
    ok_join,
    ok_presence,
    ok_publish,
    pong,
    welcome,
)


def test_exact_bytes() -> None:
    assert ok_id(1) == b'{"type":"ok","id":1}'
    assert ok_id("a") == b'{"type":"ok","id":"a"}'
    assert ok(1) == ok_id(1)
    assert ok(1, expires=5) == b'{"type":"ok","id":1,"expires":5}'
    assert ok_publish(1, 3) == b'{"type":"ok","id":1,"subscribers":3,"scope":"node"}'
    assert ok_count(1, 2) == b'{"type":"ok","id":1,"clients":2}'
    assert ok_join(1, "news") == b'{"type":"ok","id":1,"channel":"news"}'
    assert ok_presence(1, ["ann"], 2) == b'{"type":"ok","id":1,"users":["ann"],"clients":2}'
    assert ok_data(1, {"price": 5}) == b'{"type":"ok","id":1,"data":{"price":5}}'
    assert ok_data(1, None) == b'{"type":"ok","id":1,"data":null}'
    assert pong() == b'{"type":"pong"}'
    assert pong(0) == b'{"type":"pong","id":0}'
    assert bye(4500, "invalid token") == b'{"type":"bye","code":4500,"reason":"invalid token","retry_ms":null}'
    assert bye(1012, "restart", 250) == b'{"type":"bye","code":1012,"reason":"restart","retry_ms":250}'


def test_errors() -> None:
    text = b'{"type":"error","id":7,"code":107,"name":"bad_request","message":"to: missing"}'
    assert error(7, ErrorCode.BAD_REQUEST, "to: missing") == text
    assert error(None, 120, "x") == b'{"type":"error","code":120,"name":"not_connected","message":"x"}'


def test_welcome_with_limits_and_the_connection_before() -> None:
    text = welcome(
        None,
        user="ann",
        client="c1",
        node="n1",
        ping_s=25.0,
        pong_s=10.0,
        limits=ClientLimits(65536, 1000, None, 5),
        previous={"code": 4008, "reason": "slow consumer", "at": 1},
    )
    assert json.loads(text)["limits"] == {
        "message_bytes": 65536, "channels": 1000, "message_rate": None, "byte_rate": 5
    }  # fmt: skip
    assert json.loads(text)["previous"] == {"code": 4008, "reason": "slow consumer", "at": 1}


def test_welcome() -> None:
    assert welcome(1, user="ann", client="c1", node="n1", ping_s=25.0, pong_s=0.5) == (
        b'{"type":"welcome","id":1,"user":"ann","client":"c1","node":"n1",'
        b'"session":null,"expires":null,"ping":25,"pong":0.5}'
    )
    assert "id" not in json.loads(welcome(None, user="ann", client="c1", node="n1", ping_s=1, pong_s=1))


ids = st.integers(-(2**53), 2**53) | st.text(max_size=64).filter(lambda text: len(text.encode(errors="replace")) <= 64)
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(ids)
def test_an_id_that_was_sent_is_echoed(id: int | str) -> None:
    """From a client's bytes, through decode, to the reply's bytes."""
    try:
        request = json.dumps({"type": "ping", "id": id}).encode()
        read = decode(request).id
    except RequestError:  # a lone surrogate, which has no UTF-8
        assert isinstance(id, str) and not id.isascii()
        return
    assert read is not None
    replies = [ok_id(read), ok(read), ok_publish(read, 1), ok_count(read, 1), ok_join(read, "news"), pong(read)]
    replies += [ok_presence(read, [], 0), ok_data(read, 1), error(read, 100, "x")]
    replies += [welcome(read, user="ann", client="c1", node="n1", ping_s=1, pong_s=1)]
    for reply in replies:
        assert b"\n" not in reply and b"\r" not in reply  # the separator of `lines`
        echoed = json.loads(reply)["id"]
        assert echoed == id and type(echoed) is type(id)


@given(texts)
def test_text_is_escaped(text: str) -> None:
    assert json.loads(error(1, 107, text))["message"] == text
    assert json.loads(ok_join(1, text))["channel"] == text
    assert json.loads(ok_presence(1, [text], 1))["users"] == [text]
    assert json.loads(bye(1000, text))["reason"] == text


@pytest.mark.parametrize("value", [object(), {1: 2}, 2**64, "\ud800"])
def test_what_json_cannot_say_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        ok_data(1, value)
