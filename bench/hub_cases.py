"""What the benches of the hub do: a message's way from its bytes to the core, over sinks that swallow everything.

Each case hands the hub messages as a connection does, one after the other, and flushes outside the measure, as the
core's own cases say what a flush costs. So the figures are those of decoding, permissions, the hub, the reply and
appending.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core_cases import Case, Owner, World, flush

from starlight._fanout import Core
from starlight.auth.permissions import GroupPermissions, to_groups
from starlight.channels.hub import Client, Hub
from starlight.protocols.native.commands import decode
from starlight.protocols.spoken import NATIVE

USERS = 100
MESSAGES = 64
DATA = b'"' + b"x" * 126 + b'"'
PUBLISH = b'{"type":"publish","channel":"bench:news","data":%b}' % DATA
PUBLISH_OK = b'{"type":"publish","channel":"bench:news","data":%b,"id":123456}' % DATA
DIRECT = b'{"type":"direct","to":"user-%04d","data":%b}'
PING = b'{"type":"ping","id":123456}'
GROUPS = {"default": {"publish": ["user:{user}", "bench:*"], "subscribe": ["bench:*"]}}


class Seat(Owner):
    """A connection as the hub sees it."""

    peername: Any = None
    is_open = True
    silent_ms = 0
    subprotocol = "starlight.v1"
    codec = NATIVE

    client: Client | None = None

    def on_login(self, client: Client) -> None:
        self.client = client

    def close(self, *args: Any, **options: Any) -> None:
        raise AssertionError(f"closed: {args}")


class HubWorld(World):
    """A hub with 100 clients, all of them in one channel."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.hub = Hub(self.core, **options)
        self.clients: list[Client] = []
        for subscriber in self.add_null(USERS):
            self.core.everyone.leave(subscriber)  # the hub lets it in
            self.clients.append(self.enter(f"user-{len(self.clients):04d}", self.owners[len(self.clients)]))
            self.hub.commands.receive(self.clients[-1], b'{"type":"join","channel":"bench:news"}')
        self.core.flush()

    def make_owner(self, core: Core) -> Owner:
        return Seat(core)

    def enter(self, user: str, owner: Owner) -> Client:
        """Log a seat in."""
        assert isinstance(owner, Seat)
        assert self.hub.login(owner, b'{"type":"login","user":"%b"}' % user.encode()) is None  # type: ignore[arg-type]
        assert owner.client is not None
        return owner.client

    def close(self) -> None:
        for client in self.clients:
            self.hub.disconnect(client)
        super().close()


def permitted() -> World:
    return HubWorld(permissions=GroupPermissions(to_groups(GROUPS, "groups")))


def decode_all(world: World) -> None:
    for _ in range(MESSAGES):
        decode(PUBLISH_OK)


def receive(message: bytes) -> Callable[[World], None]:
    """Hand the hub one message of its first client again and again."""

    def run(world: World) -> None:
        assert isinstance(world, HubWorld)
        receive, client = world.hub.commands.receive, world.clients[0]
        for _ in range(MESSAGES):
            receive(client, message)

    return run


def direct(world: World) -> None:
    """Each client writes to the next one."""
    assert isinstance(world, HubWorld)
    receive = world.hub.commands.receive
    for number, client in enumerate(world.clients):
        receive(client, DIRECT % ((number + 1) % USERS, DATA))


def hub_cases() -> list[Case]:
    """All cases of the hub's way."""
    return [
        Case("hub-decode", "message", MESSAGES, HubWorld, decode_all),
        Case("hub-publish-n100", "publish", MESSAGES, HubWorld, receive(PUBLISH), flush),
        Case("hub-publish-ok-n100", "publish", MESSAGES, HubWorld, receive(PUBLISH_OK), flush),
        Case("hub-permission-n100", "publish", MESSAGES, permitted, receive(PUBLISH), flush),
        Case("hub-direct-n100", "direct", USERS, HubWorld, direct, flush),
        Case("hub-reply", "reply", MESSAGES, HubWorld, receive(PING), flush),
    ]
