"""What SIGHUP does: read the configuration again, and change a node that serves.

The law is all or nothing. All parts are reconfigured (see `config.reconfigure`) off the loop's thread, so that no
client waits for a disk. If one of them fails, nothing has changed; else all put what is new in place in one turn of the
loop. Settings without `RELOADS` stay as they were at the start, and are named in the log.

What it does to those who are connected: the next thing they ask is judged by the new limits and permissions, and
their rates begin anew. Who has joined a channel that he may not join any more is sent away with 4011, exactly as
after a `refresh` that lost it, and comes back at a time of his own: a client joins what it may. Nobody is sent away for
being one too many of a user or an address; those limits are for who comes. Logins stay until they end, also if the key
that they were checked with is gone: to end those, revoke them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from starlight.auth.identity import make_authenticator, make_internal_key, make_verifier
from starlight.auth.limits import Limits
from starlight.auth.permissions import make_permissions
from starlight.auth.session_tokens import make_sessions
from starlight.channels.options import make_channel_options
from starlight.config.named_files import Contents, changes, contents
from starlight.config.reconfigure import Commit, Reconfigure
from starlight.config.settings import Settings, entries
from starlight.errors import ConfigError
from starlight.net.origins import Origins, Proxies
from starlight.net.tls import Certificate
from starlight.server.drain import retry_ms
from starlight.server.logs import check_file

__all__ = ["Reloader", "problems"]

log = logging.getLogger(__name__)

SLICE_S: Final = 0.002
"""How long clients are looked at before the loop turns to other things: less than anybody notices."""


class Prepared(NamedTuple):
    """What was made of a configuration, and not put in place yet.

    Attributes:
        settings: those that are to be in force.
        changed: names of settings that are different.
        restart: names of settings that are different in the configuration, but need a restart.
        contents: what was in the files.
        commits: of the parts.
    """

    settings: Settings
    changed: list[str]
    restart: list[str]
    contents: Contents
    commits: list[Commit]


class Reloader:
    """Reads the configuration of one node again.

    Args:
        settings: those at the start.
        reread: makes settings anew of the same flags and code, and of the file as it is then.
        parts: the `reconfigure` of each part of the node.
        review: brings who is connected in line with what has changed: `Hub.review`.
    """

    def __init__(
        self,
        settings: Settings,
        reread: Callable[[], Settings],
        parts: Sequence[Reconfigure],
        review: Callable[..., Iterator[bool]],
    ) -> None:
        self.settings = settings
        self._contents = contents(settings)
        self._reread = reread
        self._parts = list(parts)
        self._look_at_clients = review
        self._lock = asyncio.Lock()

    async def run(self, others: Sequence[Reconfigure] = ()) -> bool:
        """Reload; False if the configuration is wrong: that is logged, and nothing changes.

        One after the other, if it is called again meanwhile. It returns when all clients have been looked at.

        Args:
            others: more parts, which change with those of the node or not at all.
        """
        async with self._lock:
            try:
                prepared = await asyncio.to_thread(self._prepare, others)
            except ConfigError as error:
                for one in (error, *error.others):
                    log.error("the configuration stays as it was: %s", one.line)
                return False
            except Exception:
                log.exception("the configuration stays as it was")
                return False
            rates = Limits.of(self.settings).rates
            told = self._describe(prepared)
            self._commit(prepared)
            log.info("the configuration was read again; %s", told)
            if prepared.restart:
                log.warning("not changed before a restart: %s", ", ".join(prepared.restart))
            await self._review(rates=Limits.of(self.settings).rates != rates)
            return True

    def _prepare(self, others: Sequence[Reconfigure]) -> Prepared:
        """Read everything again and have each part make what is new. From any thread. Raises `ConfigError`."""
        new = self._reread()
        restart = [
            entry.name
            for entry in entries()
            if not entry.reloads and getattr(new, entry.name) != getattr(self.settings, entry.name)
        ]
        if bool(new.tls_cert or new.tls_key) != bool(self.settings.tls_cert or self.settings.tls_key):
            restart += ["tls_cert", "tls_key"]  # a listening socket is one for TLS, or it is not
            new = new.model_copy(update={name: getattr(self.settings, name) for name in ("tls_cert", "tls_key")})
        settings = self.settings.reloaded(new)
        changed = [name for name in Settings.model_fields if getattr(settings, name) != getattr(self.settings, name)]
        commits = [reconfigure(settings) for reconfigure in (*self._parts, *others)]
        return Prepared(settings, changed, restart, contents(settings), commits)

    def _commit(self, prepared: Prepared) -> None:
        """Put what was prepared in place. On the loop's thread; it can't fail."""
        self.settings = prepared.settings
        self._contents = prepared.contents
        for commit in prepared.commits:
            commit()

    async def _review(self, *, rates: bool) -> None:
        """Look at all channels and clients, with pauses for everybody else."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + SLICE_S
        sent_away = 0
        for lost in self._look_at_clients(retry_ms, rates=rates):
            sent_away += lost
            if loop.time() >= until_s:
                await asyncio.sleep(0)
                until_s = loop.time() + SLICE_S
        if sent_away:
            log.info("%d clients lost a channel that they had joined, and come back", sent_away)

    def _describe(self, prepared: Prepared) -> str:
        """What has changed and which files have not, for the log."""
        shown = [entry for entry in entries() if entry.name in prepared.changed]
        settings = [f"{entry.name}={entry.text(getattr(prepared.settings, entry.name))}" for entry in shown]
        changed, same = changes(self._contents, prepared.contents)
        text = f"changed: {', '.join([*settings, *changed]) or 'no setting and no file'}"
        return f"{text}; read again and as before: {', '.join(same)}" if same else text


def problems(
    settings: Settings, *, has_authenticator: bool = False, has_permissions: bool = False
) -> list[ConfigError]:
    """Why a node would not start with these settings: keys, certificates, lists and groups that are none.

    Args:
        settings: each right by itself.
        has_authenticator: whether the application has its own, so that none is made.
        has_permissions: the same of permissions.
    """
    found: list[ConfigError] = []
    makers = [] if has_authenticator else _login_makers(settings)
    makers += [
        make_internal_key,
        Certificate.of,
        lambda settings: Origins(settings.allowed_origins),
        lambda settings: Proxies(settings.trusted_proxies),
        lambda settings: make_channel_options(settings, {}),
        lambda settings: check_file(settings.log_file) if settings.log_file else None,
    ]
    if not has_permissions:
        makers.append(lambda settings: make_permissions(settings, {}))
    for make in makers:
        try:
            make(settings)
        except ConfigError as error:
            found += [error, *error.others]
    return found


def _login_makers(settings: Settings) -> list[Callable[[Settings], object]]:
    """What `make_authenticator` does, each step by itself: the first that fails would hide the next."""
    return [make_verifier, make_sessions] if settings.auth == "jwt" else [make_authenticator]
