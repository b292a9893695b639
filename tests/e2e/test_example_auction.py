"""examples/auction.py, played by three clients of the `websockets` library."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from starlight.app import Starlight
from tests.support.tokens import SECRET, token
from tests.support.wire_client import WireClient

WIRES = ("ws", "wss")

EXAMPLE = Path(__file__).parents[2] / "examples" / "auction.py"


def events(messages: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """The publications among the messages, shortened."""
    data = [message["data"] for message in messages if message["type"] == "publication"]
    return [(event["event"], event.get("amount"), event.get("bidder")) for event in data]


async def test_the_highest_bid_wins_and_only_the_winner_is_told():
    app: Starlight = runpy.run_path(str(EXAMPLE))["app"]
    async with app.serve(port=0) as node:
        ann, bob, eve = [await WireClient.login(node.url, user) for user in ("ann", "bob", "eve")]
        for client in (ann, bob, eve):
            assert (await client.ask("join", channel="auction"))["type"] == "ok"

        assert (await ann.ask("bid", data=1))["code"] == 108  # nothing is being sold yet
        await ann.say("open", data={"item": "a clock", "seconds": 2}, id="open")
        opened = await ann.hear_until("ok")
        assert opened[-1]["data"] == {"item": "a clock"}
        for client in (bob, eve):
            assert events([await client.hear()]) == [("opened", None, None)]

        # each waits for its own reply, so the order of the bids is known; publications are read at the end
        heard: dict[str, list[dict[str, Any]]] = {"ann": opened, "bob": [], "eve": []}
        for client, user, amount, accepted in (
            (bob, "bob", 100, True), (eve, "eve", 120, True), (bob, "bob", 110, False), (bob, "bob", 150, True),
            (eve, "eve", 150, False), (eve, "eve", "a lot", False),
        ):  # fmt: skip
            await client.say("bid", data=amount, id=1)
            heard[user] += await client.hear_until("ok" if accepted else "error")
        for client, user in ((ann, "ann"), (bob, "bob"), (eve, "eve")):
            while ("sold", 150, "bob") not in events(heard[user]):
                heard[user].append(await client.hear())

        bids = [("highest", 100, "bob"), ("highest", 120, "eve"), ("highest", 150, "bob"), ("sold", 150, "bob")]
        assert events(heard["ann"]) == [("opened", None, None), *bids]
        assert events(heard["bob"]) == events(heard["eve"]) == bids
        won = await bob.hear()
        assert won["type"] == "server"
        assert won["data"] == {"event": "won", "item": "a clock", "amount": 150}
        for client in (ann, eve):
            assert await client.ask("ping") == {"type": "pong", "id": "ask"}

        # with the lot closed the next one may be opened, and one without bids is sold to nobody
        await eve.say("open", data={"item": "a vase", "seconds": 0}, id=2)
        assert events([await ann.hear() for _ in range(2)]) == [("opened", None, None), ("sold", 0, None)]


async def test_with_tokens_and_groups_sellers_open_lots_and_nobody_publishes_for_the_auction():
    app: Starlight = runpy.run_path(str(EXAMPLE))["app"]
    options = {"auth": "jwt", "jwt_secret": SECRET, "config_file": str(EXAMPLE.with_suffix(".toml"))}
    async with app.serve(port=0, **options) as node:
        clients = []
        for user, groups in (("ann", ["seller"]), ("bob", [])):
            clients.append(WireClient(await connect(node.url, compression=None)))
            welcome = await clients[-1].ask("login", token=token(user, groups=groups, iss=None, aud=None))
            assert (welcome["type"], welcome["user"]) == ("welcome", user)
            assert (await clients[-1].ask("join", channel="auction"))["type"] == "ok"
        ann, bob = clients
        lot = {"item": "a clock", "seconds": 1}
        assert (await bob.ask("open", data=lot))["code"] == 103
        assert (await ann.ask("open", data=lot))["data"] == {"item": "a clock"}
        for client in clients:
            assert (await client.ask("publish", channel="auction", data={"event": "sold"}))["code"] == 103
        assert (await bob.ask("broadcast", data="hello"))["code"] == 103
        assert (await ann.ask("broadcast", data="hello"))["type"] == "ok"
        assert (await bob.ask("bid", data=100))["data"] == {"highest": 100}
        while (heard := await bob.hear())["type"] != "server":
            pass
        assert heard["data"] == {"event": "won", "item": "a clock", "amount": 100}
        for client in clients:
            await client.close()


def test_the_example_stays_short():
    assert len(EXAMPLE.read_text().splitlines()) < 80
