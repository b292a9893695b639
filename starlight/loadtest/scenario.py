"""What a run does, as data: the Scenario, its TOML form, the built-in ones and payload sizes.

A scenario says nothing about where (that is `target.Target`) nor how it is written (that is `dialects`).
"""

from __future__ import annotations

import math
import random
import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from starlight.loadtest._engine import LEAST_DATA_BYTES, MOST_DATA_BYTES
from starlight.loadtest.errors import BadScenario

KINDS = ("broadcast", "channels", "direct", "echo")
MOST_LOGGED = 1 << 23
"""Deliveries that `order` looks at in each process: 96 MiB."""
SIZE_DRAWS = 4096
"""Payload sizes are drawn once, before the run, so that drawing costs nothing while it runs."""


class Scenario(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One run.

    Attributes:
        name: what it is called in results.
        traffic: weight of each kind of message: `broadcast` (to everyone), `channels` (to a channel), `direct` (to
            another user), `echo` (to oneself). Empty: nothing is sent (idle connections, connect storms).
        connections: how many, over all processes.
        publishers: how many of them send, spread evenly; 0 means all.
        channels, members: how many channels, and connections in each (0: all).
        channel_publishers: how many of the publishers send to one channel.
        targets: how many users each publisher sends directs to.
        model: `open` sends at `rate` whatever the answers do; `closed` keeps `window` messages of each publisher under
            way.
        rate: messages sent a second, all publishers together (open model).
        arrival: `constant` or `poisson` distances (open model).
        window: messages of one publisher under way (closed model); a message is done when all its receivers have it.
        size: bytes of the data: a number, or `uniform:16-1024`, `choice:16x0.9,1024x0.1`, `lognormal:128,1.0` (median,
            sigma).
        acks: publish with an `id` and check the replies.
        warmup_s, duration_s, settle_s: before measuring; measuring; at most this long until everything has arrived.
        ramp_per_s: connections opened a second (0: as fast as they go); at most `connecting` are under way at once.
        ramp_timeout_s: the ramp fails after this.
        slow_share: share of the connections that read slowly: `slow_kind` `stall` (never again once logged in) or
            `rate` (at each `slow_tick_ms` at most `slow_bytes_per_s` * tick). Their receive buffer is
            `slow_receive_buffer_bytes`, so that the server feels it. Messages don't wait for them and their latency
            isn't counted.
        churn_per_s: connections closed and opened again a second; `churn_reset_share` of them by a TCP reset.
        churn_window: reconnects under way at once, as fast as they go (a connect storm). 0: none.
        rejoins_per_s: leaves of a channel (and joins again) a second.
        check: share of the connections whose deliveries are checked one by one; the others are counted. `auto` checks
            all and falls back to a share if the generator would be the bottleneck.
        order: check too that all receivers of a channel, and of broadcasts, see one order (contract C3). Takes 12 bytes
            a delivery, for at most `MOST_LOGGED` of each process, and a moment after the run: for proofs, not figures.
        spin: poll without sleeping, so that the server isn't charged for waking the generator.
        processes: generator processes.
        seed: of payload sizes, Poisson distances and of who is churned how.
    """

    name: str = "custom"
    traffic: dict[str, float] = {}
    connections: int = 1000
    publishers: int = 1
    channels: int = 0
    members: int = 0
    channel_publishers: int = 1
    targets: int = 1
    model: Literal["open", "closed"] = "open"
    rate: float = 100.0
    arrival: Literal["constant", "poisson"] = "constant"
    window: int = 1
    size: int | str = 128
    acks: bool = False
    warmup_s: float = 1.0
    duration_s: float = 10.0
    settle_s: float = 3.0
    ramp_per_s: float = 0.0
    connecting: int = 256
    ramp_timeout_s: float = 60.0
    slow_share: float = 0.0
    slow_kind: Literal["stall", "rate"] = "stall"
    slow_bytes_per_s: int = 16384
    slow_tick_ms: float = 50.0
    slow_receive_buffer_bytes: int = 16384
    churn_per_s: float = 0.0
    churn_reset_share: float = 0.0
    churn_window: int = 0
    rejoins_per_s: float = 0.0
    check: float | Literal["auto"] = "auto"
    order: bool = False
    spin: bool = False
    processes: int = 1
    seed: int = 1

    def __post_init__(self) -> None:
        self._check_traffic()
        for name in ("connections", "window", "channel_publishers", "targets", "connecting", "processes"):
            _at_least(name, getattr(self, name), 1)
        for name in (
            *("publishers", "channels", "members", "churn_window", "slow_bytes_per_s", "warmup_s", "settle_s", "seed"),
            *("churn_per_s", "rejoins_per_s", "ramp_per_s", "rate"),
        ):
            _at_least(name, getattr(self, name), 0)
        for name in ("slow_share", "churn_reset_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadScenario(f"{name} is {getattr(self, name)}, expected a share from 0 to 1")
        if self.check != "auto" and not 0 <= self.check <= 1:
            raise BadScenario(f"check is {self.check}, expected 'auto' or a share from 0 to 1")
        if not 0 < self.duration_s < math.inf:
            raise BadScenario(f"duration_s is {self.duration_s}, expected more than 0")
        if self.slow_tick_ms < 1:
            raise BadScenario(f"slow_tick_ms is {self.slow_tick_ms}, expected at least 1")
        payload_sizes(self.size, self.seed)

    def _check_traffic(self) -> None:
        for kind, weight in self.traffic.items():
            if kind not in KINDS:
                raise BadScenario(f"traffic has {kind!r}, expected some of {', '.join(KINDS)}")
            if weight < 0:
                raise BadScenario(f"the weight of {kind!r} is {weight}, expected 0 or more")
        if self.traffic.get("channels") and not self.channels:
            raise BadScenario("traffic goes to channels, but channels is 0")
        if self.traffic.get("direct") and self.connections < 2:
            raise BadScenario("direct messages need at least 2 connections")
        if self.members > self.connections or self.publishers > self.connections:
            raise BadScenario("members and publishers can't be more than connections")

    @property
    def sends(self) -> bool:
        """Whether anything is published at all."""
        return any(self.traffic.values()) and (self.model == "closed" or self.rate > 0)


def _at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:  # nor what is no number
        raise BadScenario(f"{name} is {value}, expected at least {least}")


def payload_sizes(size: int | str, seed: int) -> list[int]:
    """Return the sizes a run draws from: one if it is fixed, else SIZE_DRAWS of the distribution.

    Raises:
        BadScenario: the distribution can't be read, or a size is outside 16 .. 262,144 bytes.
    """
    text = str(size).strip()
    kind, _, rest = text.partition(":")
    draw = random.Random(seed)
    try:
        if not rest:
            sizes = [parse_bytes(text)]
        elif kind == "uniform":
            low, high = (parse_bytes(part) for part in rest.split("-"))
            sizes = [draw.randint(low, high) for _ in range(SIZE_DRAWS)]
        elif kind == "choice":
            pairs = [part.split("x") for part in rest.split(",")]
            sizes = draw.choices([parse_bytes(a) for a, _ in pairs], [float(b) for _, b in pairs], k=SIZE_DRAWS)
        elif kind == "lognormal":
            median, sigma = rest.split(",")
            values = [draw.lognormvariate(math.log(parse_bytes(median)), float(sigma)) for _ in range(SIZE_DRAWS)]
            sizes = [min(max(round(value), LEAST_DATA_BYTES), MOST_DATA_BYTES) for value in values]
        else:
            raise ValueError(kind)
    except (ValueError, TypeError) as error:
        raise BadScenario(
            f"size is {text!r}, expected bytes, uniform:a-b, choice:axp,bxq or lognormal:median,sigma"
        ) from error
    if min(sizes) < LEAST_DATA_BYTES or max(sizes) > MOST_DATA_BYTES:
        raise BadScenario(f"size is {text!r}, expected {LEAST_DATA_BYTES} to {MOST_DATA_BYTES} bytes")
    return sizes


def parse_bytes(text: str) -> int:
    """`128`, `16KiB`, `64k` as bytes (k and K are 1,024, as payload sizes are usually meant)."""
    lowered = text.strip().lower().removesuffix("ib").removesuffix("b")
    factor = {"k": 1024, "m": 1024 * 1024}.get(lowered[-1:], 1)
    return int(lowered.rstrip("km")) * factor


def parse_rate(text: str, key: str) -> float:
    """`500`, `20k` or `1.5M` messages a second (k is 1,000).

    Raises:
        BadScenario: it is none of these; the message names `key`.
    """
    number = text.strip().lower()
    factor = {"k": 1e3, "m": 1e6}.get(number[-1:], 1.0)
    try:
        rate = float(number[:-1] if factor > 1 else number) * factor
    except ValueError:
        rate = math.nan
    if not 0 <= rate < math.inf:
        raise BadScenario(f"{key} {text}: expected messages a second, such as 500, 20k or 1.5M")
    return rate


BUILT_IN: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="broadcast", traffic={"broadcast": 1}, rate=100),
        Scenario(name="channels", traffic={"channels": 1}, channels=100, members=50, publishers=100, rate=2000),
        Scenario(name="direct", traffic={"direct": 1}, connections=100, publishers=0, rate=5000),
        Scenario(name="echo", traffic={"echo": 1}, connections=100, publishers=0, rate=5000),
        Scenario(name="connect-storm", churn_window=32),
        Scenario(name="slow-readers", traffic={"broadcast": 1}, rate=100, slow_share=0.1),
        Scenario(
            name="mixed",
            traffic={"channels": 0.9, "direct": 0.1},
            channels=100,
            members=50,
            publishers=100,
            rate=2000,
        ),
        Scenario(name="idle"),
    )
}
"""The scenarios behind `starlight bench NAME`; flags and TOML files change single fields of them."""


def build(base: str, changes: dict[str, object]) -> Scenario:
    """Return the built-in scenario `base` with some fields changed.

    Numbers of publishers, channel members and the like that no longer fit a smaller `connections` are cut down to it,
    unless they were asked for.

    Raises:
        BadScenario: unknown base or field, or a value that makes no sense; the message names it.
    """
    if base not in BUILT_IN:
        raise BadScenario(f"unknown scenario {base!r}, expected one of {', '.join(BUILT_IN)}")
    fields = msgspec.structs.asdict(BUILT_IN[base]) | changes
    for name in ("publishers", "members"):
        if name not in changes and isinstance(fields["connections"], int):
            fields[name] = min(fields[name], fields["connections"])
    try:
        return msgspec.convert(fields, Scenario)
    except msgspec.ValidationError as error:
        raise BadScenario(f"scenario: {error}") from error


def load(path: Path, changes: dict[str, object] | None = None) -> Scenario:
    """Read a scenario from a TOML file; its `base` names the built-in one it changes (default: an empty scenario).

    Raises:
        BadScenario: the file can't be read, is no TOML, or has a field or value that makes no sense.
    """
    try:
        fields = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadScenario(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    base = fields.pop("base", "idle")
    fields.setdefault("name", path.stem)
    try:
        return build(str(base), fields | (changes or {}))
    except BadScenario as error:
        raise BadScenario(f"{path}: {error}") from error
