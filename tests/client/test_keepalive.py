"""When the client asks whether its server is still there, and when it gives the connection up."""

import math

import pytest

from starlight.client.keepalive import ASLEEP_S, Keepalive


def test_it_asks_before_it_gives_up_and_what_comes_begins_anew() -> None:
    watch = Keepalive(25, 10, 30, 0.0)
    assert (watch.ask_s, watch.silence_s, watch.next_s) == (30, 35, 30)
    assert (watch.look(30.0, 0.0), watch.next_s) == ("ask", 35)
    assert (watch.look(35.0, 34.0), watch.next_s) == ("wait", 64)
    assert (watch.look(64.0, 34.0), watch.next_s) == ("ask", 69)
    assert watch.look(68.9, 34.0) == "wait"
    assert watch.look(69.0, 34.0) == "drop"


def test_the_shorter_of_both_sides_times_counts() -> None:
    assert (Keepalive(5, 5, 30, 0.0).ask_s, Keepalive(5, 5, 30, 0.0).silence_s) == (7.5, 10)
    assert (Keepalive(300, 60, 0.5, 0.0).ask_s, Keepalive(300, 60, 0.5, 0.0).silence_s) == (0.5, 1.0)


def test_who_stood_still_asks_first() -> None:
    watch = Keepalive(25, 10, 30, 0.0)
    assert watch.look(3_000.0, 0.0) == "ask"
    assert watch.look(watch.next_s, 0.0) == "drop"
    watch = Keepalive(25, 10, 30, 0.0)
    assert watch.look(30.0, 0.0) == "ask"
    assert watch.look(35.0 + 2 * ASLEEP_S, 0.0) == "ask"  # asleep while it waited for the answer


@pytest.mark.parametrize("odd", [0.0, -5.0, 1e308, math.inf, -math.inf, math.nan])
def test_whatever_a_server_says_the_times_make_sense(odd: float) -> None:
    watch = Keepalive(odd, odd, 30, 0.0)
    assert 0 < watch.ask_s < watch.silence_s <= 40
    assert 0 < watch.next_s <= 30
