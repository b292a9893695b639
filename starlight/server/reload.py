"""What SIGHUP does: read the configuration again, and change a node that serves.

The law is all or nothing. Whatever can be wrong is found in `prepare`, which reads files and makes new parts beside the
old ones, off the loop's thread, so that nobody waits for a disk; `commit` only puts them in place, in one turn of the
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
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from starlight.auth.dry_run import DryRun
from starlight.auth.identity import (
    Permissions,
    TokenAuth,
    make_authenticator,
    make_internal_key,
    make_sessions,
    make_verifier,
)
from starlight.auth.limits import Limits
from starlight.auth.permissions import make_permissions
from starlight.channels.options import OptionsByPattern, make_channel_options
from starlight.config.named_files import Contents, changes, contents
from starlight.config.settings import Settings, entries
from starlight.errors import ConfigError
from starlight.net.gate import Gate
from starlight.net.origins import Origins, Proxies
from starlight.net.tls import Certificate
from starlight.server.drain import retry_ms
from starlight.server.logs import check_file

if TYPE_CHECKING:
    from starlight._fanout import Core
    from starlight.channels.hub import Hub

__all__ = ["Parts", "Reloader", "problems"]

log = logging.getLogger(__name__)

SLICE_S: Final = 0.002
"""How long clients are looked at before the loop turns to other things: less than anybody notices."""


class Parts(NamedTuple):
    """What was made of a configuration, and not put in place yet.

    Attributes:
        settings: those that are to be in force.
        changed: names of settings that are different.
        restart: names of settings that are different in the configuration, but need a restart.
        permissions: None where everybody may do everything, or where the application brought its own.
        options: of channels.
        authenticator: None unless the node made a `TokenAuth` itself.
        origins: pages that may connect.
        proxies: whose X-Forwarded-For is believed.
        certificate: None without TLS.
        internal_key: None for none.
        contents: what was in the files.
    """

    settings: Settings
    changed: list[str]
    restart: list[str]
    permissions: Permissions | None
    options: OptionsByPattern
    authenticator: TokenAuth | None
    origins: Origins
    proxies: Proxies
    certificate: Certificate | None
    internal_key: bytes | None
    contents: Contents


class Reloader:
    """Reads the configuration of one node again.

    Args:
        settings: those at the start.
        reread: makes settings anew of the same flags and code, and of the file as it is then.
        hub: gets limits, permissions and options of channels.
        gate: gets limits of addresses, origins and proxies.
        dry_run: is told which limits are not enforced.
        core: is told whether it evicts.
        authenticator: gets keys; None if it is not the node's own.
        permit: makes permissions of settings; None if they are the application's own.
        options: makes options of channels of settings.
        certificate: None without TLS.
        rekey: takes the key of the internal port.
    """

    def __init__(
        self,
        settings: Settings,
        reread: Callable[[], Settings],
        *,
        hub: Hub,
        gate: Gate,
        dry_run: DryRun,
        core: Core,
        authenticator: TokenAuth | None,
        permit: Callable[[Settings], Permissions | None] | None,
        options: Callable[[Settings], OptionsByPattern],
        certificate: Certificate | None,
        rekey: Callable[[bytes | None], None],
    ) -> None:
        self.settings = settings
        self._contents = contents(settings)
        self._reread = reread
        self._hub = hub
        self._gate = gate
        self._dry_run = dry_run
        self._core = core
        self._authenticator = authenticator
        self._permit = permit
        self._options = options
        self._certificate = certificate
        self._rekey = rekey
        self._lock = asyncio.Lock()

    async def run(self) -> Parts | None:
        """Reload; what is in force now, or None if the configuration is wrong: that is logged, and nothing changes.

        One after the other, if it is called again meanwhile. It returns when all clients have been looked at.
        """
        async with self._lock:
            try:
                parts = await asyncio.to_thread(self.prepare)
            except ConfigError as error:
                for one in (error, *error.others):
                    log.error("the configuration stays as it was: %s", one.line)
                return None
            except Exception:
                log.exception("the configuration stays as it was")
                return None
            rates = Limits.of(self.settings).rates
            told = self._describe(parts)
            self.commit(parts)
            log.info("the configuration was read again; %s", told)
            if parts.restart:
                log.warning("not changed before a restart: %s", ", ".join(parts.restart))
            await self._review(rates=Limits.of(self.settings).rates != rates)
            return parts

    def prepare(self) -> Parts:
        """Read everything again and make new parts. From any thread. Raises `ConfigError`."""
        new = self._reread()
        restart = [
            entry.name
            for entry in entries()
            if not entry.reloads and getattr(new, entry.name) != getattr(self.settings, entry.name)
        ]
        if bool(new.tls_cert or new.tls_key) != (self._certificate is not None):
            restart += ["tls_cert", "tls_key"]  # a listening socket is one for TLS, or it is not
            new = new.model_copy(update={name: getattr(self.settings, name) for name in ("tls_cert", "tls_key")})
        settings = self.settings.reloaded(new)
        changed = [name for name in Settings.model_fields if getattr(settings, name) != getattr(self.settings, name)]
        return Parts(
            settings,
            changed,
            restart,
            self._permit(settings) if self._permit is not None else None,
            self._options(settings),
            self._authenticator.remade(self.settings, settings) if self._authenticator is not None else None,
            Origins(settings.allowed_origins),
            Proxies(settings.trusted_proxies),
            Certificate.of(settings),
            make_internal_key(settings),
            contents(settings),
        )

    def commit(self, parts: Parts) -> None:
        """Put new parts in place. On the loop's thread; it can't fail."""
        self.settings = settings = parts.settings
        self._contents = parts.contents
        limits = Limits.of(settings)
        if self._authenticator is not None and parts.authenticator is not None:
            self._authenticator.take_over(parts.authenticator)
        if self._certificate is not None and parts.certificate is not None:
            self._certificate.take_over(parts.certificate)
        self._rekey(parts.internal_key)
        self._dry_run.change(settings.dry_run)
        self._core.is_dry_run = self._dry_run.evict
        self._gate.change(settings, parts.origins, parts.proxies)
        self._hub.change(
            limits,
            channels_limit=settings.channels_per_client,
            name_limit_bytes=settings.name_limit_bytes,
            options=parts.options,
        )
        if self._permit is not None:
            self._hub.permit(parts.permissions)

    async def _review(self, *, rates: bool) -> None:
        """Look at all channels and clients, with pauses for everybody else."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + SLICE_S
        sent_away = 0
        for lost in self._hub.review(retry_ms, rates=rates):
            sent_away += lost
            if loop.time() >= until_s:
                await asyncio.sleep(0)
                until_s = loop.time() + SLICE_S
        if sent_away:
            log.info("%d clients lost a channel that they had joined, and come back", sent_away)

    def _describe(self, parts: Parts) -> str:
        """What has changed and which files have not, for the log."""
        shown = [entry for entry in entries() if entry.name in parts.changed]
        settings = [f"{entry.name}={entry.text(getattr(parts.settings, entry.name))}" for entry in shown]
        changed, same = changes(self._contents, parts.contents)
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
