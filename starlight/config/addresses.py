"""Addresses as settings and headers name them. Pure: nothing is resolved."""

from __future__ import annotations

import ipaddress

__all__ = ["is_loopback", "to_address"]


def to_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a text names, without its zone; None if it names none.

    An IPv4 address in IPv6 form (``::ffff:1.2.3.4``) is the IPv4 address.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if mapped is not None else address


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address, or a name that needs no asking."""
    address = to_address(host)
    return host == "localhost" if address is None else address.is_loopback
