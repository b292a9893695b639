"""What the internal port costs: at start-up, for a page of 10,000 connections, and while it is scraped under load.

    PYTHONPATH=. python bench/internal_cost.py start       # from the command to the first client's handshake, s
    PYTHONPATH=. python bench/internal_cost.py connz       # the longest that /connz and others hold the loop, ms
    PYTHONPATH=. python bench/internal_cost.py scrape      # a broadcast with and without a scrape a second, as a ratio

`connz` runs the routes' own coroutines and times each step between two turns of the loop, which is what the other
clients wait; then it asks over HTTP and times the turns. `scrape` alternates runs with and without the scraper, on a
machine that does nothing else (README.md says how to tell).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import json
import multiprocessing
import os
import resource
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop
from harness.quiet import process_cpu_s

from starlight.config.settings import Settings
from starlight.server.node import Node, raise_open_files_limit

HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()
START_TIMEOUT_S = 20.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def serving(*flags: str) -> Iterator[tuple[subprocess.Popen[bytes], int, float]]:
    """A `starlight serve` of its own: the process, its port, and how long its first client waited for the handshake."""
    port = free_port()
    command = [sys.executable, "-m", "starlight", "serve", "--port", str(port), "--log-level", "error", *flags]
    started_s = time.perf_counter()
    process = subprocess.Popen(command)
    try:
        yield process, port, first_handshake(port, started_s)
    finally:
        process.terminate()
        process.wait(30)


def first_handshake(port: int, started_s: float) -> float:
    """Seconds from then until a client's handshake was answered."""
    while time.perf_counter() - started_s < START_TIMEOUT_S:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=START_TIMEOUT_S) as client:
                client.sendall(HANDSHAKE)
                assert b" 101 " in client.recv(4096)
                return time.perf_counter() - started_s
        except ConnectionError:
            time.sleep(0.001)
    raise TimeoutError("the server did not start")


# --- start -----------------------------------------------------------------------------------------------------------


def measure_start(repetitions: int) -> None:
    """Both ways in turn, so that a busy moment of the machine meets both."""
    ways = {"without": [], "with": ["--internal-port", str(free_port())]}
    times: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, flags in ways.items():
            with serving(*flags) as (process, _, seconds):
                times[name].append(seconds)
                cpu[name].append(process_cpu_s(process.pid))  # what a busy machine changes least
    for name, found in times.items():
        spread = f"{statistics.median(found):.3f} s (median), {min(found):.3f} to {max(found):.3f} s"
        print(f"{name:>8} internal port: {spread}; processor {statistics.median(cpu[name]):.3f} s")


# --- connz -----------------------------------------------------------------------------------------------------------


def hold_clients(port: int, count: int, ready: Any, done: Any) -> None:
    """In a process of its own: clients that are logged in, have joined a channel, and say nothing."""
    raise_open_files_limit()
    held = []
    for number in range(count):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(HANDSHAKE)
        assert b" 101 " in client.recv(4096)
        for message in ({"type": "login", "user": f"user{number}"}, {"type": "join", "channel": f"c{number % 500}"}):
            payload = json.dumps(message).encode()
            client.sendall(struct.pack("!BBI", 0x81, 0x80 | len(payload), 0) + payload)
        client.recv(4096)
        held.append(client)
    ready.set()
    done.wait()


def longest_step_ms(make: Callable[[], Coroutine[Any, Any, Any]], times: int) -> tuple[float, float, int]:
    """Of a coroutine that only ever yields to the loop: its longest step, all of them together, and how many, the least
    of so many runs: what others do to the machine only ever makes it longer."""
    best = (float("inf"), float("inf"), 0)
    for _ in range(times):
        steps, coroutine = [], make()
        while True:
            started_s = time.perf_counter()
            try:
                coroutine.send(None)
            except StopIteration:
                steps.append(time.perf_counter() - started_s)
                break
            steps.append(time.perf_counter() - started_s)
        best = min(best, (max(steps) * 1e3, sum(steps) * 1e3, len(steps)))
    return best


async def measure_connz(clients: int, repetitions: int) -> None:
    from orjson import dumps

    from starlight.ops.metrics import exposition, make_registry

    async with Node(Settings(port=0, internal_port=0, max_connections=clients + 10)) as node:
        spawn = multiprocessing.get_context("spawn")
        ready, done = spawn.Event(), spawn.Event()
        holder = spawn.Process(target=hold_clients, args=(node.port, clients, ready, done), daemon=True)
        holder.start()
        while len(list(node.hub.clients())) < clients or not ready.is_set():
            assert holder.is_alive(), "the clients could not connect: see ulimit -n"
            await asyncio.sleep(0.1)
        gc.collect()
        gc.freeze()
        port = node._internal._port
        assert port is not None
        stats, registry = port.stats, make_registry(port.stats)

        async def page(**words: Any) -> bytes:
            return dumps(await stats.connz(**words))

        async def channels() -> bytes:
            return dumps(await stats.channelz(limit=500))

        async def varz() -> bytes:
            return dumps(stats.varz())

        async def metrics() -> bytes:
            return exposition(registry)

        print(f"{clients} clients: longest step, all steps, steps")
        for name, make in {
            "/connz": page,
            "/connz?limit=1000": lambda: page(limit=1000),
            "/connz?sort=oldest&limit=1000&offset=9000": lambda: page(order="oldest", limit=1000, offset=9000),
            "/connz?user=user7": lambda: page(user="user7"),
            "/channelz?limit=500": channels,
            "/varz": varz,
            "/metrics": metrics,
        }.items():
            longest_ms, total_ms, steps = longest_step_ms(make, repetitions)
            print(f"{name:>42}: {longest_ms:6.2f} ms {total_ms:7.2f} ms {steps:4d}")
        await measure_over_http(node, port.url, repetitions)
        done.set()


async def measure_over_http(node: Node, url: str, repetitions: int) -> None:
    """The longest turn of the loop while a process asks all the time, beside the same without."""
    for name, paths in (("nothing asked", ()), ("/connz?limit=1000 asked all the time", ("/connz?limit=1000",))):
        asking = subprocess_of(url, paths) if paths else None
        longest = [0.0]
        for _ in range(repetitions):
            longest.append(await longest_turn_s(0.5))
        if asking is not None:
            asking.terminate()
            asking.wait()
        turns = sorted(longest[1:])
        print(f"{name:>42}: {turns[0] * 1e3:6.2f} ms {turns[-1] * 1e3:7.2f} ms (best and worst half second)")


def subprocess_of(url: str, paths: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """A process that asks for these paths without a pause."""
    code = f"import urllib.request as u\nwhile True:\n for p in {paths!r}:\n  u.urlopen({url!r} + p).read()"
    return subprocess.Popen([sys.executable, "-c", code])


async def longest_turn_s(seconds: float) -> float:
    """The longest turn of the loop within so many seconds."""
    end_s = time.perf_counter() + seconds
    longest_s, last_s = 0.0, time.perf_counter()
    while last_s < end_s:
        await asyncio.sleep(0)
        now_s = time.perf_counter()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    return longest_s


# --- scrape ----------------------------------------------------------------------------------------------------------


def measure_scrape(pairs: int, connections: int, duration_s: float) -> None:
    from starlight.loadtest import scenario
    from starlight.loadtest.runner import run_scenario
    from starlight.loadtest.target import Target

    internal_port = free_port()
    ratios = []
    with serving("--internal-port", str(internal_port)) as (process, port, _):
        os.sched_setaffinity(process.pid, {0})
        target = Target(f"ws://127.0.0.1:{port}/ws")
        changes = {
            "connections": connections,
            "duration_s": duration_s,
            "warmup_s": 1.0,
            "model": "closed",
            "window": 64,
        }
        for number in range(pairs):
            rates: dict[bool, float] = {}
            for is_scraped in (False, True) if number % 2 else (True, False):
                stop = threading.Event()
                scraping = threading.Thread(target=scrape, args=(internal_port, stop)) if is_scraped else None
                if scraping is not None:
                    scraping.start()
                result = run_scenario(scenario.build("broadcast", changes), target, server_pids=[process.pid])
                stop.set()
                if scraping is not None:
                    scraping.join()
                rates[is_scraped] = result.rate
            ratios.append(rates[True] / rates[False])
            print(f"{rates[False]:12,.0f} {rates[True]:12,.0f} deliveries/s, ratio {ratios[-1]:.4f}")
    ratios.sort()
    spread = f"from {ratios[0]:.4f} to {ratios[-1]:.4f}"
    print(f"scraped each second: {statistics.median(ratios):.4f} of the rate without ({spread})")


def scrape(port: int, stop: threading.Event) -> None:
    """Ask for what a Prometheus and a `starlight top` ask for, once a second."""
    while True:
        for path in ("/metrics", "/varz", "/connz?limit=20"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as response:
                response.read()
        if stop.wait(1.0):
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("start", "connz", "scrape"))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=1_000, help="of the broadcast")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of one broadcast")
    words = parser.parse_args()
    raise_open_files_limit()
    if words.what == "start":
        measure_start(words.repetitions)
    elif words.what == "connz":
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > words.clients, "ulimit -n is too low"
        uvloop.run(measure_connz(words.clients, words.repetitions))
    else:
        measure_scrape(words.repetitions, words.connections, words.duration)


if __name__ == "__main__":
    main()
