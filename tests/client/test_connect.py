"""The client library against a scripted server: how it comes back, what it promises when a connection ends.

What needs a real node is in test_client_node.py.
"""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import uvloop

import starlight
from starlight import close_codes
from starlight.client.connect import Direct, Server, connect
from starlight.errors import ConnectFailed, ConnectionClosed, LoginRefused, RequestFailed
from tests.support import scripted_server as support_server
from tests.support.fakes import eventually
from tests.support.scripted_server import ScriptedServer

FAST = {"backoff_s": 0.01, "backoff_max_s": 0.05}


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with support_server.scripted_server() as running:
        yield running


class States:
    """What `on_state` was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int | None]] = []

    def __call__(self, state: str, code: int | None) -> None:
        self.seen.append((state, code))

    def names(self) -> list[str]:
        return [state for state, _ in self.seen]


async def test_opens_by_await_and_by_async_with(server: ScriptedServer) -> None:
    client = await starlight.connect(server.url, user="ada")
    assert (client.user, client.is_connected) == ("ada", True)
    assert client.name
    await client.close()
    assert not client.is_connected
    async with connect(server.url, user="bob") as other:
        assert other.user == "bob"
    assert not other.is_connected
    assert [command["user"] for command in server.seen("login")] == ["ada", "bob"]


@pytest.mark.parametrize("subprotocol", ["starlight.v1", "starlight.v1.lines"])
async def test_publications_arrive_in_order_on_both_subprotocols(server: ScriptedServer, subprotocol: str) -> None:
    async with (
        connect(server.url, user="ada", subprotocol=subprotocol) as client,
        client.join("news") as news,
    ):
        for number in range(100):
            await client.publish("news", number, ack=number % 2 == 0)
        assert [(await anext(news)).data for _ in range(100)] == list(range(100))


async def test_lines_of_one_frame_are_split(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada", subprotocol="starlight.v1.lines") as client:
        await server.push(*({"type": "direct", "from": "bob", "data": number} for number in range(3)))
        assert [(await anext(client)) for _ in range(3)] == [Direct(number, "bob") for number in range(3)]


async def test_a_newline_in_a_frame_of_v1_is_whitespace(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada") as client:
        for connection in server._channels:
            await connection.send('{"type":"server",\n"data":[1,\n2]}')
        assert await anext(client) == Server([1, 2])


async def test_messages_of_unknown_types_and_torn_ones_are_skipped(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada", subprotocol="starlight.v1.lines") as client:
        for connection in server._channels:
            await connection.send('{"type":"nova","x":1}\n{"type":"direct"}\n{"typ\n[]\n{"type":"server","data":1}')
        assert await anext(client) == Server(1)


async def test_callback_gets_messages_instead_of_the_iterator(server: ScriptedServer) -> None:
    got = []
    async with connect(server.url, user="ada", on_message=got.append) as client:
        await server.push({"type": "broadcast", "from": "bob", "data": None})
        await client.ping()
        assert [message.data for message in got] == [None]
        assert len(client._inbox) == 0


async def test_a_failing_callback_is_logged_and_nothing_else(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(message: object) -> None:
        raise ZeroDivisionError

    async with connect(server.url, user="ada", on_message=fail) as client:
        await server.push({"type": "server", "data": 1})
        await client.ping()
    assert "on_message failed" in caplog.text


async def test_a_refusal_is_an_exception_and_the_client_lives(server: ScriptedServer) -> None:
    server.refuse_joins_of.add("secret")
    async with connect(server.url, user="ada") as client:
        with pytest.raises(RequestFailed) as refused:
            await client.join("secret")
        assert (refused.value.code, refused.value.name) == (103, "permission_denied")
        assert await client.ping() >= 0


@pytest.mark.parametrize("code", [1001, 1006, 1011, 1012, 1013, 4000, 4008, 4011, 4014, 4015, 4016, 4499])
async def test_comes_back_and_joins_again(server: ScriptedServer, code: int) -> None:
    states = States()
    async with connect(server.url, user="ada", on_state=states, **FAST) as client, client.join("news") as news:
        first_name = client.name
        if code == 1006:
            server.drop_all()
        else:
            await server.close_all(code)
        await eventually(lambda: len(states.seen) > 1)
        receipt = await client.publish("news", "after")  # waits for the next connection, and comes after the join
        assert receipt is not None
        assert (await anext(news)).data == "after"
        assert client.name != first_name
    assert states.names() == ["connected", "reconnecting", "connected", "closed"]
    assert states.seen[1] == ("reconnecting", code)
    assert [command["type"] for command in server.commands[2:5]] == ["login", "join", "publish"]


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1007, 1008, 1009, 4500, 4501, 4502, 4503, 4507, 4509, 4999])
async def test_never_comes_back_after(server: ScriptedServer, code: int) -> None:
    states = States()
    async with connect(server.url, user="ada", on_state=states, **FAST) as client:
        news = await client.join("news")
        await server.close_all(code, "enough")
        await client.wait_closed()
        with pytest.raises(ConnectionClosed) as closed:
            await client.publish("news", 1)
        assert (closed.value.code, closed.value.reason) == (code, "enough")
        end = StopAsyncIteration if code == 1000 else ConnectionClosed
        for source in (news, client):
            with pytest.raises(end):
                await anext(source)
    assert states.seen == [("connected", None), ("closed", code)]
    assert server.opened == 1


async def test_a_refused_login_while_coming_back_is_the_end(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada", **FAST) as client:
        server.close_logins_with = close_codes.INVALID_TOKEN
        await server.close_all(4014)
        await client.wait_closed()
        with pytest.raises(ConnectionClosed, match="4500"):
            await client.ping()
    assert server.opened == 2


async def test_without_reconnect_a_loss_is_the_end(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada", reconnect=False) as client:
        server.drop_all()
        with pytest.raises(ConnectionClosed, match="1006"):
            await anext(client)
    assert server.opened == 1


async def test_survives_a_server_that_is_away_for_a_while(server: ScriptedServer) -> None:
    states = States()
    async with connect(server.url, user="ada", on_state=states, **FAST) as client, client.join("news") as news:
        await server.stop(1012)
        await eventually(lambda: len(states.seen) >= 4)
        await server.start()
        await client.publish("news", "back")
        assert (await anext(news)).data == "back"


async def test_what_was_under_way_fails_and_is_not_sent_again(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada", **FAST) as client:
        server.is_silent = True
        waiting = asyncio.create_task(client.publish("news", "once"))
        await eventually(lambda: server.seen("publish"))
        server.is_silent = False
        server.drop_all()
        with pytest.raises(ConnectionClosed):
            await waiting
        await client.ping()
        assert len(server.seen("publish")) == 1


async def test_a_request_times_out_and_its_late_reply_harms_nobody(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada") as client:
        server.is_silent = True
        with pytest.raises(TimeoutError, match=r"bid: no reply within 0\.05 s"):
            await client.request("bid", timeout_s=0.05)
        server.is_silent = False
        late = server.seen("bid")[0]["id"]
        await server.push({"type": "ok", "id": late, "data": 1})
        assert await client.ping() >= 0
        assert len(client._requests) == 0


async def test_a_join_nobody_waits_for_is_undone(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada", timeout_s=0.2) as client:
        server.is_silent = True
        with pytest.raises(TimeoutError):
            await client.join("news")
        server.is_silent = False
        await client.ping()
        assert [command["type"] for command in server.commands] == ["login", "join", "leave", "ping"]


async def test_a_channel_left_while_away_is_not_joined_again(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada", **FAST) as client:
        news, sport = await client.join("news"), await client.join("sport")
        await server.stop(1012)
        await eventually(lambda: not client.is_connected)
        await news.leave()
        await server.start()
        await client.ping()
        assert [command["channel"] for command in server.seen("join")] == ["news", "sport", "sport"]
        with pytest.raises(StopAsyncIteration):
            await anext(news)
        await client.publish("sport", 1)
        assert (await anext(sport)).data == 1


async def test_a_channel_refused_when_joining_again_ends_alone(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada", **FAST) as client:
        news, sport = await client.join("news"), await client.join("sport")
        server.refuse_joins_of.add("news")
        server.drop_all()
        with pytest.raises(RequestFailed, match="permission_denied"):
            await anext(news)
        await client.publish("sport", 1)
        assert (await anext(sport)).data == 1


async def test_a_token_function_is_asked_at_each_login(server: ScriptedServer) -> None:
    tokens = iter(["first", "second"])

    async def fetch() -> str:
        await asyncio.sleep(0)
        return next(tokens)

    async with connect(server.url, token=fetch, **FAST) as client:
        await server.close_all(4014)
        await client.ping()
        assert [command["token"] for command in server.seen("login")] == ["first", "second"]


async def test_a_token_function_that_fails_is_asked_again(server: ScriptedServer) -> None:
    answers = iter(["first", OSError("no network"), "third"])

    def fetch() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    states = States()
    async with connect(server.url, token=fetch, on_state=states, **FAST) as client:
        server.drop_all()
        await eventually(lambda: len(states.seen) > 1)
        await client.ping()
        assert [command["token"] for command in server.seen("login")] == ["first", "third"]


async def test_a_slow_reader_misses_the_oldest_and_is_told(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada") as client:
        news = await client.join("news", inbox_messages=10)
        for number in range(25):
            await client.publish("news", number)
        assert news.dropped_messages == 15
        got = [await anext(news) for _ in range(10)]
        assert [one.data for one in got] == list(range(15, 25))
        assert [one.missed for one in got] == [15] + [0] * 9


async def test_a_server_that_reads_nothing_holds_the_sender(server: ScriptedServer) -> None:
    """Without it, `ack=False` would fill the memory of this process."""
    async with connect(server.url, user="ada", timeout_s=0.2) as client:
        stalled = list(server._channels)
        for connection in stalled:
            connection.transport.pause_reading()
        data = b'"%b"' % (b"x" * 500_000)
        with pytest.raises(TimeoutError, match="nothing could be sent within"):
            for _ in range(100):
                await client.publish("news", data, ack=False)
        assert client._link is not None and client._link._transport is not None
        assert client._link._transport.underlying_transport.get_write_buffer_size() < 2 * len(data)
        for connection in stalled:
            connection.transport.resume_reading()
        assert await client.publish("news", 1) is not None


async def test_a_silent_server_is_noticed(server: ScriptedServer) -> None:
    states = States()
    deaf = socket.create_server(("127.0.0.1", 0))  # takes the TCP connection, and never says a word
    try:
        with pytest.raises(TimeoutError, match="not connected and logged in"):
            await connect(f"ws://127.0.0.1:{deaf.getsockname()[1]}/ws", user="ada", timeout_s=0.1)
    finally:
        deaf.close()
    async with connect(server.url, user="ada", keepalive_s=0.05, on_state=states, **FAST) as client:
        deaf_ones = list(server._channels)
        for connection in deaf_ones:
            connection.transport.pause_reading()  # so it answers no ping either
        await eventually(lambda: ("reconnecting", 1006) in states.seen)
        await client.ping()
        for connection in deaf_ones:
            connection.transport.abort()


async def test_connect_says_why_it_failed(server: ScriptedServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectFailed, match="nothing listens there"):
        await connect(f"ws://127.0.0.1:{port}/ws", user="ada")
    with pytest.raises(ConnectFailed, match="not a WebSocket URL"):
        await connect("http:/nowhere", user="ada")
    server.close_logins_with = 4501
    with pytest.raises(LoginRefused) as refused:
        await connect(server.url, user="ada")
    assert (refused.value.code, refused.value.reason) == (4501, "as scripted")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"garbage\r\n\r\n"])
async def test_what_is_no_websocket_server_is_a_failed_connect(answer: bytes) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    listener = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with listener:
        with pytest.raises(ConnectFailed):
            await connect(f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}/ws", user="ada")


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="either user or token"):
        connect("ws://127.0.0.1/ws")
    with pytest.raises(ValueError, match="either user or token"):
        connect("ws://127.0.0.1/ws", user="ada", token="t")
    with pytest.raises(ValueError, match="subprotocol='v0'"):
        connect("ws://127.0.0.1/ws", user="ada", subprotocol="v0")


async def test_close_ends_everything_and_may_be_called_twice(server: ScriptedServer) -> None:
    client = await connect(server.url, user="ada")
    news = await client.join("news")
    readers = [asyncio.create_task(_read_all(source)) for source in (news, client)]
    await asyncio.sleep(0)
    await client.close()
    await client.close()
    assert await asyncio.gather(*readers) == [[], []]
    with pytest.raises(ConnectionClosed):
        await client.publish("news", 1, ack=False)


async def test_closing_while_away_stops_the_attempts(server: ScriptedServer) -> None:
    client = await connect(server.url, user="ada", backoff_s=60.0, backoff_max_s=60.0)
    await server.stop(1012)
    await eventually(lambda: not client.is_connected)
    await client.close()
    await client.wait_closed()
    assert server.opened == 1


async def test_bye_delays_the_next_attempt(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada", **FAST) as client:
        await server.push({"type": "bye", "code": 1001, "reason": "drain;retry=70", "retry_ms": 70})
        await client.ping()
        assert client._backoff.asked_s == 0.07


def test_works_on_uvloop() -> None:
    states = States()

    async def talk() -> object:
        async with (
            support_server.scripted_server() as server,
            connect(server.url, user="ada", on_state=states, **FAST) as client,
            client.join("news") as news,
        ):
            server.drop_all()
            await eventually(lambda: len(states.seen) > 1)
            await client.publish("news", b'{"exact": 1.0}')
            return (await anext(news)).data

    assert uvloop.run(talk()) == {"exact": 1.0}


async def _read_all(source: object) -> list[object]:
    return [message async for message in source]  # type: ignore[attr-defined]


# --- the end is final -------------------------------------------------------------------------------------------------


async def test_a_close_that_is_given_up_is_a_close(server: ScriptedServer) -> None:
    """The server does not answer the close frame, and the caller has less time than the close would take."""
    states = States()
    client = await connect(server.url, user="ada", on_state=states)
    news = await client.join("news")
    for connection in server.connections:
        connection.transport.pause_reading()
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0.05)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert states.names() == ["connected", "closed"]
    with pytest.raises(StopAsyncIteration):
        await anext(news)
    with pytest.raises(ConnectionClosed):
        await client.ping()
    for connection in server.connections:
        connection.transport.resume_reading()
    await eventually(lambda: not server.connections)


async def test_a_first_connection_that_fails_leaves_nothing_behind(server: ScriptedServer) -> None:
    """The server says that the login ends, before it has answered it."""
    before = asyncio.all_tasks()
    server.silent_about = {"login"}
    opening = asyncio.create_task(_open(server.url))
    await eventually(lambda: server.seen("login"))
    for connection in server.connections:
        await connection.send('{"type":"expiring","seconds":86400}')
    await eventually(lambda: any("_renew" in repr(task) for task in asyncio.all_tasks()))
    for connection in server.connections:
        await connection.close(4501)
    with pytest.raises(LoginRefused):
        await opening
    await eventually(lambda: not any("starlight/client" in repr(task) for task in asyncio.all_tasks() - before))


async def _open(url: str) -> object:
    return await connect(url, token=lambda: "token")
