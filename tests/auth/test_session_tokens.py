"""starlight.auth.session_tokens: session tokens, revocations and the order of ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.auth.session_tokens import (
    SESSION_LIMIT_BYTES,
    Expiries,
    Revocations,
    SessionClaims,
    Sessions,
    read_secret,
)
from starlight.errors import ConfigError, TokenRefused
from tests.support.tokens import SECRET, token, write

KEY = b"k" * 32
ANN = SessionClaims("ann", ("trader",), 2_000.0, 900.0, "j1")


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(KEY, 3600, clock)


def test_a_session_comes_back_as_it_was(sessions: Sessions, clock: Clock):
    text = sessions.issue(ANN)
    assert text.startswith("sl1.")
    assert sessions.verify(text) == ANN
    assert Sessions(KEY, 60, clock).verify(text) == ANN  # another node with the same key


def test_it_ends(sessions: Sessions, clock: Clock):
    text = sessions.issue(ANN)
    clock.now_s = 2_000
    with pytest.raises(TokenRefused) as refusal:
        sessions.verify(text)
    assert refusal.value.is_expired


def test_another_key_makes_another_session(sessions: Sessions, clock: Clock):
    text = sessions.issue(ANN)
    for other in (Sessions(b"l" * 32, 3600, clock), Sessions(None, 3600, clock), Sessions(None, 3600, clock)):
        with pytest.raises(TokenRefused):
            other.verify(text)


def test_what_the_previous_key_has_signed_is_good_and_it_signs_nothing(sessions: Sessions, clock: Clock):
    new = Sessions(b"n" * 32, 3600, clock, previous_key=KEY)
    assert new.verify(sessions.issue(ANN)) == ANN
    assert Sessions(b"n" * 32, 3600, clock).verify(new.issue(ANN)) == ANN
    with pytest.raises(TokenRefused):
        sessions.verify(new.issue(ANN))
    with pytest.raises(TokenRefused):
        new.verify(Sessions(b"x" * 32, 3600, clock).issue(ANN))


@pytest.mark.parametrize("text", ["", "sl1.", "sl1..", "sl1.a", "sl1.a.b", "sl1.ä.b", "sl1.a.ä", "sl2.a.b", token()])
def test_what_is_no_session(sessions: Sessions, text: str):
    with pytest.raises(TokenRefused):
        sessions.verify(text)


@given(st.integers(0, 200), st.characters())
def test_any_change_of_one_character_is_refused(at: int, character: str):
    sessions = Sessions(KEY, 3600, lambda: 1_000.0)
    text = sessions.issue(ANN)
    at %= len(text)
    changed = text[:at] + character + text[at + 1 :]
    if changed != text:
        with pytest.raises(TokenRefused):
            sessions.verify(changed)


def test_secret_files(tmp_path: Path):
    assert read_secret(write(tmp_path / "s", SECRET + "\r\n"), "s") == SECRET.encode()
    for content in (b"", b"short", b"x" * (1 << 20)):
        with pytest.raises(ConfigError, match="32 bytes or more"):
            read_secret(write(tmp_path / "s", content), "session_secret_file")
    with pytest.raises(ConfigError, match="no such file"):
        read_secret(str(tmp_path / "nothing"), "session_secret_file")


def test_a_user_is_revoked_for_what_was_made_before(clock: Clock):
    revocations = Revocations(clock=clock, wall_clock=clock)
    assert not revocations.holds("ann", "j1", 0)
    revocations.add_user("ann", 100)
    assert revocations.holds("ann", "j1", 0)
    assert revocations.holds("ann", "", 1_000)
    assert not revocations.holds("ann", "j1", 1_001)
    assert not revocations.holds("bob", "j1", 0)
    clock.now_s += 101
    assert not revocations.holds("ann", "j1", 0)


def test_a_token_from_the_future_is_revoked_if_it_was_seen(clock: Clock):
    revocations = Revocations(clock=clock, wall_clock=clock)
    revocations.add_user("ann", 100, issued=1_005)  # the issuer's clock is ahead
    assert revocations.holds("ann", "", 1_005)
    assert not revocations.holds("ann", "", 1_006)


def test_a_second_revocation_does_not_shorten_the_first(clock: Clock):
    revocations = Revocations(clock=clock, wall_clock=clock)
    for seconds in (100, 10):
        revocations.add_user("ann", seconds)
        revocations.add_token("j1", seconds)
    clock.now_s += 50
    assert revocations.holds("ann", "", 0)
    assert revocations.holds("bob", "j1", 0)


@pytest.mark.parametrize("wrong_s", [-3_600, 3_600, -10 * 365 * 86_400, 10 * 365 * 86_400])
def test_a_clock_that_was_wrong_at_a_revocation_keeps_nobody_out_and_lets_nobody_in(clock: Clock, wrong_s: float):
    """The wall clock was wrong by so much, and is set right after it; tokens are of an issuer whose clock is right."""
    monotonic = Clock()
    clock.now_s += 1e9
    true_s = clock.now_s
    revocations = Revocations(clock=monotonic, wall_clock=clock)
    clock.now_s += wrong_s
    revocations.add_user("ann", 100)
    revocations.add_token("j1", 100)
    for wait_s in (10, 50):
        monotonic.now_s += wait_s
        clock.now_s = true_s + monotonic.now_s - Clock().now_s
        assert revocations.holds("ann", "", true_s - 10)
        assert revocations.holds("ann", "", true_s)
        assert not revocations.holds("ann", "", true_s + 1)
        assert revocations.holds("bob", "j1", true_s + 1)
    monotonic.now_s += 41
    assert not revocations.holds("ann", "", true_s)
    assert not revocations.holds("bob", "j1", true_s)


def test_a_clock_that_is_wrong_after_a_revocation_lets_nobody_in(clock: Clock):
    monotonic = Clock()
    clock.now_s += 1e9
    true_s = clock.now_s
    revocations = Revocations(clock=monotonic, wall_clock=clock)
    revocations.add_user("ann", 100)
    monotonic.now_s += 10
    for wrong_s in (-3_600, 3_600):
        clock.now_s = true_s + 10 + wrong_s
        assert revocations.holds("ann", "", true_s - 1_800)
        assert revocations.holds("ann", "", true_s)
    clock.now_s = true_s + 10 - 3_600
    assert not revocations.holds("ann", "", true_s + 1)


def test_47_no_session_is_too_long(sessions: Sessions, monkeypatch: pytest.MonkeyPatch):
    far = sessions.clock() + 100
    longest = sessions.issue(SessionClaims("ann", ("g" * 8_000,), far, 0.0, "j"))
    assert longest is not None
    assert sessions.verify(longest).groups == ("g" * 8_000,)
    assert sessions.issue(SessionClaims("ann", ("g" * SESSION_LIMIT_BYTES,), far, 0.0, "j")) is None

    def never(*args: object) -> str:
        raise AssertionError("somebody looked at it")

    monkeypatch.setattr(sessions, "_has_signed", never)
    with pytest.raises(TokenRefused, match="too long"):
        sessions.verify("sl1." + "A" * SESSION_LIMIT_BYTES)


def test_a_token_is_revoked_by_its_id(clock: Clock):
    revocations = Revocations(clock=clock, wall_clock=clock)
    revocations.add_token("j1", 100)
    assert revocations.holds("ann", "j1", 5_000)
    assert not revocations.holds("ann", "j2", 0)
    assert not revocations.holds("ann", "", 0)
    clock.now_s += 101
    assert not revocations.holds("ann", "j1", 0)


def test_revocations_are_bounded_and_none_is_dropped_silently(clock: Clock):
    revocations = Revocations(limit=3, clock=clock, wall_clock=clock)
    revocations.add_user("a", 10)
    revocations.add_user("b", 100)
    revocations.add_token("c", 100)
    revocations.add_user("b", 100)  # known already
    with pytest.raises(OverflowError):
        revocations.add_token("d", 100)
    clock.now_s += 11
    revocations.add_token("d", 100)
    assert len(revocations) == 3


def test_expiries():
    expiries = Expiries()
    ann, bob, eve = objects = [type("Client", (), {})() for _ in range(3)]
    places = [expiries.add(client, at_s) for client, at_s in zip(objects, (10.2, 10.9, 99.0), strict=True)]
    assert list(expiries.due(10.9)) == []
    expiries.remove(bob, places[1])
    assert list(expiries.due(11.0)) == [ann]
    expiries.remove(ann, places[0])  # it came up already
    assert len(expiries) == 1
    expiries.remove(eve, places[2])
    assert len(expiries) == 0
    assert list(expiries.due(1e9)) == []
