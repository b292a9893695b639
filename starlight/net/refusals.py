"""Why connections were refused or ended before their handshake was done: counted by cause, and told to the operator.

Strategy: the first day with a node behind a proxy is a day of refused handshakes, and the browser shows its user no
reason. So the first refusal of a cause is a warning that names the setting to change, and again after
`TELL_AGAIN_S`; all others are summed up in one line a second at most.

Law: the causes are those of `CAUSES`, so that no client can make up one. Nothing of a request is logged but the
`Origin` and the `Host` of a page that was refused, and those only if they are made of the characters of an origin.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, Literal, get_args

from starlight.config.reconfigure import Commit
from starlight.config.settings import Settings

__all__ = ["CAUSES", "TELL_AGAIN_S", "Cause", "Refusals"]

log = logging.getLogger(__name__)

Cause = Literal[
    "full",
    "address_connections",
    "address_rate",
    "origin",
    "host",
    "path",
    "query",
    "no_upgrade",
    "version",
    "bad_request",
    "too_large",
    "subprotocol",
    "no_tls",
    "tls",
    "timeout",
    "gone",
    "internal",
]
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)
"""All causes there are, and the values of the metric's label."""

TELL_AGAIN_S: Final = 600.0
"""After so long the first refusal of a cause is a warning again: who looks at the log later has to find it."""

SUMMARY_S: Final = 1.0
"""At most one line in so many seconds sums up what was refused, whatever clients do."""

_SHOWN: Final = re.compile(r"[A-Za-z0-9.\-_:/\[\]+]{1,253}", re.ASCII)

_PROXY_ADVICE: Final = (
    "If it is a proxy, name it in --trusted-proxies and have it send X-Forwarded-For: then its clients are counted "
    "in its place"
)

_ADVICE: Final[dict[Cause, str]] = {
    "full": "there are {max_connections} connections already: raise --max-connections, or run more nodes",
    "address_connections": "{address} has --connections-per-address={connections_per_address} connections already. "
    + _PROXY_ADVICE,
    "address_rate": "{address} makes more than --connection-rate={connection_rate} connections a second. "
    + _PROXY_ADVICE,
    "origin": "a page of {origin} may not connect to {host} (403): name it in --allowed-origins. Where none is named, "
    "pages of the host that the request names may connect; behind nginx that is the upstream's name unless it has "
    "`proxy_set_header Host $host;`",
    "host": "a page of {origin} may not connect to {host} on a loopback address (403): others could have bound that "
    "name to this machine (DNS rebinding). Use an address or localhost, or name the page in --allowed-origins",
    "path": "a request for another path was answered with 404: the WebSocket endpoint is --path={path}",
    "query": "a request with a query was refused (400): credentials belong in the login message, not in the URL",
    "no_upgrade": "a request that asks for no WebSocket was refused (400 or 426). Behind a proxy: it has to speak "
    "HTTP/1.1 to the node and to pass `Upgrade` and `Connection` on (nginx: `proxy_http_version 1.1;` and two "
    "`proxy_set_header`)",
    "version": "a client speaks another version of WebSocket than 13 and was refused (426)",
    "bad_request": "a request that is no HTTP/1.1 GET as WebSocket clients send it was refused (400)",
    "too_large": "a request of more than 16 KiB or 128 headers was refused (431): a proxy or large cookies can do that",
    "subprotocol": "a client offered no subprotocol of this node (400): use starlight.v1 or starlight.v1.lines, or "
    "offer none",
    "no_tls": "a client speaks TLS on a port without it: give --tls-cert and --tls-key, or connect with ws:// "
    "(a proxy: with http://)",
    "tls": "a TLS handshake failed: the client speaks no TLS (ws:// instead of wss://), or does not trust the "
    "certificate of --tls-cert",
    "timeout": "a handshake was not done within --handshake-timeout={handshake_timeout_s:g}s: a slow line, or a client "
    "that only holds a connection",
}
"""What to look at, by cause. Not for clients that just went (probes do), nor for our own failures, which are logged."""


class Refusals:
    """Counts and tells the refusals of one node.

    Args:
        settings: named in the advice.
        clock: monotonic seconds.

    Attributes:
        counts: refusals since the start, by cause.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[Cause] = Counter()
        self._settings = settings
        self._clock = clock
        self._warned_s: dict[Cause, float] = {}
        self._untold: Counter[Cause] = Counter()
        self._last_address = ""
        self._told_s = -SUMMARY_S

    def reconfigure(self, settings: Settings) -> Commit:
        """Other settings are in force, and named in the advice: see `config.reconfigure`."""
        return partial(self._advise_by, settings)

    def _advise_by(self, settings: Settings) -> None:
        self._settings = settings

    def note(self, cause: Cause, address: object = None, *, origin: str = "", host: str = "") -> None:
        """One more was refused.

        Args:
            cause: why.
            address: the client's, as far as it is known.
            origin: of the page, as the client sent it.
            host: that the page asked for, as the client sent it.
        """
        self.counts[cause] += 1
        self._untold[cause] += 1
        self._last_address = shown(str(address or ""))
        advice = _ADVICE.get(cause)
        now_s = self._clock()
        if advice is None or now_s - self._warned_s.get(cause, -TELL_AGAIN_S) < TELL_AGAIN_S:
            return
        self._warned_s[cause] = now_s
        what = advice.format_map(
            {
                **self._settings.model_dump(exclude={"jwt_secret"}),
                "address": self._last_address,
                "origin": shown(origin),
                "host": shown(host),
            }
        )
        log.warning("a connection was refused (%s): %s", cause, what)

    def tell(self) -> None:
        """Sum up what was refused since the last time. Called often; writes a line a second at most."""
        now_s = self._clock()
        if not self._untold or now_s - self._told_s < SUMMARY_S:
            return
        self._told_s = now_s
        causes = ", ".join(f"{cause} {count}" for cause, count in sorted(self._untold.items()))
        log.info("%d handshakes failed: %s; the last from %s", self._untold.total(), causes, self._last_address)
        self._untold.clear()


def shown(text: str) -> str:
    """A text of a client as it may stand in a log: as it is if it is made of the characters of an origin."""
    if not text:
        return "(unknown)"
    return text if _SHOWN.fullmatch(text) else "(a name that is none)"
