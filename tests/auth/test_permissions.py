"""starlight.auth.permissions: patterns, groups, verdicts, the hook, and what is no configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.auth.identity import Action, Identity
from starlight.auth.login import LoginState
from starlight.auth.permissions import (
    DEFAULT_GROUP,
    EVERYTHING,
    VERDICTS_LIMIT,
    Group,
    GroupPermissions,
    make_permissions,
    read_groups,
    to_groups,
)
from starlight.config.settings import Settings
from starlight.errors import ConfigError


class Client:
    """What permissions look at of a client."""

    def __init__(self, user: str, *groups: str) -> None:
        self.login = LoginState(Identity(user, groups=groups))


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("news", ["news"], ["new", "newss", "NEWS", ""]),
        ("auction:*", ["auction:", "auction:1", "auction:a:b"], ["auction", "xauction:1"]),
        ("*", ["a", "", "a:b"], []),
        ("a*c", ["ac", "abc", "abbc"], ["a", "c", "acb"]),
        ("a*b*c", ["abc", "axbxc", "abbc"], ["acb", "ab", "ac"]),
        ("ab*ba", ["abba", "abxba"], ["aba"]),
        ("user:{user}", ["user:ann"], ["user:bob", "user:{user}", "user:ann:"]),
        ("user:{user}:*", ["user:ann:", "user:ann:x"], ["user:ann", "user:anna:x"]),
        ("a.c", ["a.c"], ["abc"]),
    ],
)
def test_patterns(pattern: str, yes: list[str], no: list[str]):
    group = Group(publish=[pattern])
    assert [group.allows("ann", "publish", name) for name in yes] == [True] * len(yes)
    assert [group.allows("ann", "publish", name) for name in no] == [False] * len(no)


@given(st.text("ab*", min_size=1, max_size=8), st.text("ab", max_size=8))
def test_stars_mean_what_they_mean_elsewhere(pattern: str, name: str):
    import fnmatch

    assert Group(publish=[pattern]).allows("x", "publish", name) == fnmatch.fnmatchcase(name, pattern)


@pytest.mark.parametrize("user", ["a:b", "*", "ä", "a/b", "a#b", "a b", "{user}", "ann\u200b"])
def test_users_whose_name_would_reach_into_others_channels_have_no_own_ones(user: str):
    for name in (f"user:{user}", f"user:{user}:x", "user:a:b", "user:ann"):
        assert not DEFAULT_GROUP.allows(user, "publish", name)
        assert not DEFAULT_GROUP.allows(user, "join", name)


def test_what_each_field_is_for():
    group = Group(publish=["p"], subscribe=["s"], direct=True)
    table: list[tuple[Action, str, bool]] = [
        ("publish", "p", True), ("publish", "s", False), ("join", "s", True), ("join", "p", False),
        ("presence", "s", True), ("presence", "p", False), ("direct", "bob", True), ("broadcast", "", False),
    ]  # fmt: skip
    for action, name, expected in table:
        assert group.allows("ann", action, name) is expected
    assert Group(subscribe=["s"], presence=["other"]).allows("ann", "presence", "other")
    assert not Group(subscribe=["s"], presence=[]).allows("ann", "presence", "s")
    assert Group(broadcast=True).allows("ann", "broadcast", "")
    assert EVERYTHING.allows("ann", "broadcast", "")


def test_any_group_is_enough_and_an_unknown_one_is_nothing():
    permissions = GroupPermissions({"a": Group(publish=["a"]), "b": Group(publish=["b"])})
    both, one, none = Client("ann", "a", "b"), Client("bob", "a"), Client("eve", "admin")
    assert [permissions.allows(client, "publish", "b") for client in (both, one, none)] == [True, False, False]
    assert permissions.allows(none, "direct", "bob")  # by default
    assert not permissions.allows(both, "broadcast", "")


def test_a_group_named_default_is_everybodys():
    permissions = GroupPermissions({"default": Group(subscribe=["news"])})
    assert permissions.allows(Client("ann"), "join", "news")
    assert not permissions.allows(Client("ann"), "direct", "bob")


def test_verdicts_are_kept_and_bounded():
    permissions, client = GroupPermissions({"a": Group(publish=["a*"])}), Client("ann", "a")
    for number in range(1000):
        assert permissions.allows(client, "publish", f"a{number}")
        assert permissions.allows(client, "direct", f"user{number}")
    assert len(client.login.verdicts) <= VERDICTS_LIMIT
    (number, *_), *_ = client.login.verdicts
    client.login.verdicts[(number, "publish", "zzz")] = True
    assert permissions.allows(client, "publish", "zzz")


def test_the_hook_has_the_last_word_each_time(caplog: pytest.LogCaptureFixture):
    answers: dict[str, Any] = {"yes": True, "no": False, "else": None}
    asked = []

    def authorize(client: Any, action: str, name: str) -> Any:
        asked.append((client.login.user, action, name))
        return answers[name]

    permissions = GroupPermissions({"a": Group(publish=["no", "else"])}, authorize=authorize)
    client = Client("ann", "a")
    for name, expected in (("yes", True), ("no", False), ("else", True), ("broken", False)):
        assert permissions.allows(client, "publish", name) is expected
    assert asked[0] == ("ann", "publish", "yes")
    assert "hook failed" in caplog.text
    answers["yes"] = "truthy"
    assert not permissions.allows(client, "publish", "yes")


# --- configuration ---------------------------------------------------------------------------------------------------

GOOD = """
[groups.trader]
publish = ["auction:*"]
subscribe = ["auction:*", "news"]
direct = true
broadcast = false
"""


def test_groups_from_a_file(tmp_path: Path):
    path = tmp_path / "starlight.toml"
    path.write_text(GOOD)
    trader = read_groups(str(path))["trader"]
    assert trader.allows("ann", "publish", "auction:1")
    assert not trader.allows("ann", "publish", "news")
    permissions = make_permissions(
        Settings(config_file=str(path)), {"trader": {"publish": ["code"]}, "other": {"publish": ["code"]}}
    )
    assert permissions is not None
    assert not permissions.allows(Client("ann", "trader"), "publish", "code")  # the operator's word
    assert permissions.allows(Client("ann", "other"), "publish", "code")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[groups.a]\npublish = 'x'", r"groups\.a\.publish='x': expected a list of channel patterns"),
        ("[groups.a]\npublish = ['a b']", "channel patterns"),
        ("[groups.a]\npublish = ['{name}']", "channel patterns"),
        ("[groups.a]\npublish = [1]", "channel patterns"),
        ("[groups.a]\ndirect = 1", r"groups\.a\.direct=1: expected true or false"),
        ("[groups.a]\nbroadcats = true", "broadcats.*a table with some of broadcast, direct"),
        ("[groups]\na = 1", "a table with some of"),
        ("[groups.'a b']\n", "a group whose name is of letters"),
        ("groups = 1", r"starlight.toml:1: groups=1: expected \[groups.<name>\] tables"),
        ("port = 1\n[groups.a]\nbroadcats = true", r"starlight.toml:3: groups.a.broadcats.*did you mean broadcast\?"),
        ("[groups.a", "a TOML file"),
        ("\udc80", "a TOML file"),
    ],
)
def test_wrong_files(text: str, expected: str, tmp_path: Path):
    path = tmp_path / "starlight.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=expected):
        read_groups(str(path))


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file"):
        make_permissions(Settings(config_file=str(tmp_path / "none.toml")), {})


def test_what_is_allowed_by_default():
    assert make_permissions(Settings(), {}) is None
    permissions = make_permissions(Settings(auth="jwt"), {})
    assert permissions is not None
    ann = Client("ann")
    table: list[tuple[Action, str, bool]] = [
        ("direct", "bob", True), ("publish", "user:ann", True), ("join", "user:ann:inbox", True),
        ("publish", "news", False), ("join", "user:bob", False), ("broadcast", "", False), ("presence", "news", False),
    ]  # fmt: skip
    assert [permissions.allows(ann, action, name) for action, name, _ in table] == [row[2] for row in table]
    hooked = make_permissions(Settings(), {}, lambda client, action, name: None)
    assert hooked is not None
    assert hooked.allows(Client("ann"), "broadcast", "")


def test_groups_of_code():
    group = Group(publish=["x"])
    assert to_groups({"a": group}, "groups")["a"] is group


def test_verdicts_of_others_do_not_hold():
    ann = Client("ann")
    yes, no = GroupPermissions({"default": Group(publish=["*"])}), GroupPermissions({"default": Group()})
    assert [one.allows(ann, "publish", "x") for one in (yes, no, yes, no)] == [True, False, True, False]
