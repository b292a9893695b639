"""What a session asks of the transport that carries its messages.

The transport reads and hands over whole messages; all that is written goes through the core, which knows the sink. So
there is little left to ask: when to read, how to end, and what the kernel knows of the peer.
"""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Transport"]


class Transport(Protocol):
    """Implemented by `starlight.net.connection.Connection`, and by a fake in the tests of sessions.

    None of these calls the session back before it returns, but for `close`: it may hand over what TLS has read already.

    Attributes:
        peername: the peer's address as the socket module gives it; None if there is none.
        sockname: our own.
    """

    @property
    def peername(self) -> tuple[Any, ...] | None: ...
    @property
    def sockname(self) -> tuple[Any, ...] | str | None: ...

    def pause_reading(self) -> None:
        """Read nothing more until `resume_reading`. What was read already may still be handed over."""

    def stop_reading(self) -> None:
        """As `pause_reading`, but for long: `Session.on_departed` is called if the peer goes meanwhile."""

    def resume_reading(self) -> None:
        """Read on, if `Session.may_read` still says so when it comes to that."""

    def discard_input(self) -> None:
        """Read on, whatever was paused, but hand over nothing more than the peer's end."""

    def write_eof(self) -> bool:
        """Say that we send no more; False if this kind of transport can't say it."""

    def has_unsent(self) -> bool:
        """Whether it holds bytes that it has taken from the core and not given to the kernel."""

    def progress(self) -> tuple[int, int]:
        """(bytes received from the peer, bytes of ours that it acknowledged), by the kernel; (-1, -1): unknown."""

    def unread_bytes(self) -> int:
        """How much of what the peer sent the kernel still holds; 0 if that can't be told."""

    def close(self) -> None:
        """Close in order; `Session.on_lost` follows."""

    def abort(self, with_reset: bool) -> None:
        """Close now; `Session.on_lost` follows.

        Args:
            with_reset: so that the kernel keeps nothing of what was unsent.
        """
