"""protocols.native.codec: how an end is told in the native protocol."""

from __future__ import annotations

import json

import pytest

from starlight import close_codes
from starlight.protocols.base import Ending
from starlight.protocols.spoken import NATIVE


def test_a_code_has_its_constant_reason_and_a_bye_says_the_same() -> None:
    code, reason, bye = NATIVE.end(4503, None, None)
    assert (code, reason) == (4503, "disconnected by the operator")
    assert json.loads(bye) == {"type": "bye", "code": 4503, "reason": reason, "retry_ms": None}


def test_an_application_says_its_own_reason() -> None:
    assert NATIVE.end(4100, "sold", 250)[:2] == (4100, "sold")
    assert json.loads(NATIVE.end(4100, "sold", 250).bye)["retry_ms"] == 250


def test_a_drain_says_when_to_come_back() -> None:
    assert NATIVE.end(1001, None, 1500)[:2] == (1001, "drain;retry=1500")
    assert NATIVE.end(1001, None, None)[:2] == (1001, "drain")
    assert len(NATIVE.end(1001, None, 2**63).reason) <= close_codes.REASON_LIMIT_BYTES


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009, 4008, 4009])
def test_who_does_not_read_or_speak_it_hears_no_bye(code: int) -> None:
    assert NATIVE.end(code, None, None) == Ending(code, close_codes.reason(code), b"")
