"""A client of a node's internal port: what `starlight top`, `conns`, `why`, `kick` and `drain` ask of it.

Strategy: `http.client` of the standard library, because a command makes a handful of requests and importing aiohttp
would take longer than they do; and unlike urllib it follows no redirect and no proxy variable, so that the key goes to
the node it is for and nowhere else.

Law: nothing of an answer is believed before it is decoded into the types here. Fields a newer node has are ignored,
fields an older one lacks have defaults, and an answer is at most `ANSWER_LIMIT_BYTES` long. It is complete within
`ANSWER_S`, however it drips: the time that is left becomes the socket's timeout before each read.
"""

from __future__ import annotations

import getpass
import http.client
import io
import math
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from starlight.config.file import read_file
from starlight.errors import ConfigError, NodeRefused, NodeUnreachable

__all__ = [
    "CONNECTIONS_LIMIT",
    "DEFAULT_NODE",
    "ChannelRow",
    "ChannelsPage",
    "ConnectionRow",
    "ConnectionsPage",
    "EndRow",
    "EndsPage",
    "NodeClient",
    "Totals",
    "Varz",
    "clients",
    "read_key",
]

DEFAULT_NODE: Final = "http://127.0.0.1:8766"
"""Where the internal port of a node is looked for: one above the default port, on the same machine."""

CONNECTIONS_LIMIT: Final = 1_000
"""How many connections or channels one request may ask for; the node's own limit."""

ANSWER_LIMIT_BYTES: Final = 16 << 20
"""1,000 connections with the longest names, escaped, are below 4 MiB."""

TIMEOUT_S: Final = 5.0
"""For connecting to each address of a host."""

ANSWER_S: Final = 10.0
"""For a request in all, from connected to the end of the answer. A node whose loop turns answers within milliseconds; a
page of 100,000 connections takes some hundred turns of a busy one."""

KEY_LIMIT_BYTES: Final = 4_096
_KEY: Final = re.compile(r"[\x21-\x7e]{1,4096}", re.ASCII)
_NODE_RULE: Final = "the URL of an internal port, such as http://127.0.0.1:8766"
_STALE: Final = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
_JSON: Final = {"Accept": "application/json"}

T = TypeVar("T")


class Totals(msgspec.Struct):
    """What a node has counted since it started."""

    connections: int = 0
    refused_connections: int = 0
    handshake_failures: int = 0
    logins: int = 0
    logins_refused: int = 0
    messages_in: int = 0
    bytes_in: int = 0
    publications: int = 0
    directs: int = 0
    broadcasts: int = 0
    deliveries: int = 0
    sends: int = 0
    bytes_out: int = 0
    evictions: dict[str, int] = {}
    dropped: dict[str, dict[str, int]] = {}
    closes: dict[str, int] = {}
    errors: dict[str, int] = {}
    ends: dict[str, int] = {}
    would_have: dict[str, int] = {}
    revocations: int = 0


class Outbox(msgspec.Struct):
    """What all outboxes of a node hold now; `oldest_ms` is None if they are empty."""

    messages: int = 0
    bytes: int = 0
    oldest_ms: float | None = None


class Memory(msgspec.Struct):
    """What the node's process holds, and what its chunks take of their budget."""

    rss_bytes: int = 0
    budget_bytes: int = 0
    chunk_bytes: int = 0


class Loop(msgspec.Struct):
    """How late the loop was: at worst in the last second, and since the start."""

    lag_ms: float = 0.0
    lag_max_ms: float = 0.0


class Varz(msgspec.Struct):
    """The answer of ``/varz``. `started` and `now` are Unix seconds of the node's clock."""

    node: str
    now: float
    started: float = 0.0
    version: str = ""
    pid: int = 0
    uptime_s: float = 0.0
    state: str = "serving"
    url: str = ""
    connections: int = 0
    clients: int = 0
    users: int = 0
    channels: int = 0
    memberships: int = 0
    full_clients: int = 0
    totals: Totals = msgspec.field(default_factory=Totals)
    outbox: Outbox = msgspec.field(default_factory=Outbox)
    memory: Memory = msgspec.field(default_factory=Memory)
    loop: Loop = msgspec.field(default_factory=Loop)


class ConnectionRow(msgspec.Struct):
    """One row of ``/connz``; `user` is None before the login, `oldest_ms` with an empty outbox."""

    id: int
    user: str | None = None
    address: str | None = None
    subprotocol: str | None = None
    connected_s: float = 0.0
    channels: int = 0
    messages_in: int = 0
    outbox_messages: int = 0
    outbox_bytes: int = 0
    oldest_ms: float | None = None
    is_full: bool = False
    is_reading_paused: bool = False


class ConnectionsPage(msgspec.Struct):
    """The answer of ``/connz``: `total` fit the question, `connections` are those asked for."""

    now: float
    total: int
    connections: list[ConnectionRow]


class ChannelRow(msgspec.Struct):
    """One row of ``/channelz``; publications and deliveries since the channel was made."""

    channel: str
    subscribers: int = 0
    publications: int = 0
    deliveries: int = 0


class ChannelsPage(msgspec.Struct):
    """The answer of ``/channelz``."""

    now: float
    total: int
    channels: list[ChannelRow]


class EndRow(msgspec.Struct):
    """One row of ``/endz``; `at` in Unix seconds of the node's clock. See `starlight.ends.End`."""

    at: float
    code: int
    reason: str = ""
    cause: str = ""
    detail: str = ""
    user: str | None = None
    client: str | None = None
    connection: int = 0
    address: str = ""
    connected_s: float = 0.0
    messages_in: int = 0
    outbox_messages: int = 0
    outbox_bytes: int = 0
    oldest_ms: float | None = None
    last_error: int | None = None


class EndsPage(msgspec.Struct):
    """The answer of ``/endz``: `total` fit the question, `ends` are those asked for, the latest first."""

    node: str
    now: float
    total: int
    ends: list[EndRow]


class _Disconnected(msgspec.Struct):
    clients: int


class _ErrorBody(msgspec.Struct):
    code: str | int = ""
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _ErrorBody


class NodeClient:
    """Asks one node; for one thread at a time. Keeps its connection open between readings.

    Args:
        url: of the internal port, such as ``http://127.0.0.1:8766``; behind a proxy it may be https and have a path.
        key: the bearer key; without it only what reads is answered.
        timeout_s: for connecting.
        answer_s: for a request in all.

    Every method that asks raises `NodeUnreachable` if no answer came that makes sense, and `NodeRefused` if the node
    answered that it won't. The constructor raises `ConfigError` for a URL that is none.
    """

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = TIMEOUT_S, answer_s: float = ANSWER_S
    ) -> None:
        self.url = url
        self._headers = {**_JSON, "X-Starlight-Operator": operator()}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._answer_s = answer_s
        self._deadline = _Deadline()
        self._connection, self._base = _open(url, timeout_s, self._deadline)

    def varz(self) -> Varz:
        """Counts, totals and state of the node."""
        return self._get("/varz", Varz)

    def connections(
        self, sort: str = "outbox", user: str | None = None, limit: int = 100, offset: int = 0
    ) -> ConnectionsPage:
        """Connections, the first by `sort` first; of one user if one is named.

        Args:
            sort: outbox, oldest, messages_in or connected.
            user: only those of this user.
            limit: at most so many, up to `CONNECTIONS_LIMIT`.
            offset: leave out so many.
        """
        asked = {"sort": sort, "limit": limit, "offset": offset, **({"user": user} if user is not None else {})}
        return self._get(f"/connz?{urlencode(asked, quote_via=quote)}", ConnectionsPage)

    def channels(self, sort: str = "deliveries", limit: int = 100) -> ChannelsPage:
        """Channels, the first by `sort` first.

        Args:
            sort: subscribers, publications or deliveries.
            limit: at most so many, up to `CONNECTIONS_LIMIT`.
        """
        return self._get(f"/channelz?{urlencode({'sort': sort, 'limit': limit})}", ChannelsPage)

    def ends(
        self, user: str | None = None, code: int | None = None, since_s: float = 0.0, limit: int = 100
    ) -> EndsPage:
        """How connections ended lately, the latest first. It needs the key.

        Args:
            user: only those of this user.
            code: only those with this close code.
            since_s: only those at this time or later, in Unix seconds.
            limit: at most so many, up to `CONNECTIONS_LIMIT`.
        """
        asked: dict[str, Any] = {"since": math.floor(since_s), "limit": limit}
        asked |= {"user": user} if user is not None else {}
        asked |= {"code": code} if code is not None else {}
        return self._get(f"/endz?{urlencode(asked, quote_via=quote)}", EndsPage)

    def disconnect(self, user: str, code: int | None = None, reason: str | None = None) -> int:
        """Close all connections of a user; returns how many clients that were.

        Args:
            user: whom.
            code: the close code; None for the node's choice.
            reason: what the clients are told with it; None for the code's own.
        """
        body: dict[str, Any] = {"user": user}
        body |= {"code": code} if code is not None else {}
        body |= {"reason": reason} if reason is not None else {}
        return self._post("/api/disconnect", body, _Disconnected).clients

    def drain(self) -> None:
        """Have the node drain: it takes no new connections, closes its clients and ends."""
        self._post("/api/drain", {}, dict)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def _get(self, path: str, type: type[T]) -> T:
        """Ask; once more on a new connection if the node had closed the idle one meanwhile."""
        was_open = self._connection.sock is not None
        try:
            return self._ask("GET", path, None, type)
        except NodeUnreachable as error:
            if not was_open or not isinstance(error.__cause__, _STALE):
                raise
            return self._ask("GET", path, None, type)

    def _post(self, path: str, body: Mapping[str, Any], type: type[T]) -> T:
        """Ask once: what changes something is never sent twice."""
        self.close()
        return self._ask("POST", path, msgspec.json.encode(body), type)

    def _ask(self, method: str, path: str, body: bytes | None, type: type[T]) -> T:
        headers = {**self._headers, **({"Content-Type": "application/json"} if body is not None else {})}
        try:
            if self._connection.sock is None:
                self._connection.connect()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise NodeUnreachable(self.url, _reason(error)) from error
        try:
            self._deadline.begin(self._answer_s)
            self._connection.request(method, self._base + path, body, headers)
            response = self._connection.getresponse()
            content = response.read(ANSWER_LIMIT_BYTES + 1)
        except TimeoutError as error:
            self.close()
            raise NodeUnreachable(self.url, f"no complete answer within {self._answer_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise NodeUnreachable(self.url, _reason(error)) from error
        if len(content) > ANSWER_LIMIT_BYTES:
            self.close()
            raise NodeUnreachable(self.url, f"an answer of more than {ANSWER_LIMIT_BYTES} bytes")
        if not 200 <= response.status < 300:
            raise NodeRefused(self.url, response.status, _message(content) or response.reason)
        try:
            return msgspec.json.decode(content, type=type)
        except (msgspec.MsgspecError, RecursionError):
            raise NodeUnreachable(self.url, "the answer is not that of a Starlight node's internal port") from None


def clients(nodes: Sequence[str], key_file: str | None = None) -> list[NodeClient]:
    """A client for each of these URLs, each URL once, with the key of that file if one is named.

    Raises `ConfigError`, in terms of ``--node`` and ``--key-file``.
    """
    key = read_key(key_file) if key_file else None
    return [NodeClient(url, key) for url in dict.fromkeys(node.rstrip("/") for node in nodes)]


def operator() -> str:
    """Who runs this, for the node's log: the user of this machine who became root, else the user; ``unknown``."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        name = f"uid {os.getuid()}"
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in name)[:64] or "unknown"


def read_key(path: str) -> str:
    """The bearer key in a file, without white space around it.

    Raises `ConfigError` if it can't be read or holds no key; the message never repeats any of it.
    """
    key = read_file(path, "--key-file", KEY_LIMIT_BYTES + 1).decode("ascii", "replace").strip()
    if not _KEY.fullmatch(key):
        raise ConfigError("--key-file", path, "a file with one key of printable ASCII characters")
    return key


class _Deadline:
    """When the request under way has to be done."""

    def __init__(self) -> None:
        self._at_s = 0.0

    def begin(self, seconds: float) -> None:
        """A request begins, with so much time."""
        self._at_s = time.monotonic() + seconds

    def left_s(self) -> float:
        """What is left of it, in seconds. Raises TimeoutError if that is nothing."""
        left_s = self._at_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s


class _AnswerReader(io.RawIOBase):
    """What an answer is read from: a socket, with what is left of the time for each read."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)  # keeps the descriptor when http.client closes the socket early
        self._deadline = deadline

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Some bytes. Raises TimeoutError."""
        self._sock.settimeout(self._deadline.left_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Give the descriptor back."""
        self._raw.close()
        super().close()


class _TimedSocket:
    """A connected socket as http.client uses it, which gives each request its time.

    Args:
        sock: owned from here on.
        deadline: of the request under way.
    """

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def sendall(self, data: Any) -> None:
        """Send a request. Raises TimeoutError."""
        self._sock.settimeout(self._deadline.left_s())  # for all of it
        self._sock.sendall(data)

    def makefile(self, *args: Any, **kwargs: Any) -> io.BufferedReader:
        """What the answer is read from."""
        return io.BufferedReader(_AnswerReader(self._sock, self._deadline))

    def close(self) -> None:
        """Close the socket, unless an answer is still read from it."""
        self._sock.close()


class _Connection(http.client.HTTPConnection):
    deadline: _Deadline

    def connect(self) -> None:
        super().connect()
        self.sock = _TimedSocket(self.sock, self.deadline)


class _TlsConnection(http.client.HTTPSConnection):
    deadline: _Deadline

    def connect(self) -> None:
        super().connect()
        self.sock = _TimedSocket(self.sock, self.deadline)


def _open(url: str, timeout_s: float, deadline: _Deadline) -> tuple[http.client.HTTPConnection, str]:
    """An unopened connection to the host of a URL, and the path below which its routes are."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    printable = url.isascii() and url.isprintable() and " " not in url
    if not printable or not host or parts.scheme not in ("http", "https") or "@" in parts.netloc or parts.query:
        raise ConfigError("--node", url, _NODE_RULE)
    kind = _TlsConnection if parts.scheme == "https" else _Connection
    connection = kind(host, port, timeout=timeout_s)
    connection.deadline = deadline
    return connection, parts.path.rstrip("/")


def _reason(error: Exception) -> str:
    """Why there was no answer, in words that repeat nothing of the other end."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "connection closed"
    if isinstance(error, http.client.HTTPException):
        return "the answer is not HTTP"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(getattr(error, "strerror", None) or "not reachable").lower()


def _message(content: bytes) -> str:
    """The message of an error answer; the empty string if it has none."""
    try:
        return msgspec.json.decode(content, type=_Refusal).error.message
    except (msgspec.MsgspecError, RecursionError):
        return ""
