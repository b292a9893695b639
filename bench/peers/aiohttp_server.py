"""Peer: aiohttp with a set of WebSocket responses, on uvloop; the broadcast is a loop of ``send_str``.

Install: pip install aiohttp uvloop
Start:   python aiohttp_server.py --port 0 [--sndbuf bytes]

Every text is broadcast as it is.
"""

from __future__ import annotations

import asyncio
import contextlib

import uvloop
from _common import announce, arguments, listener
from aiohttp import WSMsgType, web

everyone: set[web.WebSocketResponse] = set()


async def handle(request: web.Request) -> web.WebSocketResponse:
    connection = web.WebSocketResponse()
    await connection.prepare(request)
    everyone.add(connection)
    try:
        async for message in connection:
            if message.type == WSMsgType.TEXT:
                await broadcast(message.data)
    finally:
        everyone.discard(connection)
    return connection


async def broadcast(text: str) -> None:
    for receiver in list(everyone):
        with contextlib.suppress(ConnectionError):
            await receiver.send_str(text)


async def main() -> None:
    sock = listener(arguments())
    app = web.Application()
    app.add_routes([web.get("/{path:.*}", handle)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, sock, backlog=4096).start()
    announce(sock.getsockname()[1])
    await asyncio.get_running_loop().create_future()


uvloop.run(main())
