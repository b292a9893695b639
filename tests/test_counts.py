"""starlight.counts: codes of the table by themselves, all others together."""

from __future__ import annotations

import pytest

from starlight.close_codes import CLOSE_CODES, ErrorCode
from starlight.counts import CodeCounts
from starlight.session.counts import ConnectionCounts


def test_codes_of_the_table_are_told_apart_and_others_are_counted_together():
    counts = CodeCounts(ErrorCode)
    for code in (107, 107, ErrorCode.INTERNAL, 7, 4_000):
        counts.add(code)
    assert (counts[107], counts[ErrorCode.INTERNAL], counts[111], counts.other) == (2, 1, 0, 2)
    assert counts.shown() == {"100": 1, "107": 2, "other": 2}
    assert counts.shown(without=(107,)) == {"100": 1, "other": 2}
    with pytest.raises(KeyError):
        counts[7]


def test_made_up_codes_make_no_counters():
    counts = CodeCounts(CLOSE_CODES)
    for code in range(3_000, 5_000):
        counts.add(code)
    shown = counts.shown()
    assert set(shown) <= {*map(str, CLOSE_CODES), "other"}
    assert sum(shown.values()) == 2_000


def test_connections_have_counters_for_every_close_code():
    counts = ConnectionCounts()
    for by_code in (counts.closed, counts.refused, counts.left):
        assert all(by_code[code] == 0 for code in CLOSE_CODES)
        assert by_code.shown() == {}
