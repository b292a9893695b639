"""Where a connection comes from: the page that opened it (Origin), and the address behind a proxy (X-Forwarded-For).

A browser lets any page open a WebSocket to anywhere, and says in `Origin` which page it is (RFC 6455 section 10.2): so
a node that a stranger's page must not use has to look. Programs send no Origin, or any they like; it protects the users
of browsers and nobody else. Pure.

By default a page may connect to the host that it came from. On a loopback address that is not enough: an attacker can
bind a name of his own to 127.0.0.1, and his page then comes from the host that it asks for (DNS rebinding). There the
host must be an address or ``localhost``, which no stranger can bind.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final, Literal

from starlight.config.addresses import to_address
from starlight.errors import ConfigError

__all__ = ["Origins", "Proxies", "is_fixed_host"]

_NAME: Final = r"([a-z0-9.\-_]{1,253}|\[[0-9a-f:.]{2,45}\])"
_PORT: Final = r"(?::([0-9]{1,5}))?"
_HOST: Final = re.compile(_NAME + _PORT, re.ASCII)
_WEB_ORIGIN: Final = re.compile(r"(https?)://" + _NAME + _PORT, re.ASCII)
_WEB_PATTERN: Final = re.compile(r"(https?)://(\*\.)?" + _NAME + _PORT, re.ASCII)
_APP_ORIGIN: Final = re.compile(r"(?!(?:https?|wss?)://)([a-z][a-z0-9+.\-]{0,63})://" + _NAME + _PORT, re.ASCII)
"""Of an application or an extension: ``tauri://localhost``, ``chrome-extension://<id>``. No page of the web has one."""

_NAMED_ORIGINS: Final = ("null", "file://")
"""Origins without a host. Browsers send ``null`` for files and for any page's sandboxed frames, Electron ``file://``."""

_PORTS: Final = {"http": "80", "https": "443"}
_RULE: Final = (
    "origins with commas between, such as https://app.example.com, https://*.example.com, capacitor://localhost, "
    "chrome-extension://<id>, file://, null, or * for any"
)


class Origins:
    """Which pages may connect.

    Args:
        allowed: origins with commas between; ``https://*.example.com`` is any host below it, not itself; ``*`` is any.
            Origins of applications (``tauri://localhost``, ``file://``) are named exactly: a wildcard there would let
            every extension or application in. Empty: pages from the host that the request itself is for, on any port.

    Raises `ConfigError` for anything else.
    """

    def __init__(self, allowed: str) -> None:
        self._exact: set[tuple[str, str, str]] = set()
        self._below: list[tuple[str, str, str]] = []
        self._whole: set[str] = set()
        self._any = False
        words = allowed.replace(",", " ").lower().split()
        self._same_host = not words
        for word in words:
            found = _WEB_PATTERN.fullmatch(word)
            if word == "*":
                self._any = True
            elif word in _NAMED_ORIGINS or _APP_ORIGIN.fullmatch(word):
                self._whole.add(word)
            elif found is None:
                raise ConfigError("allowed_origins", allowed, _RULE)
            else:
                scheme, star, host, port = found.groups()
                if star:
                    self._below.append((scheme, "." + host, port or _PORTS[scheme]))
                else:
                    self._exact.add((scheme, host, port or _PORTS[scheme]))

    def allows(self, origins: Sequence[str], host: str, *, is_local: bool = False) -> bool:
        """Whether a request with these `Origin` headers and this `Host` may connect: see `refusal`."""
        return self.refusal(origins, host, is_local=is_local) is None

    def refusal(self, origins: Sequence[str], host: str, *, is_local: bool = False) -> Literal["origin", "host"] | None:
        """Why a request may not connect; None if it may. Without an `Origin` header it isn't a browser: allowed.

        Args:
            origins: its `Origin` headers.
            host: its `Host` header.
            is_local: whether it came to a loopback address, where the name of a host proves nothing.

        Returns "origin" for a page that is not allowed, "host" for a page of the host it asks for where that host is a
        name which others could have bound to this machine.
        """
        if not origins or self._any:
            return None
        if len(origins) != 1:
            return "origin"
        origin = origins[0].lower()
        if origin in self._whole:
            return None
        found = _WEB_ORIGIN.fullmatch(origin)
        if found is None:
            return "origin"
        scheme, name, port = found.groups()
        if self._same_host:
            asked = _HOST.fullmatch(host.lower())
            if asked is None or asked[1] != name:
                return "origin"
            return "host" if is_local and not is_fixed_host(host) else None
        return None if self._is_listed(scheme, name, port or _PORTS[scheme]) else "origin"

    def _is_listed(self, scheme: str, name: str, port: str) -> bool:
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
        address = to_address(host)
        return address is not None and any(address in network for network in self._networks)

    def client(self, peer: str, forwarded: Sequence[str]) -> tuple[str, bool]:
        """The address of the client behind `peer`, by its X-Forwarded-For headers, and whether they made sense.

        Read from the right: each proxy adds whom it saw, so the first that is none of ours is the client. What stands
        left of it was made up by the client, or may have been. Proxies write addresses with a port, too
        (``1.2.3.4:5678``, ``[2001:db8::1]:443``). At what is no address (``unknown``, an obfuscated ``_name`` of RFC
        7239, nothing at all) reading stops, and the last address that is known stands: that of one of our proxies.
        """
        if not self.trusts(peer):
            return peer, True
        words = [word for value in forwarded for word in value.split(",")]
        for word in reversed(words):
            address = to_address(_without_port(word.strip(' \t"')))
            if address is None:
                return peer, False
            peer = str(address)
            if not self.trusts(peer):
                return peer, True
        return peer, True


def is_fixed_host(host: str) -> bool:
    """Whether a `Host` header is an address or ``localhost``: what nobody else can bind to a machine of theirs."""
    found = _HOST.fullmatch(host.lower())
    if found is None:
        return False
    name = found[1].strip("[]") if found[1].startswith("[") else found[1]
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return (address.version == 6) == found[1].startswith("[")


def _without_port(word: str) -> str:
    """An address as proxies write it, without brackets and port; anything else as it is."""
    found = _ADDRESS_WITH_PORT.fullmatch(word)
    return (found[1] or found[2]) if found is not None else word


_ADDRESS_WITH_PORT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15}))(?::[0-9]{1,5})?", re.ASCII)
