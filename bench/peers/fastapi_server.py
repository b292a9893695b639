"""Peer: FastAPI (Starlette) on uvicorn with a list of sockets, the connection manager of FastAPI's documentation.

Install: pip install fastapi "uvicorn[standard]" websockets uvloop
Start:   python fastapi_server.py --port 0 [--sndbuf bytes]

Every text is broadcast as it is.
"""

from __future__ import annotations

import asyncio
import contextlib

import uvicorn
import uvloop
from _common import announce, arguments, listener
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()
everyone: list[WebSocket] = []


@app.websocket("/{path:path}")
async def handle(websocket: WebSocket) -> None:
    await websocket.accept()
    everyone.append(websocket)
    try:
        while True:
            await broadcast(await websocket.receive_text())
    except WebSocketDisconnect:
        everyone.remove(websocket)


async def broadcast(text: str) -> None:
    for receiver in list(everyone):
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it has gone, and its own task will see that
            await receiver.send_text(text)


async def main() -> None:
    sock = listener(arguments())
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    announce(sock.getsockname()[1])
    await serving


uvloop.run(main())  # the loop that uvicorn chooses itself where uvloop is installed
