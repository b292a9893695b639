"""starlight.config.patterns, against regular expressions."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.config.patterns import cut, matches


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("news", "news", True),
        ("news", "news1", False),
        ("*", "", True),
        ("a*", "a", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*b*", "abc", True),
        ("a*b*c", "a1b2c", True),
        ("a*b*b", "ab", False),
        ("**", "x", True),
    ],
)
def test_matches(pattern: str, name: str, fits: bool) -> None:
    assert matches(cut(pattern), name) is fits


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_same_as_a_regular_expression(pattern: str, name: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert matches(cut(pattern), name) is (re.fullmatch(expression, name) is not None)
