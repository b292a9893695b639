"""How a frame of `starlight.v1.lines` is split."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.protocols.native._lines import Lines


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
