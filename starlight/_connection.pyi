"""Stubs of the compiled connection. What each call means stands in the docstrings of _connection.pyx."""

from asyncio import BufferedProtocol
from collections import Counter
from typing import Any, final

from starlight._fanout import Core, Subscriber
from starlight._gate import Gate
from starlight.config import Settings

@final
class Connection:
    subscriber: Subscriber
    client: Any
    subprotocol: str
    number: int
    connected_ms: int
    messages_in: int
    is_paused: bool
    @property
    def is_open(self) -> bool: ...
    @property
    def peername(self) -> tuple[Any, ...] | None: ...
    def close(self, code: int, reason: str | None = None, retry_ms: int | None = None) -> None: ...
    def abort(self) -> None: ...
    def admit(self, peername: tuple[Any, ...] | None) -> bool: ...
    def on_socket_lost(self) -> None: ...
    def pause_reading(self, seconds: float) -> None: ...
    def pass_gate(self, subprotocol: str, address: str | None, peername: tuple[Any, ...] | None) -> None: ...
    def on_evicted(self, code: int, messages: int, n_bytes: int, oldest_ms: int) -> None: ...
    def on_close_sent(self) -> None: ...
    def on_broken(self) -> None: ...
    def on_discarded(self) -> None: ...

@final
class Acceptor:
    core: Core
    hub: Any
    connections: int
    counts: Counter[str]
    messages_in: int
    bytes_in: int
    def __init__(
        self,
        core: Core,
        hub: object,
        settings: Settings,
        *,
        gate: Gate | None = None,
        echoes: bool = False,
        fragments_limit: int = 64,
        turn_work: int = 2 << 20,
    ) -> None: ...
    def protocol(self) -> BufferedProtocol: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def abort_handshakes(self) -> None: ...
