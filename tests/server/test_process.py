"""starlight.server.process: signals to nodes in processes of their own, process 1 among them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from starlight.server.process import EXIT_STUCK
from tests.support.wire_client import WireClient

WIRES = ("ws", "wss")

ROOT = Path(__file__).parents[2]


# --- signals ---------------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, atexit, threading, time
from starlight import Starlight
app = Starlight(port=0, drain_timeout_s={drain_timeout_s})

@app.on("block", thread=True)
def block(client, data):
    time.sleep(data)

@app.on("to_thread")
async def to_thread(client, data):
    print("held", flush=True)
    await asyncio.to_thread(time.sleep, 600)

@app.on("stubborn")
async def stubborn(client, data):
    print("held", flush=True)
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

@app.on("own_task")
async def own_task(client, data):
    app.task = asyncio.create_task(stubborn(client, data))

@app.on("own_thread")
def own_thread(client, data):
    threading.Thread(target=time.sleep, args=(600,), name="mine").start()
    print("held", flush=True)

@app.on("at_exit")
def at_exit(client, data):
    atexit.register(time.sleep, 600)
    print("held", flush=True)

@app.on("python_loop")
async def python_loop(client, data):
    print("held", flush=True)
    while True:
        pass

@app.on("c_loop")
def c_loop(client, data):
    print("held", flush=True)
    sum(range(10**15))

@app.on("nap")
async def nap(client, data):
    time.sleep(data)

app.run()
print("left in good order")
"""

SLOW_START = """
import asyncio
from starlight.config.settings import Settings
from starlight.server.node import Node

class Slow(Node):
    async def start(self, listening=()):
        print("held", flush=True)
        await asyncio.sleep(600)

Slow(Settings(port=0)).run()
print("left in good order")
"""


INTERNAL_IS_LATE = """
import asyncio
from starlight.config.settings import Settings
from starlight.ops.internal_port import InternalPort
from starlight.server.node import Node

async def late(internal, node):
    await asyncio.sleep(2)

InternalPort.start = late
Node(Settings(port=0, drain_timeout_s=5)).run()
print("left in good order")
"""


class Process:
    """A node in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url
        self.errors = ""

    async def hold(self, type: str) -> WireClient:
        """A client in whose handler of this type the node is."""
        ann = await WireClient.login(self.url, "ann")
        await ann.say(type, data=None)
        assert self.process.stdout is not None
        assert await asyncio.wait_for(self.process.stdout.readline(), 30) == b"held\n"
        return ann

    async def end(self) -> tuple[int, str]:
        """Wait for its end: exit status and standard output; `errors` is what else stderr said."""
        out, errors = await asyncio.wait_for(self.process.communicate(), 30)
        assert self.process.returncode is not None
        self.errors = errors.decode()
        return self.process.returncode, out.decode()

    def last_line(self) -> dict[str, Any]:
        """The log's last line, which must be one of it."""
        line: dict[str, Any] = json.loads(self.errors.splitlines()[-1])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"])
        assert line["logger"] == "starlight.server.process"
        return line


@asynccontextmanager
async def process(
    drain_timeout_s: float = 5, *, wrapper: tuple[str, ...] = (), program: str = PROGRAM
) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(
        *wrapper, sys.executable, "-c", program.replace("{drain_timeout_s}", str(drain_timeout_s)),
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


async def test_a_signal_that_comes_between_the_two_ports_drains_who_is_there_already():
    """Clients are served before the internal port answers; they are sent away in good order, not cut off."""
    async with process(program=INTERNAL_IS_LATE) as node:
        ann = await WireClient.login(node.url, "ann")
        node.process.send_signal(signal.SIGTERM)
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


LOOPS_THAT_NEVER_END = ("python_loop", "c_loop")


@pytest.mark.parametrize("type", LOOPS_THAT_NEVER_END)
async def test_66_a_second_signal_ends_a_process_whose_loop_is_held_for_ever(type: str):
    async with process(drain_timeout_s=600) as node:
        await node.hold(type)
        for number in (signal.SIGTERM, signal.SIGINT):  # two of one kind that come together are one to the kernel
            node.process.send_signal(number)
        status, out = await node.end()
        assert status in (128 + signal.SIGTERM, 128 + signal.SIGINT) and out == ""  # it hands out the lower one first
        assert node.last_line()["event"] == "a second signal: leaving at once"


@pytest.mark.parametrize("type", LOOPS_THAT_NEVER_END)
async def test_66_one_signal_ends_it_soon_after_the_drain_timeout(type: str):
    async with process(drain_timeout_s=0.1) as node:
        await node.hold(type)
        node.process.send_signal(signal.SIGTERM)
        assert await node.end() == (EXIT_STUCK, "")
        assert "the drain did not end in time" in node.last_line()["event"]


@pytest.mark.parametrize(
    ("type", "named"),
    [
        ("to_thread", "a call in a thread (asyncio.to_thread or run_in_executor)"),
        ("own_task", "a task that goes on although it was cancelled (stubborn, <string>:"),
        ("stubborn", "a task that goes on although it was cancelled (stubborn, <string>:"),
    ],
)
async def test_66_what_the_application_left_running_does_not_keep_it(type: str, named: str):
    async with process(drain_timeout_s=0.5) as node:
        await node.hold(type)
        node.process.send_signal(signal.SIGTERM)
        assert await node.end() == (0, "")
        assert named in node.last_line()["event"]


@pytest.mark.parametrize(("type", "named"), [("own_thread", "threads mine"), ("at_exit", "an atexit handler")])
async def test_66_what_the_interpreter_waits_for_does_not_keep_it(type: str, named: str):
    """These come when the program itself has gone on; it has until the drain timeout and the grace are over."""
    async with process(drain_timeout_s=0.1) as node:
        await node.hold(type)
        node.process.send_signal(signal.SIGTERM)
        assert await node.end() == (0, "left in good order\n")
        assert named in node.last_line()["event"]


async def test_a_signal_during_the_start_gives_it_up():
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SLOW_START, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        node = Process(child, "")
        assert child.stdout is not None
        assert await asyncio.wait_for(child.stdout.readline(), 30) == b"held\n"
        child.send_signal(signal.SIGTERM)
        assert await node.end() == (0, "left in good order\n")
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_sigusr1_and_sighup_never_kill():
    async with process() as node:
        ann = await WireClient.login(node.url, "ann")
        for _ in range(3):
            node.process.send_signal(signal.SIGUSR1)
            node.process.send_signal(signal.SIGHUP)
        assert (await ann.ask("ping"))["type"] == "pong"
        node.process.send_signal(signal.SIGTERM)
        assert (await node.end())[0] == 0
        assert "this log is no file" in node.errors


async def test_an_async_handler_that_blocks_the_loop_is_named_in_the_log():
    async with process() as node:
        ann = await WireClient.login(node.url, "ann")
        assert (await ann.ask("nap", data=0.2))["type"] == "ok"
        node.process.send_signal(signal.SIGTERM)
        assert (await node.end())[0] == 0
        assert "handler __main__.nap held the loop for" in node.errors and "asyncio.to_thread" in node.errors


async def test_what_holds_the_loop_is_named_while_it_holds_it():
    async with process(drain_timeout_s=600) as node:
        await node.hold("python_loop")
        assert node.process.stderr is not None
        async with asyncio.timeout(30):
            while b"the loop has been held" not in (line := await node.process.stderr.readline()):
                assert line
        assert "python_loop (<string>:" in json.loads(line)["event"]
        for number in (signal.SIGTERM, signal.SIGINT):
            node.process.send_signal(number)
        assert (await node.end())[0] > 128


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
