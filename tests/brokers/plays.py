"""Random plays of clients on real nodes, and what the contract says of everything that was said and heard in one.

Every message gets a place in one list, when it is said by a client and when it is heard. Publications and directs carry
who sent them and a number, so that the checks need nothing of the server but what clients see.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import combinations, count
from random import Random
from typing import Any

from websockets.exceptions import ConnectionClosed

from starlight.server.node import Node
from tests.brokers.late import REFUSED
from tests.support.wire_client import WireClient

CHANNELS = ("a", "b", "c")
USERS = ("ann", "bob", "eve", "kim")
WEIGHTS = {
    "publish": 50, "join": 12, "leave": 6, "several": 3, "direct": 8, "broadcast": 3, "ping": 4, "presence": 3,
    "plain": 3, "slow": 3, REFUSED: 2, "bad": 1,
}  # fmt: skip
"""What players say, and how often."""

BAD_MESSAGES = 3
"""Wrong messages of a player: more would be taken for an attack."""


@dataclass(frozen=True)
class Event:
    """`message` was said by a player, or heard by it."""

    player: Player
    is_said: bool
    message: dict[str, Any]


@dataclass(eq=False)
class Player:
    """One connection of a user."""

    play: Play
    number: int
    node: int
    user: str
    client: WireClient
    sent: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    last_id: int = 0
    replies: int = 0
    bad: int = 0
    has_gone: bool = False

    async def listen(self) -> None:
        """Hear until the connection ends."""
        try:
            while True:
                message = json.loads(await self.client.socket.recv())
                self.play.events.append(Event(self, False, message))
                self.replies += "id" in message
        except ConnectionClosed:
            assert self.has_gone, "the server closed it"

    async def say(self, type: str, *, has_id: bool = True, **fields: Any) -> None:
        if has_id:
            self.last_id += 1
            fields["id"] = self.last_id
        self.play.events.append(Event(self, True, {"type": type, **fields}))
        await self.client.say(type, **fields)

    def data(self, to: str) -> dict[str, int]:
        """Data that says who sent it, and as the which message to that channel or user."""
        self.sent[to] += 1
        return {"p": self.number, "n": self.sent[to]}

    async def act(self, random: Random) -> None:
        """Say something."""
        channel = random.choice(CHANNELS)
        what = random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if what == "publish":
            await self.say("publish", has_id=random.random() < 0.8, channel=channel, data=self.data(channel))
        elif what in ("join", "leave", "presence"):
            await self.say(what, channel=channel)
        elif what == "several":
            await self.say("join", channels=[{"channel": name} for name in random.sample((*CHANNELS, REFUSED), 3)])
        elif what == "direct":
            to = random.choice((*USERS, "zoe"))
            await self.say("direct", has_id=random.random() < 0.8, to=to, data=self.data(f"@{to}"))
        elif what == "broadcast":
            await self.say("broadcast", data=self.data("everyone"))
        elif what == REFUSED:
            await self.say(random.choice(("publish", "join")), channel=REFUSED, data=self.data(REFUSED))
        elif what == "bad" and self.bad < BAD_MESSAGES:
            self.bad += 1
            await self.say("join")
        elif what != "bad":
            await self.say(what)

    async def all_replies(self) -> None:
        """Wait until everything it asked is answered."""
        async with asyncio.timeout(20):
            while self.replies < self.last_id:
                await asyncio.sleep(0.002)

    async def go(self, is_rude: bool) -> None:
        """End the connection; rude: without a close frame, whatever is under way."""
        self.has_gone = True
        if is_rude:
            self.client.socket.transport.abort()
        else:
            await self.client.close()


class Play:
    """What some players did, on one node or more."""

    def __init__(self, nodes: list[Node], seed: int) -> None:
        self.nodes = nodes
        self.events: list[Event] = []
        self.players: list[Player] = []
        self._random = Random(seed)
        self._numbers = count()
        self._listening: list[asyncio.Task[None]] = []

    async def enter(self, user: str) -> Player:
        number = next(self._numbers)
        node = number % len(self.nodes)
        player = Player(self, number, node, user, await WireClient.login(self.nodes[node].url, user))
        self.players.append(player)
        self._listening.append(asyncio.create_task(player.listen()))
        return player

    async def run(self, bursts: int) -> None:
        """Every user says so many bursts; some go in the middle of one and come back."""
        await asyncio.gather(*[self._run(user, bursts, Random(self._random.random())) for user in USERS])
        staying = [player for player in self.players if not player.has_gone]
        for _ in range(2):  # behind the second pong is what others were told when they heard the first
            for player in staying:
                await player.say("ping")
            for player in staying:
                await player.all_replies()

    async def _run(self, user: str, bursts: int, random: Random) -> None:
        player = await self.enter(user)
        for channel in CHANNELS[: random.randint(1, 3)]:
            await player.say("join", channel=channel)
        for _ in range(bursts):
            for _ in range(random.choice((1, 4, 16, 100))):
                await player.act(random)
            if random.random() < 0.1:
                await player.go(is_rude=random.random() < 0.7)
                player = await self.enter(user)
            elif random.random() < 0.7:
                await player.all_replies()

    async def end(self) -> None:
        for player in self.players:
            if not player.has_gone:
                await player.go(is_rude=False)
        await asyncio.gather(*self._listening)

    # --- the contract --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Fail at the first thing that the contract forbids."""
        for player in self.players:
            said = [event.message for event in self.events if event.player is player and event.is_said]
            heard = [event.message for event in self.events if event.player is player and not event.is_said]
            check_replies(said, heard, is_whole=not player.has_gone)
            check_fifo(heard)
            check_membership(said, heard)
            check_own_before_ok(player.number, said, heard)
        for node in range(len(self.nodes)):
            self.check_one_order(node)
        self.check_nothing_lost()

    def check_one_order(self, node: int) -> None:
        """Two clients of a node see what both get of a channel in one order."""
        for channel in CHANNELS:
            got = [publications(self.events, player, channel) for player in self.players if player.node == node]
            for one, other in combinations(got, 2):
                common = set(one) & set(other)
                assert [p for p in one if p in common] == [p for p in other if p in common]

    def check_nothing_lost(self) -> None:
        """A member gets what a sender on its node published after the member's join was told, and before it left."""
        acked: dict[tuple[str, int, int], tuple[int, int, int]] = {}
        asked: dict[tuple[Player, int], tuple[int, dict[str, Any]]] = {}
        for at, event in enumerate(self.events):
            message = event.message
            if event.is_said and message["type"] == "publish" and "id" in message:
                asked[event.player, message["id"]] = (at, message)
            elif not event.is_said and message["type"] == "ok" and (event.player, message["id"]) in asked:
                began, publish = asked[event.player, message["id"]]
                if publish["channel"] in CHANNELS:
                    key = (publish["channel"], publish["data"]["p"], publish["data"]["n"])
                    acked[key] = (event.player.node, began, at)
        for player in self.players:
            got = {(channel, *one) for channel in CHANNELS for one in publications(self.events, player, channel)}
            for channel, since, until in self.memberships(player):
                for key, (node, began, at) in acked.items():
                    if key[0] == channel and node == player.node and since < began and at < until:
                        assert key in got, f"{player.user} did not get {key}"

    def memberships(self, player: Player) -> list[tuple[str, int, int]]:
        """Channel, the place of the join's `ok`, and that of the leave's request, or of the end."""
        asked: dict[int, dict[str, Any]] = {}
        since: dict[str, int] = {}
        found: list[tuple[str, int, int]] = []
        leaving: dict[str, list[int]] = defaultdict(list)
        for at, event in enumerate(self.events):
            if event.player is not player:
                continue
            message = event.message
            if event.is_said:
                if "id" in message:
                    asked[message["id"]] = message
                if message["type"] == "leave":
                    leaving[message["channel"]].append(at)
            elif "id" in message:
                request = asked[message["id"]]
                for channel in joined_by(request, message):
                    since[channel] = at
                if request["type"] == "leave":
                    asked_at = leaving[request["channel"]].pop(0)
                    if request["channel"] in since:
                        found.append((request["channel"], since.pop(request["channel"]), asked_at))
        for channel, at in since.items():
            pending = leaving[channel]
            end = at if player.has_gone else len(self.events)  # what it had read when it went can't be told
            found.append((channel, at, pending[0] if pending else end))
        return found


def publications(events: list[Event], player: Player, channel: str) -> list[tuple[int, int]]:
    """Who sent it, and as the which: all that a player got of a channel."""
    return [
        (event.message["data"]["p"], event.message["data"]["n"])
        for event in events
        if event.player is player
        and not event.is_said
        and event.message["type"] == "publication"
        and event.message["channel"] == channel
    ]


def joined_by(request: dict[str, Any], reply: dict[str, Any]) -> list[str]:
    """The channels that a reply says are joined by its request."""
    if request["type"] != "join" or reply["type"] != "ok":
        return []
    return [one["channel"] for one in reply.get("channels", [reply]) if "error" not in one]


def check_replies(said: list[dict[str, Any]], heard: list[dict[str, Any]], *, is_whole: bool) -> None:
    """One reply for each request, in the order of the requests; of a client that went, the first of them."""
    asked = [message["id"] for message in said if "id" in message]
    answered = [message["id"] for message in heard if "id" in message]
    assert answered == asked[: len(answered)]
    assert not is_whole or len(answered) == len(asked)


def check_fifo(heard: list[dict[str, Any]]) -> None:
    """What one connection sent to one channel, or to this user, comes once each and in its order."""
    last: dict[tuple[Any, ...], int] = {}
    for message in heard:
        if message["type"] in ("publication", "direct", "broadcast"):
            stream = (message["type"], message.get("channel"), message["data"]["p"])
            assert message["data"]["n"] > last.get(stream, 0)
            last[stream] = message["data"]["n"]


def check_membership(said: list[dict[str, Any]], heard: list[dict[str, Any]]) -> None:
    """No publication comes before a join's `ok`, and none after a leave's."""
    asked = {message["id"]: message for message in said if "id" in message}
    members: set[str] = set()
    for message in heard:
        if message["type"] == "publication":
            assert message["channel"] in members
        elif "id" in message:
            request = asked[message["id"]]
            members.update(joined_by(request, message))
            if request["type"] == "leave":
                members.discard(request["channel"])


def check_own_before_ok(number: int, said: list[dict[str, Any]], heard: list[dict[str, Any]]) -> None:
    """A member's own publication comes before the `ok` for it."""
    replies = {message["id"]: message for message in heard if "id" in message}
    got: dict[tuple[str, int], int] = {}
    at: dict[int, int] = {}
    for place, message in enumerate(heard):
        if message["type"] == "publication" and message["data"]["p"] == number:
            got[message["channel"], message["data"]["n"]] = place
        elif "id" in message:
            at[message["id"]] = place
    members: set[str] = set()
    for message in said:
        reply = replies.get(message.get("id", 0))
        if reply is None:
            continue
        members.update(joined_by(message, reply))
        if message["type"] == "leave":
            members.discard(message["channel"])
        elif message["type"] == "publish" and reply["type"] == "ok" and message["channel"] in members:
            assert got.get((message["channel"], message["data"]["n"]), len(heard)) < at[message["id"]]
