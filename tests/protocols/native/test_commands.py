"""Decoding: every command, every wrong field, and that nothing but valid JSON can be spliced to others."""

import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from starlight.errors import BadMessage, RequestError
from starlight.protocols.native import commands
from starlight.protocols.native.commands import (
    MAX_DEPTH,
    AskPresence,
    Custom,
    Join,
    Leave,
    Login,
    Ping,
    Publish,
    Refresh,
    SendBroadcast,
    SendDirect,
    decode,
    is_channel,
    is_user,
)
from starlight.protocols.native.pushes import TAIL, direct_head


def message(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode()


def refused(text: bytes, code: int = 107) -> RequestError:
    """The error that this message gets; its code is checked."""
    with pytest.raises(RequestError) as caught:
        decode(text)
    assert caught.value.code == code
    return caught.value


def with_data(data: bytes) -> bytes:
    return b'{"type":"direct","to":"bob","data":' + data + b',"id":1}'


# --- what is right ---------------------------------------------------------------------------------------------------


def test_every_command() -> None:
    assert decode(message(type="login", user="ann", id=1)) == Login(user="ann", id=1)
    assert decode(message(type="login", token="t")) == Login(token="t")
    assert decode(message(type="login", user=None, token=None)) == Login()
    assert decode(message(type="join", channel="news", id="a")) == Join("news", id="a")
    assert decode(message(type="leave", channel="news")) == Leave("news")
    assert decode(message(type="presence", channel="news", id=1)) == AskPresence("news", id=1, limit=100)
    assert decode(message(type="presence", channel="news", id=1, limit=1000)) == AskPresence("news", id=1, limit=1000)
    assert decode(message(type="ping")) == Ping()
    assert decode(message(type="ping", id=0)) == Ping(id=0)


def test_commands_with_data() -> None:
    direct = decode(message(type="direct", to="bob", data={"a": 1}, id=1))
    assert isinstance(direct, SendDirect)
    assert (direct.to, bytes(direct.data), direct.id) == ("bob", b'{"a": 1}', 1)
    publish = decode(message(type="publish", channel="news", data=None))
    assert isinstance(publish, Publish)
    assert (publish.channel, bytes(publish.data), publish.id) == ("news", b"null", None)
    broadcast = decode(b' {"data" : [1, 2]\t, "type":"broadcast"} \r\n')
    assert isinstance(broadcast, SendBroadcast)
    assert bytes(broadcast.data) == b"[1, 2]"


def test_other_types_are_the_applications() -> None:
    text = message(type="bid", id="x", data={"price": 5}, since=3, key="own")
    custom = decode(text)
    assert isinstance(custom, Custom)
    assert (custom.type, custom.id, custom.message) == ("bid", "x", text)
    assert custom.data is not None and bytes(custom.data) == b'{"price": 5}'
    assert decode(b'{"type":"bid"}') == Custom("bid", b'{"type":"bid"}')
    assert decode(b'{"type":""}') == Custom("", b'{"type":""}')
    assert decode(b'{"type":"Direct"}') == Custom("Direct", b'{"type":"Direct"}')


def test_unknown_and_forged_fields_are_ignored() -> None:
    text = message(type="publish", channel="news", data=1, **{"from": "root"}, offset=9, x={"deep": [None]}, user=[1])
    publish = decode(text)
    assert isinstance(publish, Publish)
    assert not hasattr(publish, "offset")


@pytest.mark.parametrize("id", [0, 1, -1, 2**53, -(2**53), "", "a", "a" * 64, "é" * 32, '\n"\\'])
def test_ids(id: int | str) -> None:
    for kind in ("ping", "bid"):
        read = decode(message(type=kind, id=id)).id
        assert read == id and type(read) is type(id)


# --- what is wrong ---------------------------------------------------------------------------------------------------

WRONG_IDS: list[object] = [
    None,
    True,
    1.5,
    1.0,
    [],
    {},
    2**53 + 1,
    -(2**53) - 1,
    2**64,
    10**30,
    10**4000,
    "a" * 65,
    "é" * 33,
    "é" * 64,
]


@pytest.mark.parametrize("id", WRONG_IDS, ids=lambda id: repr(id)[:20])
@pytest.mark.parametrize("kind", ["ping", "bid"])
def test_wrong_ids_are_not_echoed(kind: str, id: object) -> None:
    error = refused(message(type=kind, id=id))
    assert error.id is None
    assert error.message.startswith("id: expected an integer")


@pytest.mark.parametrize("text", [b'"\\ud800"', b"1e2", b"-0.0"])
def test_ids_that_json_dumps_would_not_write(text: bytes) -> None:
    assert refused(b'{"type":"ping","id":' + text + b"}").id is None


NO_OBJECTS = [
    *(b"", b" ", b"xx", b"{", b"[]", b"[{}]", b"5", b"null", b'"x"', b"{'a':1}", b"\x00", b"\xff"),
    *(b'{"type":"ping"}x', b'{"type":"ping",}', b'{"type":"ping"}{"type":"ping"}', b'{"type":"direct","to":5'),
    b'\xef\xbb\xbf{"type":"ping"}',
]


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_no_json_object_at_all(text: bytes) -> None:
    """Row 33 of the faults: the hub closes with 4501 before login."""
    with pytest.raises(BadMessage) as caught:
        decode(text)
    assert (caught.value.code, caught.value.id) == (107, None)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "type: missing"),
        ({"type": 5}, "type: expected"),
        ({"type": None}, "type: expected"),
        ({"type": ["direct"]}, "type: expected"),
        ({"type": "direct"}, "to: missing"),
        ({"type": "direct", "data": 1}, "to: missing"),
        ({"type": "direct", "to": "bob"}, "data: missing"),
        ({"type": "direct", "to": 5, "data": 1}, "to: expected a user name"),
        ({"type": "direct", "to": "", "data": 1}, "to: expected a user name"),
        ({"type": "direct", "to": None, "data": 1}, "to: expected a user name"),
        ({"type": "publish", "channel": "news"}, "data: missing"),
        ({"type": "publish", "data": 1}, "channel: missing"),
        ({"type": "publish", "channel": ["news"], "data": 1}, "channel: expected a channel name"),
        ({"type": "broadcast"}, "data: missing"),
        ({"type": "join"}, "channel: missing"),
        ({"type": "join", "channel": 5}, "channel: expected a channel name"),
        ({"type": "leave", "channel": "a b"}, "channel: expected a channel name"),
        ({"type": "presence", "channel": ""}, "channel: expected a channel name"),
        ({"type": "presence", "channel": "news", "limit": 1001}, "limit: expected an integer from 0 to 1000"),
        ({"type": "presence", "channel": "news", "limit": "5"}, "limit: expected an integer from 0 to 1000"),
        ({"type": "login", "user": 5}, "user: expected a user name"),
        ({"type": "login", "user": "a\n"}, "user: expected a user name"),
        ({"type": "login", "token": 5}, "token: expected a string"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_fields_are_named_and_the_id_is_read(fields: dict[str, Any], named: str) -> None:
    for id in (7, "seven", None):
        error = refused(message(**fields, **({} if id is None else {"id": id})))
        assert error.message.startswith(named)
        assert error.id == id
        assert not isinstance(error, BadMessage)


def test_presence_needs_an_id() -> None:
    assert refused(message(type="presence", channel="news")).message.startswith("id: missing")


def test_errors_do_not_repeat_input() -> None:
    for text in (
        message(type="direct", to="sec\nret", data=1),
        message(type="publish", channel="secret !", data=1),
        message(type="login", user={"secret": 1}),
        message(type="ping", id={"secret": 1}),
    ):
        assert "secret" not in refused(text).message


@pytest.mark.parametrize("value", [None, 1, "a", {"epoch": "e", "offset": 1}, []])
@pytest.mark.parametrize(
    "fields",
    [
        {"type": "join", "channel": "news", "since": ...},
        {"type": "publish", "channel": "news", "data": 1, "key": ...},
        {"type": "publish", "channel": "news", "data": 1, "ttl_ms": ...},
        {"type": "publish", "channel": "news", "data": 1, "idempotency": ...},
    ],
    ids=lambda fields: list(fields)[-1],
)
def test_fields_not_built_are_refused(fields: dict[str, Any], value: object) -> None:
    name = list(fields)[-1]
    for id in (7, None):
        wanted = {} if id is None else {"id": id}
        error = refused(message(**{**fields, name: value}, **wanted), 108)
        assert (error.message, error.id) == (f"{name}: not available", id)


@pytest.mark.parametrize("fields", [{}, {"channel": "news", "limit": 5, "since": None}, {"channel": 5, "token": 5}])
def test_types_not_built_are_refused(fields: dict[str, Any]) -> None:
    error = refused(message(type="history", id=7, **fields), 108)
    assert (error.message, error.id) == ("history: not available", 7)


def test_refresh() -> None:
    assert decode(message(type="refresh", token="t", id=7)) == Refresh("t", 7)
    assert refused(message(type="refresh", id=7)).message == "token: missing"
    assert refused(message(type="refresh", id=7, token=5)).message == "token: expected a string"


# --- names -----------------------------------------------------------------------------------------------------------

GOOD_CHANNELS = ["a", "news", "A-Z_az.09:/@#", "x" * 255, "//", "..", "-"]
BAD_CHANNELS = [
    "",
    "x" * 256,
    "a\0",
    "*",
    "a.*",
    ">",
    "a b",
    " ",
    "a\n",
    "é",
    "a\u200b",
    "a,b",
    "a+b",
    "a%20",
    "Ａ",
    "٣",
]


@pytest.mark.parametrize("name", GOOD_CHANNELS)
def test_channels(name: str) -> None:
    for _ in range(2):  # the second time it is remembered
        assert is_channel(name)
        assert decode(message(type="join", channel=name)) == Join(name)


@pytest.mark.parametrize("name", BAD_CHANNELS, ids=ascii)
@pytest.mark.parametrize("kind", ["join", "leave", "publish", "presence"])
def test_wrong_channels(kind: str, name: str) -> None:
    """Row 37 of the faults."""
    for _ in range(2):
        assert not is_channel(name)
        error = refused(message(type=kind, channel=name, data=1, id=3))
        assert error.message.startswith("channel: expected") and error.id == 3


@pytest.mark.parametrize("name", ["a", " ", "Zoë", "x" * 255, "é" * 127, "😀" * 63, "a\u2028b", "*", '"\\', "\u200b"])
def test_users(name: str) -> None:
    for _ in range(2):
        assert is_user(name)
        assert decode(message(type="login", user=name)) == Login(user=name)
        assert decode(message(type="direct", to=name, data=1)).to == name  # type: ignore[union-attr]


WRONG_USERS = ["", "x" * 256, "é" * 128, "😀" * 64, "a\0", "a\n", "\x1f", "\x7f", "\x80", "\x9f", "\ud800"]


@pytest.mark.parametrize("name", WRONG_USERS, ids=ascii)
def test_wrong_users(name: str) -> None:
    for _ in range(2):
        assert not is_user(name)
        if name != "\ud800":
            assert refused(message(type="direct", to=name, data=1, id=3)).id == 3
            assert refused(message(type="login", user=name)).message.startswith("user: expected")


def test_lone_surrogates_in_the_envelope() -> None:
    for text in (b'{"type":"direct","to":"\\ud800","data":1}', b'{"type":"\\udc00"}', b'{"type":"ping","\\ud800":1}'):
        assert refused(text).id is None


def test_remembered_names_are_bounded() -> None:
    for number in range(3 * commands._KNOWN_NAMES):
        assert is_channel(f"c{number}") and is_user(f"u{number}")
        assert not is_channel(f"c {number}") and not is_user(f"u\n{number}")
    for known in (commands._known_channels, commands._known_users):
        assert 0 < len(known) <= commands._KNOWN_NAMES
        assert not any(" " in name or "\n" in name for name in known)


# --- what may be spliced ---------------------------------------------------------------------------------------------


NOT_JSON = [
    *b"NaN Infinity -Infinity - 01 -01 1. .5 1e 1e+ 1.e5 +1 0x10 1_0 tru True nul undefined 'a' /**/1 1// 1}{".split(),
    *rb'[ ] [1,] [,1] {"a":1,} {1:2} {"a"} {"a"1} [}] []] [} {] "abc "\x" "\u12" "\u12g4" {"a\q":1}'.split(),
    *rb'"\ud800" "\udc00" "\ud800\ud800" "\udc00\ud800" "\ud800a" "\ud800\n" {"\ud800":1}'.split(),
    *(b"", b"[1 2]", b'"\x01"', b'"\n"', b'"\t"', b'"\x00"', b'{"a\x01":1}', b"\x00"),
    *(b"\x0b1", b"\x0c1", b"\xc2\xa01", b"\xef\xbb\xbf1"),
]


@pytest.mark.parametrize("data", NOT_JSON)
def test_what_is_no_json_is_never_let_through(data: bytes) -> None:
    """Row 35 of the faults, and more: each of these would break the message of somebody else."""
    refused(with_data(data))
    refused(b'{"type":"bid","data":' + data + b"}")
    refused(b'{"type":"bid","x":' + data + b"}")


ODD_JSON = [
    *rb'1e400 -1e400 1e-400 -0 0.0e-0 1E+5 {"a":1,"a":2} "\/" "" "\ud83d\ude00"'.split(),
    *(b"1" * 5000, b'"\x7f"', '"\u2028\ufeff\ufffe"'.encode(), b"[ ]", b"{\n}", b'"' + b"x" * 60_000 + b'"'),
]


@pytest.mark.parametrize("data", ODD_JSON)
def test_what_is_json_goes_through_as_it_is(data: bytes) -> None:
    """The documented reading of numbers no double can hold, and of duplicate keys: the receiver's business."""
    command = decode(with_data(data))
    assert isinstance(command, SendDirect)
    assert bytes(command.data) == data


def test_duplicate_keys_of_the_message() -> None:
    last = decode(b'{"type":"direct","to":"a","data":1,"to":"bob","data":{"x":2},"id":1,"id":2}')
    assert isinstance(last, SendDirect)
    assert (last.to, bytes(last.data), last.id) == ("bob", b'{"x":2}', 2)
    assert refused(b'{"type":"direct","type":"publish","to":"a","channel":"b","data":1}').message.startswith("type: ")
    assert refused(b'{"type":"bid","type":"ping"}').message.startswith("type: ")


FRAGMENTS = [
    *'{}[],:"-.0eE+ \n\r\t\\\x00\x1f\x7f\x0b\x0c',
    "1",
    "12",
    '"a"',
    '"k":',
    "true",
    "null",
    "tru",
    "NaN",
    "\\n",
]
FRAGMENTS += [
    "\\u",
    "\\ud800",
    "\\udc00",
    "\\u0041",
    '\\"',
    "\\\\",
    "é",
    "😀",
    "\u2028",
    "\ufeff",
    "a" * 17,
    "1e400",
    "//",
    "'",
]


def is_strict_json(text: bytes) -> bool:
    """The slow, obvious reading: the standard library without its extensions."""

    def extension(name: str) -> None:
        raise ValueError(name)

    try:
        json.dumps(json.loads(text, parse_constant=extension), ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


@settings(max_examples=500)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join), st.booleans())
@example("\\ud800", True)
@example('1,"to":"carol"', False)
def test_decode_lets_through_exactly_json(fragments: str, quoted: bool) -> None:
    data = (f'"{fragments}"' if quoted else fragments).encode()
    text = with_data(data)
    try:
        command = decode(text)
    except RequestError:
        assert not is_strict_json(text)
    else:
        assert is_strict_json(text)
        assert isinstance(command, SendDirect)
        assert is_strict_json(direct_head("ann") + bytes(command.data) + TAIL)


@settings(max_examples=300)
@given(st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode(errors="replace")))
def test_any_bytes_are_a_command_or_a_request_error(text: bytes) -> None:
    for whole in (text, b'{"type":"direct",' + text + b"}", b'{"type":"bid","id":' + text + b"}"):
        try:
            decode(whole)
        except RequestError as error:
            assert error.code in (107, 108)


def test_bytes_that_are_not_utf8_are_the_connections_business() -> None:
    """The one thing msgspec lets through in a Raw. If this fails, msgspec has become stricter: tell the docstring."""
    command = decode(with_data(b'"\xff"'))
    assert isinstance(command, SendDirect)
    assert bytes(command.data) == b'"\xff"'


# --- depth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1000, 100_000])
def test_deep_nesting(levels: int) -> None:
    """Row 34 of the faults."""
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        deep = opening * levels + b"1" + closing * levels
        for text in (deep, deep[: len(deep) // 2], opening * levels):
            refused(text)
            refused(with_data(text))
            refused(b'{"type":"bid","x":' + text + b"}")
            with pytest.raises(RequestError):  # 107 or 108: how deep msgspec itself goes depends on the interpreter
                decode(b'{"type":"publish","channel":"a","data":1,"key":' + text + b"}")


def test_the_depth_limit_is_exact() -> None:
    inside = MAX_DEPTH - 1  # the message's object is the first level
    for kind in ("direct", "bid"):
        head = b'{"type":"%b","to":"a","id":5,"data":' % kind.encode()
        decode(head + b"[" * inside + b"]" * inside + b"}")
        error = refused(head + b"[" * (inside + 1) + b"]" * (inside + 1) + b"}")
        assert error.id == 5 and "512 levels" in error.message


def test_many_brackets_are_not_depth() -> None:
    wide = json.dumps([{"a": [1, {}]}] * 3000).encode()
    strings = json.dumps(["[" * 2000, '\\"[[', "\\", '"' * 9 + "{" * 700, "\\\\" * 5 + '"[']).encode()
    for data in (wide, strings, b"[" + wide + b"," + strings + b"]"):
        command = decode(with_data(data))
        assert isinstance(command, SendDirect)
        assert bytes(command.data) == data


def depth_of(value: object) -> int:
    """The slow, obvious model."""
    if isinstance(value, dict):
        return 1 + max((depth_of(inner) for inner in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((depth_of(inner) for inner in value), default=0)
    return 0


def test_many_brackets_in_any_place() -> None:
    """More than levels are allowed, so that they are counted one by one; the strings would unbalance them."""
    for text in ('"', "\\", '\\"', "]}", "[{" * 300, "x" * 20 + '"[', "\\" * 8 + '"' * 8):
        for times in (1, 7, 8, 9, 600):
            data = json.dumps([[text * times]] * 300).encode()
            for around in (MAX_DEPTH - 3, MAX_DEPTH - 2):
                nested_data = b"[" * around + data + b"]" * around
                if around + 3 <= MAX_DEPTH:
                    command = decode(with_data(nested_data))
                    assert isinstance(command, SendDirect) and bytes(command.data) == nested_data
                else:
                    assert "512 levels" in refused(with_data(nested_data)).message


def test_a_deep_text_is_found_in_a_time_that_grows_with_its_length() -> None:
    """Work is counted, not timed: a text of brackets takes no object for each of them."""
    text = with_data(b"[" * 500 + b"[]," * 20_000 + b"1" + b"]" * 500)
    decode(text)
    tracemalloc.start()
    try:
        decode(text)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 * 1024


nested = st.recursive(
    st.sampled_from([1, "[[[[", '"', '\\"{', "\\", "]}", ""]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(['"', "[", "\\", "k"]), inner, max_size=3)
    ),
    max_leaves=25,
)


@given(nested, st.integers(1, 8))
def test_depth_against_a_model(value: object, limit: int) -> None:
    text = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "MAX_DEPTH", limit)
        try:
            commands.check_depth(text, None)
        except RequestError:
            assert depth_of(value) > limit
        else:
            assert depth_of(value) <= limit


def test_the_list_of_built_in_types_is_complete() -> None:
    tags = {kind.__struct_config__.tag for kind in commands._BuiltIn.__args__}
    assert tags == commands._BUILT_IN_TYPES
    assert all(issubclass(kind, msgspec.Struct) for kind in commands._BuiltIn.__args__)
