"""The replies of the server, and ``bye``, as bytes of one JSON object each.

The frequent ones are formatted by hand, the rest goes through orjson. An id is an integer or a string and comes back
as it was; None means that the request had none, and the field is left out. `ok` replies always have one, since
without an id a success is silent.

The functions raise TypeError (orjson's JSONEncodeError) for a value that JSON cannot express.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orjson import dumps

from starlight.close_codes import error_name
from starlight.errors import RequestError
from starlight.protocols.base import ClientLimits

__all__ = [
    "ClientLimits",
    "bye",
    "error",
    "ok",
    "ok_count",
    "ok_data",
    "ok_id",
    "ok_join",
    "ok_joins",
    "ok_presence",
    "ok_publish",
    "pong",
    "welcome",
]


def ok(id: int | str, **fields: Any) -> bytes:
    """``{"type":"ok","id":…}`` with any further fields; the general form, the ones below are faster."""
    return dumps({"type": "ok", "id": id, **fields})


def ok_id(id: int | str) -> bytes:
    """``{"type":"ok","id":…}``: the reply to leave, and to whatever has nothing to tell."""
    return b'{"type":"ok","id":%b}' % dumps(id)


def ok_publish(id: int | str, subscribers: int) -> bytes:
    """The reply to publish: how many subscribers it went to, and that the count is of this node alone."""
    return b'{"type":"ok","id":%b,"subscribers":%d,"scope":"node"}' % (dumps(id), subscribers)


def ok_count(id: int | str, clients: int) -> bytes:
    """The reply to direct and broadcast: how many clients it went to, the sender's own included."""
    return b'{"type":"ok","id":%b,"clients":%d}' % (dumps(id), clients)


def ok_join(id: int | str, channel: str) -> bytes:
    """The reply to join in a channel without history: no epoch, no offset."""
    return b'{"type":"ok","id":%b,"channel":%b}' % (dumps(id), dumps(channel))


def ok_joins(id: int | str, outcomes: Iterable[tuple[str, RequestError | None]]) -> bytes:
    """The reply to join of several channels, in the order of the request: each with its name, and its error if any."""
    channels = [
        {"channel": name} if error is None else {"channel": name, "error": _error_fields(error.code, error.message)}
        for name, error in outcomes
    ]
    return dumps({"type": "ok", "id": id, "channels": channels})


def ok_presence(id: int | str, users: Sequence[str], clients: int) -> bytes:
    """The reply to presence: some of the users (bounded by the request's limit), and the number of all clients."""
    return dumps({"type": "ok", "id": id, "users": list(users), "clients": clients})


def ok_data(id: int | str, data: object) -> bytes:
    """The reply of an application's handler: its return value. NaN and infinities become null (orjson)."""
    return dumps({"type": "ok", "id": id, "data": data})


def error(id: int | str | None, code: int, message: str) -> bytes:
    """An error reply; its name comes from the code."""
    fields: dict[str, object] = {"type": "error"}
    if id is not None:
        fields["id"] = id
    return dumps(fields | _error_fields(code, message))


def _error_fields(code: int, message: str) -> dict[str, object]:
    return {"code": int(code), "name": error_name(code), "message": message}


def pong(id: int | str | None = None) -> bytes:
    """The reply to ping, with or without an id."""
    return b'{"type":"pong"}' if id is None else b'{"type":"pong","id":%b}' % dumps(id)


def welcome(
    id: int | str | None,
    *,
    user: str,
    client: str,
    node: str,
    ping_s: float,
    pong_s: float,
    session: str | None = None,
    expires: int | None = None,
    limits: ClientLimits | None = None,
    previous: Mapping[str, object] | None = None,
) -> bytes:
    """The reply to login.

    Args:
        id: of the login, None if it had none.
        user: who was logged in.
        client: the name of this connection, unique on the node.
        node: the name of the node.
        ping_s: how often the server pings, in seconds.
        pong_s: how long it waits for the pong, in seconds.
        session: a token to log in again with; None without auth.
        expires: when the session ends, in Unix seconds; None if it does not.
        limits: of this client; None leaves them out.
        previous: how the connection that the login named as its previous one ended; None, if that is not known, leaves
            it out.
    """
    fields: dict[str, object] = {"type": "welcome"}
    if id is not None:
        fields["id"] = id
    fields |= {"user": user, "client": client, "node": node, "session": session, "expires": expires}
    fields |= {"ping": _whole(ping_s), "pong": _whole(pong_s)}
    if limits is not None:
        fields["limits"] = limits._asdict()
    if previous is not None:
        fields["previous"] = previous
    return dumps(fields)


def bye(code: int, reason: str, retry_ms: int | None = None) -> bytes:
    """The last message before an orderly close: its code and reason, and in how many ms to come back (None: don't)."""
    return dumps({"type": "bye", "code": code, "reason": reason, "retry_ms": retry_ms})


def _whole(seconds: float) -> float:
    """25 instead of 25.0 on the wire."""
    return int(seconds) if seconds == int(seconds) else seconds
