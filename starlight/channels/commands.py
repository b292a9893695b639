"""What clients ask for: from a message to its effect and its reply; refusals, and what asking costs.

The way of a command: `receive` decodes it, finds its method by its class in one dict, executes it and sends the reply
through the core. Everything is synchronous and on the loop's thread, so a command is complete before the next begins.
only an application's async handler makes `receive` return an awaitable, and then the connection holds back what that
client sent later. `later` has what changes with a broker that answers later.

The law: each method sends its own reply or raises `RequestError`, and a command that is refused has done nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from orjson import JSONDecodeError, loads

from starlight import close_codes
from starlight.auth.dry_run import DryRun
from starlight.auth.identity import Action, Identity, Permissions
from starlight.auth.limits import CatchUp, Faults, Meter
from starlight.brokers.base import Broker
from starlight.channels.handlers import FAILURES, Handlers
from starlight.close_codes import ErrorCode
from starlight.errors import CloseConnection, RequestError
from starlight.protocols.native import commands
from starlight.stepping import begin

if TYPE_CHECKING:
    from starlight._fanout import Core
    from starlight.channels.channel import ChannelRecord
    from starlight.channels.client import Client
    from starlight.channels.hub import Hub

__all__ = ["Commands"]

log = logging.getLogger(__name__)

_FAULTS: Final = frozenset(
    (ErrorCode.UNAUTHORIZED, ErrorCode.PERMISSION_DENIED, ErrorCode.UNKNOWN_TYPE, ErrorCode.BAD_REQUEST)
)


_Rest = Awaitable[None] | None
"""What is left of a command; None when all is done."""

_Waiting = Callable[["Client", Any], Coroutine[Any, Any, None]]
"""The method of a command that may have to wait."""


class Commands:
    """Executes what the clients of one hub send.

    Args:
        hub: the registry; it makes this.
        core: the write path.
        broker: carries what is published and sent, and answers at once.
        handlers: the application's.
        permissions: what a client may do; None: everything.
        dry_run: limits that are not enforced.
        catch_up: what the clock has forgiven, for meters.
        clock: monotonic seconds, for counting errors in a window.

    Attributes:
        permissions: may be replaced, for what is asked from then on.
    """

    def __init__(
        self,
        hub: Hub,
        core: Core,
        *,
        broker: Broker,
        handlers: Handlers,
        permissions: Permissions | None,
        dry_run: DryRun,
        catch_up: CatchUp,
        clock: Callable[[], float],
    ) -> None:
        self.permissions = permissions
        self._hub = hub
        self._channels = hub.channels
        self._counts = hub.counts
        self._core_send = core.send
        self._broker_publish: Callable[..., Any] = broker.publish
        self._broker_direct: Callable[..., Any] = broker.direct
        self._broker_broadcast: Callable[..., Any] = broker.broadcast
        self._broker_present: Callable[..., Any] = broker.present
        self._handlers = handlers
        self._dry_run = dry_run
        self._catch_up = catch_up
        self._clock = clock
        self._methods: dict[type, Callable[[Client, Any], _Rest]] = {
            commands.Publish: self._publish,
            commands.SendDirect: self._direct,
            commands.SendBroadcast: self._broadcast,
            commands.Join: self._join,
            commands.Leave: self._leave,
            commands.AskPresence: self._presence,
            commands.Ping: self._ping,
            commands.Custom: partial(self._begin, self._custom),
            commands.Login: self._login_again,
            commands.History: self._not_available,
            commands.Refresh: partial(self._begin, self._refresh),
        }

    def receive(self, client: Client, message: bytes) -> Awaitable[None] | None:
        """Execute one message of a client and send its reply, if it wants one.

        Returns None when the next one may come, or an awaitable if an async handler has it now or it waits for a
        broker; later messages of this client must wait for that. Raises `CloseConnection` (also out of the awaitable)
        when the connection has to end.
        """
        if client.login.meter is not None and not self._charge(client, message):
            return None
        try:
            command = client.codec.decode(message)
        except RequestError as error:
            self._refuse(client, error.id, error)
            return None
        try:
            return self._methods[command.__class__](client, command)
        except RequestError as error:
            self._refuse(client, command.id, error)
            return None

    def _begin(self, method: _Waiting, client: Client, command: commands.Custom | commands.Refresh) -> _Rest:
        """Begin a command that may have to wait."""
        return begin(self._finish(client, command.id, method(client, command)))

    async def _finish(self, client: Client, id: int | str | None, work: Coroutine[Any, Any, None]) -> None:
        client.is_busy = True
        try:
            await work
        except RequestError as error:
            self._refuse(client, id, error)
        finally:
            self._hub.handler_ended(client)

    def count_bytes(self, client: Client, size_bytes: int) -> None:
        """Charge what was read from a client that has a meter, before anything of it is looked at."""
        assert client.login.meter is not None
        client.login.meter.read(size_bytes, self._catch_up.look(), self._catch_up.since_s)

    def count_frames(self, client: Client, frames: int) -> bool:
        """Charge what is no message but costs work, of a client that has a meter: control frames, fragments and so on.

        False if they are too many: nothing is answered, and like a refused message it may stop reading. Raises
        `CloseConnection` (4013) in the end.
        """
        meter = client.login.meter
        assert meter is not None
        now_s = self._catch_up.look()
        if meter.take(now_s, self._catch_up.since_s, frames) or self._let_through(client, meter, now_s):
            return True
        self._slow_down(client, meter, now_s)
        return False

    # --- commands: each sends its own reply or raises RequestError ----------------------------------------------

    def _publish(self, client: Client, command: commands.Publish) -> None:
        name = command.channel
        if self.permissions is not None:
            self._require(client, "publish", name)
        subscribers = self._broker_publish(name, client, command.data)
        if not subscribers and len(name) > self._hub.name_limit_bytes:
            raise self._too_long()
        if command.id is not None:
            self._core_send(client.subscriber, client.codec.ok_publish(command.id, subscribers))

    def _direct(self, client: Client, command: commands.SendDirect) -> None:
        user = command.to
        if self.permissions is not None:
            self._require(client, "direct", user)
        reached = self._broker_direct(user, client, command.data)
        if command.id is not None:
            self._core_send(client.subscriber, client.codec.ok_count(command.id, reached))

    def _broadcast(self, client: Client, command: commands.SendBroadcast) -> None:
        if self.permissions is not None:
            self._require(client, "broadcast", "")
        reached = self._broker_broadcast(client, command.data)
        if command.id is not None:
            self._core_send(client.subscriber, client.codec.ok_count(command.id, reached))

    def _join(self, client: Client, command: commands.Join) -> Awaitable[None] | None:
        if command.channels is not None:
            return self._join_several(client, command.id, command.channels)
        name = command.channel
        assert name is not None  # the decoder has seen to it
        self._check_join(client, name, client.n_channels)
        record = self._hub.open(name)
        return self._enter_when_open(client, [record], partial(self._enter, client, command.id, record))

    def _enter(
        self, client: Client, id: int | str | None, record: ChannelRecord, refused: dict[str, RequestError]
    ) -> None:
        """Make a client a member, behind the reply that says so; or say why not."""
        if refused:
            self._refuse(client, id, refused[record.name])
            return
        if id is not None:
            self._core_send(client.subscriber, client.codec.ok_join(id, record.name))
        self._hub.enter(client, record)

    def _join_several(
        self, client: Client, id: int | str | None, items: Sequence[commands.JoinItem]
    ) -> Awaitable[None] | None:
        """Each channel is judged as if it came alone, behind those before it; their publications follow the reply."""
        entering: dict[str, ChannelRecord] = {}
        outcomes = [(item.channel, self._try_join(client, item, entering)) for item in items]
        enter = partial(self._enter_several, client, id, outcomes, entering)
        return self._enter_when_open(client, list(entering.values()), enter)

    def _enter_several(
        self,
        client: Client,
        id: int | str | None,
        outcomes: Sequence[tuple[str, RequestError | None]],
        entering: dict[str, ChannelRecord],
        refused: dict[str, RequestError],
    ) -> None:
        """Make a client a member of the channels that took it, behind the one reply, which has an outcome for each.

        However many of them are refused, that is one fault of the message: a client that comes back and may no longer
        join what it had would be ended for good (4509) otherwise.
        """
        records = [record for name, record in entering.items() if name not in refused]
        if not client.is_connected:  # the authorize hook has ended it
            for record in records:
                self._hub.release(record)
            return
        if refused:
            outcomes = [(name, error or refused.get(name)) for name, error in outcomes]
        errors = [error for _, error in outcomes if error is not None]
        for error in errors:
            message = self._error(client, None, error)
            if id is None:
                self._core_send(client.subscriber, message)
        if id is not None:
            self._core_send(client.subscriber, client.codec.ok_joins(id, outcomes))
        for record in records:
            self._hub.enter(client, record)
        if any(error.code in _FAULTS for error in errors):
            self._count_fault(client)

    def _enter_when_open(
        self, client: Client, records: Sequence[ChannelRecord], enter: Callable[[dict[str, RequestError]], None]
    ) -> Awaitable[None] | None:
        """Have a client enter channels as soon as all of them are followed: at once, but for `LaterCommands`.

        enter: is given why each channel that it may not enter after all was refused.
        """
        enter({})
        return None

    def _try_join(
        self, client: Client, item: commands.JoinItem, entering: dict[str, ChannelRecord]
    ) -> RequestError | None:
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
            self._check_join(client, name, client.n_channels + len(entering))
            entering[name] = self._hub.open(name)
        except RequestError as error:
            return error
        return None

    def _check_join(self, client: Client, name: str, joined: int) -> None:
        """Raise `RequestError` if a client that has joined so many channels may not join this one as well."""
        if self.permissions is not None:
            self._require(client, "join", name)
        record = self._channels.get(name)
        if record is not None and client.subscriber in record.members:
            raise RequestError(ErrorCode.ALREADY_JOINED, "already joined")
        if joined >= self._hub.channels_limit:
            raise RequestError(ErrorCode.LIMIT_EXCEEDED, f"a client may join {self._hub.channels_limit} channels")
        if len(name) > self._hub.name_limit_bytes:
            raise self._too_long()
        if record is not None and 0 < record.options.clients_limit <= len(record.members) + record.joining:
            raise RequestError(ErrorCode.LIMIT_EXCEEDED, "the channel is full")

    def _leave(self, client: Client, command: commands.Leave) -> None:
        self._hub.leave(client, command.channel)
        if command.id is not None:
            self._core_send(client.subscriber, client.codec.ok_id(command.id))

    def _presence(self, client: Client, command: commands.AskPresence) -> None:
        assert command.id is not None  # the decoder has seen to it
        if self.permissions is not None:
            self._require(client, "presence", command.channel)
        self._check_presence(command.channel)
        present = self._broker_present(command.channel, command.limit)
        self._core_send(client.subscriber, client.codec.ok_presence(command.id, present.users, present.clients))

    def _check_presence(self, name: str) -> None:
        """Raise `RequestError` 108 where a channel's users are not shown."""
        record = self._channels.get(name)
        options = record.options if record is not None else self._hub.options.of(name)
        if not options.presence:
            raise RequestError(ErrorCode.NOT_AVAILABLE, "presence: not available in this channel")

    def _ping(self, client: Client, command: commands.Ping) -> None:
        self._core_send(client.subscriber, client.codec.pong(command.id))

    def _login_again(self, client: Client, command: commands.Login) -> None:
        raise CloseConnection(close_codes.BAD_REQUEST, cause="protocol", detail="it logged in twice")

    def _not_available(self, client: Client, command: commands.History) -> None:
        raise RequestError(ErrorCode.NOT_AVAILABLE, "not available")

    # --- a new token ----------------------------------------------------------------------------------------------

    async def _refresh(self, client: Client, command: commands.Refresh) -> None:
        identity = await self._hub.logins.identify(self._hub.authenticator, command.token)
        if client.is_connected:
            self._renew(client, command.id, identity)

    def _renew(self, client: Client, id: int | str | None, identity: Identity) -> None:
        """Take a new token over; close with 4011 if a joined channel is lost by its groups."""
        self._hub.logins.renew(client, identity)
        if id is not None:
            login = client.login
            self._core_send(client.subscriber, client.codec.ok(id, expires=login.expires, session=login.session))
        permissions = self.permissions
        if permissions is not None and not all(self.allows(client, "join", name) for name in client.channels):
            raise CloseConnection(close_codes.RECONNECT, cause="permissions", detail="its new token lacks a channel")

    # --- messages for the application ----------------------------------------------------------------------------

    async def _custom(self, client: Client, command: commands.Custom) -> None:
        handler = self._handlers.get(command.type)
        if handler is None:
            raise RequestError(ErrorCode.UNKNOWN_TYPE, "unknown type")
        result = await handler.outcome(client, _parse(command.data))
        self._reply_data(client, command.id, result, handler.name)

    def _reply_data(self, client: Client, id: int | str | None, result: object, name: str) -> None:
        if id is None:
            return
        try:
            reply = client.codec.ok_data(id, result)
        except TypeError:
            log.exception("handler %s returned what JSON cannot express", name)
            raise RequestError(ErrorCode.INTERNAL, "internal error") from None
        self._core_send(client.subscriber, reply)

    # --- refusals ------------------------------------------------------------------------------------------------

    def _require(self, client: Client, action: Action, name: str) -> None:
        assert self.permissions is not None
        try:
            if self.permissions.allows(client, action, name) is True:
                return
        except FAILURES:
            log.exception("the permissions failed; that is a no")
        raise RequestError(ErrorCode.PERMISSION_DENIED, "permission denied")

    def allows(self, client: Client, action: Action, name: str) -> bool:
        """What the permissions say. Those of an application may fail, or say neither yes nor no: that is a no."""
        try:
            self._require(client, action, name)
        except RequestError:
            return False
        return True

    def _refuse(self, client: Client, id: int | str | None, error: RequestError) -> None:
        """Send an error reply. Raises `CloseConnection` (4509) after one fault too many."""
        self._reply(client, self._error(client, id, error))
        if error.code in _FAULTS:
            self._count_fault(client)

    def _reply(self, client: Client, message: bytes) -> None:
        self._core_send(client.subscriber, message)

    def _error(self, client: Client, id: int | str | None, error: RequestError) -> bytes:
        """Count an error of a client; its reply."""
        self._counts.errors.add(error.code)
        client.last_error = error.code
        return client.codec.error(id, error.code, error.message)

    def _count_fault(self, client: Client) -> None:
        """Raises `CloseConnection` (4509) for one too many."""
        login = client.login
        if login.faults is None:
            login.faults = Faults()
        if not login.faults.admit(self._clock()):
            raise CloseConnection(close_codes.TOO_MANY_ERRORS, cause="faults")

    def _too_long(self) -> RequestError:
        return RequestError(ErrorCode.BAD_REQUEST, f"channel: longer than {self._hub.name_limit_bytes} bytes")

    def _let_through(self, client: Client, meter: Meter, now_s: float) -> bool:
        """In a dry run of rates, note what would have been refused; True: it is handled as ever."""
        if not self._dry_run.rates:
            return False
        if meter.would_refuse(now_s):
            self._dry_run.note("rates", user=client.user, peername=client.connection.peername)
        return True

    def _charge(self, client: Client, message: bytes) -> bool:
        """Charge a message of a client, if it has a meter. False: it is one too many, and was refused."""
        meter = client.login.meter
        if meter is None:
            return True
        now_s = self._catch_up.look()
        if meter.take(now_s, self._catch_up.since_s) or self._let_through(client, meter, now_s):
            return True
        self._throttle(client, meter, message, now_s)
        return False

    def _throttle(self, client: Client, meter: Meter, message: bytes, now_s: float) -> None:
        """Refuse a message that comes too soon; only its id is looked for."""
        self._slow_down(client, meter, now_s)
        error = RequestError(ErrorCode.TOO_MANY_REQUESTS, "too many requests")
        self._reply(client, self._error(client, client.codec.read_id(message), error))

    def _slow_down(self, client: Client, meter: Meter, now_s: float) -> None:
        """Count a refusal: after many read nothing for a moment, and in the end raise `CloseConnection` (4013)."""
        pause_s = meter.refuse(now_s)
        if pause_s < 0:
            raise CloseConnection(close_codes.TOO_MANY_REQUESTS, cause="rate")
        if pause_s > 0:
            client.connection.pause_reading(pause_s)


def _parse(data: Any) -> Any:
    """A message's `data` as Python objects, None if there is none."""
    if data is None:
        return None
    try:
        return loads(memoryview(data))
    except JSONDecodeError:  # valid JSON to the decoder of commands, and yet not to orjson: a number out of range
        raise RequestError(ErrorCode.BAD_REQUEST, "data: not readable as JSON") from None
