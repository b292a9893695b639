"""A Starlight node of any checkout for scripts that measure one node alone, and what its internal port says.

The node runs with the interpreter it is given, in an empty directory, so that what is measured is the package that this
interpreter has installed, not the sources beside the script.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.servers import START_TIMEOUT_S

STOP_TIMEOUT_S = 20.0
CLIENTS_LINE = re.compile(r"\bws(s?)://\S*?:(\d+)/ws")
INTERNAL_LINE = re.compile(r"\bhttp://\S*?:(\d+)")


@dataclass
class Node:
    """A running node.

    Attributes:
        pid: of its process.
        port: for clients.
        internal_port: for `ask`, on 127.0.0.1.
        directory: its own, with the log in it.
    """

    pid: int
    port: int
    internal_port: int
    directory: Path

    def ask(self, path: str) -> Any:
        """The JSON answer of a route of its internal port."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.internal_port}{path}", timeout=20) as answer:
            return json.load(answer)

    def connection(self, user: str) -> dict[str, Any] | None:
        """The row of a user's connection in ``/connz``; None if there is none."""
        rows = self.ask(f"/connz?user={urllib.parse.quote(user)}")["connections"]
        return rows[0] if rows else None

    def status(self, field: str) -> int:
        """A size in bytes of ``/proc/PID/status``, such as VmHWM, the peak of what is resident."""
        found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0


def version_of(python: str) -> str:
    """What the package of an interpreter calls itself, and the commit of its checkout if it is one."""
    ask = "import starlight, os; print(starlight.__version__, os.path.dirname(starlight.__file__))"
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True, cwd=empty, check=True, timeout=60)
    version, _, place = done.stdout.strip().partition(" ")
    commit = subprocess.run(
        ["git", "-C", place, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, timeout=60
    )
    return f"{version} ({commit.stdout.strip() or 'no checkout'})"


@contextmanager
def node(
    flags: Sequence[str] = (),
    *,
    python: str = sys.executable,
    cpu: int | None = None,
    prefix: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> Iterator[Node]:
    """Start a node for the length of a ``with`` block.

    Args:
        flags: of `starlight serve`, besides the ports, which the kernel picks.
        python: the interpreter whose package is served.
        cpu: the core it is pinned to.
        prefix: words in front of the command, such as ``ip netns exec NAME``.
        environment: more variables.
    """
    command = [*prefix, python, "-m", "starlight", "serve", "--port", "0", "--internal-port", "0", *flags]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with (directory / "log").open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=directory, env={**os.environ, **(environment or {})}
            )
        try:
            if cpu is not None:
                os.sched_setaffinity(process.pid, {cpu})
            ports = _wait(process, directory / "log")
            yield Node(process.pid, *ports, directory)
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path) -> tuple[int, int]:
    """The ports, once the node has said both."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        text = log.read_text(errors="replace")
        clients, internal = CLIENTS_LINE.search(text), INTERNAL_LINE.search(text)
        if clients and internal:
            return int(clients[2]), int(internal[1])
        time.sleep(0.05)
    raise SystemExit(f"the node did not start:\n{log.read_text(errors='replace')}")
