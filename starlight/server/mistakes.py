"""All that is wrong with a configuration, found before anything is started: each mistake once, and none behind another.

A value that can't be read must not hide that a file which another setting names isn't there. So what can be read is
looked at as if the rest had its default, and what would only be wrong for that reason is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from starlight.auth.permissions import read_groups, to_groups
from starlight.channels.options import read_channel_options, to_channel_options
from starlight.config.file import CHANNELS, GROUPS
from starlight.config.settings import Settings, hidden_errors, written
from starlight.errors import ConfigError
from starlight.server.reload import problems

__all__ = ["all_mistakes"]

_DEPENDS_ON: Final = {
    "host": ("auth", "insecure_no_auth"),
    "auth": ("jwt_secret", "jwt_secret_file", "jwt_key_file", "jwt_jwks_url"),
    "jwt_algorithms": ("jwt_secret", "jwt_secret_file", "jwt_key_file", "jwt_jwks_url"),
    "internal_host": ("internal_key_file",),
    "tls_cert": ("tls_key",),
    "tls_key": ("tls_cert",),
    "session_previous_secret_file": ("session_secret_file",),
}
"""Settings that may look wrong only because others have not got the value that was meant."""


def all_mistakes(
    arguments: Mapping[str, Any],
    groups: Mapping[str, Any] | None = None,
    channels: Mapping[str, Any] | None = None,
    *,
    has_authenticator: bool = False,
    has_permissions: bool = False,
) -> list[ConfigError]:
    """Everything wrong with arguments, environment and file, and with the files that they name; nothing is changed.

    Args:
        arguments: those of `Settings`.
        groups: an application's own.
        channels: its options of channels.
        has_authenticator: whether it has one of its own, so that nothing is asked of the settings of logins.
        has_permissions: the same of permissions.
    """
    errors: list[ConfigError] = []
    wrong: set[str] = set()
    try:
        Settings(**arguments)
        errors += hidden_errors(arguments)
    except ConfigError as error:
        errors += [error, *error.others]
        wrong = {one.field for one in errors}
        if "config_file" not in wrong:
            errors += hidden_errors(arguments)
    errors += _of_tables(arguments, groups or {}, channels or {}, is_readable="config_file" not in wrong)
    try:
        rest = written(arguments, without=wrong)
    except ConfigError:  # a value in the file that a variable or an argument hides
        return _once(errors)
    found = problems(rest, has_authenticator=has_authenticator, has_permissions=has_permissions)
    errors += [
        one for one in found if one.field not in wrong and not wrong.intersection(_DEPENDS_ON.get(one.field, ()))
    ]
    return _once(errors)


def _of_tables(
    arguments: Mapping[str, Any], groups: Mapping[str, Any], channels: Mapping[str, Any], *, is_readable: bool
) -> list[ConfigError]:
    errors: list[ConfigError] = []
    path = arguments.get("config_file", os.environ.get("STARLIGHT_CONFIG_FILE", ""))
    makers: list[Callable[[], object]] = [
        lambda: to_groups(groups, GROUPS),
        lambda: to_channel_options(channels, CHANNELS),
    ]
    if path and is_readable:
        makers += [lambda: read_groups(path), lambda: read_channel_options(path)]
    for make in makers:
        try:
            make()
        except ConfigError as error:
            errors += [error, *error.others]
    return errors


def _once(errors: list[ConfigError]) -> list[ConfigError]:
    return list({one.line: one for one in errors}.values())
