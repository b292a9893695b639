"""A node's registry of users, clients and channels: who is here, and to whom what goes.

The law: what a user can name lives in a dict here (users, channels), what has to be walked per message lives in the
core, and who is a member of a channel is known there alone. A channel exists while it is needed (`ChannelRecord`): from
its first join until its last leave mostly, so a million channels joined and left give all their memory back. No I/O and
no clock of its own: bytes in, calls of the core out.

What clients ask for is executed in `commands`; a connection comes in by `login` here, and goes out by `disconnect`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final, cast

from starlight import close_codes
from starlight._inspect import members
from starlight.auth.dry_run import DryRun
from starlight.auth.identity import Authenticator, NoAuth, Permissions
from starlight.auth.limits import CatchUp, Limits
from starlight.auth.login import CHECK_TIMEOUT_S, REVOKED_S, Logins, LoginState
from starlight.auth.session_tokens import Sessions
from starlight.auth.user_room import UserRoom
from starlight.brokers.base import Broker, Later, RevokedKind, Sender
from starlight.brokers.memory import MemoryBroker
from starlight.channels.announcements import Announcements
from starlight.channels.channel import ChannelRecord, wants_users
from starlight.channels.client import Client, ClientConnection
from starlight.channels.commands import Commands
from starlight.channels.delivery import Delivery
from starlight.channels.handlers import Handlers
from starlight.channels.later import LaterCommands
from starlight.channels.options import OptionsByPattern
from starlight.channels.presence import Presence
from starlight.close_codes import ErrorCode
from starlight.config.reconfigure import Commit
from starlight.config.settings import Settings
from starlight.counts import CodeCounts
from starlight.ends import Cause, Ends
from starlight.errors import CloseConnection, RequestError
from starlight.protocols.base import ClientLimits, Codec, Codecs
from starlight.protocols.native import commands
from starlight.protocols.spoken import SPOKEN
from starlight.stepping import begin

if TYPE_CHECKING:
    from starlight._fanout import Core

__all__ = ["CHANNELS_LIMIT", "Hub", "HubCounts"]

log = logging.getLogger(__name__)

CHANNELS_LIMIT: Final = 1_000
"""Channels one client may have joined; people use tens of channels, programs that want all messages rarely hundreds.
A membership takes about 90 bytes here and in the core together. With the channel, if nobody else is in it, it takes
400 where the name has 30 characters and 620 where it has 255; so one client can make the node hold 0.6 MB, not more."""

BY_APPLICATION: Final = "by the application"
EXPIRED: Final = Cause("expired")
RELOADED: Final = Cause("permissions", "the configuration was read again")


class HubCounts:
    """Totals of a hub since its start.

    Attributes:
        directs: messages to one user.
        unheard: publications where nobody was subscribed.
        errors: error replies, by code.
    """

    __slots__ = ("directs", "errors", "unheard")

    def __init__(self) -> None:
        self.directs = 0
        self.unheard = 0
        self.errors = CodeCounts(ErrorCode)


class Hub:
    """Users, clients and channels of one node.

    Args:
        core: the write path; the hub calls it from the thread that bound it.
        codecs: what the node speaks, those of the core's encodings; by default the native protocol.
        handlers: the application's; none by default.
        authenticator: who a login is; by default it is believed.
        permissions: what a client may do; everything by default.
        permit: makes them anew of changed settings; None: they stay.
        broker: carries to other nodes what their clients are to get; by default there are none.
        node: a name of this run of the node, for `welcome` and for client ids.
        ping_interval_s: told in `welcome`.
        pong_timeout_s: told in `welcome`.
        sessions: what makes session tokens; None for none.
        limits: of users and clients; none by default.
        login_timeout_s: how long an application's check of one login may take, and its `on_connect` (1013 beyond).
        channels_limit: channels one client may have joined (106 beyond).
        name_limit_bytes: of users and channels; the protocol's own by default.
        message_limit_bytes: the largest message that the connections let through, told in `welcome`; None: no limit.
        options: of channels; none by default.
        make_options: makes them anew of changed settings; None: they stay.
        ends: how connections ended, for `welcome.previous`; none by default.
        dry_run: limits that are not enforced; none by default.
        clock: monotonic seconds, for counting errors in a window, for rates and for the end of logins.
        wall_clock: Unix seconds, in which tokens say when they end.
        later: calls a function after so many seconds; by default the running loop does.

    Attributes:
        commands: executes what clients send.
        users: clients by user, in the order of their logins. Of all attributes only the hub itself changes anything.
        channels: those that are needed, by name; each is followed by the broker, or about to be.
        broker: in use.
        logins: how long a login holds, and what was revoked.
        counts: totals.
        authenticator, options, channels_limit, name_limit_bytes: as in force.
    """

    def __init__(
        self,
        core: Core,
        *,
        codecs: Codecs = SPOKEN,
        handlers: Handlers | None = None,
        authenticator: Authenticator | None = None,
        permissions: Permissions | None = None,
        permit: Callable[[Settings], Permissions | None] | None = None,
        broker: Broker | None = None,
        node: str = "node",
        ping_interval_s: float = 25.0,
        pong_timeout_s: float = 10.0,
        sessions: Sessions | None = None,
        limits: Limits | None = None,
        login_timeout_s: float = CHECK_TIMEOUT_S,
        channels_limit: int = CHANNELS_LIMIT,
        name_limit_bytes: int = commands.NAME_LIMIT_BYTES,
        message_limit_bytes: int | None = None,
        options: OptionsByPattern | None = None,
        make_options: Callable[[Settings], OptionsByPattern] | None = None,
        ends: Ends | None = None,
        dry_run: DryRun | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self.node = node
        self.counts = HubCounts()
        self._core = core
        self._core_publish = core.publish
        self._core_send = core.send
        self._everyone = core.everyone
        self._codecs = codecs
        self._tail = codecs.of_each(lambda codec: codec.tail)
        self._server_head = codecs.of_each(lambda codec: codec.server_head())
        self._handlers = handlers or Handlers()
        self.authenticator = authenticator or NoAuth()
        self._permit = permit
        self._ping_interval_s = ping_interval_s
        self._pong_timeout_s = pong_timeout_s
        self.channels_limit = channels_limit
        self.options = options or OptionsByPattern()
        self._make_options = make_options
        self.name_limit_bytes = name_limit_bytes
        self._message_limit_bytes = message_limit_bytes
        self._announcements = Announcements(core, codecs, clock, later)
        self._ends = ends
        self._dry_run = dry_run or DryRun()
        self._catch_up = CatchUp(clock, core.stopped_ms)
        self.logins: Logins[Client] = Logins(
            sessions,
            limits or Limits(),
            name_limit_bytes=name_limit_bytes,
            check_timeout_s=login_timeout_s,
            dry_run=self._dry_run,
            clock=clock,
            wall_clock=wall_clock,
        )
        self._room = UserRoom()
        self.users: dict[str, dict[Client, None]] = {}  # a dict and not a set: clients in order of login
        self.channels: dict[str, ChannelRecord] = {}
        self._client_numbers = count(1)
        self._application = Sender("", None)
        self._delivery = Delivery(self, core, codecs)
        self.broker: Broker = broker or MemoryBroker()
        self.broker.attach(self._delivery)
        self.commands = (Commands if self.broker.answers_at_once else LaterCommands)(
            self,
            core,
            broker=self.broker,
            handlers=self._handlers,
            permissions=permissions,
            dry_run=self._dry_run,
            catch_up=self._catch_up,
            clock=clock,
        )

    # --- the connection's side -----------------------------------------------------------------------------------

    def login(self, connection: ClientConnection, message: bytes) -> Awaitable[None] | None:
        """Log a connection in with its first message: check it, welcome it, tell it so, and run `on_connect`.

        Returns None when all is done, or an awaitable of the rest if the authenticator, a check or `on_connect` is
        async, or the user's other connections have to make room. Raises `CloseConnection` (also out of the awaitable):
        4501 for a message that is no proper login, 4500 or the like for a refused one. To be cancelled if the
        connection ends before `ClientConnection.on_login`.
        """
        return begin(self._log_in(connection, message))

    def disconnect(self, client: Client) -> None:
        """Take a client out of all channels and off its user, then run `on_disconnect`. A second call does nothing."""
        if not client.is_connected:
            return
        client.is_connected = False
        if client.under_way is not None:
            client.under_way.close()
            client.under_way = None
        for name in self._core.leave_all(client.subscriber):
            record = self.channels.get(name)
            if (
                record is not None
            ):  # else the core had all its members out before the hub heard of the first, and it is gone
                self._depart(client, record)
        self.logins.forget(client)
        clients = self.users[client.user]
        del clients[client]
        if not clients:
            del self.users[client.user]
        if not client.is_busy:
            self._handlers.disconnect(client)

    def handler_ended(self, client: Client) -> None:
        """The async handler of a client that was under way is done; `on_disconnect` may run now, if it has gone."""
        client.is_busy = False
        if not client.is_connected:
            self._handlers.disconnect(client)  # put off by `disconnect`, so that it comes after the handler

    # --- membership ----------------------------------------------------------------------------------------------

    def open(self, name: str) -> ChannelRecord:
        """The channel that a client is about to enter, followed from now on; `opening` says if that has yet to come.

        Raises `RequestError` if the broker refuses.
        """
        record = self.channels.get(name)
        if record is not None:
            return record
        following = self.broker.follow(name)
        record = self.channels[name] = ChannelRecord(name, self._core.channel(name), self.options.of(name))
        if following is not None:
            record.opening = []
            following.then(partial(self._opened, record))
        return record

    def _opened(self, record: ChannelRecord, answer: RequestError | None) -> None:
        """The broker follows a channel now, or does not: then there is no such channel."""
        waiting, record.opening = record.opening, None
        if answer is not None:
            del self.channels[record.name]
        for opened in waiting or ():
            opened(answer)

    def enter(self, client: Client, record: ChannelRecord) -> None:
        """Make a client a member of a channel that is open to it, behind the reply that says so. Not if it has gone."""
        if not client.subscriber.is_open:
            self.release(record)
            return
        if record.presence is not None:
            is_new = record.presence.add(client.user)
            if record.options.announce:
                self._announcements.enter(record, client.user, is_new=is_new)  # to the others: it isn't in yet
        if record.members.join(client.subscriber):
            record.clients += 1

    def leave(self, client: Client, name: str) -> None:
        """Take a client out of a channel; nothing happens if it isn't in it."""
        record = self.channels.get(name)
        if record is not None and record.members.leave(client.subscriber):
            self._depart(client, record)

    def _depart(self, client: Client, record: ChannelRecord) -> None:
        """A client is no member of a channel any more."""
        record.clients -= 1
        if record.presence is not None:
            announce = bool(record.options.announce)
            if record.presence.remove(client.user, stays=announce) and announce:
                self._announcements.leave(record, client.user)
        self.release(record)

    def release(self, record: ChannelRecord) -> None:
        """Forget a channel, and follow it no more, unless it is needed. One that was refused is forgotten already."""
        if record.is_needed or self.channels.get(record.name) is not record:
            return
        self._forget_leaving(record)
        del self.channels[record.name]
        if not self.channels:
            self.channels.clear()  # a dict from which everything was deleted keeps its room
        self.broker.unfollow(record.name)

    def _forget_leaving(self, record: ChannelRecord) -> None:
        for user in self._announcements.drop(record):
            assert record.presence is not None
            record.presence.drop(user)

    def _change_options(self, record: ChannelRecord) -> None:
        """Give a channel the options that are in force. Who is in it already is not announced."""
        options = self.options.of(record.name)
        if options == record.options:
            return
        if not options.announce:
            self._forget_leaving(record)
        record.options = options
        if not wants_users(options):
            record.presence = None
        elif record.presence is None:
            record.presence = Presence()
            for subscriber in members(record.members):
                client = cast("ClientConnection", subscriber.owner).client
                assert client is not None  # it leaves the hub before it forgets its client
                record.presence.add(client.user)

    # --- what the application does -------------------------------------------------------------------------------

    def push_to_client(self, client: Client, data: bytes) -> None:
        """Push `server {data}` to one client. `data` is JSON, here and below."""
        self._core_send(client.subscriber, self._server_head, data, self._tail)

    def push_to_user(self, user: str, data: bytes) -> int:
        """Push `server {data}` to every client of a user; their number here, 0 if none is."""
        here = partial(len, self.users.get(user, ()))
        return self._ask(self.broker.direct, user, self._application, data, here=here)

    def push_to_channel(self, channel: str, data: bytes) -> int:
        """Publish to a channel with `from` null; the number of subscribers here. ValueError for an impossible name."""
        if not commands.is_channel(channel):
            raise ValueError(f"{channel!r} is not a channel name")
        here = partial(self._count_members, channel)
        return self._ask(self.broker.publish, channel, self._application, data, here=here)

    def _count_members(self, channel: str) -> int:
        record = self.channels.get(channel)
        return 0 if record is None else len(record.members)

    def push_to_everyone(self, data: bytes) -> int:
        """Broadcast with `from` null to every client; returns their number here."""
        return self._ask(self.broker.broadcast, self._application, data, here=partial(len, self._everyone))

    def _ask(self, call: Callable[..., int | Later[int]], *args: object, here: Callable[[], int]) -> int:
        """Ask the broker for something, without waiting for it: the number of clients here. A refusal is logged.

        here: counts them, if the broker answers later.
        """
        try:
            answer = call(*args)
        except RequestError as error:
            _log_refusal(error)
            return 0
        if isinstance(answer, Later):
            answer.then(_log_refusal)
            return here()
        return answer

    def clients(self) -> Iterator[Client]:
        """All logged-in clients. Take a list of it before doing anything that may end one of them."""
        for clients in self.users.values():
            yield from clients

    def counters(self) -> dict[str, int]:
        """How much there is now: users, clients, channels (all are zero again when everyone has gone)."""
        clients = sum(map(len, self.users.values()))
        return {"users": len(self.users), "clients": clients, "channels": len(self.channels)}

    @property
    def n_channels(self) -> int:
        """How many channels there are."""
        return len(self.channels)

    # --- login ---------------------------------------------------------------------------------------------------

    async def _log_in(self, connection: ClientConnection, message: bytes) -> None:
        """The whole way of a login: from its message to the end of `on_connect`."""
        login = _decode_login(connection.codec, message)
        identity = await self.logins.identity(self.authenticator, login)
        client = Client(self, connection, LoginState(identity), f"{self.node}-{next(self._client_numbers)}")
        try:
            await self.logins.in_time(self._handlers.login(client, message))
            self.logins.check(client.login)
            await self._make_room(client.user)
            self._admit(client, login)
        except CloseConnection as close:
            close.client = client  # for operators
            raise
        connection.on_login(client)
        if client.is_connected:
            await self._greet(client)

    async def _make_room(self, user: str) -> None:
        """At a user's limit, wait for a silent connection to give way; whether one did is judged at the admission."""
        if not self._room.make(self._clients_of(user), self._user_limit()):
            await self._room.wait(user, lambda: self._clients_of(user), self._user_limit)

    async def _greet(self, client: Client) -> None:
        """Run `on_connect`. Raises `CloseConnection` if a handler does, and 1013 if one takes too long."""
        client.is_busy = True
        try:
            await self.logins.in_time(self._handlers.connect(client), "its on_connect")
        finally:
            self.handler_ended(client)

    def _user_limit(self) -> int:
        """How many connections of a user there may be; 0: any number, also in a dry run, where `Logins` tells of it."""
        return 0 if self._dry_run.connections else self.logins.limits.connections_per_user

    def _clients_of(self, user: str) -> Collection[Client]:
        return self.users.get(user, ())

    def _admit(self, client: Client, login: commands.Login) -> None:
        """Register a client and welcome it. Raises `CloseConnection` if it may not come in, or has gone meanwhile."""
        if not client.connection.is_open:
            raise CloseConnection(close_codes.ABNORMAL)
        self.logins.admit(client, len(self.users.get(client.user, ())))
        self.users.setdefault(client.user, {})[client] = None
        self._core_send(
            client.subscriber,
            client.codec.welcome(
                login.id,
                user=client.user,
                client=client.id,
                node=self.node,
                ping_s=self._ping_interval_s,
                pong_s=self._pong_timeout_s,
                session=client.login.session,
                expires=None if client.login.expires is None else int(client.login.expires),
                limits=self._client_limits(),
                previous=self._previous(client, login.previous),
            ),
        )
        self._everyone.join(client.subscriber)
        client.is_connected = True

    def _previous(self, client: Client, previous: str | None) -> dict[str, object] | None:
        """How the client's connection before this one ended, as far as it was told itself; None if that isn't known."""
        end = None if previous is None or self._ends is None else self._ends.previous(previous, client.user)
        return None if end is None else {"code": end.code, "reason": end.reason, "at": round(end.at_s * 1000)}

    def _client_limits(self) -> ClientLimits:
        limits = self.logins.limits
        return ClientLimits(
            message_bytes=self._message_limit_bytes,
            channels=self.channels_limit,
            message_rate=limits.message_rate or None,
            byte_rate=limits.byte_rate_bytes or None,
        )

    # --- tokens --------------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Tell clients whose login ends soon, and end those whose has ended. To be called about twice a second."""
        self._catch_up.look()
        for client, left_s in self.logins.due():
            if left_s <= 0:
                client.connection.close(close_codes.SESSION_EXPIRED, cause=EXPIRED)
            else:
                self._core_send(client.subscriber, client.codec.expiring(max(1, round(left_s))))

    def revoke_user(self, user: str, seconds: float = REVOKED_S, *, by: str = BY_APPLICATION) -> int:
        """End all clients of a user with 4503, and refuse the tokens the user has now for so many seconds.

        A token made after this lets the user in again. Returns the number of clients here; OverflowError if there are
        too many revocations, after the clients were ended.

        by: who asked, for operators.
        """
        return self._revoke("user", user, seconds, by)

    def revoke_token(self, token_id: str, seconds: float = REVOKED_S, *, by: str = BY_APPLICATION) -> int:
        """End all clients that came with a token (its `jti`, or `Client.token_id`), and refuse it. As `revoke_user`."""
        return self._revoke("token", token_id, seconds, by)

    def _revoke(self, kind: RevokedKind, name: str, seconds: float, by: str) -> int:
        here = partial(len, self._delivery.clients_of(kind, name))
        return self._ask(self.broker.revoke, kind, name, seconds, by, here=here)

    # --- other limits and permissions ----------------------------------------------------------------------------

    def reconfigure(self, settings: Settings) -> Commit:
        """Other limits, options and permissions from now on: see `config.reconfigure`. Raises `ConfigError`.

        `review` brings channels and clients in line that are there already; call it after the commit.
        """
        permissions = self.commands.permissions if self._permit is None else self._permit(settings)
        options = self.options if self._make_options is None else self._make_options(settings)
        limit_logins = self.logins.reconfigure(settings)

        def commit() -> None:
            self.channels_limit = settings.channels_per_client
            self.options = options
            self.name_limit_bytes = settings.name_limit_bytes
            self.commands.permissions = permissions  # new ones know no verdicts
            limit_logins()

        return commit

    def review(self, retry_ms: Callable[[], int], *, rates: bool) -> Iterator[bool]:
        """Bring channels and clients in line with changed options, limits and permissions, as far as it is iterated.

        A client is sent away with 4011, as after a refresh, if it has joined a channel that it may not join any more.
        Yields after each small step, True for a client that was sent away.

        Args:
            retry_ms: says when a client that is sent away shall come back.
            rates: whether clients get meters of the rates in force.
        """
        for record in list(self.channels.values()):
            if record.is_needed:
                self._change_options(record)
            yield False
        for client in list(self.clients()):
            client.login.verdicts.clear()  # those of former permissions would only take up room
            if rates:
                client.login.meter = self.logins.limits.meter()
            yield from self._review_channels(client, retry_ms)
            yield False

    def _review_channels(self, client: Client, retry_ms: Callable[[], int]) -> Iterator[bool]:
        for name in client.channels:
            if self.commands.permissions is None or not client.is_connected:
                return
            if not self.commands.allows(client, "join", name):
                client.connection.close(close_codes.RECONNECT, None, retry_ms(), RELOADED)
                yield True
                return
            yield False


def _log_refusal(answer: int | RequestError) -> None:
    """Log that the broker refused what the application asked. That a user isn't connected is no failure."""
    if isinstance(answer, RequestError) and answer.code != ErrorCode.NOT_CONNECTED:
        log.error("the broker refused what the application sent: %s", answer)


def _decode_login(codec: Codec, message: bytes) -> commands.Login:
    """The first message of a connection. Raises `CloseConnection` 4501 for any other."""
    try:
        login = codec.decode(message)
    except RequestError as error:
        raise CloseConnection(close_codes.BAD_REQUEST, detail=f"not a login: {error.message}") from None
    if not isinstance(login, commands.Login):
        raise CloseConnection(close_codes.BAD_REQUEST, detail="the first message is not a login")
    return login
