"""protocols.base: which codec and framing a connection speaks, and what a node gives its core."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.protocols.base import FRAMES, LINES, Codecs
from starlight.protocols.native.lines import LINES as V1_LINES
from starlight.protocols.native.lines import SUBPROTOCOLS, V1
from starlight.protocols.spoken import NATIVE, SPOKEN
from tests.support.toy import TOY_SUBPROTOCOL, Toy


def chosen_by(codecs: Codecs, offers: list[str]) -> str | None:
    encoding = codecs.select(iter(offers))
    return None if encoding is None else encoding.subprotocol


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        ([], V1),
        ([V1], V1),
        ([V1_LINES], V1_LINES),
        ([V1, V1_LINES], V1),
        ([V1_LINES, V1], V1_LINES),
        (["graphql-ws", V1_LINES, V1], V1_LINES),
        (["graphql-ws"], None),
        ([""], None),
        (["STARLIGHT.V1"], None),
        (["starlight.v1\r\nX-Injected: 1"], None),
        (["starlight.v1.lines "], None),
        ([TOY_SUBPROTOCOL], None),
    ],
)
def test_the_first_offer_that_is_spoken_wins(offers: list[str], chosen: str | None) -> None:
    assert chosen_by(SPOKEN, offers) == chosen


@given(st.lists(st.text() | st.sampled_from(SUBPROTOCOLS)))
def test_nothing_offered_is_reflected(offers: list[str]) -> None:
    chosen = chosen_by(SPOKEN, offers)
    assert chosen is None or chosen in SUBPROTOCOLS
    known = [offer for offer in offers if offer in SUBPROTOCOLS]
    assert chosen == (known[0] if known else None if offers else V1)


def test_encodings_are_numbered_in_the_order_of_their_codecs() -> None:
    toy = Toy()
    codecs = Codecs(NATIVE, toy)
    assert [(each.number, each.subprotocol, each.framing) for each in codecs.encodings] == [
        (0, V1, FRAMES),
        (1, V1_LINES, LINES),
        (2, TOY_SUBPROTOCOL, FRAMES),
    ]
    assert codecs.for_core() == [(0, FRAMES, True), (0, LINES, True), (1, FRAMES, False)]
    assert chosen_by(codecs, [TOY_SUBPROTOCOL]) == TOY_SUBPROTOCOL
    assert chosen_by(codecs, []) == V1


def test_a_subprotocol_belongs_to_one_codec() -> None:
    with pytest.raises(ValueError, match="same subprotocol"):
        Codecs(NATIVE, Toy(), Toy())


def test_one_codec_gives_bytes_and_several_a_tuple() -> None:
    toy = Toy()
    assert SPOKEN.of_each(lambda codec: codec.tail) == b"}"
    assert Codecs(NATIVE, toy).of_each(lambda codec: codec.tail) == (b"}", b";")
