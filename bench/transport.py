"""Which transport below picows, uvloop's own or aiofastnet's? Memory of an idle client, and CPU of connect + login.

    PYTHONPATH=. python bench/transport.py [--connections 5000] [--repetitions 3]

Each server is a process of its own; its memory is its proportional set size, its CPU that of all its threads, both from
/proc. Only differences within one run mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import statistics
import subprocess
import sys
import time

from starlight.loadtest.procstat import usage

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def serve(transport: str) -> None:
    """One server, until it is killed; prints its port."""
    from starlight._fanout import Core
    from starlight.channels.hub import Hub
    from starlight.config.settings import Settings
    from starlight.net.connection import Endpoint

    loop = asyncio.get_running_loop()
    core = Core()
    core.bind(loop)
    acceptor = Endpoint(core, Hub(core), Settings(max_connections=30_000, login_timeout_s=60))
    if transport == "uvloop":
        server = await loop.create_server(acceptor.protocol, "127.0.0.1", 0, backlog=4096)
    else:
        import aiofastnet

        server = await aiofastnet.create_server(loop, acceptor.protocol, "127.0.0.1", 0, backlog=4096)
    acceptor.start()
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(600)


def log_in(port: int, number: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    login = b'{"type":"login","user":"u%d"}' % number
    client.sendall(UPGRADE)
    while not client.recv(4096).endswith(b"\r\n\r\n"):
        pass
    client.sendall(bytes([0x81, 0x80 | len(login), 0, 0, 0, 0]) + login)
    client.recv(4096)
    return client


def measure(transport: str, connections: int) -> tuple[float, float]:
    """KiB an idle connection, and microseconds of CPU for connect + login."""
    server = subprocess.Popen([sys.executable, __file__, "--serve", transport], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        warm = [log_in(port, number) for number in range(200)]
        before = usage([server.pid])
        clients = [log_in(port, 1_000 + number) for number in range(connections)]
        time.sleep(0.3)
        after = usage([server.pid])
        for client in warm + clients:
            client.close()
        grown_kib = (after.pss_bytes - before.pss_bytes) / 1024
        return grown_kib / connections, after.cpu_s_since(before) / connections * 1e6
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=5_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--serve", choices=["uvloop", "aiofastnet"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        import uvloop

        uvloop.run(serve(options.serve))
        return
    results: dict[str, list[tuple[float, float]]] = {"uvloop": [], "aiofastnet": []}
    for _ in range(options.repetitions):
        for transport, rows in results.items():
            rows.append(measure(transport, options.connections))
    for transport, rows in results.items():
        kib, us = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{transport:12} {kib:6.1f} KiB an idle connection  {us:6.0f} us of CPU for connect + login")


if __name__ == "__main__":
    main()
