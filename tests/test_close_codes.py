"""The two tables of codes, against the protocol's text and RFC 6455."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight import close_codes
from starlight.close_codes import (
    CLOSE_CODES,
    ErrorCode,
    error_name,
    reason,
    reconnect_policy,
    valid_on_wire,
)

SENT = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 4008, 4009, 4010, 4011, 4012, 4013, 4014]
SENT += [4015, 4016]
SENT += [4500, 4501, 4503, 4505, 4507, 4509]


def test_every_code_of_the_protocol_is_there_once_with_a_constant() -> None:
    assert sorted(CLOSE_CODES) == sorted([*SENT, 1005, 1006, 1015])
    for code, row in CLOSE_CODES.items():
        assert row.code == code
        assert getattr(close_codes, row.name) == code
    names = [row.name for row in CLOSE_CODES.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("code", sorted(CLOSE_CODES))
def test_reasons_are_short_ascii(code: int) -> None:
    assert re.fullmatch(r"[ -~]{0,123}", reason(code))


def test_reasons() -> None:
    assert reason(4008) == "slow consumer"
    assert reason(4999) == ""


@pytest.mark.parametrize("code", [1001, 1006, 1011, 1012, 1013, 4015, 4016])
def test_backoff(code: int) -> None:
    assert reconnect_policy(code) == "backoff"


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1007, 1008, 1009])
def test_a_mistake_is_not_repeated(code: int) -> None:
    assert reconnect_policy(code) == "never"


@given(st.integers(4000, 4499))
def test_4000_to_4499_reconnect(code: int) -> None:
    assert reconnect_policy(code) == ("backoff" if code in (4015, 4016) else "reconnect")


@given(st.integers(4500, 4999))
def test_4500_to_4999_never(code: int) -> None:
    assert reconnect_policy(code) == "never"


def test_an_unknown_standard_code_backs_off() -> None:
    assert reconnect_policy(1014) == "backoff"
    assert reconnect_policy(3000) == "backoff"


@pytest.mark.parametrize("code", [-1, 0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535])
def test_not_on_the_wire(code: int) -> None:
    assert not valid_on_wire(code)


@pytest.mark.parametrize("code", [*SENT, 1010, 1014, 3000, 3999, 4000, 4999])
def test_on_the_wire(code: int) -> None:
    assert valid_on_wire(code)


def test_error_codes() -> None:
    table = {
        100: "internal",
        101: "unauthorized",
        102: "unknown_channel",
        103: "permission_denied",
        104: "unknown_type",
        105: "already_joined",
        106: "limit_exceeded",
        107: "bad_request",
        108: "not_available",
        109: "token_expired",
        111: "too_many_requests",
        112: "unrecoverable_position",
        120: "not_connected",
    }
    assert {member.value: error_name(member) for member in ErrorCode} == table
    assert error_name(110) == "error"
