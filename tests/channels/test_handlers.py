"""starlight.channels.handlers, as the hub calls them: replies, failures, order, threads, and the refusal of logins."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import orjson
import pytest

from starlight.channels.client import Client
from starlight.channels.handlers import BUILT_IN_TYPES, Handlers
from starlight.errors import CloseConnection, LoginRefused, RequestError
from tests.support.fakes import PairConnection, Stage, eventually


class Play(Stage):
    """A stage with handlers to register on."""

    def __init__(self, **options: Any) -> None:
        self.handlers = Handlers(**options)
        super().__init__(handlers=self.handlers)

    def login(self, user: str, **fields: Any) -> Any:
        """Log in by hand: the client, an awaitable of it, or the close code of the refusal."""
        connection = self.connection()
        try:
            pending = self.hub.login(connection, orjson.dumps({"type": "login", "user": user, **fields}))
        except CloseConnection as end:
            return end.code
        return connection.client if pending is None else logged_in(connection, pending)


@pytest.fixture
async def play() -> AsyncIterator[Play]:
    play = Play()
    yield play
    play.close()
    play.handlers.close()


async def logged_in(connection: PairConnection, pending: Awaitable[None]) -> Client | None:
    await pending
    return connection.client


async def refused(login: Any) -> int:
    with pytest.raises(CloseConnection) as end:
        await login
    return end.value.code


# --- registration ----------------------------------------------------------------------------------------------------


def test_built_in_types_are_those_of_the_protocol():
    assert {"login", "publish", "direct", "ping", "history", "refresh"} <= BUILT_IN_TYPES
    assert len(BUILT_IN_TYPES) == 10


@pytest.mark.parametrize("type", ["", *sorted(BUILT_IN_TYPES)])
def test_types_of_the_protocol_cannot_be_handled(type: str):
    with pytest.raises(ValueError, match="not a message type"):
        Handlers().on(type)(print)


def test_a_type_has_one_handler_and_async_ones_need_no_thread():
    handlers = Handlers()
    handlers.on("bid")(print)
    with pytest.raises(ValueError, match="already has the handler"):
        handlers.on("bid")(repr)

    async def wait(client: Client, data: object) -> None: ...

    with pytest.raises(TypeError, match="thread=True"):
        handlers.on("wait", thread=True)(wait)
    with pytest.raises(ValueError, match="positive"):
        handlers.every(0)


def test_decorators_return_the_function_itself():
    handlers = Handlers()
    decorators = [handlers.on("a"), handlers.every(1), handlers.on_login, handlers.on_connect, handlers.on_disconnect]
    for decorate in decorators:
        assert decorate(print) is print


# --- replies ---------------------------------------------------------------------------------------------------------


async def test_the_return_value_is_the_replys_data(play: Play):
    @play.handlers.on("add")
    def add(client: Client, data: Any) -> Any:
        return {"user": client.user, "sum": sum(data)}

    ann = play.member("ann")
    assert ann.ask("add", data=[1, 2]) == {"type": "ok", "data": {"user": "ann", "sum": 3}}
    ann.say("add", data=[1, 2])
    assert ann.heard() == []


@dataclasses.dataclass
class Item:
    name: str
    until: datetime.date


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (None, None),
        (0, 0),
        ("", ""),
        ([], []),
        (Item("x", datetime.date(2026, 1, 2)), {"name": "x", "until": "2026-01-02"}),
    ],
)
async def test_what_handlers_may_return(play: Play, value: object, data: object):
    play.handlers.on("get")(lambda client, _: value)
    assert play.member("ann").ask("get") == {"type": "ok", "data": data}


async def test_data_is_parsed_and_none_if_missing(play: Play):
    seen: list[Any] = []
    play.handlers.on("see")(lambda client, data: seen.append(data))
    ann = play.member("ann")
    for fields in ({}, {"data": None}, {"data": {"a": [1.5, "é"]}}):
        ann.say("see", **fields)
    assert seen == [None, None, {"a": [1.5, "é"]}]


async def test_data_that_python_cannot_hold_is_107(play: Play):
    play.handlers.on("see")(lambda client, data: data)
    ann = play.member("ann")
    play.hub.commands.receive(ann.client, b'{"type":"see","id":1,"data":1e999}')
    assert [message["code"] for message in ann.heard()] == [107]


async def test_fields_of_the_protocol_are_the_applications_in_its_own_types(play: Play):
    play.handlers.on("mine")(lambda client, data: data)
    assert play.member("ann").ask("mine", data=1, key="k", channel=5, user=[], since=0)["data"] == 1


async def test_an_exception_is_100_with_a_logged_traceback_and_the_connection_stays(
    play: Play, caplog: pytest.LogCaptureFixture
):
    @play.handlers.on("fail")
    def fail(client: Client, data: object) -> None:
        raise ZeroDivisionError("secret")

    ann = play.member("ann")
    for _ in range(30):  # never counts as a fault of the client
        reply = ann.ask("fail")
        assert (reply["code"], reply["name"]) == (100, "internal")
        assert "secret" not in reply["message"]
    assert "fail failed" in caplog.text
    assert "ZeroDivisionError: secret" in caplog.text


async def test_what_json_cannot_express_is_100(play: Play, caplog: pytest.LogCaptureFixture):
    play.handlers.on("get")(lambda client, data: object())
    assert play.member("ann").ask("get")["code"] == 100
    assert "JSON cannot express" in caplog.text


async def test_a_request_error_is_the_reply_it_describes_and_a_close_closes(play: Play):
    @play.handlers.on("bid")
    def bid(client: Client, data: Any) -> None:
        if data is None:
            raise CloseConnection(4503)
        raise RequestError(data, "too low")

    ann = play.member("ann")
    assert ann.ask("bid", data=103) == {"type": "error", "code": 103, "name": "permission_denied", "message": "too low"}
    assert ann.ask("bid", data=1042)["code"] == 1042
    assert ann.close_code("bid") == 4503


async def test_a_handler_may_publish_and_its_reply_comes_after(play: Play):
    @play.handlers.on("bid")
    def bid(client: Client, data: Any) -> str:
        play.hub.push_to_channel("lot", b"1")
        client.send("thanks")
        return "done"

    ann = play.member("ann")
    ann.ask("join", channel="lot")
    ann.say("bid", id=1)
    assert [message["type"] for message in ann.heard()] == ["publication", "server", "ok"]


async def test_a_handler_that_holds_the_loop_is_logged_by_name(caplog: pytest.LogCaptureFixture):
    now_ns = 0

    def clock_ns() -> int:
        return now_ns

    play = Play(clock_ns=clock_ns)

    @play.handlers.on("work")
    def work(client: Client, data: int) -> None:
        nonlocal now_ns
        now_ns += data * 1_000_000
        if data == 70:
            raise ValueError

    ann = play.member("ann")
    ann.ask("work", data=50)
    assert "held the loop" not in caplog.text
    ann.ask("work", data=51)
    assert "work held the loop for 51 ms" in caplog.text
    ann.ask("work", data=70)
    assert "held the loop for 70 ms" in caplog.text
    play.close()


async def test_each_slow_step_of_a_coroutine_is_logged_by_name_with_what_helps(caplog: pytest.LogCaptureFixture):
    now_ns = 0

    def work_ms(number: int) -> None:
        nonlocal now_ns
        now_ns += number * 1_000_000

    play = Play(clock_ns=lambda: now_ns)

    @play.handlers.on("steps")
    async def steps(client: Client, data: list[int]) -> str:
        for number in data:
            work_ms(number)
            await asyncio.sleep(0)
        return "done"

    @play.handlers.on("late")
    async def late(client: Client, data: object) -> None:
        try:
            await asyncio.sleep(600)
        finally:
            work_ms(77)

    async def call(type: str, data: object) -> object:
        handler = play.handlers.get(type)
        assert handler is not None
        return await handler.call(None, data)

    assert await call("steps", [50, 40, 30]) == "done"
    assert "held the loop" not in caplog.text
    assert await call("steps", [10, 61, 10, 62]) == "done"
    lines = [line for line in caplog.text.splitlines() if "held the loop" in line]
    assert ["steps held the loop for 61 ms" in line for line in lines] == [True, False]
    assert "steps held the loop for 62 ms" in lines[1]
    assert "asyncio.to_thread" in lines[0] and "make it async" not in lines[0]
    task = asyncio.ensure_future(call("late", None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "late held the loop for 77 ms" in caplog.text
    play.close()


async def test_a_timed_coroutine_is_one_in_every_respect():
    handlers = Handlers()

    async def work(client: object, data: object) -> object:
        try:
            return await asyncio.wait_for(asyncio.sleep(600 if data == "late" else 0, data), 0.01)
        except TimeoutError:
            return "timed out"

    handlers.on("work")(work)
    handler = handlers.get("work")
    assert handler is not None
    assert await handler.call(None, "quick") == "quick"
    assert await asyncio.create_task(handler.call(None, "late")) == "timed out"
    never_begun = asyncio.create_task(handler.call(None, "never"))
    never_begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await never_begun
    dropped = handler.call(None, "dropped")
    assert dropped.__qualname__ == work.__qualname__ and dropped.cr_frame is not None
    dropped.close()
    assert dropped.cr_frame is None


async def test_an_authorize_hook_that_holds_the_loop_is_logged(caplog: pytest.LogCaptureFixture):
    now_ns = 0

    def look_up(client: object, action: str, name: str) -> bool:
        nonlocal now_ns
        now_ns += 80_000_000
        return True

    handlers = Handlers(clock_ns=lambda: now_ns)
    handlers.authorize(look_up)
    assert handlers.authorizer is not None and handlers.authorizer(None, "join", "c") is True
    assert "look_up held the loop for 80 ms" in caplog.text and "in memory" in caplog.text


# --- async and threads -----------------------------------------------------------------------------------------------


async def test_an_async_handler_replies_when_it_is_done(play: Play):
    @play.handlers.on("wait")
    async def wait(client: Client, data: Any) -> Any:
        await asyncio.sleep(0)
        return data

    ann = play.member("ann")
    pending = ann.say("wait", data=5, id=1)
    assert ann.heard() == []
    await pending
    assert ann.heard() == [{"type": "ok", "id": 1, "data": 5}]


async def test_a_function_that_returns_a_future_is_awaited(play: Play):
    future = asyncio.get_running_loop().create_future()
    play.handlers.on("later")(lambda client, data: future)
    ann = play.member("ann")
    pending = ann.say("later", id=1)
    future.set_result("now")
    await pending
    assert ann.heard() == [{"type": "ok", "id": 1, "data": "now"}]


@pytest.mark.parametrize(
    ("failure", "code"),
    [(KeyError("x"), 100), (RequestError(103), 103), (asyncio.CancelledError(), 100), (TimeoutError(), 100)],
)
async def test_failures_of_async_handlers_are_replies_too(play: Play, failure: BaseException, code: int):
    @play.handlers.on("fail")
    async def fail(client: Client, data: object) -> None:
        await asyncio.sleep(0)
        raise failure

    ann = play.member("ann")
    await ann.say("fail", id=1)
    assert [message["code"] for message in ann.heard()] == [code]


def test_a_cancelled_future_is_a_failure_of_the_function_that_asks_it(play: Play, caplog: pytest.LogCaptureFixture):
    """`asyncio.CancelledError` is no `Exception`: out of a function it would end the connection, or stay half-way."""

    def fail(*args: object) -> None:
        raise asyncio.CancelledError

    play.handlers.on_connect(fail)
    play.handlers.on_disconnect(fail)
    play.handlers.on("fail")(fail)
    ann = play.member("ann")
    ann.say("fail", id=1)
    assert [message["code"] for message in ann.heard()] == [100]
    ann.leave_hub()
    assert len([record for record in caplog.records if record.exc_info]) == 3
    play.handlers.on_login(fail)
    assert play.login("bob") == 1011


async def test_an_async_handler_may_close_the_connection(play: Play):
    @play.handlers.on("quit")
    async def quit(client: Client, data: object) -> None:
        raise CloseConnection(4503)

    with pytest.raises(CloseConnection) as end:
        await play.member("ann").say("quit")
    assert end.value.code == 4503


async def test_cancelling_a_handler_from_outside_cancels_it(play: Play):
    @play.handlers.on("wait")
    async def wait(client: Client, data: object) -> None:
        await asyncio.sleep(60)

    task = asyncio.ensure_future(play.member("ann").say("wait", id=1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_thread_handlers_run_elsewhere_and_their_reply_comes_from_the_loop(play: Play):
    names: list[str] = []

    @play.handlers.on("block", thread=True)
    def block(client: Client, data: Any) -> Any:
        names.append(threading.current_thread().name)
        if data == "fail":
            raise OSError("gone")
        return data

    ann = play.member("ann")
    await ann.say("block", data=1, id=1)
    await ann.say("block", data="fail", id=2)
    first, second = ann.heard()
    assert first == {"type": "ok", "id": 1, "data": 1}
    assert (second["id"], second["code"]) == (2, 100)
    assert all(name.startswith("starlight-handler") for name in names)


async def test_close_says_whether_threads_are_still_under_way(play: Play):
    begun, go_on = threading.Event(), threading.Event()

    @play.handlers.on("block", thread=True)
    def block(client: Client, data: object) -> None:
        begun.set()
        go_on.wait(10)

    pending = asyncio.ensure_future(play.member("ann").say("block"))
    await eventually(begun.is_set)
    assert play.handlers.close() is True
    go_on.set()
    await pending
    assert play.handlers.close() is False


# --- connect and disconnect ------------------------------------------------------------------------------------------


async def test_connect_and_disconnect_are_told_in_order_and_once(play: Play):
    events: list[tuple[str, str]] = []
    play.handlers.on_connect(lambda client: events.append(("in", client.user)))
    play.handlers.on_disconnect(lambda client: events.append(("out", client.user)))
    play.handlers.on_disconnect(lambda client: events.append(("out again", client.user)))
    ann = play.member("ann")
    ann.leave_hub()
    play.hub.disconnect(ann.client)
    assert events == [("in", "ann"), ("out", "ann"), ("out again", "ann")]


async def test_on_connect_comes_after_the_welcome_and_may_push(play: Play):
    play.handlers.on_connect(lambda client: client.send("hello"))
    client = play.login("ann")
    assert [message["type"] for message in client.connection.messages()] == ["welcome", "server"]
    play.hub.disconnect(client)


async def test_on_disconnect_finds_the_client_gone_and_may_publish(play: Play):
    seen: list[tuple[list[str], int]] = []

    @play.handlers.on_disconnect
    def gone(client: Client) -> None:
        seen.append((client.channels, play.hub.push_to_channel("room", orjson.dumps(client.user))))

    ann, bob = play.member("ann"), play.member("bob")
    for member in (ann, bob):
        member.ask("join", channel="room")
    ann.leave_hub()
    assert seen == [([], 1)]
    assert [message["data"] for message in bob.heard()] == ["ann"]


async def test_failing_hooks_are_logged_and_hurt_nobody(play: Play, caplog: pytest.LogCaptureFixture):
    def fail(client: Client) -> None:
        raise ZeroDivisionError

    async def fail_later(client: Client) -> None:
        raise ZeroDivisionError

    done: list[str] = []
    play.handlers.on_connect(fail)
    play.handlers.on_disconnect(fail)
    play.handlers.on_disconnect(fail_later)
    play.handlers.on_disconnect(lambda client: done.append(client.user))
    ann = play.member("ann")
    assert ann.ask("ping") == {"type": "pong"}
    ann.leave_hub()
    await eventually(lambda: done == ["ann"])
    assert caplog.text.count("Traceback") == 3


async def test_an_async_on_connect_comes_after_the_welcome(play: Play):
    go_on = asyncio.Event()

    @play.handlers.on_connect
    async def greet(client: Client) -> None:
        await go_on.wait()
        client.send("ready")

    connection = play.connection()
    pending = play.hub.login(connection, b'{"type":"login","user":"ann"}')
    assert pending is not None and connection.client is not None
    assert [message["type"] for message in connection.messages()] == ["welcome"]
    go_on.set()
    await pending
    assert [message["type"] for message in connection.messages()] == ["server"]
    play.hub.disconnect(connection.client)


async def test_who_goes_during_on_connect_is_out_at_once_and_on_disconnect_comes_after_it(play: Play):
    events: list[str] = []
    go_on = asyncio.Event()

    @play.handlers.on_connect
    async def greet(client: Client) -> None:
        await go_on.wait()
        events.append("in")

    play.handlers.on_disconnect(lambda client: events.append("out"))
    connection = play.connection()
    pending = play.hub.login(connection, b'{"type":"login","user":"ann"}')
    assert pending is not None and connection.client is not None
    play.hub.disconnect(connection.client)
    assert play.hub.counters()["clients"] == 0
    assert events == []
    go_on.set()
    await pending
    assert events == ["in", "out"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_on_connect_may_close_the_connection(play: Play, is_async: bool):
    def greet(client: Client) -> None:
        raise CloseConnection(4503)

    async def greet_later(client: Client) -> None:
        raise CloseConnection(4503)

    play.handlers.on_connect(greet_later if is_async else greet)
    connection = play.connection()
    with pytest.raises(CloseConnection) as end:
        pending = play.hub.login(connection, b'{"type":"login","user":"ann"}')
        assert is_async and pending is not None
        await pending
    assert end.value.code == 4503
    assert connection.client is not None
    play.hub.disconnect(connection.client)


async def test_an_async_on_disconnect_that_never_ends_is_cancelled(caplog: pytest.LogCaptureFixture):
    play = Play(disconnect_timeout_s=0.05)
    ended: list[str] = []

    @play.handlers.on_disconnect
    async def gone(client: Client) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(client.user)

    play.member("ann").leave_hub()
    await eventually(lambda: ended == ["ann"])
    await eventually(lambda: "on_disconnect of" in caplog.text)


@pytest.mark.parametrize(
    "error",
    [RequestError(4, "\ud800"), RequestError(10**40, "x"), RequestError(4, b"x")],
    ids=["surrogate", "code", "type"],
)  # type: ignore[arg-type]
async def test_an_error_that_cannot_be_told_is_an_internal_one(
    play: Play, error: RequestError, caplog: pytest.LogCaptureFixture
):
    def fail(client: Client, data: object) -> None:
        raise error

    play.handlers.on("fail")(fail)
    ann = play.member("ann")
    assert ann.ask("fail")["code"] == 100
    assert "failed" in caplog.text


async def test_on_disconnect_waits_for_the_handler_that_is_under_way(play: Play):
    events: list[str] = []
    go_on = asyncio.Event()
    play.handlers.on_disconnect(lambda client: events.append("out"))

    @play.handlers.on("wait")
    async def wait(client: Client, data: object) -> None:
        await go_on.wait()
        events.append("handled")

    ann = play.member("ann")
    pending = asyncio.ensure_future(ann.say("wait", id=1))
    await asyncio.sleep(0)
    ann.leave_hub()
    assert events == []
    assert play.hub.counters()["clients"] == 0
    go_on.set()
    await pending
    assert events == ["handled", "out"]


async def test_settle_waits_for_async_on_disconnect_and_cancels_what_is_late(play: Play):
    events: list[str] = []

    @play.handlers.on_disconnect
    async def out(client: Client) -> None:
        try:
            await asyncio.sleep(0.01 if client.user == "quick" else 60)
            events.append(client.user)
        except asyncio.CancelledError:
            events.append("late")
            raise

    for user in ("quick", "slow"):
        play.member(user).leave_hub()
    await play.handlers.settle(0.5)
    await eventually(lambda: events == ["quick", "late"])
    await play.handlers.settle(0.5)


# --- on_login --------------------------------------------------------------------------------------------------------


async def test_on_login_sees_the_whole_login_and_comes_before_the_welcome(play: Play):
    @play.handlers.on_login
    def check(client: Client, login: dict[str, Any]) -> bool:
        assert not client.is_connected
        client.data["role"] = "admin"
        return login["password"] == "pw"

    assert play.login("ann", password="wrong") == 4500
    client = play.login("ann", password="pw")
    assert client.data == {"role": "admin"}
    assert client.is_connected
    play.hub.disconnect(client)


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (LoginRefused(4500), 4500),
        (LoginRefused(4503, "banned"), 4503),
        (CloseConnection(4505), 4505),
        (RequestError(101), 4500),
        (KeyError("password"), 1011),
    ],
)
async def test_on_login_refuses_by_raising(play: Play, refusal: Exception, code: int, caplog: pytest.LogCaptureFixture):
    def check(client: Client, login: object) -> None:
        raise refusal

    async def check_later(client: Client, login: object) -> None:
        await asyncio.sleep(0)
        if client.user == "later":
            raise refusal
        check(client, login)

    play.handlers.on_connect(lambda client: pytest.fail("a refused login was let in"))
    play.handlers.on_login(check_later)
    play.handlers.on_login(check)
    assert await refused(play.login("later")) == code
    assert await refused(play.login("now")) == code
    assert play.hub.counters()["clients"] == 0
    assert ("KeyError" in caplog.text) == (code == 1011)


async def test_a_sync_refusal_needs_no_task(play: Play):
    play.handlers.on_login(lambda client, login: False)
    assert play.login("ann") == 4500


async def test_a_login_that_waits_for_nothing_makes_no_task(play: Play):
    seen: list[str] = []
    play.handlers.on_login(lambda client, login: seen.append("checked"))
    play.handlers.on_connect(lambda client: seen.append("in"))
    play.handlers.on("ask")(lambda client, data: data)
    before = asyncio.all_tasks()
    ann = play.member("ann")
    assert ann.ask("ask", data=1) == {"type": "ok", "data": 1}
    assert (seen, asyncio.all_tasks()) == (["checked", "in"], before)


async def test_a_function_that_awaits_runs_in_a_task_of_its_own(play: Play):
    """`asyncio.timeout` needs one, and it must not be the caller's."""
    tasks: list[asyncio.Task[Any] | None] = []

    async def wait(*_: object) -> None:
        tasks.append(asyncio.current_task())
        async with asyncio.timeout(10):
            await asyncio.sleep(0)

    play.handlers.on_login(wait)
    play.handlers.on_connect(wait)
    play.handlers.on("wait")(wait)
    play.handlers.on_disconnect(wait)
    pending = play.hub.login(connection := play.connection(), b'{"type":"login","user":"ann"}')
    assert pending is not None
    await asyncio.ensure_future(pending)
    assert connection.client is not None
    pending = play.hub.commands.receive(connection.client, b'{"type":"wait"}')
    assert pending is not None
    await asyncio.ensure_future(pending)
    play.hub.disconnect(connection.client)
    await eventually(lambda: len(tasks) == 4)
    assert None not in tasks and asyncio.current_task() not in tasks


async def test_a_client_that_its_on_connect_ends_has_its_on_disconnect_behind_it(play: Play):
    events: list[str] = []

    @play.handlers.on_connect
    def end(client: Client) -> None:
        play.hub.disconnect(client)  # as its connection does when it is closed
        events.append("in")

    play.handlers.on_disconnect(lambda client: events.append("out"))
    play.login("ann")
    assert events == ["in", "out"]


async def test_a_client_that_its_handler_ends_has_its_on_disconnect_behind_it(play: Play):
    events: list[str] = []

    @play.handlers.on("end")
    def end(client: Client, data: object) -> None:
        play.hub.disconnect(client)
        events.append("handled")

    play.handlers.on_disconnect(lambda client: events.append("out"))
    assert play.member("ann").say("end") is None
    assert events == ["handled", "out"]


async def test_an_async_false_refuses_and_anything_else_accepts(play: Play):
    @play.handlers.on_login
    async def check(client: Client, login: dict[str, Any]) -> object:
        return login.get("answer")

    assert await refused(play.login("ann", answer=False)) == 4500
    for answer in (None, True, 0, ""):
        play.hub.disconnect(await play.login("ann", answer=answer))


async def test_a_connection_that_is_gone_when_the_check_is_done_is_not_let_in(play: Play):
    go_on = asyncio.Event()

    @play.handlers.on_login
    async def check(client: Client, login: object) -> None:
        await go_on.wait()

    connection = play.connection()
    pending = play.hub.login(connection, b'{"type":"login","user":"ann"}')
    connection.destroy()
    go_on.set()
    await refused(pending)
    assert play.hub.counters()["clients"] == 0


def test_slow_handlers_are_found_with_a_real_clock(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        play = Play()
        play.handlers.on("nap")(lambda client, data: time.sleep(0.06))
        play.member("ann").ask("nap")
        play.close()
    assert "held the loop" in caplog.text
