"""What a login by token costs: the checks alone, then a storm of reconnects with sessions and with JWTs.

    PYTHONPATH=. python bench/jwt_cost.py                  # the checks: µs each, and how many a second on one core
    PYTHONPATH=. python bench/jwt_cost.py --storm 10000    # 10,000 logins over real connections, by each kind of token

Prints Markdown. (Not jwt.py: that would be what `import jwt` finds.) The storm's clients run in the same process as
the node, so its times are those of both together; what the ways of logging in differ by is the server's. Connections
come from 127.0.0.x in turn, 100 at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import json
import os
import resource
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jwt
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from starlight.auth.identity import Identity, TokenAuth
from starlight.auth.permissions import Group, GroupPermissions
from starlight.auth.session_tokens import SessionClaims, Sessions
from starlight.auth.tokens import Rules, Verifier, key_pair, secret_keys
from starlight.config.settings import Settings
from starlight.errors import TokenRefused
from starlight.protocols.native.commands import Login
from starlight.server.node import Node

SECRET = b"not a secret, as it stands in a benchmark's source: " + b"x" * 32
AT_ONCE = 100
KEEP = 4_000
"""Clients that stay: each takes two descriptors of this process. Whoever is more sends the oldest away."""
SECONDS = 0.5


def claims(number: int) -> dict[str, Any]:
    """About 250 bytes of token, as most issuers make them."""
    now = int(time.time())
    groups = ["trader", "news"]
    return {"sub": f"user{number}", "iat": now, "exp": now + 3600, "jti": f"{number:032x}", "groups": groups}


def authenticators() -> dict[str, tuple[TokenAuth, Callable[[int], str]]]:
    """By name: what checks a token, and what makes one."""
    sessions = Sessions(os.urandom(32), 3600)
    privates: dict[str, Any] = {
        "RS256": rsa.generate_private_key(65537, 2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }
    secret = TokenAuth(Verifier(secret_keys(SECRET, ["HS256"], "bench"), Rules(("HS256",))), sessions)

    def session(number: int) -> str:
        return sessions.issue(
            SessionClaims(f"user{number}", ("trader", "news"), time.time() + 3600, 0.0, f"{number:032x}")
        )

    made = {"session": (secret, session), "HS256": (secret, lambda number: jwt.encode(claims(number), SECRET, "HS256"))}
    for name, private in privates.items():
        pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        auth = TokenAuth(Verifier(key_pair(pem, [name], "bench", ""), Rules((name,))), sessions)
        made[name] = (auth, lambda number, name=name, private=private: jwt.encode(claims(number), private, name))
    return made


def microseconds(work: Callable[[], object]) -> float:
    """µs of one call: the least of five runs of a tenth of `SECONDS`."""
    best = float("inf")
    for _ in range(5):
        count, started_s = 0, time.perf_counter()
        while time.perf_counter() - started_s < SECONDS / 5:
            work()
            count += 1
        best = min(best, (time.perf_counter() - started_s) / count)
    return best * 1e6


def check_costs() -> None:
    """Print what each kind of token costs to check."""
    print("| token | good, µs | good ones a second on a core | forged, µs | bytes |\n|---|---|---|---|---|")
    for name, (auth, make) in authenticators().items():
        token = make(1)
        good_us = microseconds(lambda auth=auth, token=token: auth.authenticate(Login(token=token)))
        wrong = token[:-6] + ("AAAAAA" if token[-6:] != "AAAAAA" else "BBBBBB")
        forged_us = microseconds(lambda auth=auth, wrong=wrong: refused(auth, wrong))
        print(f"| {name} | {good_us:.1f} | {1e6 / good_us:,.0f} | {forged_us:.1f} | {len(token)} |", flush=True)
    auth = authenticators()["HS256"][0]
    someone = Someone()
    print(f"| over 8 KiB | | | {microseconds(lambda: refused(auth, 'x' * 9000)):.1f} | 9000 |")
    print("\n| permission to publish, the loop around it included | µs |\n|---|---|")
    permissions = GroupPermissions({"trader": Group(publish=["auction:*"])})
    for channel in ("auction:1", "other"):
        cost_us = microseconds(lambda channel=channel: permissions.allows(someone, "publish", channel))
        print(f"| in `{channel}` | {cost_us:.2f} |")


class Someone:
    """What permissions look at of a client."""

    user = "ann"
    groups = frozenset(("trader", "news"))

    def __init__(self) -> None:
        self.verdicts: dict[tuple[str, str], bool] = {}


def refused(auth: TokenAuth, token: str) -> None:
    try:
        assert not isinstance(auth.identify(token), Identity)
    except TokenRefused:
        return


async def storm(auth: TokenAuth, tokens: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds until all of them have their welcome."""
    settings = Settings(port=0, max_connections=len(tokens) + 10, drain_timeout_s=1, log_level="error")
    gate, writers = asyncio.Semaphore(AT_ONCE), deque[asyncio.StreamWriter]()
    async with Node(settings, authenticator=auth) as node:

        async def come(number: int) -> None:
            async with gate:
                local = (f"127.0.0.{1 + number % 200}", 0)
                reader, writer = await asyncio.open_connection("127.0.0.1", node.port, local_addr=local)
                key = base64.b64encode(os.urandom(16)).decode()
                writer.write(
                    f"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
                )
                await reader.readuntil(b"\r\n\r\n")
                message = json.dumps({"type": "login", "token": tokens[number]}).encode()
                writer.write(bytes((0x81, 0xFE)) + len(message).to_bytes(2, "big") + bytes(4) + message)
                head = await reader.readexactly(4)
                body = await reader.readexactly(int.from_bytes(head[2:], "big"))
                assert b'"welcome"' in body, body
                writers.append(writer)
                if len(writers) > KEEP:
                    writers.popleft().transport.abort()

        gc.collect()
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(come(number) for number in range(len(tokens))))
        spent = time.perf_counter() - started_s, time.process_time() - started_cpu_s
        for writer in writers:
            writer.transport.abort()
    return spent


def storms(number: int) -> None:
    """Print what a storm costs with each kind of token, and how much of that is the kind."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"| {number:,} logins with | s | s of CPU, server and clients | µs more for each than with a session |")
    print("|---|---|---|---|")
    session_s = 0.0
    for name, (auth, make) in authenticators().items():
        tokens = [make(each) for each in range(number)]
        wall_s, cpu_s = uvloop.run(storm(auth, tokens))
        session_s = session_s or cpu_s
        more_us = f"{(cpu_s - session_s) / number * 1e6:.0f}" if name != "session" else ""
        print(f"| {name} | {wall_s:.2f} | {cpu_s:.2f} | {more_us} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storm", type=int, default=0, metavar="N", help="clients")
    wanted = parser.parse_args().storm
    if wanted:
        storms(wanted)
    else:
        check_costs()
