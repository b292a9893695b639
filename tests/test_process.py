"""starlight._process: signals to nodes in processes of their own, process 1 among them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.wire_client import WireClient

WIRES = ("ws", "wss")

ROOT = Path(__file__).parent.parent


# --- signals ---------------------------------------------------------------------------------------------------------

PROGRAM = """
import time
from starlight import Starlight
app = Starlight(port=0, drain_timeout_s={drain_timeout_s})

@app.on("block", thread=True)
def block(client, data):
    time.sleep(data)

app.run()
print("left in good order")
"""


class Process:
    """A node in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    async def end(self) -> tuple[int, str]:
        """Wait for its end: exit status and standard output."""
        out, _ = await asyncio.wait_for(self.process.communicate(), 15)
        assert self.process.returncode is not None
        return self.process.returncode, out.decode()


@asynccontextmanager
async def process(drain_timeout_s: float = 5, *, wrapper: tuple[str, ...] = ()) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(
        *wrapper, sys.executable, "-c", PROGRAM.format(drain_timeout_s=drain_timeout_s),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert child.stderr is not None
        line = (await asyncio.wait_for(child.stderr.readline(), 30)).decode()
        found = re.search(r"listens on (wss?://\S+)", line)
        assert found, line + (await child.stderr.read()).decode()
        yield Process(child, found[1])
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_exits_with_0(number: signal.Signals):
    async with process() as node:
        ann = await WireClient.login(node.url, "ann")
        node.process.send_signal(number)
        assert (await ann.hear())["type"] == "bye"
        assert (await ann.closed())[0] == 1001
        assert await node.end() == (0, "left in good order\n")


async def test_a_second_signal_leaves_at_once():
    async with process(drain_timeout_s=600) as node:
        _, writer = await asyncio.open_connection("127.0.0.1", int(node.url.split(":")[2].split("/")[0]))
        writer.write(b"GET /ws HTTP/1.1\r\n")  # a handshake that doesn't end: the drain would wait for it
        await asyncio.sleep(0.1)
        ann = await WireClient.login(node.url, "ann")
        node.process.send_signal(signal.SIGTERM)
        assert (await ann.hear())["type"] == "bye"
        node.process.send_signal(signal.SIGTERM)
        assert await node.end() == (128 + signal.SIGTERM, "")
        writer.close()


async def test_a_thread_that_never_ends_does_not_keep_the_process():
    async with process(drain_timeout_s=0.5) as node:
        ann = await WireClient.login(node.url, "ann")
        await ann.say("block", data=600)
        await asyncio.sleep(0.2)
        node.process.send_signal(signal.SIGTERM)
        assert (await node.end())[0] == 0


# --- as process 1 ----------------------------------------------------------------------------------------------------

NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child")


def has_namespaces() -> bool:
    """Whether this process may make a namespace of processes, as a container runtime does."""
    return shutil.which(NAMESPACE[0]) is not None and subprocess.run([*NAMESPACE, "true"], check=False).returncode == 0


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


@pytest.mark.skipif(not has_namespaces(), reason="no right to make a namespace of processes")
@pytest.mark.parametrize(("signals", "status"), [(1, 0), (2, 128 + signal.SIGTERM)])
async def test_process_1_of_a_container_drains_at_sigterm(signals: int, status: int):
    async with process(drain_timeout_s=5 if signals == 1 else 600, wrapper=NAMESPACE) as node:
        ann = await WireClient.login(node.url, "ann")
        child = child_of(node.process.pid)
        held = None
        if signals == 2:
            held = await asyncio.open_connection("127.0.0.1", int(node.url.split(":")[2].split("/")[0]))
            await asyncio.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        assert (await ann.hear())["type"] == "bye"
        if held is not None:
            os.kill(child, signal.SIGTERM)
            held[1].close()
        assert (await node.end())[0] == status
