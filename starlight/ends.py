"""How connections ended lately: for the log, for `/endz`, `starlight why`, and for `welcome.previous`.

Strategy: one record per end, made when the end is decided: a client that comes back at once is told of it even while
the old socket still lingers. The record has what the client was told (code and reason) and what only an operator is
told (cause, detail, outbox). The same record makes one line in the log and one count of the metrics.

The law: records are bounded in number, in bytes and in time, and no flood pushes out the ends of others: when it is
full, a user with more than `FAIR_SHARE` records makes room out of its own. Connections that never logged in count as
one user.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from starlight.close_codes import CLOSE_CODES
from starlight.config.printable import escape

__all__ = [
    "APPLICATION",
    "CAUSES",
    "ENDS_LIMIT",
    "Cause",
    "End",
    "Ends",
    "Named",
    "address_text",
    "cause_of",
    "log_word",
]

log = logging.getLogger(__name__)

ENDS_LIMIT: Final = 10_000
"""Ends that are kept: those of a full node's restart, or some hours of a busy one."""

LIMIT_BYTES: Final = 8 * 2**20
"""What they may take together, strings and indexes included: 838 bytes each, where an ordinary one takes 700."""

KEPT_S: Final = 86_400.0
"""How long an end is kept: a day, as it says who came from which address."""

FAIR_SHARE: Final = 100
"""Ends one user may have while others need the room: more than a person's devices make in a day."""

RECORD_BYTES: Final = 480
"""What one record takes beside its strings: the object with its numbers, and its places in the two indexes."""

DETAIL_LIMIT: Final = 200
"""Characters of what an operator is told beside the cause: a sentence, and who asked."""

REASON_LIMIT: Final = 123
"""Characters of a reason: a close frame has no room for more bytes."""


class CauseText(NamedTuple):
    """A cause in words.

    Attributes:
        level: of its line in the log: what the node refuses or cuts off is a warning.
        meaning: what happened.
        advice: what to do about it, and by which setting; "" if nothing is wrong.
    """

    level: int
    meaning: str
    advice: str = ""


CAUSES: Final[dict[str, CauseText]] = {
    "client": CauseText(logging.INFO, "the client closed the connection"),
    "lost": CauseText(
        logging.INFO,
        "the connection broke without a close frame",
        "a network that changed, a process that was killed, or a proxy that cuts idle connections: keep ping_interval "
        "below the idle time of every proxy on the way",
    ),
    "silent": CauseText(
        logging.INFO,
        "no pong came in time",
        "the client was suspended or its network was gone; pong_timeout says how long it may take",
    ),
    "slow": CauseText(
        logging.WARNING,
        "evicted: its outbox was over a limit and its socket took nothing",
        "it reads more slowly than it is sent to; send it less, or raise outbox_messages, outbox_bytes or evict_after",
    ),
    "stalled": CauseText(
        logging.WARNING,
        "evicted: its socket took nothing for the write timeout",
        "it has stopped reading, or its network is gone; write_timeout says how long that may last",
    ),
    "budget": CauseText(
        logging.WARNING,
        "evicted: all outboxes together were over the memory budget, and its was the largest",
        "raise memory_budget, or lower outbox_bytes so that slow clients go sooner",
    ),
    "login": CauseText(
        logging.WARNING,
        "the login was refused",
        "the detail says why; `starlight token check` explains a token",
    ),
    "rate": CauseText(
        logging.WARNING,
        "it went on sending more than it may",
        "have it send less, or raise message_rate or byte_rate",
    ),
    "faults": CauseText(
        logging.WARNING,
        "it made too many errors within ten seconds",
        "a broken client: last_error is the code of its last one",
    ),
    "protocol": CauseText(
        logging.WARNING,
        "it broke the protocol",
        "a broken client, or with 1009 a message over read_limit",
    ),
    "expired": CauseText(
        logging.INFO,
        "its login ended",
        "clients refresh when `expiring` comes; session_ttl and the token's `exp` say how long a login lasts",
    ),
    "revoked": CauseText(logging.INFO, "the user or its token was revoked"),
    "operator": CauseText(logging.INFO, "an operator disconnected it"),
    "application": CauseText(logging.INFO, "the application closed it"),
    "permissions": CauseText(
        logging.INFO, "it lost a channel that it had joined, by other permissions or another token"
    ),
    "drain": CauseText(logging.INFO, "the node drained"),
    "error": CauseText(logging.ERROR, "an internal error", "the log has a traceback of the same moment"),
}
"""Every cause of an end: the label of `starlight_ends_total`."""


class Cause(NamedTuple):
    """Why a connection ends, for operators alone.

    Attributes:
        name: a key of `CAUSES`.
        detail: more, in words, with who asked; "" for nothing. Nothing of a token, and never sent to a client.
    """

    name: str
    detail: str = ""


class Named(NamedTuple):
    """Who a refused login was of, where there is no client yet.

    Attributes:
        user: None if it isn't known.
    """

    user: str | None
    id: str | None = None
    last_error: int | None = None


APPLICATION: Final = Cause("application")

_BY_CODE: Final = {
    **dict.fromkeys((1002, 1003, 1007, 1009), "protocol"),
    1001: "drain",
    1006: "lost",
    1011: "error",
    4008: "slow",
    4009: "stalled",
    4012: "silent",
    4013: "rate",
    4014: "expired",
    4509: "faults",
}


def cause_of(code: int, name: str = "", detail: str = "", *, is_login: bool = False) -> Cause:
    """The cause of a close. If only the code is known, it decides; a code that any side may use is the application's.

    Args:
        code: the close code.
        name: of the cause, "" if it is not known.
        detail: see `Cause`.
        is_login: the connection had not logged in.
    """
    return Cause(name or _BY_CODE.get(code) or ("login" if is_login else "application"), detail)


class End(msgspec.Struct, frozen=True, gc=False):
    """One end.

    Attributes:
        at_s: when, in Unix seconds.
        code: the close code; 1006 without a close frame.
        reason: what went with it on the wire.
        cause: a key of `CAUSES`.
        detail: see `Cause`.
        user: None before the login.
        client: the client's id, None before the login.
        connection: its number, the `id` of ``/connz``.
        address: of the client, as far as the node knows it.
        connected_s: how long after the handshake.
        messages_in: messages it had sent.
        outbox_messages: messages that it had not got, when the end was decided.
        outbox_bytes: their bytes.
        oldest_ms: how long the oldest of them had waited; None if there was none.
        last_error: the code of the last error reply it got; None if it got none.
    """

    at_s: float
    code: int
    reason: str
    cause: str
    detail: str = ""
    user: str | None = None
    client: str | None = None
    connection: int = 0
    address: str = ""
    connected_s: float = 0.0
    messages_in: int = 0
    outbox_messages: int = 0
    outbox_bytes: int = 0
    oldest_ms: int | None = None
    last_error: int | None = None

    def row(self) -> dict[str, Any]:
        """It as a row of ``/endz``."""
        row = msgspec.structs.asdict(self)
        row["at"] = round(row.pop("at_s"), 3)
        return row

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, about."""
        texts = (self.reason, self.detail, self.user, self.client, self.address)
        return RECORD_BYTES + sum(sys.getsizeof(text) for text in texts)


class Ends:
    """The last ends of one node.

    Args:
        limit: how many.
        limit_bytes: how much memory.
        kept_s: how long, in seconds.
        clock: Unix seconds.

    Attributes:
        counts: ends since the start, by cause.
        held_bytes: what the records take now.
    """

    def __init__(
        self,
        *,
        limit: int = ENDS_LIMIT,
        limit_bytes: int = LIMIT_BYTES,
        kept_s: float = KEPT_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.held_bytes = 0
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._kept_s = kept_s
        self._clock = clock
        self._ends: dict[int, End] = {}  # by number, in order
        self._next = 1
        self._oldest = 1  # no number below it is in use
        self._by_user: dict[str | None, list[int]] = {}  # numbers, in order
        self._by_client: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def add(
        self,
        code: int,
        reason: str,
        cause: Cause,
        *,
        client: Any = None,
        connection: int = 0,
        peername: tuple[Any, ...] | None = None,
        connected_s: float = 0.0,
        messages_in: int = 0,
        outbox: tuple[int, int, int | None] = (0, 0, None),
    ) -> None:
        """Keep, count and log one end.

        Args:
            code: the close code.
            reason: what goes with it on the wire; of a peer's close frame, what came with it.
            cause: why.
            client: the hub's client, or `Named`; None before the login.
            connection: the number of the connection.
            peername: the client's address as the socket module gives it.
            connected_s: since the handshake.
            messages_in: messages it has sent.
            outbox: messages, bytes, and how many milliseconds the oldest has waited (None if there is none).
        """
        end = End(
            self._clock(),
            code,
            reason[:REASON_LIMIT],
            cause.name if cause.name in CAUSES else "application",
            cause.detail[:DETAIL_LIMIT],
            None if client is None else client.user,
            None if client is None else client.id,
            connection,
            address_text(peername)[:REASON_LIMIT],
            round(connected_s, 3),
            messages_in,
            *outbox,
            None if client is None else client.last_error,
        )
        self.counts[end.cause] += 1
        self._keep(end)
        _log(end)

    def find(
        self, user: str | None = None, code: int | None = None, since_s: float = 0.0, limit: int = 100, offset: int = 0
    ) -> tuple[int, list[End]]:
        """How many ends fit, and a page of them, the latest first.

        Args:
            user: only those of this user.
            code: only those with this code.
            since_s: only those at this time or later, in Unix seconds.
            limit: at most so many.
            offset: leave out so many at the beginning.
        """
        self.expire()
        total = 0
        page: list[End] = []
        for end in self._latest_first(user):
            if end.at_s >= since_s and (code is None or end.code == code):
                total += 1
                if offset < total <= offset + limit:
                    page.append(end)
        return total, page

    def previous(self, client: str, user: str) -> End | None:
        """How the client with this id ended; None if it is not known, or was another user's."""
        self.expire()
        number = self._by_client.get(client)
        end = None if number is None else self._ends[number]
        return end if end is not None and end.user == user else None

    def expire(self) -> None:
        """Forget what is older than a day. To be called now and then: it takes no time where nothing is due."""
        too_old_s = self._clock() - self._kept_s
        while self._ends and self._first().at_s < too_old_s:
            self._forget(self._oldest)

    # --- the records ---------------------------------------------------------------------------------------------

    def _keep(self, end: End) -> None:
        number = self._next
        self._next += 1
        self._ends[number] = end
        self._by_user.setdefault(end.user, []).append(number)
        if end.client is not None:
            self._by_client[end.client] = number
        self.held_bytes += end.size_bytes
        while len(self._ends) > self._limit or self.held_bytes > self._limit_bytes:
            own = self._by_user[end.user]
            if len(own) > FAIR_SHARE:
                self._forget(own[0])
            else:
                self._first()
                self._forget(self._oldest)

    def _first(self) -> End:
        """The oldest end, whose number is `_oldest` from now on. There has to be one."""
        while self._oldest not in self._ends:  # each number is passed once
            self._oldest += 1
        return self._ends[self._oldest]

    def _forget(self, number: int) -> None:
        end = self._ends.pop(number)
        self.held_bytes -= end.size_bytes
        numbers = self._by_user[end.user]
        del numbers[0]  # always its user's oldest
        if not numbers:
            del self._by_user[end.user]
        if end.client is not None and self._by_client.get(end.client) == number:
            del self._by_client[end.client]

    def _latest_first(self, user: str | None) -> Iterator[End]:
        numbers = reversed(self._ends) if user is None else reversed(self._by_user.get(user, ()))
        for number in numbers:
            yield self._ends[number]


def _log(end: End) -> None:
    """One line. Its text is made only if it is written: ten thousand ends at once are a few lines."""
    kind = (end.cause, end.code if end.code in CLOSE_CODES else 0)
    log.log(CAUSES[end.cause].level, "ended: %s", _Line(end), extra={"kind": kind})


class _Line:
    """The text of a line. Names are escaped here too: in a program of somebody else's the log's handler is theirs."""

    __slots__ = ("_end",)

    def __init__(self, end: End) -> None:
        self._end = end

    def __str__(self) -> str:
        end = self._end
        fields = {
            "user": end.user,
            "client": end.client,
            "address": end.address,
            "code": end.code,
            "reason": end.reason,
            "cause": end.cause,
            "detail": end.detail,
            "connected_s": end.connected_s,
            "messages_in": end.messages_in,
            "outbox": f"{end.outbox_messages}/{end.outbox_bytes}B",
            "oldest_ms": end.oldest_ms,
            "last_error": end.last_error,
        }
        return " ".join(f"{name}={log_word(value)}" for name, value in fields.items())


def log_word(value: object) -> str:
    """A value in a line: a dash for nothing, and what has white space or quotes in quotes."""
    if value is None or value == "":
        return "-"
    text = escape(str(value))
    if " " in text or '"' in text:
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}"'
    return text


def address_text(peername: tuple[Any, ...] | None) -> str:
    """``203.0.113.9:50123`` or ``[2001:db8::1]:50123``; without the port behind a proxy, where it isn't known."""
    if not isinstance(peername, tuple) or len(peername) < 2:
        return ""
    host, port = peername[:2]
    if not port:
        return str(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
