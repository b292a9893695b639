"""A node's registry of users, clients and channels: who may do what, and to whom it goes.

The way of a command: `receive` decodes it, finds its method by its class in one dict, executes it and sends the reply
through the core. Everything is synchronous and on the loop's thread, so a command is complete before the next begins;
only an application's async handler makes `receive` return an awaitable, and then the connection holds back what
that client sent later.

The law: what a user can name lives in a dict here (users, channels), what has to be walked per message lives in the
core. A channel exists from its first join until its last leave; nothing is kept for a channel without subscribers, so
a million channels joined and left give all their memory back. No I/O and no clock of its own: bytes in, calls of the
core out.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from orjson import JSONDecodeError, loads

from starlight import close_codes
from starlight.auth.dry_run import DryRun
from starlight.auth.identity import Action, Authenticator, Identity, NoAuth, Permissions
from starlight.auth.limits import CatchUp, Faults, Limits, Meter
from starlight.auth.login import CHECK_TIMEOUT_S, REVOKED_S, Logins, read_login
from starlight.auth.session_tokens import Sessions
from starlight.auth.user_room import UserRoom
from starlight.channels.handlers import FAILURES, Handlers, is_awaitable
from starlight.channels.records import ChannelRecord, Client, Connection
from starlight.close_codes import ErrorCode
from starlight.ends import Cause, Ends
from starlight.errors import CloseConnection, RequestError
from starlight.protocols.native import commands, pushes, replies
from starlight.protocols.native.commands import decode
from starlight.protocols.native.pushes import TAIL

if TYPE_CHECKING:
    from starlight._fanout import Core

__all__ = ["CHANNELS_LIMIT", "Client", "Connection", "Hub"]

log = logging.getLogger(__name__)

CHANNELS_LIMIT: Final = 1_000
"""Channels one client may have joined; people use tens of channels, programs that want all messages rarely hundreds.
A membership takes about 120 bytes here and in the core together. With the channel, if nobody else is in it, it takes
470 where the name has 30 characters and 710 where it has 255; so one client can make the node hold 0.7 MB, not more."""

BY_APPLICATION: Final = "by the application"
EXPIRED: Final = Cause("expired")
RELOADED: Final = Cause("permissions", "the configuration was read again")

_FAULTS: Final = frozenset(
    (ErrorCode.UNAUTHORIZED, ErrorCode.PERMISSION_DENIED, ErrorCode.UNKNOWN_TYPE, ErrorCode.BAD_REQUEST)
)

_HEADS_LIMIT: Final = 32
"""Publication heads a client keeps (about 150 bytes each). Whoever publishes to more channels in turn pays half a
microsecond for building a head anew."""


class Hub:
    """Users, clients and channels of one node.

    Args:
        core: the write path; the hub calls it from the thread that bound it.
        handlers: the application's; none by default.
        authenticator: who a login is; by default it is believed.
        permissions: what a client may do; everything by default.
        node: a name of this run of the node, for `welcome` and for client ids.
        ping_interval_s: told in `welcome`.
        pong_timeout_s: told in `welcome`.
        sessions: what makes session tokens; None for none.
        limits: of users and clients; none by default.
        login_timeout_s: how long an application's check of one login may take, and its `on_connect` (1013 beyond).
        channels_limit: channels one client may have joined (106 beyond).
        clients_limit: clients one channel may have (106 beyond); 0: no limit.
        name_limit_bytes: of users and channels; the protocol's own by default.
        message_limit_bytes: the largest message that the connections let through, told in `welcome`; None: no limit.
        announces: which channels (by name) publish `joined` and `left` of their users; none by default, as each
            costs a message to everyone in the channel. One that fails is logged, and that channel publishes none.
        ends: how connections ended, for `welcome.previous`; none by default.
        dry_run: limits that are not enforced; none by default.
        clock: monotonic seconds, for counting errors in a window, for rates and for the end of logins.
        wall_clock: Unix seconds, in which tokens say when they end.
    """

    def __init__(
        self,
        core: Core,
        *,
        handlers: Handlers | None = None,
        authenticator: Authenticator | None = None,
        permissions: Permissions | None = None,
        node: str = "node",
        ping_interval_s: float = 25.0,
        pong_timeout_s: float = 10.0,
        sessions: Sessions | None = None,
        limits: Limits | None = None,
        login_timeout_s: float = CHECK_TIMEOUT_S,
        channels_limit: int = CHANNELS_LIMIT,
        clients_limit: int = 0,
        name_limit_bytes: int = commands.NAME_LIMIT_BYTES,
        message_limit_bytes: int | None = None,
        announces: Callable[[str], bool] | None = None,
        ends: Ends | None = None,
        dry_run: DryRun | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.node = node
        self.counts: Counter[str] = Counter()
        """Totals: `error_CODE` of error replies, `directs`, and `unheard`: publications where nobody was subscribed."""
        self._core = core
        self._core_publish = core.publish
        self._core_send = core.send
        self._everyone = core.everyone
        self._handlers = handlers or Handlers()
        self._authenticator = authenticator or NoAuth()
        self._permissions = permissions
        self._ping_interval_s = ping_interval_s
        self._pong_timeout_s = pong_timeout_s
        self._channels_limit = channels_limit
        self._clients_limit = clients_limit
        self._name_limit_bytes = name_limit_bytes
        self._message_limit_bytes = message_limit_bytes
        self._announces = announces
        self._ends = ends
        self._dry_run = dry_run or DryRun()
        self._clock = clock
        self._catch_up = CatchUp(clock, core.stopped_ms)
        self._logins = Logins(
            sessions,
            limits or Limits(),
            name_limit_bytes=name_limit_bytes,
            check_timeout_s=login_timeout_s,
            dry_run=self._dry_run,
            clock=clock,
            wall_clock=wall_clock,
        )
        self._room = UserRoom()
        self._users: dict[str, dict[Client, None]] = {}  # a dict and not a set: clients in order of login
        self._channels: dict[str, ChannelRecord] = {}
        self._client_numbers = count(1)
        self._methods: dict[type, Callable[[Client, Any], Awaitable[None] | None]] = {
            commands.Publish: self._publish,
            commands.Direct: self._direct,
            commands.Broadcast: self._broadcast,
            commands.Join: self._join,
            commands.Leave: self._leave,
            commands.Presence: self._presence,
            commands.Ping: self._ping,
            commands.Custom: self._custom,
            commands.Login: self._login_again,
            commands.History: self._not_available,
            commands.Refresh: self._refresh,
        }

    # --- the connection's side: login, receive, disconnect -------------------------------------------------------

    def login(self, connection: Connection, message: bytes) -> Client | Awaitable[Client]:
        """Log a connection in with its first message: check it and welcome it; `greet` has to follow.

        Returns the client, or an awaitable of it if the authenticator or a check is async, or the user's other
        connections have to make room. Raises `CloseConnection` (also out of the awaitable): 4501 for a message that is
        no proper login, 4500 or the like for a refused one. To be cancelled if the connection ends first.
        """
        try:
            login = decode(message)
        except RequestError as error:
            raise CloseConnection(close_codes.BAD_REQUEST, detail=f"not a login: {error.message}") from None
        if not isinstance(login, commands.Login):
            raise CloseConnection(close_codes.BAD_REQUEST, detail="the first message is not a login")
        identity = self._authenticator.authenticate(login)
        if not isinstance(identity, Identity):
            return self._login_later(connection, message, login, identity)
        client = self._new_client(connection, identity)
        with _naming(client):
            checking = self._check(client, message)
            if checking is not None:
                return self._check_later(client, checking, login)
            return self._let_in(client, login)

    def greet(self, client: Client) -> Awaitable[None] | None:
        """Run `on_connect` for a client that has just come in: None if all is done, else an awaitable.

        Raises `CloseConnection` (also out of the awaitable) if a handler does, and 1013 if one takes too long.
        """
        greeting = self._handlers.connect(client)
        if greeting is None:
            return None
        client._busy = True
        return self._greet(client, greeting)

    async def _greet(self, client: Client, greeting: Awaitable[None]) -> None:
        try:
            await self._logins.in_time(greeting, "its on_connect")
        finally:
            self._no_longer_busy(client)

    def receive(self, client: Client, message: bytes) -> Awaitable[None] | None:
        """Execute one message of a client and send its reply, if it wants one.

        Returns None when all is done, or an awaitable if an async handler has it now; later messages of this client
        must wait for that. Raises `CloseConnection` (also out of the awaitable) when the connection has to end.
        """
        meter = client.meter
        if meter is not None:
            now_s = self._catch_up.look()
            if not meter.take(now_s, self._catch_up.since_s) and not self._let_through(client, meter, now_s):
                self._throttle(client, meter, message, now_s)
                return None
        try:
            command = decode(message)
        except RequestError as error:
            self._refuse(client, error.id, error)
            return None
        try:
            return self._methods[command.__class__](client, command)
        except RequestError as error:
            self._refuse(client, command.id, error)
            return None

    def count_bytes(self, client: Client, size_bytes: int) -> None:
        """Charge what was read from a client that has a meter, before anything of it is looked at."""
        assert client.meter is not None
        client.meter.read(size_bytes, self._catch_up.look(), self._catch_up.since_s)

    def count_frames(self, client: Client, frames: int) -> bool:
        """Charge what is no message but costs work, of a client that has a meter: control frames, fragments and so on.

        False if they are too many: nothing is answered, and like a refused message it may stop reading. Raises
        `CloseConnection` (4013) in the end.
        """
        meter = client.meter
        assert meter is not None
        now_s = self._catch_up.look()
        if meter.take(now_s, self._catch_up.since_s, frames) or self._let_through(client, meter, now_s):
            return True
        self._slow_down(client, meter, now_s)
        return False

    def disconnect(self, client: Client) -> None:
        """Take a client out of all channels and off its user, then run `on_disconnect`. A second call does nothing."""
        if not client.is_connected:
            return
        client.is_connected = False
        for record in client._channels.values():
            self._depart(client, record)
        client._channels.clear()
        self._everyone.leave(client.subscriber)
        self._logins.forget(client)
        clients = self._users[client.user]
        del clients[client]
        if not clients:
            del self._users[client.user]
        if not client._busy:
            self._handlers.disconnect(client)

    # --- what the application does -------------------------------------------------------------------------------

    def push_to_client(self, client: Client, data: bytes) -> None:
        """Push `server {data}` to one client. `data` is JSON, here and below."""
        self._core_send(client.subscriber, pushes.server_head(), data, TAIL)

    def push_to_user(self, user: str, data: bytes) -> int:
        """Push `server {data}` to every client of a user; their number, 0 if the user isn't connected."""
        return self._send_to(self._users.get(user, {}), pushes.server_head(), data)

    def push_to_channel(self, channel: str, data: bytes) -> int:
        """Publish to a channel with `from` null; the number of subscribers. ValueError for an impossible name."""
        if not commands.is_channel(channel):
            raise ValueError(f"{channel!r} is not a channel name")
        record = self._channels.get(channel)
        if record is None:
            self.counts["unheard"] += 1
            return 0
        return self._core_publish(record.channel, pushes.publication_head(channel, None), data, TAIL)

    def push_to_everyone(self, data: bytes) -> int:
        """Broadcast with `from` null to every client; returns their number."""
        return self._core_publish(self._everyone, pushes.broadcast_head(None), data, TAIL)

    def clients(self) -> Iterator[Client]:
        """All logged-in clients. Take a list of it before doing anything that may end one of them."""
        for clients in self._users.values():
            yield from clients

    def counters(self) -> dict[str, int]:
        """How much there is now: users, clients, channels (all are zero again when everyone has gone)."""
        clients = sum(map(len, self._users.values()))
        return {"users": len(self._users), "clients": clients, "channels": len(self._channels)}

    @property
    def n_channels(self) -> int:
        """How many channels have subscribers."""
        return len(self._channels)

    # --- login ---------------------------------------------------------------------------------------------------

    def _new_client(self, connection: Connection, identity: Identity) -> Client:
        return Client(self, connection, identity, f"{self.node}-{next(self._client_numbers)}")

    def _check(self, client: Client, message: bytes) -> Awaitable[None] | None:
        return self._handlers.login(client, read_login(message)) if self._handlers.checks_logins else None

    async def _login_later(
        self, connection: Connection, message: bytes, login: commands.Login, identity: Awaitable[Identity]
    ) -> Client:
        client = self._new_client(connection, await self._logins.identity(self._authenticator, identity))
        with _naming(client):
            checking = self._check(client, message)
        return await self._check_later(client, checking, login)

    async def _check_later(self, client: Client, checking: Awaitable[None] | None, login: commands.Login) -> Client:
        with _naming(client):
            if checking is not None:
                await self._logins.in_time(checking)
            entered = self._let_in(client, login)
            return entered if isinstance(entered, Client) else await entered

    def _let_in(self, client: Client, login: commands.Login) -> Client | Awaitable[Client]:
        """Admit a client that passed all checks; at its user's limit, once a silent connection has made room."""
        self._logins.check(client)
        if self._room.make(self._clients_of(client.user), self._user_limit()):
            return self._admit(client, login)
        return self._let_in_later(client, login)

    async def _let_in_later(self, client: Client, login: commands.Login) -> Client:
        user = client.user
        with _naming(client):
            await self._room.wait(user, lambda: self._clients_of(user), self._user_limit)
            return self._admit(client, login)

    def _user_limit(self) -> int:
        """How many connections of a user there may be; 0: any number, also in a dry run, where `Logins` tells of it."""
        return 0 if self._dry_run.connections else self._logins.limits.connections_per_user

    def _clients_of(self, user: str) -> Collection[Client]:
        return self._users.get(user, ())

    def _admit(self, client: Client, login: commands.Login) -> Client:
        """Register a client and welcome it. Raises `CloseConnection` if it may not come in, or has gone meanwhile."""
        if not client.connection.is_open:
            raise CloseConnection(close_codes.ABNORMAL)
        self._logins.admit(client, len(self._users.get(client.user, ())))
        self._users.setdefault(client.user, {})[client] = None
        self._core_send(
            client.subscriber,
            replies.welcome(
                login.id,
                user=client.user,
                client=client.id,
                node=self.node,
                ping_s=self._ping_interval_s,
                pong_s=self._pong_timeout_s,
                session=client.session,
                expires=None if client.expires is None else int(client.expires),
                limits=self._client_limits(),
                previous=self._previous(client, login.previous),
            ),
        )
        self._everyone.join(client.subscriber)
        client.is_connected = True
        return client

    def _previous(self, client: Client, previous: str | None) -> dict[str, object] | None:
        """How the client's connection before this one ended, as far as it was told itself; None if that isn't known."""
        end = None if previous is None or self._ends is None else self._ends.previous(previous, client.user)
        return None if end is None else {"code": end.code, "reason": end.reason, "at": round(end.at_s * 1000)}

    def _client_limits(self) -> replies.ClientLimits:
        limits = self._logins.limits
        return replies.ClientLimits(
            message_bytes=self._message_limit_bytes,
            channels=self._channels_limit,
            message_rate=limits.message_rate or None,
            byte_rate=limits.byte_rate_bytes or None,
        )

    # --- commands: each sends its own reply or raises RequestError ----------------------------------------------

    def _publish(self, client: Client, command: commands.Publish) -> None:
        name = command.channel
        if self._permissions is not None:
            self._require(client, "publish", name)
        subscribers = 0
        record = self._channels.get(name)
        if record is not None:
            head = client._heads.get(name) or self._new_head(client, name)
            subscribers = self._core_publish(record.channel, head, command.data, TAIL)
        elif len(name) > self._name_limit_bytes:
            raise self._too_long()
        else:
            self.counts["unheard"] += 1
        if command.id is not None:
            self._core_send(client.subscriber, replies.ok_publish(command.id, subscribers))

    def _new_head(self, client: Client, name: str) -> bytes:
        heads = client._heads
        if len(heads) >= _HEADS_LIMIT:
            heads.clear()
        head = heads[name] = pushes.publication_head(name, client.user)
        return head

    def _direct(self, client: Client, command: commands.Direct) -> None:
        user = command.to
        if self._permissions is not None:
            self._require(client, "direct", user)
        clients = self._users.get(user)
        if clients is None:
            raise RequestError(ErrorCode.NOT_CONNECTED, "no client of that user is connected")
        head = client._direct_head
        if not head:
            head = client._direct_head = pushes.direct_head(client.user)
        reached = self._send_to(clients, head, command.data)
        if command.id is not None:
            self._core_send(client.subscriber, replies.ok_count(command.id, reached))

    def _send_to(self, clients: dict[Client, None], head: bytes, data: Any) -> int:
        self.counts["directs"] += 1
        if len(clients) == 1:
            self._core_send(next(iter(clients)).subscriber, head, data, TAIL)
        elif clients:
            self._core.send_many([receiver.subscriber for receiver in clients], head, data, TAIL)
        return len(clients)

    def _broadcast(self, client: Client, command: commands.Broadcast) -> None:
        if self._permissions is not None:
            self._require(client, "broadcast", "")
        # "" is no channel name, so the head of broadcasts has its place among the heads of publications
        head = client._heads.get("")
        if head is None:
            head = client._heads[""] = pushes.broadcast_head(client.user)
        reached = self._core_publish(self._everyone, head, command.data, TAIL)
        if command.id is not None:
            self._core_send(client.subscriber, replies.ok_count(command.id, reached))

    def _join(self, client: Client, command: commands.Join) -> None:
        if command.channels is not None:
            self._join_several(client, command.id, command.channels)
            return
        name = command.channel
        assert name is not None  # the decoder has seen to it
        self._check_join(client, name, len(client._channels))
        if command.id is not None:
            self._core_send(client.subscriber, replies.ok_join(command.id, name))
        self._enter(client, name)

    def _join_several(self, client: Client, id: int | str | None, items: Sequence[commands.JoinItem]) -> None:
        """Each channel is judged as if it came alone, behind those before it. Their publications follow the one reply.

        However many of them are refused, that is one fault of the message: a client that comes back and may no longer
        join what it had would be ended for good (4509) otherwise.
        """
        entering: dict[str, None] = {}
        outcomes = [(item.channel, self._try_join(client, item, entering)) for item in items]
        if not client.is_connected:
            return  # the authorize hook has ended it
        errors = [error for _, error in outcomes if error is not None]
        for error in errors:
            self.counts[f"error_{error.code}"] += 1
            client.last_error = error.code
            if id is None:
                self._core_send(client.subscriber, replies.error(None, error.code, error.message))
        if id is not None:
            self._core_send(client.subscriber, replies.ok_joins(id, outcomes))
        for name in entering:
            self._enter(client, name)
        if any(error.code in _FAULTS for error in errors):
            self._count_fault(client)

    def _try_join(self, client: Client, item: commands.JoinItem, entering: dict[str, None]) -> RequestError | None:
        """Why a client may not join a channel, or None, and then the channel is added to those that it enters."""
        name = item.channel
        try:
            if item.has_since:
                raise RequestError(ErrorCode.NOT_AVAILABLE, "since: not available")
            wrong = commands.wrong_channel(name)
            if wrong is not None:
                raise wrong
            if name in entering:
                raise RequestError(ErrorCode.ALREADY_JOINED, "already joined")
            self._check_join(client, name, len(client._channels) + len(entering))
        except RequestError as error:
            return error
        entering[name] = None
        return None

    def _check_join(self, client: Client, name: str, joined: int) -> None:
        """Raise `RequestError` if a client that has joined so many channels may not join this one as well."""
        if self._permissions is not None:
            self._require(client, "join", name)
        if name in client._channels:
            raise RequestError(ErrorCode.ALREADY_JOINED, "already joined")
        if joined >= self._channels_limit:
            raise RequestError(ErrorCode.LIMIT_EXCEEDED, f"a client may join {self._channels_limit} channels")
        if len(name) > self._name_limit_bytes:
            raise self._too_long()
        record = self._channels.get(name)
        if self._clients_limit and record is not None and record.presence.clients >= self._clients_limit:
            raise RequestError(ErrorCode.LIMIT_EXCEEDED, "the channel is full")

    def _enter(self, client: Client, name: str) -> None:
        """Make a client a member of a channel that it may join, behind the reply that says so."""
        record = self._channels.get(name)
        if record is None:
            record = self._channels[name] = ChannelRecord(name, self._core.channel(), self._is_announced(name))
        if record.presence.add(client.user) and record.announces:
            self._core_publish(record.channel, pushes.joined(name, client.user), b"", b"")
        record.channel.join(client.subscriber)
        client._channels[record.name] = record  # that one string for all of its members

    def _is_announced(self, name: str) -> bool:
        """What the application says about a channel; no if that fails, as it does for a channel it knows nothing of."""
        if self._announces is None:
            return False
        try:
            answer = self._announces(name)
            if is_awaitable(answer):
                if hasattr(answer, "close"):
                    answer.close()  # a coroutine: it won't be awaited
                raise TypeError("announces is asked at each first join, so it can't be async")
            return bool(answer)
        except FAILURES:
            log.exception("announces failed; the channel announces nobody")
            return False

    def _leave(self, client: Client, command: commands.Leave) -> None:
        record = client._channels.pop(command.channel, None)
        if record is not None:
            self._depart(client, record)
        if command.id is not None:
            self._core_send(client.subscriber, replies.ok_id(command.id))

    def _depart(self, client: Client, record: ChannelRecord) -> None:
        """Take a client out of a channel, and the channel out of the hub if that was the last one."""
        record.channel.leave(client.subscriber)
        last_of_user = record.presence.remove(client.user)
        if not record.presence.clients:
            del self._channels[record.name]
            if not self._channels:
                self._channels.clear()  # a dict from which everything was deleted keeps its room
        elif last_of_user and record.announces:
            self._core_publish(record.channel, pushes.left(record.name, client.user), b"", b"")

    def _presence(self, client: Client, command: commands.Presence) -> None:
        assert command.id is not None  # the decoder has seen to it
        if self._permissions is not None:
            self._require(client, "presence", command.channel)
        record = self._channels.get(command.channel)
        users = record.presence.users(command.limit) if record is not None else []
        clients = record.presence.clients if record is not None else 0
        self._core_send(client.subscriber, replies.ok_presence(command.id, users, clients))

    def _ping(self, client: Client, command: commands.Ping) -> None:
        self._core_send(client.subscriber, replies.pong(command.id))

    def _login_again(self, client: Client, command: commands.Login) -> None:
        raise CloseConnection(close_codes.BAD_REQUEST, cause="protocol", detail="it logged in twice")

    def _not_available(self, client: Client, command: commands.History) -> None:
        raise RequestError(ErrorCode.NOT_AVAILABLE, "not available")

    # --- tokens --------------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Tell clients whose login ends soon, and end those whose has ended. To be called about twice a second."""
        self._catch_up.look()
        for client, left_s in self._logins.due():
            if left_s <= 0:
                client.connection.close(close_codes.SESSION_EXPIRED, cause=EXPIRED)
            else:
                self._core_send(client.subscriber, pushes.expiring(max(1, round(left_s))))

    def revoke_user(self, user: str, seconds: float = REVOKED_S, *, by: str = BY_APPLICATION) -> int:
        """End all clients of a user with 4503, and refuse the tokens the user has now for so many seconds.

        A token made after this lets the user in again. Returns the number of clients; OverflowError if there are too
        many revocations, after the clients were ended.

        by: who asked, for operators.
        """
        clients = list(self._users.get(user, ()))
        _end_all(clients, by)
        self._logins.revocations.add_user(user, seconds, max((client._issued for client in clients), default=0.0))
        return len(clients)

    def revoke_token(self, token_id: str, seconds: float = REVOKED_S, *, by: str = BY_APPLICATION) -> int:
        """End all clients that came with a token (its `jti`, or `Client.token_id`), and refuse it. As `revoke_user`."""
        clients = [client for client in self.clients() if client.token_id == token_id]
        _end_all(clients, by)
        self._logins.revocations.add_token(token_id, seconds)
        return len(clients)

    def _refresh(self, client: Client, command: commands.Refresh) -> Awaitable[None] | None:
        identity = self._logins.identify(self._authenticator, command.token)
        if isinstance(identity, Identity):
            self._renew(client, command.id, identity)
            return None
        client._busy = True
        return self._refresh_later(client, command.id, identity)

    async def _refresh_later(self, client: Client, id: int | str | None, identity: Awaitable[Identity]) -> None:
        try:
            self._renew(client, id, await identity)
        except RequestError as error:
            self._refuse(client, id, error)
        finally:
            self._no_longer_busy(client)

    def _renew(self, client: Client, id: int | str | None, identity: Identity) -> None:
        """Take a new token over; close with 4011 if a joined channel is lost by its groups."""
        if not client.is_connected:
            return
        self._logins.renew(client, identity)
        if id is not None:
            self._core_send(client.subscriber, replies.ok(id, expires=client.expires, session=client.session))
        permissions = self._permissions
        if permissions is not None and not all(self._allows(client, "join", name) for name in client._channels):
            raise CloseConnection(close_codes.RECONNECT, cause="permissions", detail="its new token lacks a channel")

    # --- other limits and permissions ----------------------------------------------------------------------------

    def change(self, limits: Limits, *, channels_limit: int, clients_limit: int, name_limit_bytes: int) -> None:
        """Take other limits over, for what is asked from now on; see the constructor. Call `review` after it."""
        self._channels_limit = channels_limit
        self._clients_limit = clients_limit
        self._name_limit_bytes = name_limit_bytes
        self._logins.change(limits, name_limit_bytes)

    def permit(self, permissions: Permissions | None) -> None:
        """Take other permissions over, for what is asked from now on: they know no verdicts. Call `review` after it."""
        self._permissions = permissions

    def review(self, retry_ms: Callable[[], int], *, rates: bool) -> Iterator[bool]:
        """Bring who is connected in line with changed limits and permissions, as far as the result is iterated.

        A client is sent away with 4011, as after a refresh, if it has joined a channel that it may not join any more.
        Yields after each small step, True for a client that was sent away.

        Args:
            retry_ms: says when a client that is sent away shall come back.
            rates: whether clients get meters of the rates in force.
        """
        for client in list(self.clients()):
            client.verdicts.clear()  # those of former permissions would only take up room
            if rates:
                client.meter = self._logins.limits.meter()
            yield from self._review_channels(client, retry_ms)
            yield False

    def _review_channels(self, client: Client, retry_ms: Callable[[], int]) -> Iterator[bool]:
        for name in client.channels:
            if self._permissions is None or not client.is_connected:
                return
            if not self._allows(client, "join", name):
                client.connection.close(close_codes.RECONNECT, None, retry_ms(), RELOADED)
                yield True
                return
            yield False

    # --- messages for the application ----------------------------------------------------------------------------

    def _custom(self, client: Client, command: commands.Custom) -> Awaitable[None] | None:
        handler = self._handlers.get(command.type)
        if handler is None:
            raise RequestError(ErrorCode.UNKNOWN_TYPE, "unknown type")
        data = _parse(command.data)
        try:
            result = handler.call(client, data)
        except FAILURES as error:
            raise handler.failure(error) from None
        if is_awaitable(result):
            client._busy = True
            return self._finish(client, command.id, handler.outcome(result), handler.name)
        self._reply_data(client, command.id, result, handler.name)
        return None

    async def _finish(self, client: Client, id: int | str | None, outcome: Awaitable[Any], name: str) -> None:
        try:
            self._reply_data(client, id, await outcome, name)
        except RequestError as error:
            self._refuse(client, id, error)
        finally:
            self._no_longer_busy(client)

    def _reply_data(self, client: Client, id: int | str | None, result: object, name: str) -> None:
        if id is None:
            return
        try:
            reply = replies.ok_data(id, result)
        except TypeError:
            log.exception("handler %s returned what JSON cannot express", name)
            raise RequestError(ErrorCode.INTERNAL, "internal error") from None
        self._core_send(client.subscriber, reply)

    def _no_longer_busy(self, client: Client) -> None:
        client._busy = False
        if not client.is_connected:
            self._handlers.disconnect(client)  # put off by `disconnect`, so that it comes after the handler

    # --- refusals ------------------------------------------------------------------------------------------------

    def _require(self, client: Client, action: Action, name: str) -> None:
        assert self._permissions is not None
        try:
            if self._permissions.allows(client, action, name) is True:
                return
        except FAILURES:
            log.exception("the permissions failed; that is a no")
        raise RequestError(ErrorCode.PERMISSION_DENIED, "permission denied")

    def _allows(self, client: Client, action: Action, name: str) -> bool:
        """What the permissions say. Those of an application may fail, or say neither yes nor no: that is a no."""
        try:
            self._require(client, action, name)
        except RequestError:
            return False
        return True

    def _refuse(self, client: Client, id: int | str | None, error: RequestError) -> None:
        """Send an error reply. Raises `CloseConnection` (4509) after one fault too many."""
        self.counts[f"error_{error.code}"] += 1
        client.last_error = error.code
        self._core_send(client.subscriber, replies.error(id, error.code, error.message))
        if error.code in _FAULTS:
            self._count_fault(client)

    def _count_fault(self, client: Client) -> None:
        """Raises `CloseConnection` (4509) for one too many."""
        if client._faults is None:
            client._faults = Faults()
        if not client._faults.admit(self._clock()):
            raise CloseConnection(close_codes.TOO_MANY_ERRORS, cause="faults")

    def _too_long(self) -> RequestError:
        return RequestError(ErrorCode.BAD_REQUEST, f"channel: longer than {self._name_limit_bytes} bytes")

    def _let_through(self, client: Client, meter: Meter, now_s: float) -> bool:
        """In a dry run of rates, note what would have been refused; True: it is handled as ever."""
        if not self._dry_run.rates:
            return False
        if meter.would_refuse(now_s):
            self._dry_run.note("rates", user=client.user, peername=client.connection.peername)
        return True

    def _throttle(self, client: Client, meter: Meter, message: bytes, now_s: float) -> None:
        """Refuse a message that comes too soon; only its id is looked for."""
        self._slow_down(client, meter, now_s)
        self.counts[f"error_{ErrorCode.TOO_MANY_REQUESTS}"] += 1
        client.last_error = ErrorCode.TOO_MANY_REQUESTS.value
        reply = replies.error(commands.read_id(message), ErrorCode.TOO_MANY_REQUESTS, "too many requests")
        self._core_send(client.subscriber, reply)

    def _slow_down(self, client: Client, meter: Meter, now_s: float) -> None:
        """Count a refusal: after many read nothing for a moment, and in the end raise `CloseConnection` (4013)."""
        pause_s = meter.refuse(now_s)
        if pause_s < 0:
            raise CloseConnection(close_codes.TOO_MANY_REQUESTS, cause="rate")
        if pause_s > 0:
            client.connection.pause_reading(pause_s)


def _end_all(clients: list[Client], by: str) -> None:
    cause = Cause("revoked", by)
    for client in clients:
        client.connection.close(close_codes.DISCONNECTED, cause=cause)


@contextmanager
def _naming(client: Client) -> Iterator[None]:
    """Puts the client into the refusal of its login, for operators."""
    try:
        yield
    except CloseConnection as close:
        close.client = client
        raise


def _parse(data: Any) -> Any:
    """A message's `data` as Python objects, None if there is none."""
    if data is None:
        return None
    try:
        return loads(memoryview(data))
    except JSONDecodeError:  # valid JSON to the decoder of commands, and yet not to orjson: a number out of range
        raise RequestError(ErrorCode.BAD_REQUEST, "data: not readable as JSON") from None
