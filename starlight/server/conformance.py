"""The node that conformance suites and fuzzers talk to: every message back to its sender, without a login.

Handshake, frames, closing and the write path are the ones of any node. Only the hub is out of it, and the limits are
raised to what the Autobahn suite sends: messages of 16 MiB (cases 9.*), in as many fragments as it likes.
"""

from typing import Final

from starlight.config.settings import Settings
from starlight.net.connection import Endpoint
from starlight.server.node import Node

__all__ = ["EchoNode", "conformance_settings"]

FRAGMENTS_LIMIT: Final = 1_000_000
"""Of one message: Autobahn's cases 9.3 and 9.4 send 4 MiB in fragments of 64 bytes, which are 65,536."""

LIMITS: Final = {
    "path": "/",
    "read_limit_bytes": 64 * 2**20,
    "outbox_messages": 100_000,
    "outbox_bytes": 256 * 2**20,
    "memory_budget_bytes": 2**30,
    "login_timeout_s": 300.0,
    "ping_interval_s": 3_600.0,
}
"""Settings of an echo unless told otherwise: a message may be four times the largest of the suite, nobody is evicted
for what came back to him, and no ping of ours comes between the frames that a suite counts."""


def conformance_settings(**values: object) -> Settings:
    """`LIMITS`, with some of them changed. Raises `ConfigError` as `Settings` does."""
    return Settings(**{**LIMITS, **values})


class EchoNode(Node):
    """A node whose every connection is an echo: text comes back as text, binary as binary."""

    def make_acceptor(self) -> Endpoint:
        """An acceptor that echoes."""
        return Endpoint(self.core, None, self.settings, echoes=True, fragments_limit=FRAGMENTS_LIMIT)
