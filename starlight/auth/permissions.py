"""Who may do what: groups with patterns of channels, and the application's last word.

A group lists patterns of channels to publish in and to subscribe to, and says whether its members may send direct
messages and broadcasts. A client may do what any of its groups allows, and everybody what the group ``default`` allows.

In a pattern ``*`` stands for any characters, none included, and ``{user}`` for the client's own name. A name that holds
anything but letters, digits and ``_ - . @`` has no such channels: ``user:{user}:*`` of a user `a` must not match what
belongs to a user `a:b`.

A verdict is kept per client and channel. The check comes before anything looks whether the channel exists, so a refusal
is the same either way.
"""

from __future__ import annotations

import logging
import re
from asyncio import CancelledError
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Final, Protocol

from starlight.auth.identity import Action
from starlight.auth.login import LoginState
from starlight.config.file import GROUPS, ConfigFile, nearest
from starlight.config.patterns import Pattern, cut, matches
from starlight.config.settings import Settings
from starlight.errors import ConfigError

__all__ = ["DEFAULT", "DEFAULT_GROUP", "EVERYTHING", "Group", "GroupPermissions", "make_permissions", "read_groups",
           "to_groups"]  # fmt: skip

log = logging.getLogger(__name__)

DEFAULT: Final = "default"
"""The group that everybody is in."""

PATTERNS_LIMIT: Final = 256
"""Patterns in one list of a group: each costs about 0.2 µs for a channel that a client names the first time."""

VERDICTS_LIMIT: Final = 128
"""Verdicts kept per client, about 150 bytes each. Who names more channels in turn pays some µs for each."""

_PATTERN: Final = re.compile(r"(?:[A-Za-z0-9_\-.:/@#*]|\{user\}){1,255}")
_PLAIN_USER: Final = re.compile(r"[A-Za-z0-9_\-.@]+")
_NAME: Final = re.compile(r"[A-Za-z0-9_\-.:/@]{1,128}")
_PATTERN_RULE: Final = "a list of channel patterns such as news, auction:* or user:{user}"

Authorize = Callable[[Any, Action, str], bool | None]
"""The application's hook, of a `starlight.channels` client."""


class Group:
    """What the members of a group may do.

    Args:
        publish: patterns of channels to publish in.
        subscribe: patterns of channels to join.
        presence: patterns of channels whose users may be listed; None for those of `subscribe`.
        direct: whether they may send to users.
        broadcast: whether they may send to everyone.

    Raises ValueError for something that is no list of patterns.
    """

    __slots__ = ("broadcast", "direct", "presence", "publish", "subscribe")

    def __init__(
        self,
        publish: Sequence[str] = (),
        subscribe: Sequence[str] = (),
        presence: Sequence[str] | None = None,
        direct: bool = False,
        broadcast: bool = False,
    ) -> None:
        self.publish = _to_patterns("publish", publish)
        self.subscribe = _to_patterns("subscribe", subscribe)
        self.presence = self.subscribe if presence is None else _to_patterns("presence", presence)
        for name, value in (("direct", direct), ("broadcast", broadcast)):
            if not isinstance(value, bool):
                raise ValueError(f"{name}: expected true or false")
        self.direct = direct
        self.broadcast = broadcast

    def allows(self, user: str, action: Action, name: str) -> bool:
        """Whether it lets a user do this."""
        if action == "direct":
            return self.direct
        if action == "broadcast":
            return self.broadcast
        patterns = self.publish if action == "publish" else self.subscribe if action == "join" else self.presence
        return any(_matches(pattern, user, name) for pattern in patterns)


def _to_patterns(field: str, patterns: Sequence[str]) -> tuple[Pattern, ...]:
    if isinstance(patterns, str) or not isinstance(patterns, list | tuple) or len(patterns) > PATTERNS_LIMIT:
        raise ValueError(f"{field}: expected {_PATTERN_RULE}")
    for pattern in patterns:
        if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
            raise ValueError(f"{field}: expected {_PATTERN_RULE}")
    return tuple(map(cut, patterns))


def _matches(pattern: Pattern, user: str, name: str) -> bool:
    if any("{user}" in part for part in pattern):
        if not _PLAIN_USER.fullmatch(user):
            return False
        pattern = tuple(part.replace("{user}", user) for part in pattern)
    return matches(pattern, name)


_OWN: Final = ("user:{user}", "user:{user}:*")
DEFAULT_GROUP: Final = Group(publish=_OWN, subscribe=_OWN, direct=True)
"""What everybody may do with tokens unless the configuration says otherwise: direct messages, and channels of their
own. No broadcast: it costs a message to every client."""

EVERYTHING: Final = Group(publish=("*",), subscribe=("*",), direct=True, broadcast=True)
"""What everybody may do without tokens: there nobody is anybody in particular."""


_NUMBERS: Final = count()
"""Verdicts are kept under the number of who gave them, so that those of permissions that were replaced hold no more."""


class Judged(Protocol):
    """What is asked of a client."""

    @property
    def login(self) -> LoginState: ...


class GroupPermissions:
    """The `Permissions` of groups.

    Args:
        groups: by name; one named ``default`` replaces `default`.
        default: what everybody may do.
        authorize: `function(client, action, name)` has the last word: True or False; None leaves it to the groups.
    """

    def __init__(
        self, groups: Mapping[str, Group], *, default: Group = DEFAULT_GROUP, authorize: Authorize | None = None
    ) -> None:
        self._number = next(_NUMBERS)
        self._default = groups.get(DEFAULT, default)
        self._groups = dict(groups)
        self._authorize = authorize

    def allows(self, client: Judged, action: Action, name: str) -> bool:
        """Whether a client may do something. A name of a group that doesn't exist allows nothing."""
        # a user's name is nothing to a group, and there are as many as somebody likes to make up
        place = (self._number, action, "" if action == "direct" else name)
        login = client.login
        verdict = login.verdicts.get(place)
        if verdict is None:
            verdict = self._judge(login, action, name)
            if len(login.verdicts) >= VERDICTS_LIMIT:
                login.verdicts.clear()
            login.verdicts[place] = verdict
        if self._authorize is not None:
            return self._ask(self._authorize, client, action, name, verdict)
        return verdict

    def _judge(self, login: LoginState, action: Action, name: str) -> bool:
        groups = [self._default, *(self._groups[group] for group in login.groups if group in self._groups)]
        return any(group.allows(login.user, action, name) for group in groups)

    def _ask(self, authorize: Authorize, client: Judged, action: Action, name: str, verdict: bool) -> bool:
        try:
            answer = authorize(client, action, name)
        except (Exception, CancelledError):
            log.exception("the authorize hook failed; that is a no")
            return False
        if answer is None or isinstance(answer, bool):
            return verdict if answer is None else answer
        log.error("the authorize hook returned a %s instead of a bool or None; that is a no", type(answer).__name__)
        return False


def make_permissions(
    settings: Settings, groups: Mapping[str, Any], authorize: Authorize | None = None
) -> GroupPermissions | None:
    """What the settings, an application's groups and its hook come to; None where everybody may do everything.

    Groups of `settings.config_file` go before `groups` of the same name. Raises `ConfigError`.
    """
    groups = to_groups(groups, "groups")
    if settings.config_file:
        groups |= read_groups(settings.config_file)
    if settings.auth == "none" and not groups:
        return None if authorize is None else GroupPermissions({}, default=EVERYTHING, authorize=authorize)
    return GroupPermissions(groups, authorize=authorize)


def to_groups(groups: Mapping[str, Any], key: str, place: Callable[..., str] | None = None) -> dict[str, Group]:
    """Groups from tables such as the configuration's.

    Args:
        groups: the tables, or groups, by name.
        key: what they are called together.
        place: says where ``(key, group, field)`` stands, for errors; by default these with dots between.

    Raises `ConfigError` naming the group and the field, with all that is wrong.
    """
    made: dict[str, Group] = {}
    errors: list[ConfigError] = []
    where = place or (lambda *keys: ".".join(keys))
    for name, fields in groups.items():
        try:
            made[name] = fields if isinstance(fields, Group) else _to_group(name, fields, key, where)
        except ConfigError as error:
            errors += [error, *error.others]
    if errors:
        raise ConfigError.all_of(errors)
    return made


def _to_group(name: str, fields: Any, key: str, place: Callable[..., str]) -> Group:
    """One group. Raises `ConfigError` with all that is wrong in it, each with its value."""
    errors: list[ConfigError] = []
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        rule = "a group whose name is of letters, digits and _ - . : / @"
        errors.append(ConfigError(place(key, str(name)), fields, rule, key))
    expected = "a table with some of " + ", ".join(sorted(Group.__slots__))
    if not isinstance(fields, dict):
        raise ConfigError.all_of([*errors, ConfigError(place(key, str(name)), fields, expected, key)])
    for field, value in fields.items():
        where = place(key, str(name), str(field))
        if field not in Group.__slots__:
            errors.append(ConfigError(where, value, expected + nearest(str(field), Group.__slots__), key))
            continue
        try:
            Group(**{field: value})
        except ValueError as error:
            errors.append(ConfigError(where, value, str(error).partition(": expected ")[2], key))
    if errors:
        raise ConfigError.all_of(errors)
    return Group(**fields)


def read_groups(path: str) -> dict[str, Group]:
    """The groups in a configuration file; what else is in it is the settings' business. Raises `ConfigError`."""
    file = ConfigFile.read(path)
    groups = file.document.get(GROUPS, {})
    if not isinstance(groups, dict):
        raise ConfigError(file.place(GROUPS), groups, "[groups.<name>] tables", GROUPS)
    return to_groups(groups, GROUPS, file.place)
