"""Announcements of users, over the real hub and core: joined and left, comebacks, and that they fit to presence."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from starlight import ChannelOptions
from starlight.channels.announcements import SLICE, TICK_S
from starlight.channels.options import OptionsByPattern
from tests.support.fakes import Member, Stage


class Timed:
    """A stage whose clock is moved by hand, with the one timer of the announcements."""

    def __init__(self, **options: Any) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.stage = Stage(
            options=OptionsByPattern({"room*": ChannelOptions(announce="users", **options)}), later=self.later
        )

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        self.timers.append((self.stage.now_s + seconds, function))
        assert len(self.timers) == 1, "a second timer"

    def wait(self, seconds: float) -> None:
        end_s = self.stage.now_s + seconds
        while self.timers and self.timers[0][0] <= end_s:
            at_s, function = self.timers.pop()
            self.stage.now_s = at_s
            function()
        self.stage.now_s = end_s

    def come(self, user: str, channel: str = "room") -> Member:
        member = self.stage.member(user)
        member.ask("join", channel=channel)
        return member


@pytest.fixture
def timed():
    timed = Timed()
    yield timed
    timed.stage.close()


def told(member: Member) -> list[tuple[str, str]]:
    return [(message["type"], message["user"]) for message in member.heard()]


def test_left_comes_after_the_delay_and_no_earlier(timed: Timed):
    ann, bob = timed.come("ann"), timed.come("bob")
    assert ann.heard() == [{"type": "joined", "channel": "room", "user": "bob"}]
    bob.say("leave", channel="room")
    timed.wait(1.9)
    assert told(ann) == []
    timed.wait(0.1 + TICK_S)
    assert ann.heard() == [{"type": "left", "channel": "room", "user": "bob"}]
    assert timed.timers == []


def test_a_comeback_within_the_delay_announces_nothing(timed: Timed):
    ann, bob = timed.come("ann"), timed.come("bob")
    ann.heard()
    bob.leave_hub()
    timed.wait(1.5)
    again = timed.come("bob")
    timed.wait(1.5)  # the time of the first leave has passed
    assert told(ann) == []
    again.say("leave", channel="room")
    timed.wait(1.5)
    assert told(ann) == []
    timed.wait(0.5 + TICK_S)
    assert told(ann) == [("left", "bob")]


def test_only_the_first_and_the_last_client_of_a_user_count(timed: Timed):
    ann = timed.come("ann")
    first, second = timed.come("bob"), timed.come("bob")
    assert told(ann) == [("joined", "bob")]
    first.say("leave", channel="room")
    timed.wait(5)
    assert told(ann) == []
    second.leave_hub()
    timed.wait(5)
    assert told(ann) == [("left", "bob")]


def test_who_is_leaving_is_still_in_presence_so_that_it_fits_to_what_is_announced(timed: Timed):
    ann, bob = timed.come("ann"), timed.come("bob")
    bob.say("leave", channel="room")
    reply = ann.ask("presence", channel="room")
    assert (reply["users"], reply["clients"]) == (["ann", "bob"], 1)
    timed.wait(3)
    assert ann.ask("presence", channel="room")["users"] == ["ann"]


def test_without_a_delay_left_comes_at_once():
    timed = Timed(announce_delay=0)
    ann, bob = timed.come("ann"), timed.come("bob")
    bob.say("leave", channel="room")
    assert told(ann) == [("joined", "bob"), ("left", "bob")]
    assert timed.timers == []
    timed.stage.close()


def test_channels_that_do_not_announce_are_quiet(timed: Timed):
    ann, bob = timed.come("ann", "quiet"), timed.come("bob", "quiet")
    bob.leave_hub()
    timed.wait(5)
    assert told(ann) == []


def test_with_its_last_member_a_channel_forgets_who_was_leaving(timed: Timed):
    ann, bob = timed.come("ann"), timed.come("bob")
    bob.say("leave", channel="room")
    ann.say("leave", channel="room")
    assert timed.stage.hub.counters()["channels"] == 0
    eve = timed.come("eve")
    timed.wait(1)
    bob.say("join", channel="room")
    assert told(eve) == [("joined", "bob")]
    timed.wait(5)
    assert told(eve) == []


def test_many_who_left_at_once_are_told_in_slices_and_none_is_forgotten(timed: Timed):
    ann = timed.come("ann")
    many = [timed.come(f"user{number}") for number in range(SLICE + 10)]
    ann.heard()
    for member in many:
        member.say("leave", channel="room")
    timed.wait(2.0 + TICK_S)
    assert Counter(told(ann)) == Counter(("left", f"user{number}") for number in range(SLICE + 10))


def test_a_list_of_users_and_the_announcements_behind_it_always_fit_together():
    """Whoever joins, asks once and then follows joined and left, knows who is here whenever nobody is leaving."""
    chance = random.Random(7)
    timed = Timed()
    ann = timed.come("ann")
    known = set(ann.ask("presence", channel="room")["users"])
    others = [timed.stage.member(f"user{number % 4}") for number in range(8)]
    joined: set[int] = set()
    for _ in range(600):
        number = chance.randrange(len(others))
        others[number].say("leave" if number in joined else "join", channel="room")
        joined ^= {number}
        timed.wait(chance.choice((0, 0, 0.3, 2.5)))
        for kind, user in told(ann):
            assert (user in known) == (kind == "left"), "announced twice"
            known ^= {user}
        assert known == set(ann.ask("presence", channel="room")["users"])
    timed.wait(5)
    assert known ^ {user for _, user in told(ann)} == {"ann"} | {f"user{number % 4}" for number in joined}
    timed.stage.close()
