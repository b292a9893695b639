"""Which subprotocol is spoken, and how a frame of `starlight.v1.lines` is split."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.protocols.native._lines import Lines
from starlight.protocols.native.lines import LINES, SUBPROTOCOLS, V1, select_subprotocol


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        ([], V1),
        ([V1], V1),
        ([LINES], LINES),
        ([V1, LINES], V1),
        ([LINES, V1], LINES),
        (["graphql-ws", LINES, V1], LINES),
        (["graphql-ws"], None),
        ([""], None),
        (["STARLIGHT.V1"], None),
        (["starlight.v1\r\nX-Injected: 1"], None),
        (["starlight.v1.lines "], None),
    ],
)
def test_select_subprotocol(offers: list[str], chosen: str | None) -> None:
    assert select_subprotocol(offers) == chosen


@given(st.lists(st.text() | st.sampled_from(SUBPROTOCOLS)))
def test_nothing_offered_is_reflected(offers: list[str]) -> None:
    chosen = select_subprotocol(iter(offers))
    assert chosen is None or chosen in SUBPROTOCOLS
    known = [offer for offer in offers if offer in SUBPROTOCOLS]
    assert chosen == (known[0] if known else None if offers else V1)


@pytest.mark.parametrize(
    ("frame", "messages"),
    [
        (b"", []),
        (b"\n", []),
        (b"\r\n\r\n", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\r\n", [b"a"]),
        (b"a\r\r\n", [b"a\r"]),
        (b"a\nb", [b"a", b"b"]),
        (b"\n\na\n\n\r\nb\n\n", [b"a", b"b"]),
        (b"\ra\n", [b"\ra"]),
        (b" \n", [b" "]),  # not empty: a bad line, and so an error 107
        ("é\n😀".encode(), ["é".encode(), "😀".encode()]),
    ],
)
def test_split(frame: bytes, messages: list[bytes]) -> None:
    assert list(Lines(frame)) == messages


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(json_values), st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_messages_joined_are_messages_split(values: list[object], separator: bytes) -> None:
    messages = [json.dumps(value, ensure_ascii=False).encode(errors="replace") for value in values]
    assert list(Lines(separator.join(messages))) == messages
    assert list(Lines(separator.join(messages) + separator)) == messages
