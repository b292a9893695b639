"""Who has gone is noticed whatever an application's handler does: over real sockets, while the node doesn't read them.

Handlers here wait for an event of the test. Nothing is asserted about time: a test waits until what must happen has.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvloop

from starlight import close_codes
from starlight.channels.client import Client
from starlight.channels.handlers import Handlers
from starlight.config.settings import Settings
from starlight.errors import CloseConnection, LoginRefused
from starlight.server.node import Node
from tests.support.fakes import eventually
from tests.support.raw_client import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    RawClient,
    Stage,
    close_frame,
    frame,
    message,
    stage,
    vanish,
)

WIRES = ("ws", "wss")
LOOPS = {"uvloop": uvloop.new_event_loop}  # as in production

QUIET_TIMES = {"ping_interval_s": 60, "pong_timeout_s": 60, "write_timeout_s": 60}
"""No deadline ends anybody in the time of a test."""


class Waiting:
    """An application whose handlers wait until the test lets them go on.

    Attributes:
        begun: users whose handlers have begun, in order.
        ended: those whose handlers have ended.
        gone: those for whom `on_disconnect` ran.
    """

    def __init__(self) -> None:
        self.handlers = Handlers()
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.gone: list[str] = []
        self._go_on = threading.Event()

        @self.handlers.on("wait")
        async def wait(client: Client, data: object) -> str:
            await self._wait(client)
            return "done"

        @self.handlers.on("block", thread=True)
        def block(client: Client, data: object) -> str:
            self.begun.append(client.user)
            self._go_on.wait()
            self.ended.append(client.user)
            return "done"

        @self.handlers.on_connect
        async def greet(client: Client) -> None:
            if client.user.startswith("slow"):
                await self._wait(client)

        @self.handlers.on_disconnect
        def gone(client: Client) -> None:
            self.gone.append(client.user)

    async def _wait(self, client: Client) -> None:
        self.begun.append(client.user)
        try:
            while not self._go_on.is_set():
                await asyncio.sleep(0.01)
        finally:
            self.ended.append(client.user)

    def go_on(self) -> None:
        self._go_on.set()

    @asynccontextmanager
    async def stage(self, *, quiet: bool = True, **settings: Any) -> AsyncIterator[Stage]:
        def made(settings: Settings) -> Node:
            return Node(settings, handlers=self.handlers)

        try:
            async with stage(quiet=quiet, node=made, **{**QUIET_TIMES, **settings}) as on_stage:
                yield on_stage
                self.go_on()
        finally:
            self.go_on()


@pytest.fixture
def app() -> Waiting:
    return Waiting()


def users(on_stage: Stage) -> set[str]:
    """Who is logged in, the witness aside."""
    return {client.user for client in on_stage.node.hub.clients()} - {"witness"}


def is_paused(on_stage: Stage, user: str) -> bool:
    return any(client.user == user and client.connection.is_paused for client in on_stage.node.hub.clients())


async def keep_waiting(on_stage: Stage, app: Waiting, type: str, user: str = "ann") -> RawClient:
    """A client in a channel whose handler waits, with so many messages behind it that it is not read any more."""
    client = await on_stage.login(user)
    await client.ask("join", channel="room")
    await client.send(message(type, id="late") + message("ping") * 80)
    await eventually(lambda: user in app.begun and is_paused(on_stage, user))
    return client


def in_room(on_stage: Stage) -> bool:
    return on_stage.node.hub.n_channels > 1  # the witness has one


ENDS: dict[str, Callable[[RawClient], None]] = {
    "reset": RawClient.reset,
    "close": RawClient.close,
    "half_close": RawClient.half_close,
}


@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize("type", ["wait", "block"])
async def test_58_and_59_who_goes_is_noticed_though_its_handler_keeps_it_unread(app: Waiting, type: str, end: str):
    async with app.stage() as on_stage:
        client = await keep_waiting(on_stage, app, type)
        ENDS[end](client)
        await eventually(lambda: not users(on_stage) and not in_room(on_stage))
        assert app.ended == []  # the handler goes on by itself
        assert app.gone == []
        await eventually(lambda: on_stage.node.connections == 1)
        app.go_on()
        await eventually(lambda: app.gone == ["ann"])
        assert app.ended == ["ann"]


@pytest.mark.parametrize("end", list(ENDS))
async def test_58_and_59_who_goes_while_it_sends_too_much_is_noticed(end: str):
    async with stage(**QUIET_TIMES) as on_stage:
        client = await on_stage.login("ann")
        (connection,) = (client.connection for client in on_stage.node.hub.clients() if client.user == "ann")
        connection.pause_reading(3600.0)
        ENDS[end](client)
        await eventually(lambda: not users(on_stage))
        await on_stage.alone()


@pytest.mark.parametrize("end", ["reset", "close"])
async def test_58_and_59_who_goes_behind_its_close_frame_is_noticed(app: Waiting, end: str):
    async with app.stage() as on_stage:
        client = await on_stage.login("ann")
        await client.send(message("wait") + close_frame(1000))
        await eventually(lambda: is_paused(on_stage, "ann"))
        ENDS[end](client)
        await eventually(lambda: not users(on_stage))
        await eventually(lambda: on_stage.node.connections == 1)
        assert app.ended == []


async def test_a_close_frame_is_answered_in_time_though_the_handler_before_it_goes_on(app: Waiting):
    async with app.stage(write_timeout_s=0.3) as on_stage:
        client = await on_stage.login("ann")
        await client.send(message("wait", id=1) + message("ping", id=2) + close_frame(4321))
        frames, end = await client.to_the_end()
        assert (frames, end) == ([(CLOSE, (4321).to_bytes(2, "big"))], "eof")
        assert not users(on_stage)
        assert (app.ended, app.gone) == ([], [])
        app.go_on()
        await eventually(lambda: app.gone == ["ann"])
        assert app.ended == ["ann"]


async def test_a_handler_that_ends_in_time_has_its_reply_before_the_close(app: Waiting):
    async with app.stage() as on_stage:
        client = await on_stage.login("ann")
        await client.send(message("wait", id=1) + message("ping", id=2) + close_frame(4321))
        await eventually(lambda: is_paused(on_stage, "ann"))
        app.go_on()
        assert (await client.hear())["data"] == "done"
        assert await client.hear() == {"type": "pong", "id": 2}
        assert await client.close_code() == 4321


async def test_60_who_is_silent_is_noticed_though_a_handler_keeps_it_from_being_read(app: Waiting):
    async with app.stage(ping_interval_s=0.2, pong_timeout_s=0.3) as on_stage:
        client = await keep_waiting(on_stage, app, "wait")
        await eventually(lambda: not users(on_stage))
        assert app.ended == []
        assert await client.close_code() == 4012


async def fill(client: RawClient) -> None:
    """Send until the kernels of both sides hold all they can."""
    data = message("ping") * 2_000
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    with suppress(TimeoutError):
        for _ in range(1_000):
            async with asyncio.timeout(1.0):
                await client.loop.sock_sendall(client.sock, data)


@pytest.mark.parametrize("vanishes", [True, False])
async def test_60_who_is_silent_behind_all_that_nobody_reads_is_noticed(app: Waiting, vanishes: bool, wire: str):
    """Its pong could not come, as its kernel may not send; that is believed a few times and no more."""
    if wire == "wss":
        pytest.skip("what fills the socket is no TLS")
    async with app.stage(ping_interval_s=0.2, pong_timeout_s=0.4) as on_stage:
        client = await keep_waiting(on_stage, app, "wait")
        await fill(client)
        if vanishes:
            vanish(client.sock)
        await eventually(lambda: not users(on_stage))
        assert app.ended == []


async def test_60_who_answers_pings_stays_though_nobody_reads_the_answers(app: Waiting):
    async with app.stage(ping_interval_s=0.1, pong_timeout_s=0.5) as on_stage:
        client = await keep_waiting(on_stage, app, "wait")
        pings = 0
        while pings < 8:  # more than doubt would be stretched to
            opcode, _ = await client.next_frame()
            if opcode == PING:
                pings += 1
                await client.send(frame(PONG))
        assert users(on_stage) == {"ann"}
        app.go_on()
        while (heard := await client.hear()).get("id") != "late":
            pass
        assert heard["data"] == "done"
        assert (await client.ask("ping"))["type"] == "pong"


async def test_a_check_of_a_login_ends_with_its_connection():
    handlers, events = Handlers(), []

    @handlers.on_login
    async def check(client: Client, login: dict[str, Any]) -> None:
        if client.user == "witness":
            return
        events.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            events.append("ended")

    async with stage(node=lambda settings: Node(settings, handlers=handlers), **QUIET_TIMES) as on_stage:
        for end in (RawClient.reset, RawClient.close, RawClient.half_close):
            events.clear()
            client = await on_stage.upgraded()
            await client.send(message("login", user="ann") + message("ping"))  # behind which it is not read
            await eventually(lambda: events == ["begun"])
            end(client)
            await eventually(lambda: events == ["begun", "ended"])
            await on_stage.alone()


async def test_a_check_that_ignores_its_cancellation_keeps_nobody():
    handlers, is_over = Handlers(), asyncio.Event()

    @handlers.on_login
    async def check(client: Client, login: dict[str, Any]) -> None:
        while client.user != "witness" and not is_over.is_set():
            with suppress(asyncio.CancelledError):
                await is_over.wait()

    def made(settings: Settings) -> Node:
        return Node(settings, handlers=handlers)

    async with stage(quiet=False, node=made, login_timeout_s=0.3) as on_stage:
        client = await on_stage.upgraded()
        await client.send(message("login", user="ann"))
        assert await client.close_code() == 1013
        client.close()
        await on_stage.alone()
        is_over.set()


async def test_who_goes_during_on_connect_does_not_count(app: Waiting):
    async with app.stage(connections_per_user=3) as on_stage:
        for _ in range(6):
            (await on_stage.login("slow")).reset()
        await eventually(lambda: not users(on_stage))
        assert len(app.begun) == 6 and app.ended == []
        await on_stage.login("slow")
        assert users(on_stage) == {"slow"}
        app.go_on()
        await eventually(lambda: app.gone == ["slow"] * 6)


async def test_handlers_that_go_on_without_their_clients_are_bounded(app: Waiting):
    async with app.stage(quiet=False, max_connections=4) as on_stage:
        for number in range(6):
            client = await on_stage.login(f"u{number}")
            await client.say("wait")
            await eventually(lambda number=number: f"u{number}" in app.begun)
            client.reset()
            await eventually(lambda: on_stage.node.connections == 1)
        await eventually(lambda: app.ended == ["u0", "u1"])
        assert on_stage.node.acceptor.counts.handlers_cancelled == 2


# --- room for a user's next connection -------------------------------------------------------------------------------


async def answer_pings(client: RawClient) -> None:
    with suppress(EOFError, OSError):
        while True:
            opcode, _ = await client.loop.create_task(next_frame(client))
            if opcode == PING:
                await client.send(frame(PONG))


async def next_frame(client: RawClient) -> tuple[int, bytes]:
    """As `RawClient.next_frame`, however long it takes."""
    while (found := client.take_frame()) is None:
        with suppress(TimeoutError):
            some = await client.receive()
            if not some:
                raise EOFError
            client.rest += some
    return found


async def test_53_connections_that_do_not_answer_make_room_and_no_more_than_it_takes():
    async with stage(**QUIET_TIMES, connections_per_user=2) as on_stage:
        older, newer = await on_stage.login("ann"), await on_stage.login("ann")
        assert older.sock.getsockname() in {client.connection.peername for client in on_stage.node.hub.clients()}
        await on_stage.login("ann")  # within seconds, though neither has said goodbye
        frames, _ = await older.to_the_end()
        assert [opcode for opcode, _ in frames] == [PING, TEXT, CLOSE]
        assert frames[-1][1][:2] == close_codes.NO_PONG.to_bytes(2, "big")
        assert len([client for client in on_stage.node.hub.clients() if client.user == "ann"]) == 2
        await newer.send(frame(PONG))
        assert (await newer.ask("ping"))["type"] == "pong"


async def test_53_connections_that_answer_stay_and_one_too_many_is_told_so():
    async with stage(**QUIET_TIMES, connections_per_user=2) as on_stage:
        present = [await on_stage.login("ann"), await on_stage.login("ann")]
        answering = [asyncio.create_task(answer_pings(client)) for client in present]
        late = await on_stage.upgraded()
        await late.send(message("login", user="ann"))
        assert await late.close_code() == close_codes.CONNECTION_LIMIT
        assert len([client for client in on_stage.node.hub.clients() if client.user == "ann"]) == 2
        other = await on_stage.login("bob")
        assert (await other.ask("ping"))["type"] == "pong"
        for task in answering:
            task.cancel()
        await asyncio.wait(answering)


async def test_53_one_whose_handler_keeps_it_from_being_read_stays_if_it_answers(app: Waiting):
    async with app.stage(connections_per_user=1) as on_stage:
        present = await keep_waiting(on_stage, app, "wait")
        answering = asyncio.create_task(answer_pings(present))
        late = await on_stage.upgraded()
        await late.send(message("login", user="ann"))
        assert await late.close_code() == close_codes.CONNECTION_LIMIT
        assert users(on_stage) == {"ann"}
        answering.cancel()
        await asyncio.wait([answering])


async def test_53_one_that_has_said_it_closes_makes_room_at_once(app: Waiting):
    async with app.stage(connections_per_user=1) as on_stage:
        leaving = await on_stage.login("ann")
        await leaving.send(message("wait") + close_frame(1000))
        await eventually(lambda: is_paused(on_stage, "ann"))
        await on_stage.login("ann")
        assert await leaving.close_code() == 1000


# --- closes of the application ---------------------------------------------------------------------------------------


async def test_a_handler_closes_its_client_with_a_code_and_a_reason():
    handlers = Handlers()

    @handlers.on("quit")
    def quit(client: Client, data: Any) -> None:
        client.close(*data)

    async with stage(node=lambda settings: Node(settings, handlers=handlers)) as on_stage:
        for data, code, reason in (
            ([4100, "x" * 123], 4100, "x" * 123),
            ([3000], 3000, ""),
            ([1008], 1008, "abuse"),
            ([], 1000, ""),
        ):
            client = await on_stage.login()
            await client.say("quit", data=data)
            frames, _ = await client.to_the_end()
            assert frames[-1] == (CLOSE, code.to_bytes(2, "big") + reason.encode())
        assert (await (await on_stage.login()).ask("ping"))["type"] == "pong"


ILLEGAL: list[list[Any]] = [
    [0], [999], [1004], [1005], [1006], [1010], [1014], [1015], [1016], [2999], [5000], [70_000], [-1], ["4100"],
    [None], [4100.0], [True], [4100, "ü"], [4100, "x" * 124], [4100, "a\nb"], [4100, "\x1b[2J"], [4100, 7],
]  # fmt: skip


async def test_what_no_close_frame_may_carry_is_raised_to_the_caller(caplog: pytest.LogCaptureFixture):
    handlers = Handlers()

    @handlers.on("quit")
    def quit(client: Client, data: Any) -> None:
        client.close(*data)

    async with stage(quiet=False, node=lambda settings: Node(settings, handlers=handlers)) as on_stage:
        client = await on_stage.login()
        for data in ILLEGAL:
            caplog.clear()
            assert (await client.ask("quit", data=data))["code"] == 100, data
            assert "ValueError" in caplog.text or "TypeError" in caplog.text
        assert (await client.ask("ping"))["type"] == "pong"


@pytest.mark.parametrize("kind", ["sync", "async", "thread", "on_connect", "on_login"])
async def test_an_illegal_close_raised_by_a_handler_is_1011_and_logged(kind: str, caplog: pytest.LogCaptureFixture):
    handlers, said = Handlers(), list[Any]()

    def fail(client: Client, data: Any = None) -> None:
        if client.user != "witness":
            raise CloseConnection(*said)

    async def fail_later(client: Client, data: Any = None) -> None:
        fail(client)

    def refuse(client: Client, login: Any) -> None:
        if client.user != "witness":
            raise LoginRefused(*said)

    if kind == "on_connect":
        handlers.on_connect(fail_later)
    elif kind == "on_login":
        handlers.on_login(refuse)
    else:
        handlers.on("quit", thread=kind == "thread")(fail_later if kind == "async" else fail)
    async with stage(quiet=False, node=lambda settings: Node(settings, handlers=handlers)) as on_stage:
        for arguments in ILLEGAL:
            said[:] = arguments
            caplog.clear()
            client = await on_stage.upgraded()
            await client.send(message("login", user="ann") + message("quit"))
            assert await client.close_code() == 1011, arguments
            client.close()
            assert "1011" in caplog.text
        await on_stage.alone()


# --- threads and callbacks -------------------------------------------------------------------------------------------


async def test_the_slow_calls_of_one_user_leave_threads_to_others(app: Waiting):
    @app.handlers.on("quick", thread=True)
    def quick(client: Client, data: object) -> str:
        return "quick"

    async with app.stage() as on_stage:
        slow = [await on_stage.login("eve") for _ in range(20)]
        for client in slow:
            await client.say("block", id=1)
        await eventually(lambda: len(app.begun) >= 8)
        ann = await on_stage.login("ann")
        assert (await ann.ask("quick"))["data"] == "quick"
        assert app.ended == []
        app.go_on()
        for client in slow:
            assert (await client.hear())["data"] == "done"


class Nonsense:
    """Permissions of an application that fail, but for the witness."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def allows(self, client: Client, action: str, name: str) -> Any:
        if client.user == "witness":
            return True
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer", [ZeroDivisionError(), asyncio.CancelledError(), CloseConnection(4100), None, "yes", [True]], ids=repr
)
async def test_permissions_that_fail_are_a_no(answer: object):
    async with stage(quiet=False, node=lambda settings: Node(settings, permissions=Nonsense(answer))) as on_stage:
        client = await on_stage.login()
        for type, fields in (
            ("join", {"channel": "c"}),
            ("publish", {"channel": "c", "data": 1}),
            ("broadcast", {"data": 1}),
        ):
            assert (await client.ask(type, **fields))["code"] == 103
        assert (await client.ask("ping"))["type"] == "pong"


@pytest.mark.parametrize("answer", [ZeroDivisionError(), asyncio.CancelledError(), "yes", 1, [True]], ids=repr)
async def test_an_authorize_that_fails_is_a_no(answer: object):
    handlers = Handlers()
    judge = Nonsense(answer)
    handlers.authorize(lambda client, action, name: judge.allows(client, action, name))
    async with stage(quiet=False, node=lambda settings: Node(settings, handlers=handlers)) as on_stage:
        client = await on_stage.login()
        assert (await client.ask("join", channel="c"))["code"] == 103
        assert (await client.ask("ping"))["type"] == "pong"
