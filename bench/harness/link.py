"""Links of a given speed between a node and whoever reads from it.

Two ways. `PacedLink` is a forwarder in a thread, for everybody: it reads from the node by a token bucket, with small
buffers, so that the node's kernel fills up as it would behind a slow line. `namespaces` is the real thing, for root: a
network namespace whose line to the node the kernel shapes (`tc tbf`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.wire import Bucket

LINK_BUFFER_BYTES = 64 * 1024
READ_BYTES = 16 * 1024
SHAPER_BURST_BYTES = 32 * 1024
SHAPER_QUEUE = "100ms"
"""How much a line buffers, in time: what home routers do."""
COMMAND_TIMEOUT_S = 20


class PacedLink:
    """Forwards connections to a node: up at once, down by a token bucket for each."""

    def __init__(self, target: tuple[str, int], bytes_per_s: float) -> None:
        self.target, self.bytes_per_s = target, bytes_per_s
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listener.getsockname()
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End the listener and all connections."""
        for sock in [self.listener, *self.sockets]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.socket()
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LINK_BUFFER_BYTES)
                far.connect(self.target)
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LINK_BUFFER_BYTES)
                for sock in (near, far):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.sockets += [near, far]
                threading.Thread(target=_forward, args=(near, far, None), daemon=True).start()
                threading.Thread(target=_forward, args=(far, near, Bucket(self.bytes_per_s)), daemon=True).start()


def _forward(source: socket.socket, target: socket.socket, bucket: Bucket | None) -> None:
    """Pass on what comes until the end, and then the end."""
    with contextlib.suppress(OSError):
        while some := source.recv(READ_BYTES):
            if bucket is not None:
                bucket.wait(len(some))
            target.sendall(some)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def paced_link(target: tuple[str, int], bytes_per_s: float) -> Iterator[PacedLink]:
    """A `PacedLink` for the length of a ``with`` block."""
    link = PacedLink(target, bytes_per_s)
    try:
        yield link
    finally:
        link.close()


@dataclass(frozen=True)
class Namespaces:
    """Two ends of a shaped line: `inside` is what a command in the readers' namespace is prefixed with."""

    name: str
    node_address: str

    @property
    def inside(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip() or done.returncode} (namespaces need root)")


@contextmanager
def namespaces(bytes_per_s: float) -> Iterator[Namespaces]:
    """A namespace of readers behind a line of so many bytes a second, removed at the end.

    The node stays where it is and listens on `node_address`; only what it sends to the readers is shaped.
    """
    mark = f"sl{os.getpid() % 100_000}"
    near, far = f"{mark}n", f"{mark}r"
    network = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
    _run("ip", "netns", "add", mark)
    try:
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", mark)
        _run("ip", "address", "add", f"{network}.1/30", "dev", near)
        _run("ip", "link", "set", near, "up")
        _run("ip", "-n", mark, "address", "add", f"{network}.2/30", "dev", far)
        _run("ip", "-n", mark, "link", "set", far, "up")
        _run("ip", "-n", mark, "link", "set", "lo", "up")
        rate, burst = f"{int(bytes_per_s * 8)}bit", str(SHAPER_BURST_BYTES)
        _run("tc", "qdisc", "add", "dev", near, "root", "tbf", "rate", rate, "burst", burst, "latency", SHAPER_QUEUE)
        yield Namespaces(mark, f"{network}.1")
    finally:
        for words in (("ip", "link", "delete", near), ("ip", "netns", "delete", mark)):
            subprocess.run(words, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False)
