"""starlight.protocols.fragments: a message in several frames, and what is wrong with one."""

import pytest

from starlight.protocols.fragments import Fragments

TEXT = "κόσμε \U0010ffff".encode()


@pytest.mark.parametrize("size", range(1, len(TEXT) + 1))
def test_a_text_may_be_cut_anywhere(size: int) -> None:
    fragments = Fragments(True)
    pieces = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
    for number, piece in enumerate(pieces, 1):
        assert fragments.take(piece, number == len(pieces), 100, len(TEXT)) == 0
    assert bytes(fragments.data) == TEXT


def test_what_is_wrong_is_a_close_code() -> None:
    assert Fragments(True).take(b"\xff", False, 100, 100) == 1007
    assert Fragments(True).take(b"\xce", True, 100, 100) == 1007, "it ends inside a character"
    assert Fragments(False).take(b"\xff", True, 100, 100) == 0, "no text"
    assert Fragments(True).take(b"x" * 11, False, 100, 10) == 1009
    many = Fragments(True)
    assert [many.take(b"", False, 3, 10) for _ in range(3)] == [0, 0, 1008]
