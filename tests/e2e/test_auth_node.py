"""Rows 41-53 of the fault table against real nodes, over ws and wss; and that a secret is never seen anywhere."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from starlight.auth.permissions import Group, GroupPermissions
from starlight.config.settings import Settings
from starlight.server.node import Node
from tests.auth.test_tokens import GOOD, HOSTILE, PARTS
from tests.support.fakes import eventually
from tests.support.tokens import AUDIENCE, ISSUER, SECRET, claims, hmac_token, pair, token, write
from tests.support.wire_client import WireClient
from tests.support.witness import witness

WIRES = ("ws", "wss")
ROOT = Path(__file__).parents[2]


def settings(**changes: Any) -> Settings:
    made = {"port": 0, "drain_timeout_s": 2, "auth": "jwt", "jwt_secret": SECRET, "jwt_issuer": ISSUER}
    return Settings(**{**made, "jwt_audience": AUDIENCE, "connection_rate": 0, **changes})


@asynccontextmanager
async def node(**changes: Any) -> AsyncIterator[Node]:
    async with Node(settings(**changes)) as made:
        yield made


async def login(node: Node, text: str) -> tuple[WireClient, dict[str, Any]]:
    client = WireClient(await connect(node.url, compression=None))
    return client, await client.ask("login", token=text)


async def refused(node: Node, message: str | bytes) -> int:
    """The code that a first message is closed with."""
    socket = await connect(node.url, compression=None)
    with suppress(ConnectionClosed):
        await socket.send(message)
    return (await WireClient(socket).closed())[0]


async def test_no_hostile_token_is_let_in():
    """Each of them as a real login; those over the limit of a first message end with 1009 before anybody looks."""
    async with node() as made:
        witness, _ = await login(made, GOOD)
        codes = {name: await refused(made, json.dumps({"type": "login", "token": HOSTILE[name]})) for name in HOSTILE}
        assert set(codes.values()) <= {4500, 1009}
        assert [name for name, code in codes.items() if code == 1009] == ["kid of 1 MiB"]
        assert (await witness.ask("ping"))["type"] == "pong"
        assert made.hub.counters()["clients"] == 1
        await witness.close()


async def test_42_and_46_keys_of_others_let_nobody_in(tmp_path: Path):
    """A node with a public key: secrets made of it, another key under its name, and another issuer with its key."""
    ours, other = pair("RS256"), pair("RS256", 1)
    key = write(tmp_path / "rsa.pem", ours.public_pem)
    everything = GroupPermissions({"default": Group(publish=["*"], subscribe=["*"])})
    made = Node(settings(jwt_secret="", jwt_key_file=key), permissions=everything)
    good = token(key=ours.private, alg="RS256", headers={"kid": "1"})
    hostile = [hmac_token({"alg": "HS256"}, claims(), public) for public in (ours.public_pem, ours.public_der)]
    hostile += [
        token(key=other.private, alg="RS256", headers={"kid": "1"}, iss=iss) for iss in (ISSUER, "https://b.test")
    ]
    hostile += [token(key=ours.private, alg="RS256", headers={"kid": "1"}, iss="https://b.test")]
    async with made, witness(made.port, token=good):
        for text in hostile:
            assert await refused(made, json.dumps({"type": "login", "token": text})) == 4500
        assert made.hub.counters()["clients"] == 1


async def test_48_anything_before_the_login_is_4501_and_silence_4015():
    async with node(login_timeout_s=0.2) as made:
        for message in (
            '{"type":"ping"}',
            '{"type":"publish","channel":"c","data":1}',
            '{"type":"refresh","token":"x"}',
            '{"type":"login"}',
            '{"type":"login","user":"ann"}',
            '{"type":"login","token":5}',
            "x",
        ):
            assert await refused(made, message) == 4501
        assert (await WireClient(await connect(made.url)).closed())[0] == 4015


async def test_welcome_names_the_limits_and_a_login_may_name_the_connection_before():
    async with node(channels_per_client=7, message_rate=50, byte_rate_bytes=0) as made:
        client = WireClient(await connect(made.url))
        welcome = await client.ask("login", token=GOOD, previous="n-1")
        assert welcome["limits"] == {"message_bytes": 65536, "channels": 7, "message_rate": 50, "byte_rate": None}
        await client.close()
        for previous in (5, ["n-1"]):
            text = json.dumps({"type": "login", "token": GOOD, "previous": previous})
            assert await refused(made, text) == 4501


async def test_a_join_of_several_channels_over_a_socket():
    everything = GroupPermissions({"default": Group(publish=["*"], subscribe=["*"])})
    async with Node(settings(message_rate=2), permissions=everything) as made:
        client, _ = await login(made, GOOD)
        names = [f"c{number}" for number in range(255)]
        reply = await client.ask("join", channels=[{"channel": name} for name in [*names, "no such name"]])
        assert [item["channel"] for item in reply["channels"]] == [*names, "no such name"]
        assert [item.get("error", {}).get("code") for item in reply["channels"]] == [None] * 255 + [107]
        assert made.hub.counters()["channels"] == 255
        await client.say("publish", channel="c9", data=1)
        assert (await client.hear())["type"] == "publication"
        await client.close()


async def test_49_a_second_login_is_4501():
    async with node() as made:
        ann, _ = await login(made, GOOD)
        await ann.say("login", token=GOOD)
        assert (await ann.closed())[0] == 4501


async def test_50_a_token_that_ends_while_connected():
    async with node(jwt_leeway_s=0) as made:
        ann, welcome = await login(made, token(exp=int(time.time()) + 3))
        expiring = await ann.hear()
        assert expiring["type"] == "expiring"
        assert 1 <= expiring["seconds"] <= 3
        assert welcome["expires"] <= time.time() + 3
        bye = await ann.hear()
        assert (bye["type"], bye["code"]) == ("bye", 4014)
        assert (await ann.closed())[0] == 4014


async def test_50_and_one_that_is_renewed_in_time():
    async with node(jwt_leeway_s=0) as made:
        ann, _ = await login(made, token(exp=int(time.time()) + 2))
        reply = await ann.ask("refresh", token=token())
        assert reply["expires"] > time.time() + 500
        await asyncio.sleep(2.5)
        assert (await ann.ask("ping"))["type"] == "pong"
        await ann.close()


async def test_51_a_revoked_user_is_gone_at_once():
    async with node() as made:
        ann, welcome = await login(made, GOOD)
        made.hub.revoke_user("ann")
        assert made.hub.counters()["clients"] == 0
        assert (await ann.closed())[0] == 4503
        for text in (GOOD, welcome["session"]):
            assert await refused(made, json.dumps({"type": "login", "token": text})) == 4503


async def test_sessions_of_two_nodes_with_one_key_and_not_with_others(tmp_path: Path):
    path = write(tmp_path / "session.key", os.urandom(48).hex())
    async with node(session_secret_file=path) as one, node(session_secret_file=path) as two, node() as other:
        ann, welcome = await login(one, token(groups=["trader"]))
        again, resumed = await login(two, welcome["session"])
        assert (resumed["type"], resumed["user"]) == ("welcome", "ann")
        assert await refused(other, json.dumps({"type": "login", "token": welcome["session"]})) == 4500
        await ann.close()
        await again.close()


async def test_53_one_connection_too_many_of_a_user():
    async with node(connections_per_user=3) as made:
        clients = [(await login(made, token()))[0] for _ in range(3)]
        assert await refused(made, json.dumps({"type": "login", "token": GOOD})) == 4016
        await clients[0].close()
        await eventually(lambda: made.hub.counters()["clients"] == 2)
        clients[0], welcome = await login(made, token())
        assert welcome["type"] == "welcome"
        for client in clients:
            await client.close()


async def test_52_a_storm_of_bad_logins_is_refused_at_accept_and_others_go_on():
    """As many as one loop can make; the rate of an address lets two seconds' worth of them through."""
    async with node(connection_rate=20, trusted_proxies="") as made:
        witness, _ = await login(made, GOOD)
        outcomes: dict[str, int] = {}

        async def try_once() -> None:
            try:
                outcome = str(await refused(made, json.dumps({"type": "login", "token": HOSTILE["a wrong secret"]})))
            except (OSError, EOFError, WebSocketException):
                outcome = "refused"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1

        for _ in range(20):
            await asyncio.gather(*(try_once() for _ in range(20)))
            assert (await witness.ask("ping"))["type"] == "pong"
        assert set(outcomes) == {"4500", "refused"}
        assert outcomes["refused"] > 2 * outcomes["4500"]
        await witness.close()


async def test_a_fuzzed_login_lets_nobody_in_and_hurts_nobody():
    random_ = random.Random(6)
    good = json.dumps({"type": "login", "token": GOOD, "id": 1}).encode()
    async with node() as made:
        witness, _ = await login(made, GOOD)
        for _ in range(300):
            message = bytearray(good)
            for _ in range(random_.randint(1, 4)):
                at = random_.randrange(len(message))
                message[at : at + random_.randint(0, 2)] = bytes(
                    random_.choices(b'{}[]",:.\\aA0-_ \x00\x7f', k=random_.randint(0, 3))
                )
            if _still_good(bytes(message)):
                continue
            assert await refused(made, bytes(message).decode()) in (4500, 4501)
        assert (await witness.ask("ping"))["type"] == "pong"
        assert made.hub.counters()["clients"] == 1
        await witness.close()


def _still_good(message: bytes) -> bool:
    """Whether the token and the type came through unhurt, as when only the id was hit."""
    return GOOD.encode() in message and b'"login"' in message


# --- the canary ------------------------------------------------------------------------------------------------------


async def test_a_secret_is_in_no_log_no_message_and_no_error(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    async with node() as made:
        ann, welcome = await login(made, GOOD)
        for name in ("a wrong secret", "expired", "alg 'none'", "iss of another", "kid SQL", "payload deep"):
            socket = await connect(made.url, compression=None)
            await socket.send(json.dumps({"type": "login", "token": HOSTILE[name], "id": 1}))
            try:
                while True:
                    said.append(str(await asyncio.wait_for(socket.recv(), 10)))
            except ConnectionClosed as end:
                assert end.rcvd is not None
                said.append(end.rcvd.reason)
        said.append(json.dumps(await ann.ask("refresh", token=HOSTILE["expired"])))
        said.append(json.dumps(await ann.ask("refresh", token=GOOD[:-2])))
        said.append(json.dumps(await ann.ask("nonsense", token=GOOD)))
        said += [repr(made.settings), str(made.core.counters()), str(made.hub.counters()), made.start_line()]
        await ann.close()
    session = welcome["session"]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("starlight", "asyncio"))]
    for line in [*ours, *said]:
        for canary in (SECRET, *PARTS[1:], session, session.split(".")[1], HOSTILE["expired"].split(".")[1]):
            assert canary not in line


async def test_a_secret_is_not_on_the_command_line_nor_in_what_the_process_writes(tmp_path: Path):
    path = write(tmp_path / "secret", SECRET)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "starlight", "serve", "--port", "0", "--auth", "jwt", "--jwt-secret-file", path),
        *("--log-level", "debug", "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert child.stderr is not None
    written = b""
    try:
        while b"listens on" not in written:
            written += await asyncio.wait_for(child.stderr.readline(), 30)
        url = written.decode().split("listens on ")[1].split()[0]
        client = WireClient(await connect(url, compression=None))
        assert (await client.ask("login", token=GOOD))["type"] == "welcome"
        with pytest.raises(ConnectionClosed):
            await WireClient(await connect(url, compression=None)).ask("login", token=HOSTILE["a wrong secret"])
        arguments = Path(f"/proc/{child.pid}/cmdline").read_bytes()
        await client.close()
    finally:
        child.send_signal(signal.SIGTERM)
        out, err = await asyncio.wait_for(child.communicate(), 30)
    for canary in (SECRET.encode(), PARTS[1].encode(), PARTS[2].encode()):
        assert canary not in arguments + written + out + err
    assert child.returncode == 0
