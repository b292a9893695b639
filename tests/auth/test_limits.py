"""starlight.auth.limits: buckets and counts against a clock that stands still."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.auth.limits import (
    BURST_S,
    CATCH_UP_S,
    FORGIVE_S,
    PAUSE_S,
    PAUSES_LIMIT,
    REFUSALS_LIMIT,
    Addresses,
    CatchUp,
    Limits,
    Meter,
    address_key,
)
from starlight.config.settings import Settings


def test_limits_are_off_without_tokens_unless_set_on_purpose():
    off = Limits.of(Settings())
    assert off[:5] == (0, 0, 0, 0, 0)
    assert off.meter() is None
    assert off.addresses(lambda: 0.0) is None
    assert Limits.of(Settings(message_rate=5)).message_rate == 5
    on = Limits.of(Settings(auth="jwt"))
    assert on[:5] == (20, 500, 50, 200, 2**20)
    assert Limits.of(Settings(auth="jwt", byte_rate_bytes=0, message_rate=0)).meter() is None


def test_a_burst_always_has_room_for_the_largest_message():
    limits = Limits.of(Settings(auth="jwt", byte_rate_bytes="1KiB", read_limit_bytes="64KiB"))
    meter = limits.meter()
    assert meter is not None
    for _ in range(2):
        meter.read(64 * 1024, 100.0, 100.0)
        assert meter.take(100.0, 100.0)


def test_messages_a_second():
    meter = Meter(10, 0, 0)
    assert sum(meter.take(100.0, 100.0) for _ in range(100)) == 10 * BURST_S
    assert not meter.take(100.05, 100.05)
    assert meter.take(100.1, 100.1)
    assert not meter.take(100.1, 100.1)
    assert sum(meter.take(1000.0, 1000.0) for _ in range(100)) == 10 * BURST_S


def test_what_counts_for_many_needs_room_for_all_but_never_more_than_a_burst():
    meter = Meter(10, 0, 0)
    assert meter.take(100.0, 100.0, 15)
    assert not meter.take(100.0, 100.0, 6)
    assert meter.take(100.0, 100.0, 5)
    assert not meter.take(101.9, 101.9, 65_536)
    assert meter.take(102.0, 102.0, 65_536)
    assert not meter.take(102.0, 102.0)


def test_bytes_a_second_are_charged_as_they_are_read():
    meter = Meter(0, 1000, 2000)

    def read(size_bytes: int, now_s: float) -> bool:
        meter.read(size_bytes, now_s, now_s)
        return meter.take(now_s, now_s)

    assert read(1500, 50.0) and read(500, 50.0)
    assert not read(1, 50.0)
    assert not read(0, 50.0005)
    assert read(0, 50.001)
    assert not read(1_000_000, 50.001)
    assert not read(0, 51.0)
    assert read(0, 50.001 + PAUSE_S)  # never more is owed than what a pause pays off


@given(st.integers(1, 1000), st.lists(st.floats(0, 0.5), max_size=200))
def test_never_more_than_the_rate_and_the_burst(rate: int, gaps_s: list[float]):
    meter, now_s, taken = Meter(rate, 0, 0), 10.0, 0
    for gap_s in gaps_s:
        now_s += gap_s
        taken += meter.take(now_s, now_s)
    assert taken <= rate * (now_s - 10.0 + BURST_S) + 1


def test_first_refused_then_paused_then_ended():
    meter = Meter(10, 0, 0)
    verdicts = [meter.refuse(5.0) for _ in range(REFUSALS_LIMIT * (PAUSES_LIMIT + 1))]
    assert verdicts[: REFUSALS_LIMIT - 1] == [0.0] * (REFUSALS_LIMIT - 1)
    assert [verdict for verdict in verdicts if verdict > 0] == [PAUSE_S] * PAUSES_LIMIT
    assert verdicts[-1] < 0


def test_refusals_are_forgiven():
    meter = Meter(10, 0, 0)
    for minute in range(10):
        now_s = minute * (FORGIVE_S + 1)
        assert min(meter.refuse(now_s) for _ in range(REFUSALS_LIMIT * PAUSES_LIMIT)) == 0.0


def test_68_what_came_while_the_process_stood_is_no_more_than_the_rate():
    clock = Clock()
    catch_up, meter = CatchUp(clock, lambda: clock.stopped_ms), Meter(8, 0, 0)  # an eighth of a second is exact

    def taken(messages: int) -> int:
        return sum(meter.take(catch_up.look(), catch_up.since_s) for _ in range(messages))

    assert taken(100) == 16
    clock.stop(30)
    assert taken(240) == 240  # what it sent meanwhile
    for _ in range(100):  # and it goes on as before
        clock.now_s += 0.5
        assert taken(4) == 4
    assert taken(100) == 0  # its burst was spent before
    clock.stop(100_000)
    assert taken(10_000) == 480 + 16
    for _ in range(int(CATCH_UP_S) + 3):
        clock.now_s += 1
        catch_up.look()
    assert taken(100) == 16  # nobody gets it twice


def test_68_rates_forgive_no_time_in_which_the_process_worked():
    clock = Clock()
    catch_up, meter = CatchUp(clock, lambda: clock.stopped_ms), Meter(8, 0, 0)
    clock.now_s += 30
    assert sum(meter.take(catch_up.look(), catch_up.since_s) for _ in range(240)) == 16


class Clock:
    now_s = 100.0
    stopped_ms = 0

    def stop(self, seconds: int) -> None:
        """The process stands still for so long."""
        self.now_s += seconds
        self.stopped_ms += seconds * 1_000

    def __call__(self) -> float:
        return self.now_s


def test_connections_of_an_address():
    addresses = Addresses(3, 0, Clock())
    assert [addresses.admit("a") for _ in range(5)] == [True] * 3 + [False] * 2
    assert addresses.admit("b")
    addresses.release("a")
    assert [addresses.admit("a") for _ in range(2)] == [True, False]
    for key in "aaab":
        addresses.release(key)
    assert len(addresses) == 0
    addresses.release("nobody")


def test_connections_of_an_address_a_second():
    clock = Clock()
    addresses = Addresses(0, 10, clock)
    admitted = sum(addresses.admit("a") for _ in range(100))
    assert admitted == 10 * BURST_S
    for _ in range(admitted):
        addresses.release("a")
    assert not addresses.admit("a")  # that they are gone doesn't matter
    assert addresses.admit("b")
    clock.now_s += 0.1
    assert addresses.admit("a")


def test_addresses_without_connections_are_forgotten():
    clock = Clock()
    addresses = Addresses(10, 10, clock)
    for number in range(100_000):
        key = str(number)
        assert addresses.admit(key)
        addresses.release(key)
        clock.now_s += 0.001
    assert len(addresses) < 3 * Addresses.SWEEP


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(host: str, key: str):
    assert address_key(host) == key
