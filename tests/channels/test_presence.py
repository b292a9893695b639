"""starlight.channels.presence: users with counts, against a multiset."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.channels.presence import Presence


def test_first_and_last_client_of_a_user_are_told():
    presence = Presence()
    assert presence.add("ann") is True
    assert presence.add("ann") is False
    assert presence.remove("ann") is False
    assert presence.remove("ann") is True
    assert (len(presence), presence.users(5)) == (0, [])


def test_users_come_in_the_order_they_joined_and_no_more_than_asked_for():
    presence = Presence()
    for number in range(150):
        presence.add(f"user{number}")
    presence.add("user7")
    assert presence.users(100) == [f"user{number}" for number in range(100)]
    assert presence.users(2) == ["user0", "user1"]
    assert len(presence.users(1_000)) == 150


def test_one_user_alone_takes_no_dict_and_nobody_is_mixed_up_when_others_come_and_go():
    presence = Presence()
    for _ in range(3):
        presence.add("ann")
    assert presence._clients_by_user is None and (len(presence), presence.users(5)) == (1, ["ann"])
    assert presence.users(0) == []
    presence.add("bob")
    assert presence.users(5) == ["ann", "bob"]
    assert [presence.remove("ann") for _ in range(3)] == [False, False, True]
    assert presence.remove("bob") is True
    assert (len(presence), presence.users(5)) == (0, [])
    assert presence._clients_by_user is None
    with pytest.raises(KeyError):
        presence.remove("bob")
    assert presence.add("cat") is True


def test_removing_a_stranger_is_a_bug_of_the_caller_and_changes_nothing():
    presence = Presence()
    presence.add("ann")
    with pytest.raises(KeyError):
        presence.remove("bob")
    assert presence.users(5) == ["ann"]


@pytest.mark.parametrize("others", [[], ["bob"]])
def test_a_user_may_stay_without_clients(others: list[str]):
    presence = Presence()
    for user in ("ann", *others):
        presence.add(user)
    assert presence.remove("ann", stays=True) is True
    assert presence.users(5) == ["ann", *others]
    with pytest.raises(KeyError):
        presence.remove("ann")
    assert presence.add("ann") is False
    assert presence.remove("ann", stays=True) is True
    presence.drop("ann")
    assert (len(presence), presence.users(5)) == (len(others), others)


@given(st.lists(st.tuples(st.sampled_from(("add", "remove", "stay", "drop")), st.sampled_from("abcd"))))
def test_same_as_a_multiset(actions: list[tuple[str, str]]):
    presence, model = Presence(), dict[str, int]()
    for action, user in actions:
        if action == "add":
            assert presence.add(user) == (user not in model)
            model[user] = model.get(user, 0) + 1
        elif action == "drop":
            if model.get(user) == 0:
                presence.drop(user)
                del model[user]
        elif not model.get(user):
            with pytest.raises(KeyError):
                presence.remove(user)
        else:
            model[user] -= 1
            assert presence.remove(user, stays=action == "stay") == (model[user] == 0)
            if not model[user] and action == "remove":
                del model[user]
        assert presence.users(1_000) == list(model)
        assert len(presence) == len(model)
