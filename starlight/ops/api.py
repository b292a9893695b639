"""The HTTP API for backends in any language: what `POST /api/...` does. JSON in, plain dicts out; no HTTP in here.

Strategy: a body is decoded by one msgspec struct per route; `data` stays raw and is spliced into the messages of the
clients as it came, as with messages of clients. A publication goes the way of all publications; its receipt is made
after the turn's flush, by looking at the outboxes of its receivers, so that asking for receipts costs no extra send.

The law: a request is checked as a whole before anything of it is done, so a refused one has done nothing. Every body,
batch, name, wait and memory of keys is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Annotated, Any, Final, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from starlight import close_codes
from starlight._fanout import Subscriber
from starlight._inspect import members, split
from starlight.auth.login import REVOKED_S
from starlight.config.printable import escape
from starlight.ends import ENDS_LIMIT, Cause, log_word
from starlight.errors import RequestError
from starlight.ops.stats import Source, Stats
from starlight.protocols.native.commands import PRESENCE_DEFAULT, PRESENCE_LIMIT, check_depth, is_channel, is_user

__all__ = ["BATCH_LIMIT", "IDEMPOTENCY_S", "Api", "ApiError", "Caller", "IdempotencyKeys", "WriteReceipt"]

log = logging.getLogger(__name__)

BATCH_LIMIT: Final = 1_000
"""Messages in one request: some milliseconds of the loop, and what their deliveries cost."""

BODY_LIMIT_BYTES: Final = 2**20
"""The largest body of a request, unless a single message may be larger."""

CHANNELS_LIMIT: Final = 1_000
"""Channels in one answer."""

IDEMPOTENCY_KEYS_LIMIT: Final = 10_000
"""Keys that are remembered, about 5 MB; the oldest go first."""

IDEMPOTENCY_S: Final = 600.0
"""How long: longer than anybody's retries, short enough that keys of 15 a second are all kept."""

RECEIPT_S: Final = 1.0
"""How long a receipt waits for flushes that are behind; what is not written then is told as queued."""

SPLIT: Final = 5_000
"""Receivers that are looked at between two turns of the loop: half a millisecond."""

REVOKED_LIMIT_S: Final = 366 * 86_400.0
"""The longest revocation: a year. No token should be good for longer."""

_Key = Annotated[str, Meta(min_length=1, max_length=255)]
_Limit = Annotated[int, Meta(ge=1, le=CHANNELS_LIMIT)]


class _Message(Struct, forbid_unknown_fields=True):
    channel: str
    data: Raw
    idempotency_key: _Key | None = None


class _Batch(Struct, forbid_unknown_fields=True):
    messages: Annotated[list[_Message], Meta(min_length=1, max_length=BATCH_LIMIT)]


class _Direct(Struct, forbid_unknown_fields=True):
    to: str
    data: Raw
    idempotency_key: _Key | None = None


class _Broadcast(Struct, forbid_unknown_fields=True):
    data: Raw
    idempotency_key: _Key | None = None


class _Disconnect(Struct, forbid_unknown_fields=True):
    user: str | UnsetType = UNSET
    id: Annotated[int, Meta(ge=1, le=2**53)] | UnsetType = UNSET
    code: int = close_codes.DISCONNECTED
    reason: str | None = None


class _Revoke(Struct, forbid_unknown_fields=True):
    user: str | UnsetType = UNSET
    token_id: Annotated[str, Meta(min_length=1, max_length=255)] | UnsetType = UNSET
    seconds: Annotated[float, Meta(gt=0, le=REVOKED_LIMIT_S)] = REVOKED_S


class _Presence(Struct, forbid_unknown_fields=True):
    channel: str
    limit: Annotated[int, Meta(ge=0, le=PRESENCE_LIMIT)] = PRESENCE_DEFAULT


class _Channels(Struct, forbid_unknown_fields=True):
    prefix: Annotated[str, Meta(max_length=255)] = ""
    limit: _Limit = 100


class _Ends(Struct, forbid_unknown_fields=True):
    user: str | None = None
    code: Annotated[int, Meta(ge=1_000, le=4_999)] | None = None
    since: Annotated[float, Meta(ge=0, le=10**10)] = 0.0
    limit: _Limit = 100
    offset: Annotated[int, Meta(ge=0, le=ENDS_LIMIT)] = 0


class _Nothing(Struct, forbid_unknown_fields=True):
    pass


class _IsBatch(Struct):
    messages: Raw = Raw()


class ApiError(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP.
        message: for the developer at the other end.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class WriteReceipt(NamedTuple):
    """What became of a message by the end of the turn that wrote it.

    Attributes:
        subscribers: how many it went to.
        written: of whom the kernel has all.
        queued: whose sockets are full, so that something is still in their outboxes.
        evicted: who was evicted then, or is gone.
    """

    subscribers: int
    written: int
    queued: int
    evicted: int


class Caller(NamedTuple):
    """Who asked for something.

    Attributes:
        address: of the other end, as it is shown; "" if it isn't known.
        key: the name of the file with the key that was shown; "" for none.
        operator: who that is, as the caller says it; "" if it says nothing. Whoever has the key is believed.
    """

    address: str = ""
    key: str = ""
    operator: str = ""

    def __str__(self) -> str:
        """``by root, over the API from 127.0.0.1:50123 with the key internal.key``."""
        by = f"by {self.operator}, over" if self.operator else "by"
        address = f" from {self.address}" if self.address else ""
        return f"{by} the API{address}" + (f" with the key {self.key}" if self.key else "")


class ServedNode(Source, Protocol):
    """What is asked of the node beside its stats."""

    async def drain(self, timeout_s: float | None = None, *, by: str = "") -> None: ...


NOT_KNOWN: Final = Caller()

Body = TypeVar("Body", bound=Struct)


class IdempotencyKeys:
    """Receipts by idempotency key, for a while; a request that comes again gets the receipt of the first.

    Args:
        clock: monotonic seconds.
        limit: keys at a time.
        ttl_s: how long each is kept.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        limit: int = IDEMPOTENCY_KEYS_LIMIT,
        ttl_s: float = IDEMPOTENCY_S,
    ) -> None:
        self._clock = clock
        self._limit = limit
        self._ttl_s = ttl_s
        self._kept: OrderedDict[str, tuple[bytes, float, asyncio.Future[WriteReceipt]]] = OrderedDict()

    def find(self, key: str, content: bytes) -> asyncio.Future[WriteReceipt] | None:
        """The receipt of this key, perhaps to come; None if it is new. `ApiError` 409 if it was for other content.

        Args:
            key: the caller's.
            content: all that makes the message, as bytes.
        """
        kept = self._kept.get(key)
        if kept is None or kept[1] <= self._clock():
            return None
        if kept[0] != sha256(content).digest():
            raise ApiError(409, "idempotency_key: was used for another message")
        return kept[2]

    def keep(self, key: str, content: bytes) -> asyncio.Future[WriteReceipt]:
        """Remember a key: the future of its receipt, to be set."""
        now_s = self._clock()
        self._kept.pop(key, None)
        while self._kept and (len(self._kept) >= self._limit or next(iter(self._kept.values()))[1] <= now_s):
            self._kept.popitem(last=False)
        future: asyncio.Future[WriteReceipt] = asyncio.get_running_loop().create_future()
        self._kept[key] = (sha256(content).digest(), now_s + self._ttl_s, future)
        return future

    def __len__(self) -> int:
        return len(self._kept)


class _Sent:
    """A message that was accepted now, or before under the same key."""

    __slots__ = ("future", "group", "subscribers")

    def __init__(
        self, future: asyncio.Future[WriteReceipt] | None, group: str | None = None, subscribers: int = 0
    ) -> None:
        self.future = future  # of the first request with its key; None without a key
        self.group = group  # its receivers, as a key of the request's groups; None: it came again
        self.subscribers = subscribers


class Api:
    """The routes of one node.

    Args:
        node: the node, started.
        stats: what it knows about itself.
        keys: for idempotency.
    """

    def __init__(self, node: ServedNode, stats: Stats, keys: IdempotencyKeys | None = None) -> None:
        self._node = node
        self._stats = stats
        self._keys = keys or IdempotencyKeys()
        self._draining: asyncio.Task[None] | None = None
        self._message_limit_bytes = node.settings.read_limit_bytes
        self.body_limit_bytes = max(BODY_LIMIT_BYTES, 2 * self._message_limit_bytes)
        self.routes: dict[str, Callable[[bytes, Caller], Awaitable[tuple[int, dict[str, Any]]]]] = {
            "publish": self.publish,
            "direct": self.direct,
            "broadcast": self.broadcast,
            "disconnect": self.disconnect,
            "revoke": self.revoke,
            "presence": self.presence,
            "channels": self.channels,
            "ends": self.ends,
            "drain": self.drain,
        }
        """By name: a function of the body and the caller that returns status and answer, and raises `ApiError`."""

    # --- messages ------------------------------------------------------------------------------------------------

    async def publish(self, body: bytes, caller: Caller = NOT_KNOWN) -> tuple[int, dict[str, Any]]:
        """Publish one message to a channel, or a batch of them in order; `from` is null as with the application's."""
        self._require_serving()
        is_batch = bool(memoryview(_decode(body, _IsBatch).messages).nbytes)
        messages = _decode(body, _Batch).messages if is_batch else [_decode(body, _Message)]
        for message in messages:
            _check_channel(message.channel)
            self._check_data(message.data)
        contents = [_content("publish", message) for message in messages]
        self._check_keys(messages, contents)
        groups: dict[str, list[Subscriber]] = {}
        sent: list[_Sent] = []
        try:
            for message, content in zip(messages, contents, strict=True):
                sent.append(self._publish_one(message, content, groups))
        except BaseException:  # no memory: what was sent before keeps its receipt
            for one in sent:
                if one.group is not None:
                    self._conclude(one, {})
            raise
        receipts = [receipt._asdict() for receipt in await self._receipts(sent, groups)]
        return 200, {"receipts": receipts} if is_batch else receipts[0]

    def _check_keys(self, messages: list[_Message], contents: list[bytes]) -> None:
        """Raise `ApiError` 409 for a key that was used for other content, before this request or within it."""
        used: dict[str, bytes] = {}
        for message, content in zip(messages, contents, strict=True):
            key = message.idempotency_key
            if key is not None:
                self._keys.find(key, content)
                if used.setdefault(key, content) != content:
                    raise ApiError(409, "idempotency_key: is used for two messages")

    def _publish_one(self, message: _Message, content: bytes, groups: dict[str, list[Subscriber]]) -> _Sent:
        name = message.channel
        before = self._known(message.idempotency_key, content)
        if before is not None:
            return _Sent(before)
        if name not in groups:  # nobody joins or leaves between the messages of a batch
            record = self._node.hub.channels.get(name)
            groups[name] = [] if record is None else members(record.members)
        subscribers = self._node.hub.push_to_channel(name, bytes(message.data))
        return _Sent(self._keep(message.idempotency_key, content), name, subscribers)

    async def direct(self, body: bytes, caller: Caller = NOT_KNOWN) -> tuple[int, dict[str, Any]]:
        """Push `server {data}` to every client of a user."""
        self._require_serving()
        message = _decode(body, _Direct)
        _check_user("to", message.to)
        clients = self._node.hub.users.get(message.to, {})
        receivers = [client.subscriber for client in clients]
        return await self._send(
            message.data,
            message.idempotency_key,
            _content("direct", message),
            receivers,
            lambda data: self._node.hub.push_to_user(message.to, data),
        )

    async def broadcast(self, body: bytes, caller: Caller = NOT_KNOWN) -> tuple[int, dict[str, Any]]:
        """Broadcast to every client, with `from` null."""
        self._require_serving()
        message = _decode(body, _Broadcast)
        receivers = members(self._node.core.everyone)
        return await self._send(
            message.data,
            message.idempotency_key,
            _content("broadcast", message),
            receivers,
            self._node.hub.push_to_everyone,
        )

    async def _send(
        self, data: Raw, key: str | None, content: bytes, receivers: list[Subscriber], push: Callable[[bytes], int]
    ) -> tuple[int, dict[str, Any]]:
        self._check_data(data)
        before = self._known(key, content)
        if before is not None:
            sent = _Sent(before)
        else:
            subscribers = push(bytes(data))  # first: a key whose message failed is free again
            sent = _Sent(self._keep(key, content), "", subscribers)
        (receipt,) = await self._receipts([sent], {"": receivers})
        return 200, receipt._asdict()

    # --- receipts ------------------------------------------------------------------------------------------------

    async def _receipts(self, sent: list[_Sent], groups: dict[str, list[Subscriber]]) -> list[WriteReceipt]:
        """The receipts of messages, those that came again included, in order."""
        became: dict[str, tuple[int, int, int]] = {}
        wanted = {one.group for one in sent if one.group is not None}
        try:
            became = await self._settle({name: groups[name] for name in wanted})
        finally:  # whatever happened, it was sent: its key must not wait for ever, nor be free again
            receipts = {one: self._conclude(one, became) for one in sent if one.group is not None}
        return [receipts[one] if one in receipts else await asyncio.shield(_future(one)) for one in sent]

    def _conclude(self, one: _Sent, became: dict[str, tuple[int, int, int]]) -> WriteReceipt:
        """The receipt of a message sent now; without knowing better, all of it is queued."""
        receipt = WriteReceipt(one.subscribers, *became.get(one.group or "", (0, one.subscribers, 0)))
        if one.future is not None:
            one.future.set_result(receipt)
        return receipt

    async def _settle(self, groups: dict[str, list[Subscriber]]) -> dict[str, tuple[int, int, int]]:
        """(written, queued, evicted) of each group of receivers, once all were flushed or `RECEIPT_S` has passed."""
        counts = dict.fromkeys(groups, (0, 0, 0))
        deadline_s = time.monotonic() + RECEIPT_S
        waiting = {name: receivers for name, receivers in groups.items() if receivers}
        while waiting:
            await asyncio.sleep(self._node.settings.coalesce_delay_s)  # the flush was scheduled before this
            still: dict[str, list[Subscriber]] = {}
            for name, receivers in waiting.items():
                for start in range(0, len(receivers), SPLIT):
                    if start:
                        await asyncio.sleep(0)
                    *more, late = split(receivers[start : start + SPLIT])
                    written, queued, evicted = (old + new for old, new in zip(counts[name], more, strict=True))
                    counts[name] = (written, queued, evicted)
                    if late:
                        still.setdefault(name, []).extend(late)
            waiting = still
            if time.monotonic() >= deadline_s:
                break
        for name, late in waiting.items():
            written, queued, evicted = counts[name]
            counts[name] = (written, queued + len(late), evicted)
        return counts

    def _known(self, key: str | None, content: bytes) -> asyncio.Future[WriteReceipt] | None:
        return None if key is None else self._keys.find(key, content)

    def _keep(self, key: str | None, content: bytes) -> asyncio.Future[WriteReceipt] | None:
        return None if key is None else self._keys.keep(key, content)

    def _check_data(self, data: Raw) -> None:
        size = memoryview(data).nbytes
        if size > self._message_limit_bytes:
            raise ApiError(413, f"data: {size} bytes, at most {self._message_limit_bytes} are allowed")

    # --- users and channels --------------------------------------------------------------------------------------

    async def disconnect(self, body: bytes, caller: Caller = NOT_KNOWN) -> tuple[int, dict[str, Any]]:
        """Close all connections of a user, or the one with an id of `connz`; the reason goes with the code."""
        wanted = _decode(body, _Disconnect)
        try:
            close_codes.check_close(wanted.code, wanted.reason)
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        if (wanted.user is UNSET) == (wanted.id is UNSET):
            raise ApiError(400, "expected user or id, one of them")
        if isinstance(wanted.user, str):
            _check_user("user", wanted.user)
            connections = [client.connection for client in self._node.hub.users.get(wanted.user, ())]
        else:
            assert isinstance(wanted.id, int)
            connection = await self._stats.find_connection(wanted.id)
            connections = [connection] if connection is not None and connection.is_open else []
        for each in connections:
            each.close(wanted.code, wanted.reason, cause=Cause("operator", str(caller)))
        whom = f"user={log_word(wanted.user)}" if wanted.user is not UNSET else f"id={wanted.id}"
        reason = "" if wanted.reason is None else f" reason={log_word(wanted.reason)}"
        _log_action("disconnect", f"{whom} code={wanted.code}{reason} clients={len(connections)}", caller)
        return 200, {"clients": len(connections)}

    async def revoke(self, body: bytes, caller: Caller = NOT_KNOWN) -> tuple[int, dict[str, Any]]:
        """Close all connections of a user or token and refuse its tokens for a time (a day)."""
        wanted = _decode(body, _Revoke)
        if (wanted.user is UNSET) == (wanted.token_id is UNSET):
            raise ApiError(400, "expected user or token_id, one of them")
        hub = self._node.hub
        by = str(caller)
        try:
            if isinstance(wanted.user, str):
                _check_user("user", wanted.user)
                _log_action("revoke", f"user={log_word(wanted.user)} seconds={wanted.seconds:g}", caller)
                return 200, {"clients": hub.revoke_user(wanted.user, wanted.seconds, by=by)}
            assert isinstance(wanted.token_id, str)
            _log_action("revoke", f"token_id={log_word(wanted.token_id)} seconds={wanted.seconds:g}", caller)
            return 200, {"clients": hub.revoke_token(wanted.token_id, wanted.seconds, by=by)}
        except OverflowError as error:
            raise ApiError(503, f"their clients were disconnected, but {error}") from None

    async def presence(self, body: bytes, caller: Caller = NOT_KNOWN) -> tuple[int, dict[str, Any]]:
        """Who is in a channel."""
        wanted = _decode(body, _Presence)
        _check_channel(wanted.channel)
        presence = self._stats.presence(wanted.channel, wanted.limit)
        if presence is None:
            raise ApiError(409, "channel: has no presence, by its options")
        return 200, presence

    async def channels(self, body: bytes, caller: Caller = NOT_KNOWN) -> tuple[int, dict[str, Any]]:
        """Which channels there are."""
        wanted = _decode(body, _Channels)
        return 200, await self._stats.channels(wanted.prefix, wanted.limit)

    async def ends(self, body: bytes, caller: Caller = NOT_KNOWN) -> tuple[int, dict[str, Any]]:
        """Who was disconnected lately, and why."""
        wanted = _decode(body, _Ends)
        if wanted.user is not None:
            _check_user("user", wanted.user)
        return 200, await self._stats.endz(wanted.user, wanted.code, wanted.since, wanted.limit, wanted.offset)

    async def drain(self, body: bytes, caller: Caller = NOT_KNOWN) -> tuple[int, dict[str, Any]]:
        """Begin to drain, as SIGTERM does."""
        _decode(body or b"{}", _Nothing)
        if self._draining is None:
            _log_action("drain", "", caller)
            self._draining = asyncio.create_task(self._node.drain(by=str(caller)))
        return 202, {"draining": True}

    def _require_serving(self) -> None:
        if self._node.is_draining:
            raise ApiError(503, "the node is draining")


def _log_action(name: str, what: str, caller: Caller) -> None:
    """A line for what an operator has done to the node or its clients."""
    log.info("operator: %s%s%s %s", name, " " if what else "", what, escape(str(caller)))


def _decode(body: bytes, shape: type[Body]) -> Body:
    """A body as a struct. Raises `ApiError` 400, which names the field and never repeats its content."""
    try:
        body.decode()
        decoded = msgspec.json.decode(body, type=shape)
        check_depth(body, None)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ApiError(400, str(error) if isinstance(error, msgspec.ValidationError) else "expected JSON") from None
    except RequestError as error:
        raise ApiError(400, error.message) from None
    return decoded


def _future(one: _Sent) -> asyncio.Future[WriteReceipt]:
    assert one.future is not None
    return one.future


def _content(route: str, message: _Message | _Direct | _Broadcast) -> bytes:
    """All that makes a message but its key; b"" without a key."""
    if message.idempotency_key is None:
        return b""
    to = message.channel if isinstance(message, _Message) else getattr(message, "to", "")
    return b"%b %b\x00%b" % (route.encode(), to.encode(), bytes(message.data))


def _check_channel(name: str) -> None:
    if not is_channel(name):
        raise ApiError(400, "channel: expected 1-255 bytes of A-Z a-z 0-9 _ - . : / @ #")


def _check_user(field: str, name: str) -> None:
    if not is_user(name):
        raise ApiError(400, f"{field}: expected 1-255 bytes of UTF-8 without control characters")
