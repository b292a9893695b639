"""How much one client, one user and one address may ask for. Pure: numbers in, decisions out, the clock is passed in.

Rates are token buckets, kept as the one time at which the bucket will be full again (the generic cell rate algorithm):
a bucket is a float, and nothing has to be refilled.

The limits that tell users apart are on by default only with tokens: without them anybody is anybody. One that is set
on purpose holds in either case.
"""

from __future__ import annotations

import ipaddress
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from starlight.auth.dry_run import DryRun
from starlight.config.reconfigure import Commit
from starlight.config.settings import Settings

__all__ = [
    "FAULTS_LIMIT",
    "FAULTS_WINDOW_S",
    "INTERNAL_CONNECTIONS",
    "Addresses",
    "CatchUp",
    "Faults",
    "Limits",
    "Meter",
    "address_key",
    "internal_connections",
]

BURST_S: Final = 2.0
"""How many seconds' worth a rate lets through at once: a client that was away for a moment catches up."""

PAUSE_S: Final = 1.0
"""How long reading stops for a client that goes on asking although it is told that it asks too much."""

REFUSALS_LIMIT: Final = 20
"""Refusals before reading stops."""

PAUSES_LIMIT: Final = 3
"""Pauses in `FORGIVE_S`; where the next one would begin, the connection ends with 4013."""

FORGIVE_S: Final = 60.0
"""After so long without a refusal all is forgotten."""

CATCH_UP_S: Final = 10.0
"""How long after a standstill what came meanwhile is still being read."""

STANDSTILL_LIMIT_S: Final = 60.0
"""Nobody is let off more than this: what came is bounded by the kernel's buffers of each socket."""

FAULTS_LIMIT: Final = 20
"""So many errors of a broken or hostile client are answered in `FAULTS_WINDOW_S`; one more ends it (4509)."""

FAULTS_WINDOW_S: Final = 10.0
"""The window for `FAULTS_LIMIT` in seconds (protocol.md)."""

INTERNAL_CONNECTIONS: Final = 128
"""Connections of the internal port at a time: probes, a scraper, some operators, and the pools of a few backends. Their
descriptors are kept apart, so that whoever fills that port takes none of the clients'."""

INTERNAL_SHARE: Final = 8
"""Where few files may be open, the internal port gets one in so many."""

_ROUNDING_S: Final = 1e-9
"""A sum of many intervals is a little off."""

_FOR_TOKENS: Final = frozenset(
    ("connections_per_user", "connections_per_address", "connection_rate", "message_rate", "byte_rate_bytes")
)


class Limits(NamedTuple):
    """The limits in force; 0: none.

    Attributes:
        connections_per_user: of one user at a time (4016).
        connections_per_address: of one address at a time (refused at accept).
        connection_rate: new connections a second of one address (refused at accept).
        message_rate: messages, lines, control frames and fragments a second of one client (111, 4013).
        byte_rate_bytes: bytes a second that are read from one client, alike.
        burst_bytes: bytes that may come at once.
    """

    connections_per_user: int = 0
    connections_per_address: int = 0
    connection_rate: int = 0
    message_rate: int = 0
    byte_rate_bytes: int = 0
    burst_bytes: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """What the settings come to."""
        is_on = settings.auth == "jwt"
        values = {
            name: getattr(settings, name) if is_on or name in settings.model_fields_set else 0 for name in _FOR_TOKENS
        }
        burst_bytes = max(round(BURST_S * values["byte_rate_bytes"]), 2 * settings.read_limit_bytes)
        return cls(**values, burst_bytes=burst_bytes)

    @property
    def rates(self) -> tuple[int, int, int]:
        """What a meter is made of."""
        return self.message_rate, self.byte_rate_bytes, self.burst_bytes

    def meter(self) -> Meter | None:
        """A meter for a new client; None without limits, so that they cost one look."""
        if not self.message_rate and not self.byte_rate_bytes:
            return None
        return Meter(self.message_rate, self.byte_rate_bytes, self.burst_bytes)

    def addresses(self, clock: Callable[[], float], dry_run: DryRun | None = None) -> Addresses | None:
        """What counts addresses; None without limits."""
        if not self.connections_per_address and not self.connection_rate:
            return None
        return Addresses(self.connections_per_address, self.connection_rate, clock, dry_run)


class CatchUp:
    """Sees that nobody is refused for what came while the process stood still, and is read at once.

    Args:
        clock: monotonic seconds.
        stopped_ms: how long the process did not run so far: what the core's clock forgives, and nothing else.

    Attributes:
        since_s: from when on the messages that are read now may be: the last look, but after a standstill its
            beginning, for `CATCH_UP_S`.
    """

    __slots__ = ("_clock", "_over_s", "_stopped_ms", "_told_ms", "since_s")

    def __init__(self, clock: Callable[[], float], stopped_ms: Callable[[], int]) -> None:
        self._clock = clock
        self._stopped_ms = stopped_ms
        self._told_ms = stopped_ms()
        self.since_s = clock()
        self._over_s = 0.0

    def look(self) -> float:
        """The time in monotonic seconds. To be asked twice a second at least."""
        stopped_ms, now_s = self._stopped_ms(), self._clock()
        if stopped_ms != self._told_ms:
            self.since_s = now_s - min((stopped_ms - self._told_ms) / 1e3, STANDSTILL_LIMIT_S)
            self._over_s = now_s + CATCH_UP_S
            self._told_ms = stopped_ms
        elif now_s >= self._over_s:
            self.since_s = now_s
        return now_s


class Meter:
    """The two buckets of one client, and what becomes of it when they are empty.

    Bytes are charged as they are read, before anything of them is looked at; messages, and frames that carry none,
    before they are decoded or answered.

    Args:
        message_rate: messages a second; 0: no limit.
        byte_rate_bytes: bytes a second; 0: no limit.
        burst_bytes: bytes at once.
    """

    __slots__ = (
        "_burst_s",
        "_byte_s",
        "_bytes_full_s",
        "_message_s",
        "_messages_full_s",
        "_pauses",
        "_refusals",
        "_refused_s",
    )  # fmt: skip

    def __init__(self, message_rate: int, byte_rate_bytes: int, burst_bytes: int) -> None:
        self._message_s = 1 / message_rate if message_rate else 0.0
        self._byte_s = 1 / byte_rate_bytes if byte_rate_bytes else 0.0
        self._burst_s = burst_bytes * self._byte_s
        self._messages_full_s = 0.0
        self._bytes_full_s = 0.0
        self._refusals = 0
        self._pauses = 0
        self._refused_s = -math.inf

    def read(self, size_bytes: int, now_s: float, since_s: float) -> None:
        """Charge what was read from the socket, whatever it is. Beyond the burst, `take` lets nothing through.

        Never more is owed than what a pause pays off.

        Args:
            size_bytes: as they came.
            now_s: monotonic seconds.
            since_s: from when on they may be: now, or that of a `CatchUp`.
        """
        bytes_s = max(self._bytes_full_s, since_s) + self._byte_s * size_bytes
        self._bytes_full_s = min(bytes_s, now_s + self._burst_s + PAUSE_S)

    def take(self, now_s: float, since_s: float, messages: int = 1) -> bool:
        """Let through if there is room for it; False: refuse it.

        Args:
            now_s: monotonic seconds.
            since_s: from when on it may be: now, or that of a `CatchUp`.
            messages: for how many it counts; it counts for a whole burst at most, so that it has room at some time.
        """
        if self._bytes_full_s - now_s > self._burst_s + _ROUNDING_S:
            return False
        messages_s = max(self._messages_full_s, since_s) + min(self._message_s * messages, BURST_S)
        if self._message_s and messages_s - now_s > BURST_S + _ROUNDING_S:
            return False
        self._messages_full_s = messages_s
        return True

    def refuse(self, now_s: float) -> float:
        """Count a refusal. 0: no more than that; above: stop reading for so many seconds; below: end the client."""
        if now_s - self._refused_s > FORGIVE_S:
            self._refusals = self._pauses = 0
        self._refused_s = now_s
        self._refusals += 1
        if self._refusals < REFUSALS_LIMIT:
            return 0.0
        self._refusals = 0
        self._pauses += 1
        return PAUSE_S if self._pauses <= PAUSES_LIMIT else -1.0

    def would_refuse(self, now_s: float) -> bool:
        """A message beyond the rates is let through, in a dry run: True for the first one in `FORGIVE_S`."""
        is_first = now_s - self._refused_s > FORGIVE_S
        self._refused_s = now_s
        return is_first


class Faults(deque[float]):
    """When one client made its latest faults, in monotonic seconds."""

    def __init__(self) -> None:
        super().__init__(maxlen=FAULTS_LIMIT)

    def admit(self, now_s: float) -> bool:
        """Count one more; False: it is one too many in the window."""
        if len(self) == FAULTS_LIMIT and now_s - self[0] < FAULTS_WINDOW_S:
            return False
        self.append(now_s)
        return True


class _Address:
    __slots__ = ("connections", "full_s", "over_s")

    def __init__(self) -> None:
        self.connections = 0
        self.full_s = 0.0
        self.over_s = -math.inf  # when it was last over its rate in a dry run


class Addresses:
    """Connections by address.

    Args:
        connections: of one address at a time; 0: no limit.
        rate: new ones a second of one address; 0: no limit.
        clock: monotonic seconds.
        dry_run: limits that are not enforced; none by default.
    """

    SWEEP: Final = 1024
    """Addresses without connections are forgotten in sweeps, one each time so many have been added."""

    def __init__(self, connections: int, rate: int, clock: Callable[[], float], dry_run: DryRun | None = None) -> None:
        self._set_limits(connections, rate)
        self._dry_run = dry_run or DryRun()
        self._clock = clock
        self._by_key: dict[str, _Address] = {}
        self._sweep_at = self.SWEEP

    def reconfigure(self, settings: Settings) -> Commit:
        """Other limits for the connections to come: see `config.reconfigure`."""
        limits = Limits.of(settings)
        return partial(self._set_limits, limits.connections_per_address, limits.connection_rate)

    def _set_limits(self, connections: int, rate: int) -> None:
        self._connections = connections
        self._interval_s = 1 / rate if rate else 0.0

    def admit(self, key: str) -> bool:
        """Count a connection of an address, or refuse it. Only what is let in counts for the rate."""
        now_s = self._clock()
        known = self._by_key.get(key)
        if known is None:
            if len(self._by_key) >= self._sweep_at:
                self._sweep(now_s)
            known = self._by_key[key] = _Address()
        full_s = max(known.full_s, now_s) + self._interval_s
        is_over_rate = bool(self._interval_s) and full_s - now_s > BURST_S + _ROUNDING_S
        is_one_too_many = bool(self._connections) and known.connections >= self._connections
        if is_over_rate or is_one_too_many:
            if not self._dry_run.connections:
                return False
            self._note(key, known, is_over_rate, now_s)
        if not is_over_rate:
            known.full_s = full_s
        known.connections += 1
        return True

    def _note(self, key: str, known: _Address, is_over_rate: bool, now_s: float) -> None:
        """Say what would have been refused: once where a limit is passed, and once in `FORGIVE_S` for a rate."""
        if is_over_rate:
            if now_s - known.over_s > FORGIVE_S:
                self._dry_run.note("connection_rate", peername=(key, 0))
            known.over_s = now_s
        if self._connections and known.connections == self._connections:
            self._dry_run.note("connections_per_address", peername=(key, 0))

    def is_full(self, key: str) -> bool:
        """Whether an address has all the connections that one may have; else it is its rate that refuses it."""
        known = self._by_key.get(key)
        return known is not None and 0 < self._connections <= known.connections

    def release(self, key: str) -> None:
        """A connection that was admitted has ended."""
        known = self._by_key.get(key)
        if known is not None:
            known.connections -= 1
            if known.connections <= 0 and known.full_s <= self._clock():
                del self._by_key[key]

    def __len__(self) -> int:
        return len(self._by_key)

    def _sweep(self, now_s: float) -> None:
        self._by_key = {key: one for key, one in self._by_key.items() if one.connections or one.full_s > now_s}
        self._sweep_at = len(self._by_key) + self.SWEEP


def internal_connections(open_files: int) -> int:
    """Connections that the internal port may have at a time.

    Args:
        open_files: files the process may have open; below 0 (RLIM_INFINITY) for any number.
    """
    return INTERNAL_CONNECTIONS if open_files < 0 else max(8, min(INTERNAL_CONNECTIONS, open_files // INTERNAL_SHARE))


def address_key(host: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 of an IPv6 one, which is what one line is given."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(address) >> 64 << 64))
