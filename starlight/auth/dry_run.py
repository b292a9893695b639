"""Limits that only say what they would have done, so that they can be tried on a node that serves.

An *episode* is one time over a limit, however many messages or connections it has: it is counted once and makes one
line, limited by kind like all that clients can provoke. What protects the process itself is never left undone: the
memory budget, the write timeout, `max_connections`, and every check of a login but the number of a user's connections.
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from typing import Any, Final

from starlight.config.reconfigure import Commit
from starlight.config.settings import Settings
from starlight.ends import address_text, log_word

__all__ = ["KINDS", "DryRun"]

log = logging.getLogger(__name__)

KINDS: Final = {
    "evict": "evicted it (4008): outbox_messages, outbox_bytes, evict_after",
    "rates": "refused its messages (111, then 4013): message_rate, byte_rate",
    "connections_per_user": "refused its login: connections_per_user",
    "connections_per_address": "refused its connection: connections_per_address",
    "connection_rate": "refused its connection: connection_rate",
}
"""What can be left undone, and in which words it is logged: the label of `starlight_would_have_total`."""


class DryRun:
    """Which limits of one node are not enforced, and what they would have done.

    Args:
        setting: `Settings.dry_run`: some of ``evict``, ``rates`` and ``connections``, with commas between.

    Attributes:
        evict: nobody is evicted for the limits of its outbox.
        rates: messages beyond the rates are let through.
        connections: so are connections of a user or address beyond their limits.
        counts: episodes since the start, by a key of `KINDS`.
    """

    __slots__ = ("connections", "counts", "evict", "rates")

    def __init__(self, setting: str = "") -> None:
        self.counts: Counter[str] = Counter()
        self._leave_undone(setting)

    def reconfigure(self, settings: Settings) -> Commit:
        """Other limits that are not enforced: see `config.reconfigure`."""
        return partial(self._leave_undone, settings.dry_run)

    def _leave_undone(self, setting: str) -> None:
        words = setting.replace(",", " ").split()
        self.evict = "evict" in words
        self.rates = "rates" in words
        self.connections = "connections" in words

    def note(self, kind: str, *, user: str | None = None, peername: tuple[Any, ...] | None = None) -> None:
        """Count and log one episode.

        Args:
            kind: a key of `KINDS`.
            user: whose; None before the login.
            peername: the client's address as the socket module gives it.
        """
        self.counts[kind] += 1
        log.warning(
            "dry run: would have %s user=%s address=%s",
            KINDS[kind],
            log_word(user),
            log_word(address_text(peername)),
            extra={"kind": kind},
        )
