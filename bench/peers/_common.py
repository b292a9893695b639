"""What the Python peers share: the command line and the listening socket.

Every peer takes ``--port`` (0: the kernel chooses) and ``--sndbuf`` (bytes of SO_SNDBUF, 0: the kernel's default), and
prints ``listening <port>`` once it accepts connections. The buffer size is set on the listening socket, from which
Linux copies it to every accepted one, so that servers whose API doesn't offer it get it all the same.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket

COMMAND_PREFIX = b'{"type"'
"""A text that begins so is a command (login, direct, ...); every other text is broadcast as it is."""


def arguments() -> argparse.Namespace:
    """Parse the command line; raise the limit of open files to what the system allows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--sndbuf", type=int, default=0, help="SO_SNDBUF in bytes, 0: the kernel's default")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return parser.parse_args()


def listener(options: argparse.Namespace) -> socket.socket:
    """Return a listening socket on the loopback address."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    set_send_buffer(listening, options.sndbuf)
    listening.bind(("127.0.0.1", options.port))
    listening.listen(4096)
    listening.setblocking(False)
    return listening


def set_send_buffer(listening: socket.socket, size_bytes: int) -> None:
    """Set SO_SNDBUF unless ``size_bytes`` is 0."""
    if size_bytes:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size_bytes)


def set_send_buffer_of_listeners(size_bytes: int) -> None:
    """Find this process's listening sockets and set SO_SNDBUF on them, where the library keeps them to itself."""
    for name in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue  # not a socket, or the directory's own descriptor, which is closed by now
        with found:
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                set_send_buffer(found, size_bytes)


def announce(port: int) -> None:
    """Tell whoever started this server that it accepts connections."""
    print("listening", port, flush=True)
