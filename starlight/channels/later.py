"""Commands of a hub whose broker may answer later.

The law: commands begin in the order in which they were sent, and replies go out in that order. So a reply waits for
those before it (`UnderWay`). Publishes, directs, broadcasts, presence, history and pings begin at once; joins, leaves
and handlers wait until all before them are done, and whatever would be one too many waits for room. To wait is what a
message does behind an async handler: `receive` returns an awaitable, and the connection holds back the rest.

A join enters its channels in the moment in which the last of them is followed, behind its `ok`: what is published from
then on comes after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from starlight.brokers.base import Later
from starlight.channels.commands import Commands
from starlight.channels.under_way import Reply, UnderWay
from starlight.close_codes import ErrorCode
from starlight.errors import RequestError
from starlight.protocols.native import commands

if TYPE_CHECKING:
    from starlight.channels.channel import ChannelRecord
    from starlight.channels.client import Client

__all__ = ["LaterCommands"]

_AT_ONCE: Final = frozenset(
    (
        commands.Publish,
        commands.SendDirect,
        commands.SendBroadcast,
        commands.AskPresence,
        commands.History,
        commands.Ping,
    )
)
"""Commands that begin while others of the client are under way."""


class LaterCommands(Commands):
    """See `Commands`."""

    def receive(self, client: Client, message: bytes) -> Awaitable[None] | None:
        return self._execute(client, message) if self._charge(client, message) else None

    def _execute(self, client: Client, message: bytes) -> Awaitable[None] | None:
        under_way = client.under_way
        if under_way is not None and under_way.is_full:
            return self._wait(client, message, under_way.room())
        try:
            command = client.codec.decode(message)
        except RequestError as error:
            self._refuse(client, error.id, error)
            return None
        if under_way is not None and command.__class__ not in _AT_ONCE:
            return self._wait(client, message, under_way.all_done())
        try:
            return self._methods[command.__class__](client, command)
        except RequestError as error:
            self._refuse(client, command.id, error)
            return None

    async def _wait(self, client: Client, message: bytes, until: Awaitable[None]) -> None:
        """Execute a message as soon as what is under way lets it."""
        await until
        if client.is_connected:
            pending = self._execute(client, message)
            if pending is not None:
                await pending

    # --- replies ----------------------------------------------------------------------------------------------------

    def _reply(self, client: Client, message: bytes) -> None:
        if client.under_way is None:
            super()._reply(client, message)
        else:
            client.under_way.add(message)

    def _answer(
        self, client: Client, id: int | str | None, answer: Any, build: Callable[[int | str, Any], bytes]
    ) -> None:
        """Reply with what the broker answers, now or when it does.

        build: makes the reply of the request's id and the answer.
        """
        if not isinstance(answer, Later):
            if id is not None:
                self._reply(client, build(id, answer))
            return
        under_way = client.under_way
        if under_way is None:
            under_way = client.under_way = UnderWay(partial(self._core_send, client.subscriber))
        answer.then(partial(self._answered, client, id, build, under_way, under_way.expect()))

    def _answered(
        self,
        client: Client,
        id: int | str | None,
        build: Callable[[int | str, Any], bytes],
        under_way: UnderWay,
        reply: Reply,
        answer: Any,
    ) -> None:
        if client.under_way is not under_way:
            return  # it has gone
        if isinstance(answer, RequestError):
            message = self._error(client, id, answer)
        else:
            message = b"" if id is None else build(id, answer)
        under_way.settle(reply, message)
        if not under_way:
            client.under_way = None

    # --- commands ---------------------------------------------------------------------------------------------------

    def _publish(self, client: Client, command: commands.Publish) -> None:
        name = command.channel
        if self.permissions is not None:
            self._require(client, "publish", name)
        if len(name) > self._hub.name_limit_bytes and name not in self._channels:
            raise self._too_long()
        self._answer(client, command.id, self._broker_publish(name, client, command.data), client.codec.ok_publish)

    def _direct(self, client: Client, command: commands.SendDirect) -> None:
        if self.permissions is not None:
            self._require(client, "direct", command.to)
        self._answer(client, command.id, self._broker_direct(command.to, client, command.data), client.codec.ok_count)

    def _broadcast(self, client: Client, command: commands.SendBroadcast) -> None:
        if self.permissions is not None:
            self._require(client, "broadcast", "")
        self._answer(client, command.id, self._broker_broadcast(client, command.data), client.codec.ok_count)

    def _presence(self, client: Client, command: commands.AskPresence) -> None:
        if self.permissions is not None:
            self._require(client, "presence", command.channel)
        self._check_presence(command.channel)
        codec = client.codec
        self._answer(
            client,
            command.id,
            self._broker_present(command.channel, command.limit),
            lambda id, present: codec.ok_presence(id, present.users, present.clients),
        )

    def _ping(self, client: Client, command: commands.Ping) -> None:
        self._reply(client, client.codec.pong(command.id))

    def _enter_when_open(
        self, client: Client, records: Sequence[ChannelRecord], enter: Callable[[dict[str, RequestError]], None]
    ) -> Awaitable[None] | None:
        if all(record.opening is None for record in records):
            return super()._enter_when_open(client, records, enter)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        permissions = self.permissions
        refused: dict[str, RequestError] = {}
        missing = 0

        def opened(name: str, error: RequestError | None) -> None:
            nonlocal missing
            missing -= 1
            if error is not None:
                refused[name] = error
            if not missing:
                finish()

        def finish() -> None:
            for record in records:
                record.joining -= 1
                if self.permissions is not permissions and not self.allows(client, "join", record.name):
                    refused.setdefault(record.name, RequestError(ErrorCode.PERMISSION_DENIED, "permission denied"))
            try:
                if client.is_connected:
                    enter(refused)
            except Exception as error:
                if not done.done():
                    done.set_exception(error)
            for record in records:
                self._hub.release(record)
            if not done.done():
                done.set_result(None)

        for record in records:
            record.joining += 1
            if record.opening is not None:
                missing += 1
                record.opening.append(partial(opened, record.name))
        return done
