"""starlight.channels.presence: users with counts, against a multiset."""

from collections import Counter

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
    assert (len(presence), presence.clients) == (0, 0)


def test_users_come_in_the_order_they_joined_and_no_more_than_asked_for():
    presence = Presence()
    for number in range(150):
        presence.add(f"user{number}")
    presence.add("user7")
    assert presence.users(100) == [f"user{number}" for number in range(100)]
    assert presence.users(2) == ["user0", "user1"]
    assert len(presence.users(1_000)) == 150
    assert presence.clients == 151


def test_one_user_alone_takes_no_dict_and_nobody_is_mixed_up_when_others_come_and_go():
    presence = Presence()
    for _ in range(3):
        presence.add("ann")
    assert presence._clients_by_user is None and (len(presence), presence.users(5)) == (1, ["ann"])
    assert presence.users(0) == []
    presence.add("bob")
    assert presence.users(5) == ["ann", "bob"] and presence.clients == 4
    assert [presence.remove("ann") for _ in range(3)] == [False, False, True]
    assert presence.remove("bob") is True
    assert (len(presence), presence.clients, presence.users(5)) == (0, 0, [])
    assert presence._clients_by_user is None
    with pytest.raises(KeyError):
        presence.remove("bob")
    assert presence.add("cat") is True


def test_removing_a_stranger_is_a_bug_of_the_caller_and_changes_nothing():
    presence = Presence()
    presence.add("ann")
    with pytest.raises(KeyError):
        presence.remove("bob")
    assert presence.clients == 1


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcd"))))
def test_same_as_a_multiset(actions: list[tuple[bool, str]]):
    presence, model = Presence(), Counter[str]()
    for add, user in actions:
        if add:
            assert presence.add(user) == (model[user] == 0)
            model[user] += 1
        elif model[user]:
            assert presence.remove(user) == (model[user] == 1)
            model[user] -= 1
        assert presence.clients == model.total()
        assert sorted(presence.users(1_000)) == sorted(+model)
        assert len(presence) == len(+model)
