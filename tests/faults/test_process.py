"""Rows 56, 65, 67, 68 of the fault table: much at once, a process that is killed or stands still, a clock that steps.

Most are short forms of `python -m tests.long`, which also judges how long they take.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.long import channels, comeback, pause
from tests.long.outcome import Outcome
from tests.support.fakes import IS_SANITIZED
from tests.support.manager import Manager, listening_socket
from tests.support.raw_client import RawClient, message
from tests.support.server_process import server_process
from tests.support.tokens import AUDIENCE, ISSUER, SECRET, token, write
from tests.support.wire_client import WireClient
from tests.support.witness import url_of, witness

LOOPS = {"uvloop": uvloop.new_event_loop}  # as in production

SERVE = (sys.executable, "-m", "starlight", "serve", "--port", "0")


def passed(outcome: Outcome) -> None:
    assert not outcome.faults, outcome.line()


async def test_56_channels_joined_and_left_give_their_memory_back():
    passed(await channels.run(channels=20_000))


async def test_65_ten_thousand_come_back_at_once():
    passed(await comeback.run(clients=1_000 if IS_SANITIZED else 10_000))


async def test_67_when_a_node_is_killed_only_its_clients_drop(tmp_path: Path):
    """Two nodes accept from one socket; one of them is killed, and started again."""
    with listening_socket() as sock:
        url = f"ws://127.0.0.1:{sock.getsockname()[1]}/ws"
        async with Manager(tmp_path) as manager:

            async def start() -> asyncio.subprocess.Process:
                process = await manager.start(*SERVE, listening=sock)
                await manager.hear("READY=1")
                return process

            await start()
            ((stays, (first,)),) = (await clients_of(url, nodes=1, of_each=1)).items()
            victim = await start()
            clients = await clients_of(url, nodes=2, of_each=3)
            (killed,) = set(clients) - {stays}
            for client in clients[stays]:
                assert (await client.ask("join", channel="c"))["type"] == "ok"
            for number in range(100):
                await clients[stays][0].say("publish", channel="c", data=number)
                if number == 50:
                    victim.kill()
                    await victim.wait()
            for client in clients[stays]:
                assert [(await client.hear())["data"] for _ in range(100)] == list(range(100))
            for client in clients[killed]:
                with pytest.raises(ConnectionClosed) as end:
                    await client.hear()
                assert end.value.rcvd is None
            await start()
            again = await clients_of(url, nodes=2, of_each=3)
            assert stays in again and killed not in again
            for client in [first, *clients[stays], *(client for found in again.values() for client in found)]:
                await client.close()


async def clients_of(url: str, nodes: int, of_each: int) -> dict[str, list[WireClient]]:
    """Clients by their node, of all nodes that accept from one socket; the kernel chooses which of them gets one."""
    found: dict[str, list[WireClient]] = {}
    for number in range(500):
        client = WireClient(await connect(url, compression=None))
        welcome = await client.ask("login", user=f"u{number}")
        found.setdefault(welcome["node"], []).append(client)
        if len(found) == nodes and min(map(len, found.values())) >= of_each:
            return found
    raise AssertionError(f"not of all: {[len(clients) for clients in found.values()]}")


@pytest.mark.parametrize("wire", ["ws", "wss"], indirect=True)
async def test_68_a_process_that_stood_still_evicts_nobody(wire: str):
    """Longer than each of its deadlines; `python -m tests.long pause` stops it for 30 s."""
    passed(await pause.run(seconds=pause.DEADLINE_S + 1.5, clients=30))


@pytest.mark.skipif(IS_SANITIZED or shutil.which("gcc") is None, reason="preloads a library of its own, made by gcc")
async def test_68_a_step_of_the_wall_clock_by_an_hour_ends_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The node's own wall clock, forth and back; a token lasts as long as it did."""
    library, step = tmp_path / "step_clock.so", tmp_path / "step"
    source = Path(__file__).parents[1] / "support" / "step_clock.c"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
    subprocess.run(command, check=True, timeout=60)
    step.write_text("0")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("STEP_CLOCK_FILE", str(step))
    tokens = {"auth": "jwt", "jwt_secret": SECRET, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    groups = write(tmp_path / "groups.toml", '[groups.default]\npublish = ["*"]\nsubscribe = ["*"]\n')
    short = {
        "config_file": groups,
        "ping_interval_s": 0.3,
        "pong_timeout_s": 5,
        "message_rate": 1_000,
        "connection_rate": 0,
    }
    async with server_process(**tokens, **short) as server, witness(server.port, token=token()):
        client = WireClient(await connect(url_of(server.port), compression=None))
        assert (await client.ask("login", token=token()))["type"] == "welcome"
        stranger = await RawClient.upgraded(server.port)
        start_s = (await server.ask("clock"))["wall_s"]
        for hours in (1, -1, 0):
            step.write_text(str(3_600 * hours))
            stepped_s = (await server.ask("clock"))["wall_s"] - start_s
            assert abs(stepped_s - 3_600 * hours) < 600, "the clock was not stepped"
            await asyncio.sleep(1)  # three pings, and two looks at ends of logins
            assert (await client.ask("ping"))["type"] == "pong"
        await stranger.send(message("login", token=token()))
        assert (await stranger.hear())["type"] == "welcome"
        status = await server.ask("status")
        assert (status["connections"], status["logins"]) == (3, 3), status
        assert not {name: count for name, count in status.items() if name.startswith(("closed_", "evicted_")) and count}
        await client.close()
        stranger.close()
