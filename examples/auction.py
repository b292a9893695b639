"""An auction: whoever joins its channel sees the bids, and the highest one when time is up wins.

    starlight serve examples.auction:app

    > {"type":"login","user":"ann"}
    > {"type":"join","channel":"auction","id":1}
    > {"type":"open","data":{"item":"a clock","seconds":30},"id":2}
    > {"type":"bid","data":120,"id":3}

One too low is an error reply; the winner is told directly. With tokens only sellers open lots: see auction.toml.
"""

import time
from types import SimpleNamespace
from typing import Any

from starlight import Starlight
from starlight.channels.client import Client
from starlight.close_codes import ErrorCode
from starlight.errors import RequestError

app = Starlight()
# What is being sold; there is one at a time. Handlers run one after the other, so it needs no lock.
lot = SimpleNamespace(item=None, closes_at=0.0, amount=0, bidder=None)


@app.on_login
def assign_groups(client: Client, login: dict[str, Any]) -> None:
    """Without tokens nobody is anybody in particular, so everybody may sell."""
    if login.get("token") is None:
        client.groups = ["seller"]


@app.authorize
def authorize(client: Client, action: str, name: str) -> bool | None:
    """What is published about the auction comes from the auction: bids are messages of their own."""
    return False if action == "publish" and name == "auction" else None


@app.on("open")
def open_lot(client: Client, data: dict[str, Any]) -> dict[str, Any]:
    """Put an item up for sale for a number of seconds."""
    if "seller" not in client.groups:
        raise RequestError(ErrorCode.PERMISSION_DENIED, "only sellers open lots")
    if lot.item is not None:
        raise RequestError(ErrorCode.NOT_AVAILABLE, "another item is being sold")
    lot.item, lot.amount, lot.bidder = str(data["item"]), 0, None
    lot.closes_at = time.monotonic() + float(data["seconds"])
    app.publish("auction", {"event": "opened", "item": lot.item, "seconds": data["seconds"]})
    return {"item": lot.item}


@app.on("bid")
async def bid(client: Client, data: Any) -> dict[str, Any]:
    """Bid for the open lot; the reply says what the highest bid is now."""
    if lot.item is None:
        raise RequestError(ErrorCode.NOT_AVAILABLE, "nothing is being sold")
    if type(data) is not int or data <= lot.amount:
        raise RequestError(ErrorCode.BAD_REQUEST, f"a bid must be a whole number above {lot.amount}")
    lot.amount, lot.bidder = data, client.user
    app.publish("auction", {"event": "highest", "item": lot.item, "amount": data, "bidder": client.user})
    return {"highest": data}


@app.every(0.1)
def close_lot() -> None:
    """Sell the lot when its time is up."""
    if lot.item is None or time.monotonic() < lot.closes_at:
        return
    app.publish("auction", {"event": "sold", "item": lot.item, "amount": lot.amount, "bidder": lot.bidder})
    if lot.bidder is not None:
        app.send(lot.bidder, {"event": "won", "item": lot.item, "amount": lot.amount})
    lot.item = None
