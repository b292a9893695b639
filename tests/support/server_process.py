"""A node in a process of its own that a test can ask what it holds: for what needs more than one process has.

As a program (`python -m tests.support.server_process SETTINGS`, in JSON) it serves, and answers commands on stdin in
JSON. With `"application": true` among the settings it has handlers of every kind.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import re
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from starlight.channels.client import Client
from starlight.channels.handlers import Handlers
from starlight.config.settings import Settings
from starlight.counts import CodeCounts
from starlight.net.connection import Connection
from starlight.server.node import Node
from starlight.session.counts import ConnectionCounts
from starlight.session.session import Session
from tests.support.raw_client import LIVE_COUNTERS, Errors, open_files, resident_bytes

ROOT = Path(__file__).parents[2]
ANSWER_TIMEOUT_S = 30.0


class ServerProcess:
    """The test's side."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.pid = process.pid
        self.port = port
        self._process = process

    async def ask(self, command: str) -> dict[str, Any]:
        """`status`, or one of the other commands of `Served`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(command.encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), ANSWER_TIMEOUT_S)
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def until(self, timeout_s: float = 10.0, **wanted: int) -> dict[str, Any]:
        """The status once these of its values are as wanted."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while True:
            status = await self.ask("status")
            if all(status[name] == value for name, value in wanted.items()):
                return status
            assert asyncio.get_running_loop().time() < deadline_s, f"never {wanted}: {status}"
            await asyncio.sleep(0.05)


@asynccontextmanager
async def server_process(files: int = 0, **settings: Any) -> AsyncIterator[ServerProcess]:
    """A node in a process; files: its limit of open ones. It must end by itself, with status 0, when stdin ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.server_process", json.dumps(settings)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))) if files else None,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield ServerProcess(process, int(await asyncio.wait_for(process.stdout.readline(), ANSWER_TIMEOUT_S)))
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), ANSWER_TIMEOUT_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def totals(counts: ConnectionCounts) -> dict[str, int]:
    """The counts of connections by name; those by code as `closed_CODE`, `refused_CODE` and `left_CODE`."""
    named = {name: getattr(counts, name) for name in ConnectionCounts.__slots__}
    ways = {name: value.shown() for name, value in named.items() if isinstance(value, CodeCounts)}
    plain = {name: value for name, value in named.items() if name not in ways}
    return plain | {f"{way}_{code}": count for way, by_code in ways.items() for code, count in by_code.items()}


class Served:
    """The process's side."""

    def __init__(self, node: Node, errors: Errors) -> None:
        self.node = node
        self.errors = errors
        self.eaten: list[int] = []

    def complaints(self) -> list[str]:
        """The first warnings and errors logged; not that a handler took long, as any does on a busy machine."""
        return [line for line in self.errors.lines if "held the loop" not in line][:20]

    def status(self) -> dict[str, Any]:
        """What lives now (sums of live counters), what it costs, and the totals."""
        gc.collect()
        core = self.node.core.counters()
        return {
            "connections": self.node.connections,
            "live": sum(core[name] for name in LIVE_COUNTERS) + sum(self.node.hub.counters().values()),
            "objects": sum(type(item) in (Connection, Session) for item in gc.get_objects()),
            "files": open_files(),
            "resident_bytes": resident_bytes(),
            "cpu_s": sum(os.times()[:2]),
            "log": self.complaints(),
            **core,
            **self.node.hub.counters(),
            **totals(self.node.acceptor.counts),
        }

    def core(self) -> dict[str, Any]:
        """The core's counters alone: little work, to be asked often."""
        return {"connections": self.node.connections, "log": self.complaints(), **self.node.core.counters()}

    def cpu(self) -> dict[str, Any]:
        """What can be told without opening a file."""
        return {"connections": self.node.connections, "cpu_s": sum(os.times()[:2])}

    def memory(self) -> dict[str, Any]:
        """What it has, and the most address space that it ever had."""
        most = re.search(r"^VmPeak:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return {"resident_bytes": resident_bytes(), "most_virtual_bytes": 1024 * int(most[1]) if most else 0}

    def clock(self) -> dict[str, Any]:
        """What it takes for the time."""
        return {"wall_s": time.time()}

    def eat(self) -> dict[str, Any]:
        """Open files until there are no more."""
        while True:
            try:
                self.eaten.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                return {"eaten": len(self.eaten)}

    def spit(self) -> dict[str, Any]:
        """Close them."""
        for fd in self.eaten:
            os.close(fd)
        return {"eaten": self.eaten.clear()}

    def storm(self) -> dict[str, Any]:
        """Publish to the channel `storm` for half a second, a thousand times at most."""
        loop = asyncio.get_running_loop()
        numbers = iter(range(1_000))

        def step() -> None:
            n = next(numbers, None)
            if n is not None:
                self.node.hub.push_to_channel("storm", b"%d" % n)
                loop.call_later(0.0005, step)

        step()
        return {}


def application() -> Handlers:
    """Handlers of every kind: who is called refused is, and data comes back at once, later, or from a thread."""
    handlers = Handlers()

    @handlers.on_login
    def check(client: Client, login: dict[str, Any]) -> bool:
        return not client.user.startswith("refused")

    @handlers.on("double")
    def double(client: Client, data: Any) -> Any:
        client.data["doubled"] = data
        return [data, data]

    @handlers.on("later")
    async def later(client: Client, data: Any) -> Any:
        await asyncio.sleep(0.005)
        return data

    @handlers.on("burn")
    def burn(client: Client, data: Any) -> None:
        """Work for so many seconds."""
        until_s = time.process_time() + data
        while time.process_time() < until_s:
            pass

    @handlers.on("threaded", thread=True)
    def threaded(client: Client, data: Any) -> Any:
        time.sleep(0.001)
        return data

    return handlers


async def serve(settings: Settings, handlers: Handlers | None) -> None:
    errors = Errors()
    logging.getLogger().addHandler(errors)
    logging.getLogger().addHandler(logging.StreamHandler())
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with Node(settings, handlers=handlers) as node:
        served = Served(node, errors)
        print(node.port, flush=True)
        while line := await reader.readline():
            print(json.dumps(getattr(served, line.decode().strip())()), flush=True)


if __name__ == "__main__":
    given = {"port": 0, "drain_timeout_s": 2, **json.loads(sys.argv[1])}
    uvloop.run(serve(handlers=application() if given.pop("application", False) else None, settings=Settings(**given)))
