"""starlight.server.process and what is around the process: the service manager, and the internal port that ends it."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.manager import Manager, listening_socket
from tests.support.wire_client import WireClient

# --- the service manager ---------------------------------------------------------------------------------------------

SERVE = (sys.executable, "-m", "starlight", "serve", "--port", "0")


async def test_the_manager_hears_ready_reloading_stopping_and_the_watchdog(tmp_path: Path):
    async with Manager(tmp_path) as manager:
        process = await manager.start(*SERVE, "--drain-timeout", "3s", WATCHDOG_USEC="200000")
        ready = await manager.hear("READY=1")
        assert str(process.pid) in ready["STATUS"]
        for _ in range(3):
            await manager.hear("WATCHDOG=1")
        process.send_signal(signal.SIGHUP)
        assert (await manager.hear("RELOADING=1"))["MONOTONIC_USEC"].isdecimal()
        await manager.hear("READY=1")
        ended = asyncio.ensure_future(manager.end(process, signal.SIGTERM))
        assert int((await manager.hear("STOPPING=1"))["EXTEND_TIMEOUT_USEC"]) >= 3_000_000
        assert (await ended)[0] == 0


async def test_a_node_takes_the_managers_socket_and_leaves_it_listening(tmp_path: Path):
    with listening_socket() as sock:
        port = sock.getsockname()[1]
        async with Manager(tmp_path) as manager:
            for _ in range(2):
                process = await manager.start(*SERVE, "--host", "::1", listening=sock)
                waiting = asyncio.ensure_future(
                    asyncio.open_connection("127.0.0.1", port)
                )  # before it is ready: in the queue
                await manager.hear("READY=1")
                (await asyncio.wait_for(waiting, 10))[1].close()
                status, log = await manager.end(process, signal.SIGTERM)
                assert (status, f"127.0.0.1:{port}" in log) == (0, True), log


async def test_a_managers_socket_that_strangers_can_reach_wants_authentication(tmp_path: Path):
    with listening_socket("0.0.0.0") as sock:
        async with Manager(tmp_path) as manager:
            process = await manager.start(*SERVE, listening=sock)
            async with asyncio.timeout(30):
                _, log = await process.communicate()
            assert process.returncode == 2
            assert b"insecure-no-auth" in log


async def test_something_else_than_a_socket_is_one_line_and_status_2(tmp_path: Path):
    async with Manager(tmp_path) as manager:
        process = await manager.start("sh", "-c", 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3</dev/null', "sh", *SERVE)
        async with asyncio.timeout(30):
            _, log = await process.communicate()
        assert process.returncode == 2
        assert b"LISTEN_FDS" in log


# --- the internal port -----------------------------------------------------------------------------------------------


def _ask(url: str, path: str, key: str = "") -> int:
    """The status of an answer; with a key, of a POST."""
    asked = urllib.request.Request(url + path, b"{}" if key else None, {"Content-Type": "application/json"})
    if key:
        asked.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as refused:
        return refused.code


async def test_a_drain_from_the_internal_port_is_not_ready_first_and_ends_the_process(tmp_path: Path):
    key = tmp_path / "key"
    key.write_text("k" * 32)
    key.chmod(0o600)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        internal = free.getsockname()[1]
    async with Manager(tmp_path) as manager:
        words = ("--internal-port", str(internal), "--internal-key-file", str(key), "--drain-notice", "1s")
        process = await manager.start(*SERVE, *words)
        assert process.stderr is not None
        found = re.search(r"listens on (wss?://\S+)", (await process.stderr.readline()).decode())
        await manager.hear("READY=1")
        assert found
        url = f"http://127.0.0.1:{internal}"
        assert await asyncio.to_thread(_ask, url, "/readyz") == 200
        assert await asyncio.to_thread(_ask, url, "/api/drain", "k" * 32) == 202
        assert await asyncio.to_thread(_ask, url, "/readyz") == 503
        ann = await WireClient.login(found[1], "ann")  # the notice: not ready, and as ever
        await manager.hear("STOPPING=1")
        assert (await ann.closed())[0] == 1001
        async with asyncio.timeout(20):
            assert await process.wait() == 0
