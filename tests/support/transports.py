"""Nodes whose clients can't be written to directly, as their transport's descriptor is of no use."""

from __future__ import annotations

import asyncio
from typing import Any

from starlight.net.connection import Endpoint
from starlight.server.node import Node

__all__ = ["HidingNode"]


class NoDescriptor:
    """A socket as a transport shows it, whose descriptor can't be used."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class HidingTransport:
    """A transport that hides its descriptor."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        found = self._transport.get_extra_info(name, default)
        return NoDescriptor(found) if name == "socket" else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class HidingProtocol(asyncio.BufferedProtocol):
    """Gives the protocol inside a transport that hides its descriptor."""

    def __init__(self, inner: Any) -> None:
        for name in ("get_buffer", "buffer_updated", "eof_received", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(inner, name))
        self.connection_lost = inner.connection_lost
        self.connection = inner.connection
        self._inner = inner

    def connection_made(self, transport: Any) -> None:
        self._inner.connection_made(HidingTransport(transport))

    def get_buffer(self, sizehint: int) -> Any:
        return self._inner.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self._inner.buffer_updated(nbytes)


class HidingEndpoint(Endpoint):
    """An endpoint whose connections have transports that hide their descriptors."""

    def protocol(self) -> Any:
        return HidingProtocol(super().protocol())


class HidingNode(Node):
    """A node that has to write through its transports."""

    def make_acceptor(self) -> Endpoint:
        return HidingEndpoint(self.core, self.hub, self.settings, gate=self._gate, ends=self.ends, dry_run=self.dry_run)
