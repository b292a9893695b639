"""Opens the internal port without making a client wait for it.

Its socket listens before that of the clients does, so that a port in use is known at once. What answers there needs
aiohttp and prometheus_client, a third of a second of imports: they happen in a thread, while the node accepts its first
clients already. Whoever asks in between waits in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

from starlight.auth.identity import make_internal_key
from starlight.config.settings import Settings
from starlight.errors import ListenFailed

if TYPE_CHECKING:
    from starlight.ops.api import Node
    from starlight.ops.http import InternalPort

__all__ = ["Internal"]


class Internal:
    """The internal port of a node, or that there is none.

    Args:
        settings: of the node.

    Raises `ConfigError`: see `auth.make_internal_key`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key = make_internal_key(settings)
        self._listening: socket.socket | None = None
        self._port: InternalPort | None = None

    @property
    def url(self) -> str | None:
        """Where it is, such as ``http://127.0.0.1:8766``; None where there is none."""
        return None if self._port is None else self._port.url

    def listen(self) -> None:
        """Take the port, if one is wanted. Raises `ListenFailed`."""
        host, port = self._settings.internal_host, self._settings.internal_port
        if port is None:
            return
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listening = socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
        except OSError as error:
            reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0).lower()
            failed = ListenFailed(error.errno, f"can't listen on {host}:{port} (internal port): {reason}")
            failed.setting = "internal_port"
            raise failed from None

    async def start(self, node: Node) -> None:
        """Answer there from now on, if it listens."""
        if self._listening is None:
            return
        internal_port = await asyncio.to_thread(_import_port)
        self._port = internal_port(node, self._listening, self._key)
        await self._port.start()

    def change_key(self, key: bytes | None) -> None:
        """Another key from now on."""
        self._key = key
        if self._port is not None:
            self._port.change_key(key)

    async def stop(self) -> None:
        """Give the port back; requests under way have a second."""
        port, self._port = self._port, None
        if port is not None:
            await port.stop()
        if self._listening is not None:
            self._listening.close()
            self._listening = None


def _import_port() -> type[InternalPort]:
    from starlight.ops.http import InternalPort

    return InternalPort
