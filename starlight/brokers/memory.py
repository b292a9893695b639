"""The broker of a node that is alone: what a client asks of all nodes, this one does, at once.

Its calls are the hub's own, not calls that call them: a publication costs no instruction more than without a broker.
"""

from __future__ import annotations

from typing import Final, NoReturn

from starlight.brokers.base import Deliverer
from starlight.close_codes import ErrorCode
from starlight.errors import RequestError

__all__ = ["MemoryBroker"]


class MemoryBroker:
    """See `Broker` for what each call means; it answers all of them at once."""

    answers_at_once: Final = True

    def attach(self, deliverer: Deliverer) -> None:
        self.publish = deliverer.deliver_publication
        self.direct = deliverer.deliver_direct
        self.broadcast = deliverer.deliver_broadcast
        self.present = deliverer.list_present
        self.revoke = deliverer.end_revoked

    def follow(self, channel: str, /) -> None:
        """Nothing to do: whatever is published is published here."""

    def unfollow(self, channel: str, /) -> None:
        """As little."""

    def history(self, channel: str, /) -> NoReturn:
        raise RequestError(ErrorCode.NOT_AVAILABLE, "history: not available")
