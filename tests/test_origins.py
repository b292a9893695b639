"""starlight.origins: row 8 of the fault table, and whom a proxy connects for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.errors import ConfigError
from starlight.origins import Origins, Proxies


@pytest.mark.parametrize(
    ("allowed", "origin", "is_allowed"),
    [
        ("https://app.example.com", "https://app.example.com", True),
        ("https://app.example.com", "https://APP.example.com:443", True),
        ("https://app.example.com", "http://app.example.com", False),
        ("https://app.example.com", "https://app.example.com:8443", False),
        ("https://app.example.com", "https://app.example.com.evil.test", False),
        ("https://app.example.com", "https://evil-app.example.com", False),
        ("https://app.example.com", "https://app.example.com@evil.test", False),
        ("https://app.example.com", "https://app.example.com/", False),
        ("https://app.example.com", "https://app.example.com\x00.evil.test", False),
        ("https://app.example.com", "https://аpp.example.com", False),  # a Cyrillic a
        ("https://app.example.com", "null", False),
        ("https://app.example.com", "", False),
        ("https://app.example.com", "https://", False),
        ("https://app.example.com", "file://", False),
        ("https://*.example.com", "https://a.example.com", True),
        ("https://*.example.com", "https://a.b.example.com", True),
        ("https://*.example.com", "https://example.com", False),
        ("https://*.example.com", "https://.example.com", False),
        ("https://*.example.com", "https://evilexample.com", False),
        ("https://*.example.com", "https://example.com.evil.test", False),
        ("https://*.example.com:8443", "https://a.example.com:8443", True),
        ("http://localhost:3000, https://a.test", "http://localhost:3000", True),
        ("http://localhost:3000, https://a.test", "https://a.test", True),
        ("http://[::1]:3000", "http://[::1]:3000", True),
        ("*", "https://anything.test", True),
        ("*", "null", True),
    ],
)
def test_the_allow_list(allowed: str, origin: str, is_allowed: bool):
    assert Origins(allowed).allows([origin], "app.example.com") is is_allowed


@pytest.mark.parametrize(
    ("origin", "host", "is_allowed"),
    [
        ("https://a.test", "a.test", True),
        ("http://localhost:3000", "localhost:8765", True),
        ("http://A.test", "a.TEST:80", True),
        ("http://[::1]:1", "[::1]:2", True),
        ("https://b.test", "a.test", False),
        ("https://a.test.b.test", "a.test", False),
        ("https://sub.a.test", "a.test", False),
        ("null", "a.test", False),
        ("null", "null", False),
        ("https://a.test", "", False),
    ],
)
def test_same_host_by_default(origin: str, host: str, is_allowed: bool):
    assert Origins("").allows([origin], host) is is_allowed


def test_no_origin_is_no_browser_and_two_are_none():
    for allowed in ("", "https://a.test"):
        assert Origins(allowed).allows([], "a.test")
        assert not Origins(allowed).allows(["https://a.test", "https://a.test"], "a.test")


@given(st.text(max_size=50))
def test_any_text_is_no_origin_of_ours(text: str):
    allowed = Origins("https://*.example.com").allows([text], "x")
    assert not allowed or text.lower().endswith((".example.com", ".example.com:443"))


@pytest.mark.parametrize(
    "allowed", ["example.com", "https://*", "https://a.*.com", "https://a.test/", "null", "ws://a"]
)
def test_wrong_lists(allowed: str):
    with pytest.raises(ConfigError, match="origins with commas between"):
        Origins(allowed)


PROXIES = Proxies("10.0.0.0/8, 127.0.0.1, 2001:db8::/32")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.9", ["203.0.113.1"], "192.0.2.9"),  # not one of ours: what it says is nothing
        ("10.0.0.1", ["203.0.113.1"], "203.0.113.1"),
        ("10.0.0.1", ["6.6.6.6, 203.0.113.1"], "203.0.113.1"),  # what stands left was the client's idea
        ("10.0.0.1", ["203.0.113.1, 10.0.0.2"], "203.0.113.1"),
        ("10.0.0.1", ["6.6.6.6", "203.0.113.1, 127.0.0.1"], "203.0.113.1"),
        ("10.0.0.1", ["10.0.0.3"], "10.0.0.3"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["203.0.113.1"], "203.0.113.1"),
        ("2001:db8::1", ["2001:470::5"], "2001:470::5"),
        ("10.0.0.1", ["unknown"], None),
        ("10.0.0.1", ["203.0.113.1, "], None),
        ("10.0.0.1", ["203.0.113.1:80"], None),
    ],
)
def test_whom_a_proxy_connects_for(peer: str, forwarded: list[str], client: str | None):
    assert PROXIES.client(peer, forwarded) == client


def test_without_proxies_nobody_is_believed():
    none = Proxies("")
    assert not none
    assert none.client("127.0.0.1", ["1.2.3.4"]) == "127.0.0.1"
    with pytest.raises(ConfigError, match="addresses and networks"):
        Proxies("proxy.local")
