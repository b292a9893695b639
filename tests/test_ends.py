"""starlight.ends: what is remembered of ends, within which bounds, and what the log says of them."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest

from starlight.close_codes import CLOSE_CODES
from starlight.ends import CAUSES, ENDS_LIMIT, FAIR_SHARE, LIMIT_BYTES, Cause, End, Ends, address_text, cause_of

HOSTILE = 'ada\u202e\u2028 code=4503 "x"'


class Someone:
    """A client as `Ends` sees it."""

    def __init__(self, user: str, id: str = "n-1", last_error: int | None = None) -> None:
        self.user, self.id, self.last_error = user, id, last_error


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def add(ends: Ends, user: str | None = "ada", number: int = 1, code: int = 1000, **fields: Any) -> None:
    client = None if user is None else Someone(user, f"n-{number}")
    ends.add(code, fields.pop("reason", ""), fields.pop("cause", Cause("client")), client=client, **fields)


def test_the_latest_come_first_and_every_filter_counts() -> None:
    clock = Clock()
    ends = Ends(clock=clock)
    for number in range(10):
        clock.now_s += 1
        add(ends, "ada" if number % 2 else "bob", number, 4008 if number == 3 else 1000)
    total, page = ends.find()
    assert (total, [end.client for end in page]) == (10, [f"n-{number}" for number in reversed(range(10))])
    total, page = ends.find("ada", limit=2, offset=1)
    assert (total, [end.client for end in page]) == (5, ["n-7", "n-5"])
    assert [end.client for end in ends.find(code=4008)[1]] == ["n-3"]
    assert ends.find("bob", 4008) == (0, [])
    assert [end.client for end in ends.find(since_s=clock.now_s - 1)[1]] == ["n-9", "n-8"]
    assert ends.find("nobody") == (0, [])


def test_the_previous_end_is_told_only_to_its_own_user() -> None:
    ends = Ends()
    add(ends, "ada", 7, 4008)
    found = ends.previous("n-7", "ada")
    assert found is not None and found.code == 4008
    assert ends.previous("n-7", "bob") is None
    assert ends.previous("n-8", "ada") is None


def test_ten_thousand_are_kept_and_no_more() -> None:
    ends = Ends()
    for number in range(ENDS_LIMIT + 500):
        add(ends, f"user-{number}", number)
    assert len(ends) == ENDS_LIMIT
    assert ends.find(limit=1)[0] == ENDS_LIMIT
    assert ends.previous("n-499", "user-499") is None
    assert ends.previous("n-500", "user-500") is not None
    assert ends.counts["client"] == ENDS_LIMIT + 500


def test_ten_thousand_of_one_user_are_kept_while_nobody_else_needs_the_room() -> None:
    ends = Ends()
    for number in range(ENDS_LIMIT + 5):
        add(ends, "ada", number)
    assert ends.find("ada", limit=1)[0] == ENDS_LIMIT
    assert ends.previous("n-4", "ada") is None


def test_a_flood_does_not_push_out_the_ends_of_others() -> None:
    ends = Ends()
    for number in range(200):
        add(ends, f"user-{number}", number)
    for number in range(ENDS_LIMIT + 3_000):
        add(ends, None if number % 2 else "flood", number + 1_000, 4501)
    assert all(ends.find(f"user-{number}")[0] == 1 for number in range(200))
    assert len(ends) == ENDS_LIMIT
    for number in range(ENDS_LIMIT):  # and it gives way to others, down to its share
        add(ends, f"late-{number}", 100_000 + number)
    assert ends.find("flood")[0] <= FAIR_SHARE
    assert len(ends) == ENDS_LIMIT


def test_bytes_are_bounded_whatever_clients_are_called() -> None:
    """Four-byte characters, the longest names, reasons and details: what is held is counted, and it is true."""
    ends = Ends()
    name = "\U0001f600" * 60
    for number in range(ENDS_LIMIT):
        add(ends, f"{name}{number}", number, reason="\U0001f601" * 500, cause=Cause("login", "\U0001f602" * 50_000))
        assert ends.held_bytes <= LIMIT_BYTES
    assert len(ends) < ENDS_LIMIT
    kept = ends.find(limit=ENDS_LIMIT)[1]
    assert sum(end.size_bytes for end in kept) == ends.held_bytes
    texts = [(end.user, end.reason, end.detail, end.client, end.address) for end in kept]
    assert sum(sys.getsizeof(text) for row in texts for text in row) < ends.held_bytes
    assert max(len(end.detail) for end in kept) <= 200


def test_a_record_is_charged_at_least_what_it_takes() -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    ends = Ends()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(5_000):
            add(ends, f"user-{number}", number, peername=("203.0.113.9", 50_000 + number), connection=number)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken <= ends.held_bytes
    assert ends.held_bytes / 5_000 * ENDS_LIMIT <= LIMIT_BYTES  # so that ten thousand ordinary ones are kept


def test_they_are_forgotten_after_a_day() -> None:
    clock = Clock()
    ends = Ends(clock=clock)
    add(ends, "ada", 1)
    clock.now_s += 86_000
    add(ends, "ada", 2)
    clock.now_s += 500
    assert ends.previous("n-1", "ada") is None
    assert [end.client for end in ends.find("ada")[1]] == ["n-2"]
    clock.now_s += 86_400
    ends.expire()
    assert (len(ends), ends.held_bytes) == (0, 0)
    assert (ends._by_user, ends._by_client) == ({}, {})


def test_one_line_per_end_with_nothing_unescaped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "starlight.ends")
    ends = Ends()
    add(ends, HOSTILE, 1, 4501, reason='a "b"\x1b[31m\n', cause=Cause("login", "because\x9b"), messages_in=3)
    (record,) = caplog.records
    line = record.getMessage()
    assert line.isprintable()
    assert "\\u202e" in line and "\\u2028" in line and "\\x1b" in line and "\\x9b" in line
    assert line.count(" code=4501 ") == 1
    assert 'user="ada' in line  # in quotes, so that what looks like a field of the line is none
    assert record.levelno == logging.WARNING
    add(ends, "bob", 2)
    assert caplog.records[-1].levelno == logging.INFO
    assert "outbox=0/0B oldest_ms=- last_error=-" in caplog.records[-1].getMessage()


def test_lines_are_limited_by_cause_and_code() -> None:
    from starlight.server.logs import LINES_PER_S, RateLimit

    limit = RateLimit(clock=lambda: 0.0)
    log = logging.getLogger("starlight.ends")
    admitted: list[tuple[str, int]] = []

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if limit.admits(record):
                admitted.append(record.kind)  # type: ignore[attr-defined]

    handler = Counting()
    log.addHandler(handler)
    before, log.propagate = log.level, False
    log.setLevel(logging.INFO)
    try:
        ends = Ends()
        for number in range(100):
            add(ends, f"u{number}", number)
            add(ends, f"u{number}", number, 4000 + number % 3, cause=Cause("client"))
            add(ends, None, number, 4501, cause=Cause("login", f"detail {number}"))
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        log.propagate = True
    assert sorted(set(admitted)) == [("client", 0), ("client", 1000), ("login", 4501)]  # other codes are one kind
    assert len(admitted) == 3 * LINES_PER_S


def test_causes() -> None:
    assert cause_of(4008).name == "slow"
    assert cause_of(4321).name == "application"
    assert cause_of(4500, is_login=True).name == "login"
    assert cause_of(1009, is_login=True).name == "protocol"
    assert cause_of(4500, "error", "why") == Cause("error", "why")
    assert all(cause_of(code).name in CAUSES for code in CLOSE_CODES)
    for name, text in CAUSES.items():
        assert name.isidentifier() and text.meaning and not text.meaning.endswith(".")
    ends = Ends()
    add(ends, cause=Cause("of somebody's own"))
    assert ends.counts == {"application": 1}


@pytest.mark.parametrize(
    ("peername", "shown"),
    [
        (("203.0.113.9", 50123), "203.0.113.9:50123"),
        (("2001:db8::1", 50123, 0, 0), "[2001:db8::1]:50123"),
        (("203.0.113.9", 0), "203.0.113.9"),
        (None, ""),
        ((), ""),
    ],
)
def test_addresses(peername: tuple[Any, ...] | None, shown: str) -> None:
    assert address_text(peername) == shown


def test_a_row_is_json_of_plain_values() -> None:
    row = End(1.23456, 1000, "", "client").row()
    assert row["at"] == 1.235
    assert set(row) == {
        "at", "code", "reason", "cause", "detail", "user", "client", "connection", "address", "connected_s",
        "messages_in", "outbox_messages", "outbox_bytes", "oldest_ms", "last_error",
    }  # fmt: skip
