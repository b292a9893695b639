"""When a client tries again."""

import random

import pytest

from starlight.client.backoff import HEAD_START, STABLE_AFTER_S, Backoff


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the jitter was drawn up to; it always draws that."""
    drawn: list[float] = []
    monkeypatch.setattr(random, "uniform", lambda low, high: drawn.append(high) or high)
    return drawn


def test_the_limit_doubles_and_is_bounded(limits: list[float]) -> None:
    backoff = Backoff(1.0, 30.0)
    assert [backoff.delay_s("reconnect") for _ in range(7)] == limits == [1, 2, 4, 8, 16, 30, 30]
    for _ in range(5_000):
        assert backoff.delay_s("reconnect") == 30


def test_who_was_sent_away_with_everybody_spreads_at_once(limits: list[float]) -> None:
    assert Backoff(1.0, 30.0).delay_s("backoff") == 2**HEAD_START


def test_what_the_server_asked_for_comes_on_top_and_once(limits: list[float]) -> None:
    backoff = Backoff(1.0, 30.0)
    backoff.asked_s = 5.0
    assert [backoff.delay_s("reconnect") for _ in range(2)] == [5 + 1, 2]


def test_only_a_connection_that_lasted_begins_anew(limits: list[float]) -> None:
    clock = Clock()
    backoff = Backoff(1.0, 30.0, clock)
    for lasted_s, expected_s in ((STABLE_AFTER_S, 1), (STABLE_AFTER_S, 2), (STABLE_AFTER_S + 0.1, 1), (0, 2)):
        backoff.opened()
        clock.now_s += lasted_s
        backoff.lost()
        assert backoff.delay_s("reconnect") == expected_s


def test_every_wait_is_anywhere_below_its_limit() -> None:
    random.seed(1)
    delays_s = [Backoff(8.0, 30.0).delay_s("reconnect") for _ in range(200)]
    assert 0 <= min(delays_s) < 1 and 7 < max(delays_s) <= 8
