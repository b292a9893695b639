"""Peer: the websockets library with its own ``broadcast``, on uvloop.

Install: pip install websockets uvloop
Start:   python websockets_server.py --port 0 [--sndbuf bytes]

Every text is broadcast as it is.
"""

from __future__ import annotations

import asyncio

import uvloop
from _common import announce, arguments, listener
from websockets.asyncio.server import ServerConnection, broadcast, serve

everyone: set[ServerConnection] = set()


async def handle(connection: ServerConnection) -> None:
    everyone.add(connection)
    try:
        async for text in connection:
            broadcast(everyone, text)
    finally:
        everyone.discard(connection)


async def main() -> None:
    sock = listener(arguments())
    async with serve(handle, sock=sock, backlog=4096):
        announce(sock.getsockname()[1])
        await asyncio.get_running_loop().create_future()


uvloop.run(main())
