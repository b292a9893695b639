"""From a scenario to who is connected, who is in which channel, and who sends what to whom.

Groups are numbered: 0 is everyone, 1 .. channels are the channels, then one per user. A stream is one sender to one
group. The same scenario gives the same plan in every process.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlight.loadtest._engine import MAX_STREAMS
from starlight.loadtest.errors import BadScenario
from starlight.loadtest.scenario import Scenario

EVERYONE = 0
MOST_STEPS = 4096
"""Longest order of one sender's streams before it repeats."""


@dataclass(frozen=True)
class TrafficPlan:
    """Attributes:
    streams: (sender, group) of each stream; the index is the stream's number in the stamp.
    orders: for each sender the streams it sends on, in turn.
    senders: the connection of each sender.
    members: the channel groups of each connection.
    slow: which connections read slowly.
    """

    groups: int
    streams: list[tuple[int, int]]
    orders: list[list[int]]
    senders: list[int]
    members: list[list[int]]
    slow: set[int]

    def user_group(self, connection: int) -> int:
        """The group of the user on a connection."""
        return self.groups - len(self.members) + connection

    def process_range(self, process: int, processes: int) -> range:
        """The connections of one of the processes."""
        count = len(self.members)
        return range(process * count // processes, (process + 1) * count // processes)


def make_plan(scenario: Scenario) -> TrafficPlan:
    """Lay out a scenario.

    Raises:
        BadScenario: it needs more streams than a stamp can name.
    """
    count = scenario.connections
    wanted = (scenario.publishers or count) if scenario.sends else 0
    senders = [index * count // wanted for index in range(wanted)]
    members = _members(scenario)
    groups = 1 + scenario.channels + count
    streams: dict[tuple[int, int], int] = {}
    by_kind: list[dict[str, list[int]]] = [{} for _ in senders]
    for kind, weight in scenario.traffic.items():
        for sender, group in _pairs(kind, scenario, senders) if weight and senders else ():
            stream = streams.setdefault((sender, group), len(streams))
            by_kind[sender].setdefault(kind, []).append(stream)
            if len(streams) > MAX_STREAMS:
                raise BadScenario(f"the scenario has more than {MAX_STREAMS} streams (sender to group)")
    kept = [sender for sender in range(len(senders)) if by_kind[sender]]
    renumber = {sender: index for index, sender in enumerate(kept)}
    return TrafficPlan(
        groups=groups,
        streams=[(renumber[sender], group) for sender, group in streams],
        orders=[_interleave(by_kind[sender], scenario.traffic) for sender in kept],
        senders=[senders[sender] for sender in kept],
        members=members,
        slow=_slow(scenario, {senders[sender] for sender in kept}),
    )


def _members(scenario: Scenario) -> list[list[int]]:
    """Every connection's channels: channel c has the `members` connections from c * members on, round and round."""
    count, size = scenario.connections, scenario.members or scenario.connections
    members: list[list[int]] = [[] for _ in range(count)]
    for channel in range(scenario.channels):
        for place in range(size):
            members[(channel * size + place) % count].append(1 + channel)
    return members


def _pairs(kind: str, scenario: Scenario, senders: list[int]) -> list[tuple[int, int]]:
    """The (sender, group) pairs of one kind of traffic."""
    count = scenario.connections
    users = 1 + scenario.channels
    if kind == "broadcast":
        return [(sender, EVERYONE) for sender in range(len(senders))]
    if kind == "channels":
        publishers = min(scenario.channel_publishers, len(senders))
        return [
            ((channel * publishers + turn) % len(senders), 1 + channel)
            for channel in range(scenario.channels)
            for turn in range(publishers)
        ]
    if kind == "echo":
        return [(sender, users + connection) for sender, connection in enumerate(senders)]
    targets = min(scenario.targets, count - 1)
    step = max(1, count // (targets + 1))
    return [
        (sender, users + (connection + 1 + turn * step) % count)
        for sender, connection in enumerate(senders)
        for turn in range(targets)
    ]


def _interleave(streams: dict[str, list[int]], weights: dict[str, float]) -> list[int]:
    """One sender's order: kinds in proportion to their weights, the streams of a kind in turn."""
    if len(streams) == 1:
        return next(iter(streams.values()))
    total = sum(weights[kind] for kind in streams)
    least = min(weights[kind] for kind in streams)
    steps = min(MOST_STEPS, max(round(total / least * max(len(found) for found in streams.values())), 1))
    credit = dict.fromkeys(streams, 0.0)
    position = dict.fromkeys(streams, 0)
    order = []
    for _ in range(steps):
        for kind in credit:
            credit[kind] += weights[kind] / total
        kind = max(credit, key=lambda name: credit[name])
        credit[kind] -= 1
        order.append(streams[kind][position[kind] % len(streams[kind])])
        position[kind] += 1
    return order


def _slow(scenario: Scenario, senders: set[int]) -> set[int]:
    """Slow readers, spread evenly over the connections that don't send."""
    count = round(scenario.slow_share * scenario.connections)
    others = [index for index in range(scenario.connections) if index not in senders]
    if count > len(others):
        raise BadScenario("slow_share leaves no connection to send")
    return {others[place * len(others) // count] for place in range(count)} if count else set()
