"""Opens the internal port without making a client wait for it.

Its socket listens before that of the clients does, so that a port in use is known at once. What answers there needs
aiohttp and prometheus_client, a third of a second of imports: they happen in a thread, while the node accepts its first
clients already. A request that comes in between waits in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

from starlight.auth.identity import make_internal_key
from starlight.config.reconfigure import Commit
from starlight.config.settings import Settings
from starlight.errors import ListenFailed
from starlight.net.accept import bind_all

if TYPE_CHECKING:
    from starlight.ops.api import ServedNode
    from starlight.ops.http import InternalHttp

__all__ = ["InternalPort"]


class InternalPort:
    """The internal port of a node, or that there is none.

    Args:
        settings: of the node.

    Raises `ConfigError`: see `auth.make_internal_key`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key = make_internal_key(settings)
        self._sockets: list[socket.socket] = []
        self._http: InternalHttp | None = None

    @property
    def url(self) -> str | None:
        """Where it is, such as ``http://127.0.0.1:8766``; None where there is none."""
        return None if self._http is None else self._http.url

    async def listen(self) -> None:
        """Take the port, if one is wanted. Raises `ListenFailed`."""
        host, port = self._settings.internal_host, self._settings.internal_port
        if port is None:
            return
        try:
            self._sockets = await bind_all(host, port)
            for listening in self._sockets:
                listening.listen()
        except OSError as error:
            reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0).lower()
            failed = ListenFailed(error.errno, f"can't listen on {host}:{port} (internal port): {reason}")
            failed.setting = "internal_port"
            raise failed from None

    async def start(self, node: ServedNode) -> None:
        """Answer there from now on, if it listens."""
        if not self._sockets:
            return
        make_http = await asyncio.to_thread(_import_http)
        self._http = make_http(node, self._sockets, lambda: self._key)
        await self._http.start()

    def reconfigure(self, settings: Settings) -> Commit:
        """Another key: see `config.reconfigure`. Raises `ConfigError`."""
        key = make_internal_key(settings)

        def commit() -> None:
            self._key = key

        return commit

    async def stop(self) -> None:
        """Give the port back; requests under way have a second."""
        http, self._http = self._http, None
        if http is not None:
            await http.stop()
        for listening in self._sockets:
            listening.close()
        self._sockets = []


def _import_http() -> type[InternalHttp]:
    from starlight.ops.http import InternalHttp

    return InternalHttp
