"""Peer: uWebSockets (C++) under Python, through socketify; broadcast by its own publish/subscribe.

Install: pip install socketify orjson
Start:   python socketify_server.py --port 0 [--sndbuf bytes]
"""

from __future__ import annotations

from typing import Any

import orjson
from _common import COMMAND_PREFIX, announce, arguments, set_send_buffer_of_listeners
from socketify import App, OpCode

EVERYONE = "everyone"
COMMAND = COMMAND_PREFIX.decode()

options = arguments()
app = App()
users: dict[str, Any] = {}


def upgrade(response: Any, request: Any, context: Any) -> None:
    response.upgrade(
        request.get_header("sec-websocket-key"),
        request.get_header("sec-websocket-protocol"),
        request.get_header("sec-websocket-extensions"),
        context,
        {"user": ""},
    )


def opened(ws: Any) -> None:
    ws.subscribe(EVERYONE)


def received(ws: Any, text: str, opcode: Any) -> None:
    if text.startswith(COMMAND):
        obey(ws, orjson.loads(text))
    else:
        app.publish(EVERYONE, text, OpCode.TEXT)


def obey(ws: Any, command: dict[str, Any]) -> None:
    sender = ws.get_user_data()
    kind = command["type"]
    if kind == "login":
        sender["user"] = command["user"]
        users[command["user"]] = ws.clone()
        ws.send('{"type":"welcome"}', OpCode.TEXT)
        return
    if kind == "direct":
        receiver = users.get(command["to"])
        if receiver is not None:
            receiver.send(push("direct", sender["user"], command), OpCode.TEXT)
    elif kind == "broadcast":
        app.publish(EVERYONE, push("broadcast", sender["user"], command), OpCode.TEXT)
    elif kind == "join":
        ws.subscribe("channel/" + command["channel"])
    elif kind == "publish":
        app.publish("channel/" + command["channel"], push("publication", sender["user"], command), OpCode.TEXT)
    if "id" in command:
        ws.send(orjson.dumps({"type": "ok", "id": command["id"]}), OpCode.TEXT)


def push(kind: str, sender: str, command: dict[str, Any]) -> bytes:
    channel = {"channel": command["channel"]} if kind == "publication" else {}
    return orjson.dumps({"type": kind, **channel, "from": sender, "data": command["data"]})


def closed(ws: Any, code: int, message: Any) -> None:
    data = ws.get_user_data()
    if data:
        users.pop(data["user"], None)


app.ws(
    "/*",
    {
        "max_payload_length": 1 << 20,
        "max_backpressure": 16 << 20,
        "idle_timeout": 120,
        "upgrade": upgrade,
        "open": opened,
        "message": received,
        "close": closed,
    },
)


def listening(config: Any) -> None:
    set_send_buffer_of_listeners(options.sndbuf)
    announce(config.port)


app.listen({"port": options.port, "host": "127.0.0.1"}, listening)
app.run()
