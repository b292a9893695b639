"""Pushes: exact heads, and head + data + TAIL is a JSON message whose data is the sender's bytes."""

import json

from hypothesis import given
from hypothesis import strategies as st

from starlight.protocols.native.commands import SendDirect, decode
from starlight.protocols.native.pushes import (
    TAIL,
    broadcast_head,
    direct_head,
    joined,
    left,
    publication_head,
    server_head,
)


def test_exact_bytes() -> None:
    assert direct_head("ann") == b'{"type":"direct","from":"ann","data":'
    assert publication_head("news", "ann") == b'{"type":"publication","channel":"news","from":"ann","data":'
    assert publication_head("news", None) == b'{"type":"publication","channel":"news","from":null,"data":'
    assert broadcast_head("ann") == b'{"type":"broadcast","from":"ann","data":'
    assert server_head() == b'{"type":"server","data":'
    assert TAIL == b"}"
    assert joined("news", "ann") == b'{"type":"joined","channel":"news","user":"ann"}'
    assert left("news", "ann") == b'{"type":"left","channel":"news","user":"ann"}'


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(texts, texts)
def test_names_are_escaped(channel: str, user: str) -> None:
    """The hub lets only valid names in; the heads hold for any text all the same."""
    assert json.loads(direct_head(user) + b"1" + TAIL) == {"type": "direct", "from": user, "data": 1}
    assert json.loads(broadcast_head(user) + b"1" + TAIL) == {"type": "broadcast", "from": user, "data": 1}
    push = json.loads(publication_head(channel, user) + b"1" + TAIL)
    assert push == {"type": "publication", "channel": channel, "from": user, "data": 1}
    assert json.loads(joined(channel, user)) == {"type": "joined", "channel": channel, "user": user}
    assert json.loads(left(channel, user)) == {"type": "left", "channel": channel, "user": user}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=30,
)


@given(json_values, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_data_goes_through_byte_by_byte(value: object, ensure_ascii: bool, indent: int | str | None) -> None:
    data = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent).encode()
    command = decode(b'{"type":"direct","to":"bob","data": ' + data + b' ,"from":"mallory"}')
    assert isinstance(command, SendDirect)
    for head in (direct_head("ann"), publication_head("news", "ann"), broadcast_head("ann"), server_head()):
        wire = b"".join((head, command.data, TAIL))
        assert wire == head + data + TAIL
        push = json.loads(wire)
        assert push["data"] == value
        assert push.get("from", "ann") == "ann"
