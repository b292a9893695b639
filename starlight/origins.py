"""Where a connection comes from: the page that opened it (Origin), and the address behind a proxy (X-Forwarded-For).

A browser lets any page open a WebSocket to anywhere, and says in `Origin` which page it is (RFC 6455 section 10.2): so
a node that a stranger's page must not use has to look. Programs send no Origin, or any they like; it protects the users
of browsers and nobody else. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from starlight.errors import ConfigError

__all__ = ["Origins", "Proxies", "is_loopback"]

_NAME: Final = r"([a-z0-9.\-_]{1,253}|\[[0-9a-f:.]{2,45}\])"
_PORT: Final = r"(?::([0-9]{1,5}))?"
_HOST: Final = re.compile(_NAME + _PORT, re.ASCII)
_ORIGIN: Final = re.compile(r"(https?)://" + _NAME + _PORT, re.ASCII)
_PATTERN: Final = re.compile(r"(https?)://(\*\.)?" + _NAME + _PORT, re.ASCII)
_PORTS: Final = {"http": "80", "https": "443"}
_RULE: Final = "origins with commas between, such as https://app.example.com, https://*.example.com, or * for any"


class Origins:
    """Which pages may connect.

    Args:
        allowed: origins with commas between; ``https://*.example.com`` is any host below it, not itself; ``*`` is any.
            Empty: pages from the host that the request itself is for, on any port.

    Raises `ConfigError` for anything else.
    """

    def __init__(self, allowed: str) -> None:
        self._exact: set[tuple[str, str, str]] = set()
        self._below: list[tuple[str, str, str]] = []
        self._any = False
        words = allowed.replace(",", " ").lower().split()
        self._same_host = not words
        for word in words:
            found = _PATTERN.fullmatch(word)
            if word == "*":
                self._any = True
            elif found is None:
                raise ConfigError("allowed_origins", allowed, _RULE)
            else:
                scheme, star, host, port = found.groups()
                if star:
                    self._below.append((scheme, "." + host, port or _PORTS[scheme]))
                else:
                    self._exact.add((scheme, host, port or _PORTS[scheme]))

    def allows(self, origins: Sequence[str], host: str) -> bool:
        """Whether a request with these `Origin` headers and this `Host` may connect. None at all is no browser."""
        if not origins or self._any:
            return True
        found = _ORIGIN.fullmatch(origins[0].lower()) if len(origins) == 1 else None
        if found is None:  # also "null": a page of a sandbox or a file, which is nobody's
            return False
        scheme, name, port = found.groups()
        if self._same_host:
            asked = _HOST.fullmatch(host.lower())
            return asked is not None and asked[1] == name
        port = port or _PORTS[scheme]
        if (scheme, name, port) in self._exact:
            return True
        return any(
            scheme == wanted and port == wanted_port and name.endswith(end) and len(name) > len(end)
            for wanted, end, wanted_port in self._below
        )


class Proxies:
    """The proxies that may say for whom they connect.

    Args:
        trusted: addresses and networks with commas between, such as ``127.0.0.1, 10.0.0.0/8``.

    Raises `ConfigError` for anything else.
    """

    def __init__(self, trusted: str) -> None:
        try:
            self._networks = [ipaddress.ip_network(word) for word in trusted.replace(",", " ").split()]
        except ValueError:
            rule = "addresses and networks with commas between, such as 127.0.0.1, 10.0.0.0/8"
            raise ConfigError("trusted_proxies", trusted, rule) from None

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, host: str) -> bool:
        """Whether an address is one of theirs."""
        address = _to_address(host)
        return address is not None and any(address in network for network in self._networks)

    def client(self, peer: str, forwarded: Sequence[str]) -> str | None:
        """The address of the client behind `peer`, by its X-Forwarded-For headers; None if they make no sense.

        Read from the right: each proxy adds whom it saw, so the first that is none of ours is the client. What stands
        left of it was made up by the client, or may have been.
        """
        if not self.trusts(peer):
            return peer
        for word in reversed([word.strip() for value in forwarded for word in value.split(",")]):
            address = _to_address(word)
            if address is None:
                return None
            peer = str(address)
            if not self.trusts(peer):
                return peer
        return peer


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address, or a name that needs no asking."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _to_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if mapped is not None else address
