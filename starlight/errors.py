"""Every exception that Starlight raises on purpose.

::

    StarlightError
    ├── ConfigError (ValueError)      a setting has a value that is not allowed
    ├── WrongThread (RuntimeError)    the core or the hub was called off its loop's thread
    ├── NotServing (RuntimeError)     the application wants to send, but its node does not run
    ├── ListenFailed (OSError)        the node can't listen on its address
    ├── CloseConnection               server: end this connection with a code and a reason
    ├── TokenRefused                  server: a token does not let anybody in; the reason is for the log alone
    ├── KeysUnavailable               server: no key to check a token with could be fetched so far
    ├── RequestError                  server: answer this request with an error reply; the connection stays
    │   └── BadMessage                the message is not a JSON object at all (4501 before login)
    ├── OperatorError                 what the commands over a node's internal port raise
    │   ├── NodeUnreachable           no answer came that makes sense
    │   └── NodeRefused               the node answered that it won't
    └── ClientError                   what `starlight.connect` raises
        ├── ConnectFailed             no WebSocket connection could be opened
        ├── LoginRefused              the server closed the connection instead of welcoming the login
        ├── ConnectionClosed          the connection ended while something still waited on it
        ├── RequestFailed             the server answered a request with an error reply
        ├── ReplyUnreadable           the server answered a request with what Python can't hold
        └── MessageTooBig             the message is larger than the server takes, and was not sent

Expected ends are data: ``CloseConnection`` and ``RequestError`` carry codes of ``close_codes.py`` and are not logged as
failures. Anything outside this tree is a bug.
"""

from starlight import close_codes

__all__ = [
    "BadMessage",
    "ClientError",
    "CloseConnection",
    "ConfigError",
    "ConnectFailed",
    "ConnectionClosed",
    "KeysUnavailable",
    "ListenFailed",
    "LoginRefused",
    "MessageTooBig",
    "NodeRefused",
    "NodeUnreachable",
    "NotServing",
    "OperatorError",
    "ReplyUnreadable",
    "RequestError",
    "RequestFailed",
    "StarlightError",
    "TokenRefused",
    "WrongThread",
]

_SHOWN_CHARS = 80  # of a wrong value in an error message: enough to recognise it, too little to flood a terminal


class StarlightError(Exception):
    """The root of the tree."""


class ConfigError(StarlightError, ValueError):
    """A setting has a value that is not allowed.

    Attributes:
        key: the name of the setting as the user wrote it, such as ``outbox_bytes`` or ``STARLIGHT_OUTBOX_BYTES``.
        field: the field of `Settings` it belongs to, such as ``outbox_bytes``; the CLI derives its flag from it.
        value: what was given.
        allowed: what would have been right, as text.
        others: what else was found wrong at the same time.
    """

    def __init__(self, key: str, value: object, allowed: str, field: str | None = None) -> None:
        self.key = key
        self.field = field or key
        self.value = value
        self.allowed = allowed
        self.others: tuple[ConfigError, ...] = ()
        super().__init__(key, value, allowed, self.field)

    @classmethod
    def all_of(cls, errors: "list[ConfigError]") -> "ConfigError":
        """The first of some errors, with the rest as its `others`."""
        first, *rest = errors
        first.others = tuple(rest)
        return first

    def __str__(self) -> str:
        """A line for this error and one for each of its `others`, so that a traceback tells all at once."""
        return "\n".join(error.line for error in (self, *self.others))

    @property
    def line(self) -> str:
        """This error alone: ``port='x': expected a whole number``."""
        shown = repr(self.value)
        if len(shown) > _SHOWN_CHARS:
            shown = shown[:_SHOWN_CHARS] + "..."
        return f"{self.key}={shown}: expected {self.allowed}"


class WrongThread(StarlightError, RuntimeError):
    """One thread owns the core and the hub; use `publish_threadsafe` from any other."""


class NotServing(StarlightError, RuntimeError):
    """The application wants to send something, but its node does not run, or not any more."""


class ListenFailed(StarlightError, OSError):
    """The node can't listen on its address: the port is in use, not permitted, or the host isn't ours.

    Attributes:
        setting: the setting of the port: ``port`` or ``internal_port``.
    """

    setting = "port"


class CloseConnection(StarlightError):
    """Raised by the hub or a handler to end the connection it serves.

    Attributes:
        code: a close code of `close_codes.CLOSE_CODES`.
        reason: ASCII of at most 123 bytes; by default the constant one of the table.
        cause: why, as a key of `starlight.ends.CAUSES`; "" to go by the code. For operators alone, as is `detail`.
        detail: more of it, in words; it never repeats anything of a token.
        client: whose login it refuses, if that is known; set by the hub.
    """

    def __init__(self, code: int, reason: str | None = None, *, cause: str = "", detail: str = "") -> None:
        self.code = code
        self.reason = close_codes.reason(code) if reason is None else reason
        self.cause = cause
        self.detail = detail
        self.client: object = None
        super().__init__(code, self.reason)

    def __str__(self) -> str:
        return f"{self.code} {self.reason}".rstrip()


class TokenRefused(StarlightError):
    """A token that lets nobody in.

    Attributes:
        reason: constant text for the log and for `starlight token check`; it never repeats any of the token, and a
            client is never told it.
        is_expired: it was right once: the client fetches a new one (109) where others are wrong (101).
        user: who it names, if its signature was right; None otherwise.
    """

    def __init__(self, reason: str, is_expired: bool = False, user: str | None = None) -> None:
        self.reason = reason
        self.is_expired = is_expired
        self.user = user
        super().__init__(reason, is_expired, user)

    def __str__(self) -> str:
        return self.reason


class KeysUnavailable(StarlightError):
    """No key to check a token with could be fetched so far; that is not the client's fault, who may come back."""


class RequestError(StarlightError):
    """A request that is answered with an error reply; the connection stays.

    Attributes:
        code: an `ErrorCode`, or a plain int of an application.
        name: its wire name, such as ``bad_request``.
        message: text for the developer at the other end; names the field, never repeats its content.
        id: the id of the request; None when it had none or it could not be read.
    """

    def __init__(self, code: int, message: str = "", id: int | str | None = None) -> None:
        self.code = int(code)
        self.name = close_codes.error_name(code)
        self.message = message
        self.id = id
        super().__init__(self.code, message, id)

    def __str__(self) -> str:
        return f"{self.code} {self.name}: {self.message}"


class BadMessage(RequestError):
    """The message is not JSON, or not an object: error 107, and close code 4501 before login."""


class OperatorError(StarlightError):
    """The root of what the commands over a node's internal port raise.

    Attributes:
        url: of the internal port that was asked.
    """

    url: str


class NodeUnreachable(OperatorError):
    """No answer came that makes sense: refused, timed out, or it is no internal port.

    Attributes:
        reason: why, in a few words; nothing of the answer.
    """

    def __init__(self, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(url, reason)

    def __str__(self) -> str:
        return f"{self.url}: {self.reason}"


class NodeRefused(OperatorError):
    """The node answered that it won't do what was asked.

    Attributes:
        status: of the HTTP answer, such as 403.
        message: the node's text.
    """

    def __init__(self, url: str, status: int, message: str = "") -> None:
        self.url = url
        self.status = status
        self.message = message
        super().__init__(url, status, message)

    def __str__(self) -> str:
        return f"{self.url}: {self.status} {self.message}".rstrip()


class ClientError(StarlightError):
    """The root of what `starlight.connect` raises."""


class ConnectFailed(ClientError):
    """No WebSocket connection could be opened: refused, timed out, or the handshake was declined."""


class LoginRefused(ClientError):
    """The server closed the connection instead of welcoming the login.

    Attributes:
        code: the close code.
        reason: the server's reason.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        self.code = code
        self.reason = reason
        super().__init__(code, reason)

    def __str__(self) -> str:
        return f"login refused: {self.code} {self.reason}".rstrip()


class ConnectionClosed(ClientError):
    """The connection ended while something still waited on it.

    Attributes:
        code: the close code, 1006 when there was none.
        reason: the peer's reason.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        self.code = code
        self.reason = reason
        super().__init__(code, reason)

    def __str__(self) -> str:
        return f"connection closed: {self.code} {self.reason}".rstrip()


class RequestFailed(ClientError):
    """The server answered a request with an error reply.

    Attributes:
        code: the error code, such as 120.
        name: its name, such as ``not_connected``.
        message: the server's text.
    """

    def __init__(self, code: int, name: str, message: str = "") -> None:
        self.code = code
        self.name = name
        self.message = message
        super().__init__(code, name, message)

    def __str__(self) -> str:
        return f"{self.code} {self.name}: {self.message}".rstrip(": ")


class ReplyUnreadable(ClientError):
    """The server answered a request with what Python can't hold: a number out of range, say. What was asked was done.

    Attributes:
        why: what could not be read.
    """

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)

    def __str__(self) -> str:
        return f"the reply cannot be read: {self.why}"


class MessageTooBig(ClientError):
    """The message is larger than the server takes, and was not sent: the server would have ended the connection.

    Attributes:
        size_bytes: of the message.
        limit_bytes: of the server.
    """

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(size_bytes, limit_bytes)

    def __str__(self) -> str:
        return f"a message of {self.size_bytes:,} bytes was not sent: the server takes at most {self.limit_bytes:,}"
