"""Peer: picows (Cython frames, uvloop) with the fan-out as a plain Python loop over transports.

Install: pip install picows uvloop orjson
Start:   python picows_server.py --port 0 [--sndbuf bytes]
"""

from __future__ import annotations

from typing import Any

import orjson
import uvloop
from _common import COMMAND_PREFIX, announce, arguments, listener
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

everyone: set[WSTransport] = set()
users: dict[str, WSTransport] = {}
channels: dict[str, set[WSTransport]] = {}


class Client(WSListener):
    user = ""

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        everyone.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        everyone.discard(transport)
        for members in channels.values():
            members.discard(transport)
        if users.get(self.user) is transport:
            del users[self.user]

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
            return
        payload = frame.get_payload_as_bytes()
        if payload.startswith(COMMAND_PREFIX):
            self.obey(orjson.loads(payload))
        else:
            send_to(everyone, payload)

    def obey(self, command: dict[str, Any]) -> None:
        kind = command["type"]
        if kind == "login":
            self.user = command["user"]
            users[self.user] = self.transport
            self.transport.send(WSMsgType.TEXT, b'{"type":"welcome"}')
            return
        if kind == "direct":
            receiver = users.get(command["to"])
            if receiver is not None:
                receiver.send(WSMsgType.TEXT, self.push("direct", command))
        elif kind == "broadcast":
            send_to(everyone, self.push("broadcast", command))
        elif kind == "join":
            channels.setdefault(command["channel"], set()).add(self.transport)
        elif kind == "publish":
            send_to(channels.get(command["channel"], set()), self.push("publication", command))
        if "id" in command:
            self.transport.send(WSMsgType.TEXT, orjson.dumps({"type": "ok", "id": command["id"]}))

    def push(self, kind: str, command: dict[str, Any]) -> bytes:
        channel = {"channel": command["channel"]} if kind == "publication" else {}
        return orjson.dumps({"type": kind, **channel, "from": self.user, "data": command["data"]})


def send_to(receivers: set[WSTransport], payload: bytes) -> None:
    for receiver in receivers:
        receiver.send(WSMsgType.TEXT, payload)


async def main() -> None:
    sock = listener(arguments())
    server = await ws_create_server(lambda request: Client(), sock=sock, backlog=4096)
    announce(sock.getsockname()[1])
    await server.serve_forever()


uvloop.run(main())
