"""The client library: ``starlight.connect(url, user=…)`` logs in, sends, receives, and comes back after a loss.

::

    async with starlight.connect("ws://127.0.0.1:8765/ws", user="ada") as client:
        async with client.join("news") as news:
            await client.publish("news", {"title": "hi"})
            async for publication in news:
                print(publication.from_user, publication.data)

How it works: a `Link` is one WebSocket connection. Its messages are dispatched as they are read and nothing waits
there: replies go to the request with their id, publications to the inbox of their channel, the rest to the inbox of the
client. A supervisor task waits for the link to end and, where the close code allows it, opens the next one.

Tokens: give a function instead of a string, and the connection outlives them::

    starlight.connect("wss://example.org/ws", token=ask_my_backend_for_a_token)

It is called for the first login, before the socket is opened, and when the server says that the login ends soon; the
new token is then sent on the open connection (`StarlightClient.refresh`). After a loss the client comes back with the
session that the server gave it, and with a fresh token where the session is not accepted any more.

Law: no request is ever sent twice. What was under way when a link ended raises `ConnectionClosed`, and its fate is
unknown; what is asked while there is no connection waits for the next one, within its own timeout. All is bounded.

Works on asyncio's own loop and on uvloop. A client belongs to the loop it was opened on and is not thread-safe.
"""

import asyncio
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Final, Literal, NamedTuple, Self

from starlight import close_codes
from starlight.client.backoff import Backoff
from starlight.client.channel import JoinedChannel
from starlight.client.credentials import Credentials, Token
from starlight.client.inbox import Inbox
from starlight.client.link import Closed, Link
from starlight.client.rejoin import Rejoin
from starlight.client.requests import Requests
from starlight.errors import (
    ClientError,
    ConnectFailed,
    ConnectionClosed,
    LoginRefused,
    MessageTooBig,
    ReplyUnreadable,
    RequestFailed,
)
from starlight.protocols.native import client as wire
from starlight.protocols.native.client import (
    NO_DATA,
    Broadcast,
    Direct,
    Expiring,
    Gap,
    Joined,
    Left,
    Message,
    Publication,
    Server,
)
from starlight.protocols.native.lines import SUBPROTOCOLS, V1

__all__ = [
    "Broadcast",
    "ChannelPresence",
    "Direct",
    "Expiring",
    "Gap",
    "Joined",
    "JoinedChannel",
    "Left",
    "Message",
    "Publication",
    "Receipt",
    "Server",
    "StarlightClient",
    "State",
    "Token",
    "connect",
]

log = logging.getLogger("starlight.client.connect")

EXPIRING_LIMIT_S: Final = 86_400.0
"""The longest time that a server's `expiring` is believed to leave: a day."""

CLOSE_TIMEOUT_S: Final = 2.0
"""How long `close` waits for the server's close frame, and for a token function that won't be cancelled."""

State = Literal["connected", "reconnecting", "closed"]
"""What `on_state` is told."""


class Receipt(NamedTuple):
    """What an acknowledged publish comes back with."""

    subscribers: int
    """How many subscribers it went to."""
    scope: str
    """Where they were counted: ``node``, this node alone."""
    offset: int | None
    """Its place in the channel; None in a channel without history."""


class ChannelPresence(NamedTuple):
    """Who is in a channel."""

    users: list[str]
    """At most `limit` of them."""
    clients: int
    """All their clients, counted."""


class _Options(NamedTuple):
    """The arguments of `connect`, which documents them."""

    user: str | None
    token: Token | None
    subprotocol: str
    reconnect: bool
    timeout_s: float
    backoff_s: float
    backoff_max_s: float
    keepalive_s: float
    max_message_bytes: int
    inbox_messages: int
    inbox_bytes: int
    max_requests: int
    tls: ssl.SSLContext | None
    on_message: Callable[[Message], None] | None
    on_state: Callable[[State, int | None], None] | None


class connect:  # in lower case, as it is used like a function
    """Connect and log in: ``client = await connect(url, …)`` or ``async with connect(url, …) as client:``.

    Args:
        url: such as ``ws://127.0.0.1:8765/ws`` or ``wss://…``.
        user: who to log in as, for a server with ``--auth none``.
        token: what to log in with, for any other. A function (or coroutine function) is called whenever a fresh one is
            needed: for the first login, when the login ends soon (with a third of the time left as jitter, so that not
            all clients ask at once), and to come back when the session is refused. It may take 60 s, no socket is open
            meanwhile, and when it fails it is asked again with backoff, but for the first login. With a string the
            client says `Expiring`, and it is up to its owner to call `refresh`; otherwise the login ends with 4014.
        subprotocol: ``starlight.v1``, or ``starlight.v1.lines``, where the server merges what it coalesces.
        reconnect: whether to come back after a close whose code allows it (`close_codes.reconnect_policy`; never on
            4500-4999). The first connection is never tried twice.
        timeout_s: for opening a connection and logging in (the token aside), and for the reply to a request. 10: the
            server's own patience with a write.
        backoff_s: the first delay before a reconnect is between 0 and this, doubling with each attempt. 0.25.
        backoff_max_s: the upper limit of that doubling. 30: a node that is away for long finds its clients within it.
        keepalive_s: after this long without anything from the server the client pings, and without an answer within
            10 s the connection counts as lost; earlier, after the `ping` and `pong` seconds that the server names
            together. 30: a little more than the server's own ping interval, so it rarely happens.
        max_message_bytes: a longer message ends the connection with 1009. 16 MiB: more than any default server sends.
        inbox_messages: how many messages wait for a slow reader, per joined channel and for the client itself, before
            the oldest are dropped (and counted in ``missed`` of the next one). 1,024: four times the server's outbox.
        inbox_bytes: the same in bytes. 4 MiB, likewise.
        max_requests: requests under way at once; more wait their turn. 1,024.
        tls: for ``wss://``, instead of the default context.
        on_message: called with each direct, broadcast, server push and so on, at once and in order; they then don't
            go to the client's iterator. It must not block; an exception is logged.
        on_state: called with ``connected``, ``reconnecting`` and ``closed``, and the close code that led there or None.

    Raises (when awaited):
        ConnectFailed: no connection, or no Starlight server.
        LoginRefused: the server closed it instead of welcoming the login.
        Exception: what the token function raised.
        TimeoutError: neither happened in time.
        ValueError: an argument is not allowed.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        token: Token | None = None,
        subprotocol: str = V1,
        reconnect: bool = True,
        timeout_s: float = 10.0,
        backoff_s: float = 0.25,
        backoff_max_s: float = 30.0,
        keepalive_s: float = 30.0,
        max_message_bytes: int = 16 << 20,
        inbox_messages: int = 1024,
        inbox_bytes: int = 4 << 20,
        max_requests: int = 1024,
        tls: ssl.SSLContext | None = None,
        on_message: Callable[[Message], None] | None = None,
        on_state: Callable[[State, int | None], None] | None = None,
    ) -> None:
        if (user is None) == (token is None):
            raise ValueError("connect() needs either user or token")
        if subprotocol not in SUBPROTOCOLS:
            raise ValueError(f"subprotocol={subprotocol!r}: expected one of {', '.join(SUBPROTOCOLS)}")
        self._url = url
        self._options = _Options(
            user=user,
            token=token,
            subprotocol=subprotocol,
            reconnect=reconnect,
            timeout_s=timeout_s,
            backoff_s=backoff_s,
            backoff_max_s=backoff_max_s,
            keepalive_s=keepalive_s,
            max_message_bytes=max_message_bytes,
            inbox_messages=inbox_messages,
            inbox_bytes=inbox_bytes,
            max_requests=max_requests,
            tls=tls,
            on_message=on_message,
            on_state=on_state,
        )
        self._client: StarlightClient | None = None

    def __await__(self) -> Generator[Any, None, "StarlightClient"]:
        return self._open().__await__()

    async def __aenter__(self) -> "StarlightClient":
        self._client = await self._open()
        return self._client

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()

    async def _open(self) -> "StarlightClient":
        client = StarlightClient(self._url, self._options)
        await client._start()  # noqa: SLF001  # theirs alone, in one module
        return client


class StarlightClient:
    """A logged-in client; made by `connect`. Iterate over it for what is sent to this user, outside of channels.

    The iteration ends when the client is closed, and raises `ConnectionClosed` if the server ended it for good.

    Attributes:
        user: who the server says this is.
        name: the server's name for this connection; another one after a reconnect.
        node: the name that this run of the node has for clients.
        previous: how the connection before this one ended, as the server remembers it: a dict with ``code``, ``reason``
            and ``at``. None if it doesn't, and on the first connection.
        unreadable_messages: how many messages of the server were dropped because Python can't hold them: JSON numbers
            out of range, deep nesting, fields of a wrong type, no JSON at all. The first one is logged. A publication
            among them also counts in ``missed`` of the next one of its channel.
    """

    def __init__(self, url: str, options: _Options) -> None:
        self.user = options.user or ""
        self.name = ""
        self.node = ""
        self.previous: dict[str, Any] | None = None
        self.unreadable_messages = 0
        self._url = url
        self._options = options
        self._credentials = Credentials(options.user, options.token)
        self._renewal: asyncio.Task[None] | None = None
        self._rejoining: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._sendable = asyncio.Event()  # connected and the kernel takes more; or closed, to wake who waits
        self._is_ready = False
        self._is_writable = True
        self._closed: ConnectionClosed | None = None
        self._is_closing = False
        self._requests: Requests[Link, wire.Ok] = Requests()
        self._slots = asyncio.Semaphore(options.max_requests)
        self._channels: dict[str, JoinedChannel] = {}
        self._inbox: Inbox[Message] = self._new_inbox()
        self._backoff = Backoff(options.backoff_s, options.backoff_max_s)
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether there is a logged-in connection at this moment."""
        return self._is_ready

    @property
    def expires(self) -> int | None:
        """When the login ends, in Unix seconds; None if it does not."""
        return self._credentials.expires

    @property
    def dropped_messages(self) -> int:
        """How many messages to this client, channels aside, were dropped because nobody read them in time."""
        return self._inbox.dropped_messages

    async def publish(self, channel: str, data: object, *, ack: bool = True) -> Receipt | None:
        """Send `data` to every subscriber of a channel.

        Args:
            channel: 1-255 bytes of ``A-Z a-z 0-9 _ - . : / @ #``.
            data: anything orjson can encode; ``bytes`` are JSON already, are checked and sent as they are.
            ack: wait for the server's reply. Without it the call returns once the message was handed over, None, and
                a refusal is only logged.

        Raises:
            RequestFailed: the server refused it.
            ConnectionClosed: the connection ended before the reply; whether it was published is unknown.
            TimeoutError: no connection, or no reply, in time.
            ReplyUnreadable: the reply is nothing that Python can hold.
            MessageTooBig: the server doesn't take messages of this size; it was not sent.
            TypeError, ValueError: `data` is not JSON; nothing was sent.
        """
        if not ack:
            await self._tell(wire.encode("publish", channel=channel, data=data))
            return None
        reply = await self._ask("publish", channel=channel, data=data)
        return Receipt(reply.subscribers, reply.scope, reply.offset)

    async def direct(self, user: str, data: object, *, ack: bool = True) -> int | None:
        """Send `data` to every client of a user; returns how many they are, or None without `ack`.

        Raises: as `publish`; RequestFailed 120 ``not_connected`` if nobody of that user is there.
        """
        if not ack:
            await self._tell(wire.encode("direct", to=user, data=data))
            return None
        return (await self._ask("direct", to=user, data=data)).clients

    async def broadcast(self, data: object, *, ack: bool = True) -> int | None:
        """Send `data` to every client of the node, this one included; returns how many, or None without `ack`.

        Raises: as `publish`.
        """
        if not ack:
            await self._tell(wire.encode("broadcast", data=data))
            return None
        return (await self._ask("broadcast", data=data)).clients

    async def request(self, type: str, data: object = None, *, timeout_s: float | None = None) -> Any:
        """Ask the application's handler of `type`; returns what it returned.

        Raises: as `publish`; RequestFailed 104 ``unknown_type`` if there is no such handler.
        """
        return (await self._ask(type, data=data, timeout_s=timeout_s)).data

    async def presence(self, channel: str, *, limit: int | None = None) -> ChannelPresence:
        """Who is in a channel: at most `limit` users (100 if None, at most 1,000), and the number of all clients.

        Raises: as `publish`.
        """
        reply = await self._ask("presence", channel=channel, limit=limit)
        return ChannelPresence(reply.users, reply.clients)

    async def refresh(self, token: str) -> int | None:
        """Renew the login with a new token, on the open connection; returns when it ends now, in Unix seconds.

        Needed only where `connect` was given a string, which `token` then replaces. If the new token no longer allows a
        channel that is joined, the server closes with 4011 and the client comes back without it.

        Raises: as `publish`; RequestFailed 101 or 109 for a token that is not accepted (the present login goes on), 108
            on a server without tokens.
        """
        reply = await self._ask("refresh", token=token)
        self._credentials.renew(token, reply.session, reply.expires)
        return reply.expires

    async def ping(self) -> float:
        """Ask for a pong through the whole server; returns the round trip in seconds.

        Raises: as `publish`.
        """
        start_s = time.perf_counter()
        await self._ask("ping")
        return time.perf_counter() - start_s

    def join(self, channel: str, *, inbox_messages: int | None = None) -> "JoinedChannel":
        """Join a channel: await it, enter it with ``async with`` (which leaves at the end), or iterate over it.

        Args:
            channel: its name.
            inbox_messages: instead of the client's own limit.

        Raises (when awaited): as `publish`; RequestFailed 105 ``already_joined``.
        """
        inbox = self._new_inbox(inbox_messages)
        return JoinedChannel(self, channel, inbox, joined=self._channels, ask=self._ask, undo_join=self._undo_join)

    async def leave(self, channel: str) -> None:
        """Leave a channel; its iteration ends after what had come. Leaving one that was not joined is no error.

        Raises: as `publish`.
        """
        joined = self._channels.pop(channel, None)  # at once: nothing more of it is wanted, nor joining it again
        if joined is not None:
            joined.inbox.end()
        if self._is_ready:
            await self._ask("leave", channel=channel)

    async def close(self) -> None:
        """Close the connection and stop; iterations end. Final in any state: also while a token is being fetched, while
        the client waits to reconnect, and while it connects. May be called more than once."""
        self._is_closing = True
        self._cancel_tasks()
        supervisor = self._supervisor
        if supervisor is not None and supervisor is not asyncio.current_task():  # the token function may close it, too
            supervisor.cancel()
            await asyncio.wait([supervisor], timeout=min(CLOSE_TIMEOUT_S, self._options.timeout_s))
        if self._link is not None:
            await self._link.close(timeout_s=min(CLOSE_TIMEOUT_S, self._options.timeout_s))
        self._finish(Closed(close_codes.NORMAL, "closed by the caller"))

    async def wait_closed(self) -> None:
        """Return when the client has ended for good, by `close` or by the server."""
        if self._supervisor is not None:
            await asyncio.wait([self._supervisor])

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        return await self._inbox.get()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Opening and reopening.

    async def _start(self) -> None:
        await self._open()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"starlight client {self.user}")

    async def _open(self) -> None:
        """One attempt; a second one at once if nothing was wrong but the session."""
        try:
            await self._open_link()
        except LoginRefused as error:
            if not self._credentials.drop_session(error.code):
                raise
            await self._open_link()

    async def _open_link(self) -> None:
        """Get what to log in with, connect, log in, join again."""
        options = self._options
        fields = await self._credentials.login()  # before the socket: the server gives a login only seconds
        if self._is_closing:
            raise ConnectionClosed(close_codes.NORMAL, "closed by the caller")
        link = Link(self._receive, self._set_writable, self._lost, options.max_message_bytes)
        try:
            async with asyncio.timeout(options.timeout_s):
                await link.open(self._url, options.subprotocol, options.tls)
                self._link = link
                welcome = await self._login(link, fields)
            link.watch(welcome.ping, welcome.pong, options.keepalive_s)
            rejoin = self._make_rejoin(link, welcome)
            await rejoin.round(within_s=options.timeout_s)
        except TimeoutError:
            link.abort()
            raise TimeoutError(f"{self._url}: not connected and logged in within {options.timeout_s:g} s") from None
        except BaseException:
            link.abort()
            raise
        if link.closed.done():
            raise ConnectFailed(f"{self._url}: closed with {link.closed.result().code} after the login")
        self._backoff.opened()
        self._is_ready = True
        self._update_sendable()
        if not rejoin.is_done:
            self._rejoining = asyncio.create_task(self._rejoin_rest(link, rejoin))
        self._tell_state("connected", None)

    async def _login(self, link: Link, fields: dict[str, Any]) -> wire.Welcome:
        try:
            await self._exchange(link, "login", **fields, previous=self.name or None)
        except ConnectionClosed as error:
            if error.code == close_codes.ABNORMAL:
                raise ConnectFailed(f"{self._url}: the connection was lost during the login") from error
            raise LoginRefused(error.code, error.reason) from error
        if link.welcome is None:
            raise ConnectFailed(f"{self._url}: the server answered the login with something else than a welcome")
        return link.welcome

    def _make_rejoin(self, link: Link, welcome: wire.Welcome) -> Rejoin:
        async def ask(fields: dict[str, Any]) -> wire.Ok:
            async with asyncio.timeout(self._options.timeout_s):
                return await self._exchange(link, "join", **fields)

        def leave(channel: str) -> None:
            if not self._is_ready:  # otherwise `leave` has told the server itself
                link.send(wire.encode("leave", channel=channel))

        def refuse(channel: str, error: ClientError) -> None:
            self._channels.pop(channel).inbox.end(error)

        return Rejoin(
            self._channels,
            ask=ask,
            leave=leave,
            refuse=refuse,
            message_rate=welcome.limit_of("message_rate"),
            byte_rate=welcome.limit_of("byte_rate"),
            message_bytes=welcome.limit_of("message_bytes"),
        )

    async def _rejoin_rest(self, link: Link, rejoin: Rejoin) -> None:
        """What the first round has left, beside the application's requests."""
        try:
            await rejoin.rounds()
        except ConnectionClosed:
            pass  # the next connection begins anew
        except (ClientError, TimeoutError) as error:
            log.warning("joining again failed, so the connection is given up: %s", error or "no reply")
            link.abort()

    async def _supervise(self) -> None:
        """Until the end: wait for the link to be lost, and open another one where the close code allows it."""
        closed = Closed(close_codes.INTERNAL, "the client failed")
        try:
            while self._link is not None:
                closed = await asyncio.shield(self._link.closed)
                while not self._is_ready:
                    if self._is_closing:
                        return
                    policy = close_codes.reconnect_policy(closed.code)
                    if policy == "never" or not self._options.reconnect:
                        return
                    self._tell_state("reconnecting", closed.code)
                    await asyncio.sleep(self._backoff.delay_s(policy))
                    closed = await self._reopen(closed)
        finally:
            if not self._is_closing:  # otherwise `close` has the last word
                self._finish(closed)

    async def _reopen(self, closed: Closed) -> Closed:
        """One attempt; returns what the next decision is based on."""
        try:
            await self._open()
        except LoginRefused as error:
            return Closed(error.code, error.reason)
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            log.warning("reconnecting failed: the token function was cancelled")
        except (ClientError, TimeoutError) as error:
            log.info("reconnecting failed: %s", error)
        except Exception:  # a token function that raised: the application's fault, and it may recover
            log.exception("reconnecting failed")
        link = self._link
        if link is not None and link.welcome is not None and link.closed.done():  # while it joined again, say
            return link.closed.result()
        return closed

    def _lost(self, link: Link, closed: Closed) -> None:
        """A link has ended: what was under way on it fails."""
        self._requests.fail_all(link, ConnectionClosed(closed.code, closed.reason))
        if link is not self._link:
            return  # an attempt that was given up before
        if self._is_ready:
            self._backoff.lost()
        self._is_ready = False
        self._is_writable = True
        if self._rejoining is not None:
            self._rejoining.cancel()
        if closed.code == close_codes.SESSION_EXPIRED:
            self._credentials.drop_session(closed.code)
        self._update_sendable()

    def _finish(self, closed: Closed) -> None:
        """The end, for everyone who waits."""
        if self._closed is not None:
            return
        self._closed = ConnectionClosed(closed.code, closed.reason)
        self._is_ready = False
        self._cancel_tasks()
        self._sendable.set()
        error = None if closed.code == close_codes.NORMAL else self._closed
        self._inbox.end(error)
        for joined in self._channels.values():
            joined.inbox.end(error)
        self._channels.clear()
        self._tell_state("closed", closed.code)

    def _cancel_tasks(self) -> None:
        """Those that work for a connection: there will be none any more."""
        for task in (self._renewal, self._rejoining):
            if task is not None and task is not asyncio.current_task():
                task.cancel()

    # Sending.

    async def _ask(
        self,
        type: str,
        *,
        data: object = NO_DATA,
        timeout_s: float | None = None,
        on_ok: Callable[[], None] | None = None,
        **fields: Any,
    ) -> wire.Ok:
        """Send a request on the current connection, or on the next one, and wait for its reply."""
        timeout_s = self._options.timeout_s if timeout_s is None else timeout_s
        payload = None if data is NO_DATA else wire.encode_data(data)
        try:
            async with asyncio.timeout(timeout_s), self._slots:
                link = await self._usable_link()
                return await self._exchange(link, type, payload, on_ok=on_ok, **fields)
        except TimeoutError:
            raise TimeoutError(f"{type}: no reply within {timeout_s:g} s") from None

    async def _tell(self, message: bytes) -> None:
        """Send a message that asks for no reply."""
        if self._sendable.is_set() and self._link is not None and self._closed is None:
            return self._send(self._link, message)  # the usual case, without a timer
        try:
            async with asyncio.timeout(self._options.timeout_s):
                return self._send(await self._usable_link(), message)
        except TimeoutError:
            raise TimeoutError(f"nothing could be sent within {self._options.timeout_s:g} s") from None

    def _undo_join(self, channel: str) -> None:
        """Nobody waits for this join any more, but the server may still carry it out."""
        if self._is_ready and self._link is not None and channel not in self._channels:
            self._link.send(wire.encode("leave", channel=channel))

    async def _exchange(
        self,
        link: Link,
        type: str,
        payload: bytes | None = None,
        *,
        on_ok: Callable[[], None] | None = None,
        **fields: Any,
    ) -> wire.Ok:
        """One request and its reply, on this link."""
        if link.closed.done():
            raise ConnectionClosed(*link.closed.result())
        request = self._requests.add(link, on_ok)
        try:
            self._send(link, wire.splice(type, request.id, payload, **fields))
            return await request.reply
        finally:
            self._requests.remove(request)

    def _send(self, link: Link, message: bytes) -> None:
        """Hand one message over, unless the server would end the connection for its size."""
        limit_bytes = None if link.welcome is None else link.welcome.limit_of("message_bytes")
        if limit_bytes is not None and len(message) > limit_bytes:
            raise MessageTooBig(len(message), limit_bytes)
        link.send(message)

    async def _usable_link(self) -> Link:
        """The current link, as soon as it is logged in and takes more bytes."""
        while True:
            if self._closed is not None:
                raise ConnectionClosed(self._closed.code, self._closed.reason)
            if self._sendable.is_set() and self._link is not None:
                return self._link
            await self._sendable.wait()

    def _set_writable(self, is_writable: bool) -> None:
        self._is_writable = is_writable
        self._update_sendable()

    def _update_sendable(self) -> None:
        if (self._is_ready and self._is_writable) or self._closed is not None:
            self._sendable.set()
        else:
            self._sendable.clear()

    # Receiving; called by the link, must not raise.

    def _receive(self, raw: bytes) -> None:
        try:
            self._dispatch(raw)
        except Exception:
            log.exception("a message of the server was dropped")

    def _dispatch(self, raw: bytes) -> None:
        message = wire.decode(raw)
        match message:
            case wire.Unreadable():
                self._drop(message)
            case Publication():
                joined = self._channels.get(message.channel)
                if joined is not None:
                    joined.inbox.put(message, len(raw))
            case wire.Ok() | wire.Pong() | wire.Welcome() | wire.Error():
                self._receive_reply(message)
            case wire.Bye():
                self._backoff.ask(message.retry_ms)
            case Expiring() if self._credentials.can_renew:
                if self._renewal is None or self._renewal.done():
                    self._renewal = asyncio.create_task(self._renew(message.seconds))
            case None:
                log.debug("ignored a message of an unknown type")
            case _:
                self._receive_message(message, len(raw))

    def _drop(self, message: wire.Unreadable) -> None:
        """Count what can't be read, and fail who waits for it."""
        self.unreadable_messages += 1
        if self.unreadable_messages == 1:
            log.warning("the server sent a message that cannot be read: %s (more are only counted)", message.why)
        request = self._requests.get(message.id)
        if request is not None:
            request.fail(ReplyUnreadable(message.why))
        joined = self._channels.get(message.channel)
        if joined is not None:
            joined.inbox.skip()

    def _receive_reply(self, reply: wire.Ok | wire.Pong | wire.Welcome | wire.Error) -> None:
        request = self._requests.get(reply.id)
        if request is None:  # an error without id, or a reply that came after its timeout
            if isinstance(reply, wire.Error):
                log.warning("the server refused a message: %d %s: %s", reply.code, reply.name, reply.message)
        elif isinstance(reply, wire.Error):
            request.fail(RequestFailed(reply.code, reply.name, reply.message))
        else:
            if isinstance(reply, wire.Welcome):
                request.link.welcome = reply
                self.user, self.name, self.node = reply.user, reply.client, reply.node
                self.previous = reply.previous if isinstance(reply.previous, dict) else None
                self._credentials.welcome(reply.session, reply.expires)
            request.succeed(reply if isinstance(reply, wire.Ok) else wire.Ok())

    async def _renew(self, left_s: float) -> None:
        """The login ends soon: renew it. If that fails the server closes with 4014, and the next login asks again."""
        await asyncio.sleep(random.uniform(0, min(max(left_s, 0.0), EXPIRING_LIMIT_S) / 3))
        try:
            token = await self._credentials.fresh()
            if token is not None:
                await self.refresh(token)
            return
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            log.warning("the login was not renewed: the token function was cancelled")
        except (ClientError, TimeoutError) as error:
            log.warning("the login was not renewed: %s", error)
        except Exception:  # of the token function
            log.exception("the login was not renewed")
        self._credentials.renewal_failed()

    def _receive_message(self, message: Message, size_bytes: int) -> None:
        callback = self._options.on_message
        if callback is None:
            self._inbox.put(message, size_bytes)
            return
        try:
            callback(message)
        except Exception:
            log.exception("on_message failed")

    def _tell_state(self, state: State, code: int | None) -> None:
        if self._options.on_state is None:
            return
        try:
            self._options.on_state(state, code)
        except Exception:
            log.exception("on_state failed")

    def _new_inbox(self, limit_messages: int | None = None) -> Inbox[Any]:
        return Inbox(limit_messages or self._options.inbox_messages, self._options.inbox_bytes)


def _is_being_cancelled() -> bool:
    """Whether the running task is being cancelled, as opposed to a CancelledError that came out of a token function."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
