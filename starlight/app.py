"""The library's face: `Starlight`, an application whose handlers run in the process of the node.

::

    app = Starlight()

    @app.on("bid")
    def bid(client, amount):
        app.publish("auction", {"user": client.user, "amount": amount})
        return "accepted"

    app.run()

All of it belongs to one thread, the one of the node's loop: handlers, and `send`, `publish` and `broadcast`. Any other
thread uses `publish_threadsafe`; whoever forgets gets `WrongThread`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from orjson import dumps

from starlight.auth.identity import Authenticator, Permissions
from starlight.auth.login import REVOKED_S
from starlight.channels.handlers import Handlers
from starlight.channels.hub import Hub
from starlight.config.settings import Settings
from starlight.errors import ConfigError, NotServing
from starlight.protocols.native.commands import is_channel
from starlight.server import logs
from starlight.server.node import Node

__all__ = ["Serving", "Starlight"]

Function = TypeVar("Function", bound=Callable[..., Any])


class Starlight:
    """An application: handlers, and ways to reach its clients.

    Args:
        authenticator: who a login is; by default what the setting `auth` names.
        permissions: what a client may do; by default what its groups allow: see `docs/security.md`.
        groups: by name, as `Group` or a dict of its arguments; groups in the file `config_file` go before them.
        channels: options of channels by pattern, as `ChannelOptions` or a dict of its arguments; those in the file
            `config_file` go before them.
        settings: any field of `Settings` by name, such as ``port=0`` or ``outbox_bytes="2MiB"``; they go before the
            environment and are checked when the application starts.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator | None = None,
        permissions: Permissions | None = None,
        groups: Mapping[str, Any] | None = None,
        channels: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.handlers = Handlers()
        self._authenticator = authenticator
        self._permissions = permissions
        self._groups = groups
        self._channels = channels or {}
        self._settings = settings
        self._node: Node | None = None

    # --- handlers ------------------------------------------------------------------------------------------------

    def on(self, type: str, *, thread: bool = False) -> Callable[[Function], Function]:
        """Decorator: `function(client, data)` handles messages of `type`, its return value is the reply's `data`.

        See `Handlers.on` for all of it, and the other decorators there.
        """
        return self.handlers.on(type, thread=thread)

    def on_login(self, function: Function) -> Function:
        """Decorator: `function(client, login)` may refuse a login: `Handlers.on_login`."""
        return self.handlers.on_login(function)

    def on_connect(self, function: Function) -> Function:
        """Decorator: `function(client)` runs after the welcome: `Handlers.on_connect`."""
        return self.handlers.on_connect(function)

    def on_disconnect(self, function: Function) -> Function:
        """Decorator: `function(client)` runs when a client is gone: `Handlers.on_disconnect`."""
        return self.handlers.on_disconnect(function)

    def authorize(self, function: Function) -> Function:
        """Decorator: `function(client, action, name)` has the last word: `Handlers.authorize`."""
        return self.handlers.authorize(function)

    def every(self, seconds: float) -> Callable[[Function], Function]:
        """Decorator: `function()` is called every `seconds` while the application serves: `Handlers.every`."""
        return self.handlers.every(seconds)

    # --- messages ------------------------------------------------------------------------------------------------

    def send(self, user: str, data: object) -> int:
        """Push `server {data}` to every client of a user.

        Returns their number, 0 if the user isn't connected. Raises `NotServing`, `WrongThread`, and TypeError for data
        that JSON cannot express (so do the other three).
        """
        return self._hub().push_to_user(user, dumps(data))

    def publish(self, channel: str, data: object) -> int:
        """Publish to a channel; clients get `publication {channel, from, data}`.

        `from` is there and null: the sender is the application, and no user can have that name. Returns the number of
        subscribers; ValueError for a name that no channel can have.
        """
        return self._hub().push_to_channel(channel, dumps(data))

    def broadcast(self, data: object) -> int:
        """Send `broadcast {from, data}` with `from` null to every client; returns their number."""
        return self._hub().push_to_everyone(dumps(data))

    def publish_threadsafe(self, channel: str, data: object) -> None:
        """Publish from any thread: encoded here, sent in the loop's next turn.

        What one thread publishes stays in order. There is no count: that would mean to wait for the loop.
        """
        if not is_channel(channel):
            raise ValueError(f"{channel!r} is not a channel name")
        node = self._serving_node()
        node.call_threadsafe(node.hub.push_to_channel, channel, dumps(data))

    # --- sending users away --------------------------------------------------------------------------------------

    def revoke_user(self, user: str, seconds: float = REVOKED_S) -> int:
        """End all clients of a user with 4503 and refuse the user's present tokens for so long (a day).

        A token that is made later lets the user in again. Returns the number of clients. Raises `NotServing`.
        """
        return self._hub().revoke_user(user, seconds)

    def revoke_token(self, token_id: str, seconds: float = REVOKED_S) -> int:
        """End all clients that came with a token (its `jti`, or `client.token_id`); refuse it for so long (a day)."""
        return self._hub().revoke_token(token_id, seconds)

    def _hub(self) -> Hub:
        return self._serving_node().hub

    def _serving_node(self) -> Node:
        node = self._node
        if node is None or not node.is_serving:
            raise NotServing(
                "the application does not serve: send from handlers, or between `await app.serve()` and its end"
            )
        return node

    # --- serving -------------------------------------------------------------------------------------------------

    @property
    def given(self) -> dict[str, Any]:
        """The settings that `Starlight` was given, as they were given."""
        return dict(self._settings)

    @property
    def channels(self) -> dict[str, Any]:
        """The options of channels that `Starlight` was given, by pattern, as they were given."""
        return dict(self._channels)

    def settings(self, **overrides: Any) -> Settings:
        """The settings it would serve with; `overrides` go before those given to `Starlight`. Raises `ConfigError`."""
        try:
            return Settings(**{**self._settings, **overrides})
        except ConfigError as error:
            raise self._all_of(error, overrides) from None

    def run(self, **overrides: Any) -> None:
        """Serve until SIGTERM or SIGINT: blocking, in a uvloop of its own; see `Node.run`.

        Args:
            overrides: settings that go before those given to `Starlight`.

        Raises `ConfigError` and `ListenFailed`.
        """
        settings = self.settings(**overrides)
        # before the node, whose making may warn
        logs.set_up(settings.log_level, settings.log_format, file=settings.log_file)
        self._make_node(overrides).run()

    def serve(self, **overrides: Any) -> Serving:
        """Serve inside an asyncio program that already runs, on its loop (uvloop's or asyncio's own).

        ``node = await app.serve()`` returns the running `Node`, which `await node.drain()` ends;
        ``async with app.serve() as node:`` does both. Signals and logging are left to the program.

        Args:
            overrides: settings that go before those given to `Starlight`.

        Raises `ConfigError` and `ListenFailed` when it is awaited.
        """
        return Serving(partial(self._start, overrides))

    async def _start(self, overrides: dict[str, Any]) -> Node:
        node = self._make_node(overrides)
        await node.start()
        return node

    def _make_node(self, overrides: dict[str, Any]) -> Node:
        if self._node is not None and self._node.is_serving:
            raise RuntimeError("the application already serves")
        try:
            self._node = Node(
                self.settings(**overrides),
                handlers=self.handlers,
                authenticator=self._authenticator,
                permissions=self._permissions,
                groups=self._groups,
                channels=self._channels,
                reread=lambda: self.settings(**overrides),
            )
        except ConfigError as error:
            raise self._all_of(error, overrides) from None
        return self._node

    def _all_of(self, error: ConfigError, overrides: dict[str, Any]) -> ConfigError:
        """Everything that is wrong with its configuration, where one error has been met."""
        from starlight.server.mistakes import all_mistakes

        found = all_mistakes(
            {**self._settings, **overrides},
            self._groups,
            self._channels,
            has_authenticator=self._authenticator is not None,
            has_permissions=self._permissions is not None,
        )
        return ConfigError.all_of(found) if found else error


class Serving:
    """What `Starlight.serve` returns: await it for the running `Node`, or use it in ``async with``."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, Node]]) -> None:
        self._start = start
        self._node: Node | None = None

    def __await__(self) -> Generator[Any, None, Node]:
        return self._start().__await__()

    async def __aenter__(self) -> Node:
        self._node = await self._start()
        return self._node

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._node is not None:
            await self._node.drain()
