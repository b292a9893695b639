"""Peer: python-socketio on uvicorn; broadcast by ``emit`` to everyone.

Install: pip install python-socketio uvicorn websockets uvloop
Start:   python socketio_server.py --port 0 [--sndbuf bytes]

It speaks Socket.IO 5 over Engine.IO 4, so the generator must connect to ``/socket.io/?EIO=4&transport=websocket``, send
``40`` first (the answer begins with ``40``), and wrap each text: ``42["message","<text>"]``, in both directions. The
ping interval is lifted to an hour, so that a short run needs no heartbeat.
"""

from __future__ import annotations

import asyncio

import socketio
import uvicorn
import uvloop
from _common import announce, arguments, listener

sio = socketio.AsyncServer(async_mode="asgi", ping_interval=3600, cors_allowed_origins="*")


@sio.event
async def message(sid: str, text: str) -> None:
    await sio.emit("message", text)


async def main() -> None:
    sock = listener(arguments())
    server = uvicorn.Server(uvicorn.Config(socketio.ASGIApp(sio), log_level="warning"))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    announce(sock.getsockname()[1])
    await serving


uvloop.run(main())
