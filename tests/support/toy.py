"""A second protocol, as small as one can be: binary messages of fields between bars. It proves that nothing but a codec
knows the native protocol's bytes.

    hello|USER   in|ID|CHANNEL   pub|ID|CHANNEL|DATA   to|ID|USER|DATA   all|ID|DATA   ping|ID     (ID may be empty)
    <- welcome|USER   ok|ID|N   no|ID|CODE   #CHANNEL|FROM|DATA;   @FROM|DATA;   *FROM|DATA;   bye|WHY
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from msgspec import Raw

from starlight.close_codes import ErrorCode
from starlight.errors import RequestError
from starlight.protocols.base import FRAMES, Ending
from starlight.protocols.native import commands

TOY_SUBPROTOCOL: Final = "toy.v1"


def _id(field: bytes) -> int | None:
    return int(field) if field else None


def _number(id: int | str | None) -> bytes:
    return b"" if id is None else str(id).encode()


def _name(user: str | None) -> bytes:
    return (user or "").encode()


class Toy:
    """A `Codec`. Its close codes are 3000 above the last three digits of the server's."""

    is_text = False
    framings: ClassVar = {TOY_SUBPROTOCOL: FRAMES}
    tail = b";"

    def decode(self, message: bytes) -> Any:
        verb, _, rest = message.partition(b"|")
        if verb == b"hello":
            return commands.Login(user=rest.decode())
        first, _, rest = rest.partition(b"|")
        id = _id(first)
        if verb == b"ping":
            return commands.Ping(id)
        if verb == b"in":
            return commands.Join(rest.decode(), id)
        if verb == b"all":
            return commands.SendBroadcast(Raw(rest), id)
        name, _, data = rest.partition(b"|")
        if verb == b"pub":
            return commands.Publish(name.decode(), Raw(data), id)
        if verb == b"to":
            return commands.SendDirect(name.decode(), Raw(data), id)
        raise RequestError(ErrorCode.UNKNOWN_TYPE, "unknown", id)

    def read_id(self, message: bytes) -> int | None:
        return _id(message.split(b"|")[1])

    def welcome(self, id: Any, *, user: str, **fields: Any) -> bytes:
        return b"welcome|%b" % user.encode()

    def ok(self, id: Any, **fields: Any) -> bytes:
        return b"ok|%b|" % _number(id)

    def ok_id(self, id: Any) -> bytes:
        return self.ok(id)

    def ok_publish(self, id: Any, subscribers: int) -> bytes:
        return b"ok|%b|%d" % (_number(id), subscribers)

    def ok_count(self, id: Any, clients: int) -> bytes:
        return b"ok|%b|%d" % (_number(id), clients)

    def ok_join(self, id: Any, channel: str) -> bytes:
        return self.ok(id)

    def ok_joins(self, id: Any, outcomes: Any) -> bytes:
        return b"ok|%b|%d" % (_number(id), len(list(outcomes)))

    def ok_presence(self, id: Any, users: Any, clients: int) -> bytes:
        return b"ok|%b|%d" % (_number(id), clients)

    def ok_data(self, id: Any, data: object) -> bytes:
        return b"ok|%b|%b" % (_number(id), str(data).encode())

    def error(self, id: Any, code: int, message: str) -> bytes:
        return b"no|%b|%d" % (_number(id), code)

    def pong(self, id: Any = None) -> bytes:
        return b"pong|%b" % _number(id)

    def publication_head(self, channel: str, from_user: str | None) -> bytes:
        return b"#%b|%b|" % (channel.encode(), _name(from_user))

    def broadcast_head(self, from_user: str | None) -> bytes:
        return b"*%b|" % _name(from_user)

    def direct_head(self, from_user: str | None) -> bytes:
        return b"@%b|" % _name(from_user)

    def server_head(self) -> bytes:
        return b"!"

    def joined(self, channel: str, user: str) -> bytes:
        return b"+%b|%b" % (channel.encode(), user.encode())

    def left(self, channel: str, user: str) -> bytes:
        return b"-%b|%b" % (channel.encode(), user.encode())

    def expiring(self, seconds: int) -> bytes:
        return b"soon|%d" % seconds

    def end(self, code: int, reason: str | None, retry_ms: int | None) -> Ending:
        why = f"toy {code}"
        return Ending(3000 + code % 1000, why, b"bye|%b" % why.encode())
