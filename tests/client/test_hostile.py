"""Both clients against servers that say anything, and networks and token functions that take their time."""

import asyncio
import base64
import contextlib
import gc
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

import starlight
from starlight import close_codes
from starlight.client.backoff import ASKED_LIMIT_S
from starlight.client.connect import Server, connect
from starlight.client.credentials import RENEWALS_LIMIT
from starlight.errors import (
    ConnectFailed,
    ConnectionClosed,
    MessageTooBig,
    ReplyUnreadable,
    RequestFailed,
)
from tests.support import scripted_server as support_server
from tests.support.fakes import eventually
from tests.support.scripted_server import ScriptedServer
from tests.support.tokens import SECRET, token

FAST = {"backoff_s": 0.01, "backoff_max_s": 0.05}
DEEP = b"[" * 100_000
ODD = [
    b"",
    b"null",
    b"5",
    b'"x"',
    b"[]",
    b"{}",
    b"\x00",
    DEEP,
    b'{"type":null}',
    b'{"type":["a"]}',
    b'{"type":"nova","x":' + DEEP,
    b'{"type":"ok","id":' + DEEP,
    b'{"type":"ok","id":{"a":1}}',
    b'{"type":"ok","id":1e400}',
    b'{"type":"ok","id":%b}' % (b"9" * 5_000),
    b'{"type":"error"}',
    b'{"type":"error","id":[],"code":{}}',
    b'{"type":"welcome"}',
    b'{"type":"welcome","user":"mallory","id":-1}',
    b'{"type":"publication"}',
    b'{"type":"publication","channel":5,"data":1}',
    b'{"type":"publication","channel":"none","data":1}',
    b'{"type":"direct","data":1e400}',
    b'{"type":"expiring","seconds":"x"}',
    b'{"type":"expiring","seconds":1%b}' % (b"0" * 400),
    b'{"type":"bye","code":"x","retry_ms":{}}',
    b'{"type":"bye","retry_ms":1%b}' % (b"0" * 400),
    b'{"type":"gap","channel":"a","from":"x"}',
    b'{"type":"joined"}',
]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with support_server.scripted_server() as running:
        yield running


@pytest.fixture(autouse=True)
def no_loop_errors(caplog: pytest.LogCaptureFixture) -> Any:
    """Nothing reaches the loop's exception handler, nor picows' log of a listener that raised."""
    with caplog.at_level(logging.DEBUG):
        yield
    assert [record for record in caplog.records if record.name in ("asyncio", "picows") and record.levelno >= 40] == []


class States(list[tuple[str, int | None]]):
    def __call__(self, state: str, code: int | None) -> None:
        self.append((state, code))


# --- what a server says ----------------------------------------------------------------------------------------------


async def test_nothing_a_server_says_ends_the_client(server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    states = States()
    async with connect(server.url, user="ada", on_state=states) as client, client.join("news") as news:
        for message in ODD:
            await server.push_text(message)
        await server.push({"type": "server", "data": "still here"})
        assert await anext(client) == Server("still here")
        await client.publish("news", 1)
        assert (await anext(news)).data == 1
        assert client.unreadable_messages > 15
        assert client.user == "ada"
        assert caplog.text.count("that cannot be read") == 1
    assert states == [("connected", None), ("closed", 1000)]


@pytest.mark.parametrize(
    "reply",
    [
        b'{"type":"ok","id":%d,"data":1e400}',
        b'{"type":"ok","id":%d,"data":' + DEEP + b"]" * len(DEEP) + b"}",
        b'{"type":"ok","data":' + DEEP + b"]" * len(DEEP) + b',"id":%d}',
        b'{"type":"ok","id":%d,"data":' + b"9" * 5_000 + b"}",
        b'{"type":"ok","id":%d,"users":5}',
        b'{"type":"error","id":%d}',
    ],
)
async def test_a_reply_that_python_cannot_hold_fails_its_request_at_once(server: ScriptedServer, reply: bytes) -> None:
    async with connect(server.url, user="ada", timeout_s=60) as client:
        server.is_silent = True
        asking = asyncio.create_task(client.request("bid"))
        await eventually(lambda: server.seen("bid"))
        await server.push_text(reply.replace(b"%d", str(server.seen("bid")[0]["id"]).encode()))
        with pytest.raises(ReplyUnreadable, match="cannot be read"):
            async with asyncio.timeout(20):
                await asking
        assert client.unreadable_messages == 1


async def test_a_publication_that_python_cannot_hold_is_missed_by_its_channel() -> None:
    """A real node passes on what another client wrote in valid JSON."""
    app = starlight.Starlight(port=0, drain_timeout_s=2)
    async with app.serve() as node, connect(node.url, user="ada") as client, client.join("news") as news:
        for data in (b"1e400", b'{"a":[-1e400]}', b"9" * 5_000):
            await client._tell(b'{"type":"publish","channel":"news","data":%b}' % data)
        await client.publish("news", "readable")
        publication = await anext(news)
        assert (publication.data, publication.missed) == ("readable", 3)
        assert client.unreadable_messages == 3


@pytest.mark.parametrize("retry", [-(10**9), 10**15, 1e308, "soon", None, [], True])
async def test_any_retry_is_held_to_a_minute(
    server: ScriptedServer, retry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    original = asyncio.sleep

    async def sleep(seconds: float, *more: Any) -> None:
        waits.append(seconds)
        await original(0)

    states = States()
    async with connect(server.url, user="ada", on_state=states, **FAST) as client:
        monkeypatch.setattr(asyncio, "sleep", sleep)
        await server.push({"type": "bye", "code": 1012, "reason": "", "retry_ms": retry})
        await server.close_all(1012, retry_ms=retry)
        async with asyncio.timeout(20):
            await client.ping()
        monkeypatch.undo()
    assert ("reconnecting", 1012) in states
    assert all(0 <= wait <= ASKED_LIMIT_S + FAST["backoff_max_s"] for wait in waits)
    if retry in (10**15, 1e308):
        assert max(waits) >= ASKED_LIMIT_S


async def test_a_server_that_says_expiring_again_and_again_is_not_obeyed(server: ScriptedServer) -> None:
    asked = 0

    def fetch() -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise OSError("the token service is away")
        return "first"

    async with connect(server.url, token=fetch) as client:
        for _ in range(200):
            await server.push({"type": "expiring", "seconds": -(10**9)})
        await client.ping()
        await server.push({"type": "expiring", "seconds": 0})
        await client.ping()
        assert asked <= 1 + RENEWALS_LIMIT


@pytest.mark.parametrize("welcome", [{"ping": 0, "pong": -1}, {"ping": 1e308}, {"limits": "x", "previous": [1]}])
async def test_an_odd_welcome_is_survived(server: ScriptedServer, welcome: dict[str, Any]) -> None:
    server.welcome = welcome
    async with connect(server.url, user="ada") as client:
        assert await client.ping() >= 0
        assert client.previous is None


async def test_a_welcome_that_is_none_is_no_login(server: ScriptedServer) -> None:
    server.welcome = {"type": "ok"}
    with pytest.raises(ConnectFailed, match="something else than a welcome"):
        await connect(server.url, user="ada")
    server.welcome = {"user": 5}
    with pytest.raises(ReplyUnreadable):
        await connect(server.url, user="ada")


# --- what a server sends below the messages ----------------------------------------------------------------------


FRAMES = {
    "close with a torn reason": b"\x88\x04\x00\x00\xff\xfe",
    "close of one byte": b"\x88\x01\x03",
    "large ping": b"\x89\x7e\x13\x88" + b"x" * 5_000,
    "masked": b"\x81\x85\0\0\0\0hello",
    "reserved bits": b"\xf3\x01x",
    "a length of 63 bits": b"\x81\x7f\x7f" + b"\xff" * 7,
    "a length of 64 bits": b"\x81\x7f" + b"\xff" * 8,
    "binary": b"\x82\x01x",
    "a continuation of nothing": b"\x80\x01x",
}


@asynccontextmanager
async def raw_server(
    act: Callable[[asyncio.StreamWriter], Awaitable[None]], gone: asyncio.Event | None = None, **welcome: Any
) -> AsyncIterator[str]:
    """Welcomes whoever comes, then does as it is told with the first connection's bytes. Gives its URL.

    gone: is set when a connection has ended.
    """
    opened = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        is_first = opened == 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            key = re.search(r"(?i)sec-websocket-key: *(\S+)", head)
            assert key is not None
            accept = base64.b64encode(hashlib.sha1(f"{key[1]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: %b\r\nSec-WebSocket-Protocol: starlight.v1\r\n\r\n" % accept
            )
            await reader.read(4096)
            for id in (1, 2):  # whichever login it is of this client
                text = json.dumps({"type": "welcome", "id": id, "user": "ada", **welcome}).encode()
                writer.write(b"\x81" + bytes([len(text)]) + text)
            if is_first:
                await act(writer)
            await reader.read()
        writer.close()
        if gone is not None:
            gone.set()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listener:
        yield f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}/ws"


async def test_a_message_in_fragments_cut_inside_a_character_is_one_message() -> None:
    text = '{"type":"server","data":"κό"}'.encode()

    async def act(writer: asyncio.StreamWriter) -> None:
        for at in range(len(text)):
            opcode = (0x80 if at == len(text) - 1 else 0) | (0 if at else 1)
            writer.write(bytes((opcode, 1, text[at])) + b"\x89\x00")  # and a ping between

    gone = asyncio.Event()
    async with raw_server(act, gone) as url:
        async with connect(url, user="ada", **FAST) as client:
            assert (await asyncio.wait_for(anext(client), 10)).data == "κό"
        await asyncio.wait_for(gone.wait(), 10)


@pytest.mark.parametrize("name", FRAMES)
async def test_frames_against_the_rules_raise_nothing(name: str) -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(FRAMES[name])

    states = States()
    async with raw_server(act) as url:
        try:
            client = await connect(url, user="ada", on_state=states, **FAST)
        except ConnectFailed:  # it came together with the welcome
            client = await connect(url, user="ada", on_state=states, **FAST)
        else:
            await eventually(lambda: len(states) > 1 and states[-1][0] != "reconnecting")
        await client.close()
    gc.collect()
    await asyncio.sleep(0)
    assert errors == []


# --- what the application says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"nope", b"", b'"\xff"', b"1 2"])
async def test_bytes_that_are_no_json_fail_at_once(server: ScriptedServer, data: bytes) -> None:
    async with connect(server.url, user="ada", timeout_s=60) as client:
        for ack in (True, False):
            with pytest.raises(ValueError, match="not JSON"):
                await client.publish("news", data, ack=ack)
        with pytest.raises(ValueError, match="not JSON"):
            await client.request("bid", data)
        await client.ping()
        assert [command["type"] for command in server.commands] == ["login", "ping"]


async def test_one_message_over_the_limit_is_refused_here_and_nothing_else_is_lost() -> None:
    app = starlight.Starlight(port=0, drain_timeout_s=2)
    states = States()
    async with (
        app.serve() as node,
        connect(node.url, user="ada", on_state=states) as client,
        client.join("news") as news,
    ):
        small, large, presence = await asyncio.gather(
            client.publish("news", "small"),
            client.publish("news", "x" * 70_000),
            client.presence("news"),
            return_exceptions=True,
        )
        assert isinstance(large, MessageTooBig)
        assert large.limit_bytes == 65_536 < large.size_bytes
        assert not isinstance(small, BaseException) and not isinstance(presence, BaseException)
        with pytest.raises(MessageTooBig):
            await client.publish("news", "x" * 70_000, ack=False)
        fits = b'{"type":"publish","id":999,"channel":"news","data":""}'
        await client.publish("news", "x" * (65_536 - len(fits)))
        assert (await anext(news)).data == "small"
        assert states == [("connected", None)]


# --- tokens ----------------------------------------------------------------------------------------------------------


async def test_no_socket_is_open_while_a_token_is_fetched() -> None:
    """The node gives a login 0.3 s, the token takes longer: at the first login, and when the client comes back."""
    states, gate, asked = States(), asyncio.Event(), 0

    async def fetch() -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            await gate.wait()
        return token("ada", iss=None, aud=None, jti=f"t{asked}")

    app = starlight.Starlight(port=0, drain_timeout_s=2, auth="jwt", jwt_secret=SECRET, login_timeout_s=0.3)
    async with app.serve() as first:
        client = await connect(first.url, token=fetch, on_state=states, **FAST)
        port = first.port
    async with app.serve(port=port) as second, client:  # another run has another key for its sessions
        await eventually(lambda: asked == 2)
        await eventually(lambda: second.connections == 0)
        await asyncio.sleep(0.5)
        assert second.connections == 0
        gate.set()
        await eventually(lambda: states[-1] == ("connected", None))
        assert second.acceptor.counts.refused[4015] == 0


@pytest.mark.parametrize("code", [4015, 4016])
async def test_a_login_timeout_and_the_connection_limit_are_tried_again(server: ScriptedServer, code: int) -> None:
    states = States()
    async with connect(server.url, user="ada", on_state=states, **FAST) as client, client.join("news") as news:
        server.close_logins_with = code
        server.drop_all()
        await eventually(lambda: states.count(("reconnecting", code)) > 1)
        server.close_logins_with = None
        await client.publish("news", "back")
        assert (await anext(news)).data == "back"


async def test_the_limit_of_a_user_lets_who_waits_in_when_there_is_room() -> None:
    app = starlight.Starlight(port=0, drain_timeout_s=2, connections_per_user=1)
    states = States()
    async with app.serve() as node:
        client = await connect(node.url, user="ada", on_state=states, **FAST)
        [own] = list(node.hub.clients())
        own.connection.close(4011)
        other = None
        for _ in range(200):
            try:
                other = await connect(node.url, user="ada")
                break
            except starlight.errors.LoginRefused as error:  # the first one was back already
                assert error.code == close_codes.CONNECTION_LIMIT
                [own] = list(node.hub.clients())
                own.connection.close(4011)
        assert other is not None
        await eventually(lambda: ("reconnecting", 4016) in states)
        await other.close()
        await eventually(lambda: states[-1] == ("connected", None))
        await client.close()


@pytest.mark.parametrize("given", [OSError("away"), 5, None, asyncio.CancelledError(), TimeoutError()])
async def test_a_token_that_fails_is_asked_for_again(server: ScriptedServer, given: Any) -> None:
    answers = iter(["first", given, given, "second"])

    async def fetch() -> Any:
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async with connect(server.url, token=fetch, **FAST) as client:
        server.drop_all()
        await eventually(lambda: len(server.seen("login")) == 2)
        await client.ping()
        assert [command["token"] for command in server.seen("login")] == ["first", "second"]


async def test_a_token_that_fails_behind_a_session_that_is_refused(server: ScriptedServer) -> None:
    answers = iter(["first", OSError("away"), OSError("away"), "second"])

    def fetch() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    server.session = "a session"
    async with connect(server.url, token=fetch, **FAST) as client:
        server.refuse_tokens.add("a session")
        server.drop_all()
        await eventually(lambda: len(server.seen("login")) == 3)
        await client.ping()
        assert [command["token"] for command in server.seen("login")] == ["first", "a session", "second"]


# --- close is final --------------------------------------------------------------------------------------------------


async def test_close_while_a_token_is_fetched_is_final(server: ScriptedServer) -> None:
    fetching, release = asyncio.Event(), asyncio.Event()
    asked = 0

    async def fetch() -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            fetching.set()
            for _ in range(3):  # one that won't be cancelled
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
        return "token"

    states = States()
    client = await connect(server.url, token=fetch, on_state=states, timeout_s=0.2, **FAST)
    server.drop_all()
    await fetching.wait()
    await client.close()
    with pytest.raises(ConnectionClosed):
        await client.ping()
    release.set()
    assert client._supervisor is not None
    await eventually(client._supervisor.done)
    assert (len(server.seen("login")), server.opened) == (1, 1)
    assert [state for state, _ in states] == ["connected", "reconnecting", "closed"]


async def test_the_token_function_itself_may_close_the_client(server: ScriptedServer) -> None:
    clients = []

    async def fetch() -> str:
        if clients:
            await clients[0].close()
        return "token"

    client = await connect(server.url, token=fetch, **FAST)
    clients.append(client)
    server.drop_all()
    await eventually(lambda: client._closed is not None)
    assert client._supervisor is not None
    await eventually(client._supervisor.done)
    assert server.opened == 1


async def test_close_while_it_waits_to_come_back_and_while_it_connects(server: ScriptedServer) -> None:
    client = await connect(server.url, user="ada", backoff_s=60, backoff_max_s=60)
    server.drop_all()
    await eventually(lambda: not client.is_connected)
    await client.close()
    states = States()
    client = await connect(server.url, user="ada", on_state=states, **FAST)
    server.is_silent = True  # the login is never answered
    server.drop_all()
    await eventually(lambda: len(server.seen("login")) == 3)
    await client.close()
    await eventually(lambda: not server.connections)
    assert server.opened == 3
    assert states[-1] == ("closed", 1000)


# --- coming back -----------------------------------------------------------------------------------------------------


async def test_six_hundred_channels_survive_a_loss_on_a_node_with_rates() -> None:
    """The default rate is 200 messages a second; 600 joins at once would end with 4013."""
    app = starlight.Starlight(port=0, drain_timeout_s=2, message_rate=200, byte_rate_bytes=2**20)
    states = States()
    async with app.serve() as node, connect(node.url, user="ada", on_state=states, **FAST) as client:
        reply = await client._ask("join", channels=[{"channel": f"c{number}"} for number in range(200)])
        assert len(reply.channels) == 200
        channels = [client.join(f"c{number}") for number in range(600)]
        for number, channel in enumerate(channels):
            channel._enter()  # as if joined one by one, in more time than a test has
            assert client._channels[f"c{number}"] is channel
        for _ in range(3):
            n_states = len(states)
            [own] = list(node.hub.clients())
            own.connection.close(4011)
            await eventually(lambda n=n_states: len(states) == n + 2 and states[-1] == ("connected", None))
            [own] = list(node.hub.clients())
            await eventually(lambda one=own: len(one.channels) == 600)
        await client.publish("c599", "there")
        assert (await anext(channels[599])).data == "there"
        assert node.hub.counts.errors[111] == 0
        assert not any(channel.inbox._is_ended for channel in channels)


async def test_a_rate_while_joining_again_is_waited_for(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("starlight.client.rejoin.RETRY_S", 0.02)
    async with connect(server.url, user="ada", **FAST) as client:
        channels = [await client.join(f"c{number}") for number in range(5)]
        server.answer_joins_with = [111, 111]
        server.refuse_joins_once = {"c1": 111, "c2": 103}
        server.drop_all()
        await eventually(lambda: not client.is_connected)
        await client.ping()
        await eventually(lambda: server.joined == {"c0", "c1", "c3", "c4"})
        for number in (0, 1, 3, 4):
            await client.publish(f"c{number}", number)
            assert (await anext(channels[number])).data == number
        with pytest.raises(RequestFailed, match="permission_denied"):
            await anext(channels[2])


async def test_a_channel_left_while_it_waits_to_be_joined_again_stays_left(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("starlight.client.rejoin.RETRY_S", 0.02)
    async with connect(server.url, user="ada", **FAST) as client:
        await client.join("a"), await client.join("b")
        server.answer_joins_with = [111] * 3
        server.drop_all()
        await eventually(lambda: not client.is_connected)
        await client.ping()
        await client.leave("b")
        await eventually(lambda: server.joined == {"a"})
        assert client._rejoining is not None
        await eventually(client._rejoining.done)
        assert server.joined == {"a"}


async def test_it_names_the_connection_before_and_hears_how_that_ended(server: ScriptedServer) -> None:
    async with connect(server.url, user="ada", **FAST) as client:
        assert client.previous is None
        first = client.name
        ended = {"code": 4008, "reason": "slow consumer", "at": 1_700_000_000_000, "more": 1}
        server.welcome = {"previous": ended}
        server.drop_all()
        await eventually(lambda: client.name != first)
        assert client.previous == ended
        assert [login.get("previous") for login in server.seen("login")] == [None, first]


@pytest.mark.parametrize("is_pinging", [False, True])
async def test_a_silent_line_is_given_up_by_what_the_welcome_says(server: ScriptedServer, is_pinging: bool) -> None:
    """A network that swallows everything: no close comes, and none is waited for."""
    server.welcome = {"ping": 0.2, "pong": 0.2}
    states = States()
    async with connect(server.url, user="ada", on_state=states, **FAST) as client:
        swallowed = list(server.connections)
        for connection in swallowed:
            connection.transport.pause_reading()
        if is_pinging:
            waiting = asyncio.create_task(client.ping())
            with pytest.raises(ConnectionClosed):
                await waiting
        await eventually(lambda: ("reconnecting", 1006) in states)
        await client.ping()
        for connection in swallowed:
            connection.transport.abort()


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_line_that_carries_a_large_message_slowly_is_kept(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Its frame is whole only after a time in which the line would be given up."""
    frame = b'{"type":"server","data":"slow"%b}' % (b" " * 1_000)
    frame = b"\x81\x7e" + len(frame).to_bytes(2) + frame

    async def trickle(writer: asyncio.StreamWriter) -> None:
        for start in range(0, len(frame), 25):
            writer.write(frame[start : start + 25])
            await asyncio.sleep(0.1)

    async def play() -> None:
        states = States()
        async with (
            raw_server(trickle, ping=0.4, pong=0.4) as url,
            connect(url, user="ada", on_state=states) as client,
        ):
            assert await anext(client) == Server("slow")
            assert states == [("connected", None)]

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(play())


async def test_a_line_on_which_the_server_answers_pings_is_kept(server: ScriptedServer) -> None:
    server.welcome = {"ping": 0.2, "pong": 1.5}
    states = States()
    async with connect(server.url, user="ada", on_state=states) as client:
        await asyncio.sleep(3)  # longer than both, and nobody says a word
        assert states == [("connected", None)]
        assert client.is_connected
