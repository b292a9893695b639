"""starlight.net.origins: row 8 of the fault table, and whom a proxy connects for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.errors import ConfigError
from starlight.net.origins import Origins, Proxies


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
    "allowed",
    [
        "example.com", "https://*", "https://a.*.com", "https://a.test/", "ws://a", "wss://a", "nul", "file:///x",
        "tauri://*", "chrome-extension://*", "chrome-extension://*.a", "://a", "tauri:", "https://a.test x",
    ],
)  # fmt: skip
def test_wrong_lists(allowed: str):
    with pytest.raises(ConfigError, match="origins with commas between"):
        Origins(allowed)


APPS = (
    "capacitor://localhost", "ionic://localhost", "tauri://localhost", "file://", "null", "app://obsidian.md",
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop", "moz-extension://0b6b2a5c-8a7c-4b0e-9a43-3f9a3f1b0b1a",
)  # fmt: skip


@pytest.mark.parametrize("origin", APPS)
def test_an_application_is_let_in_if_it_is_named_and_only_then(origin: str):
    assert Origins(origin).allows([origin], "a.test", is_local=True)
    assert Origins(f"https://a.test, {origin.upper()}").allows([origin], "a.test")
    for others in ("", "https://a.test", *(other for other in APPS if other != origin)):
        assert not Origins(others).allows([origin], "localhost"), others
    assert not Origins(origin).allows([origin + "x"], "localhost")
    assert not Origins(origin).allows([origin, origin], "localhost")
    assert not Origins(origin).allows(["https://evil.test"], "localhost")


@pytest.mark.parametrize(
    ("origin", "host", "refusal"),
    [
        ("http://evil.example", "evil.example:8765", "host"),
        ("https://rebind.attacker.com", "rebind.attacker.com", "host"),
        ("http://127.0.0.1.evil.example", "127.0.0.1.evil.example", "host"),
        ("http://localhost.evil.example", "localhost.evil.example", "host"),
        ("http://localhost.", "localhost.", "host"),
        ("http://127.1", "127.1", "host"),
        ("http://2130706433", "2130706433", "host"),
        ("http://[127.0.0.1]", "[127.0.0.1]", "host"),
        ("http://evil.example", "127.0.0.1", "origin"),
        ("null", "localhost", "origin"),
        ("http://localhost:3000", "localhost:8765", None),
        ("http://LOCALHOST", "localhost", None),
        ("http://127.0.0.1:3000", "127.0.0.1:8765", None),
        ("https://[::1]:1", "[::1]:2", None),
        ("http://192.168.1.5", "192.168.1.5:8765", None),
    ],
)
def test_on_a_loopback_address_a_page_must_ask_for_what_no_stranger_can_bind(
    origin: str, host: str, refusal: str | None
):
    assert Origins("").refusal([origin], host, is_local=True) == refusal
    if refusal == "host":
        assert Origins("").allows([origin], host)  # elsewhere the name of a host is one that its owner has bound
        assert Origins(origin).allows([origin], host, is_local=True)
        assert Origins("*").allows([origin], host, is_local=True)
    assert Origins("").allows([], host, is_local=True)  # a program


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
        ("10.0.0.1", ["203.0.113.1:51008"], "203.0.113.1"),
        ("10.0.0.1", ["6.6.6.6:1, 203.0.113.1:51008, 10.0.0.2:443"], "203.0.113.1"),
        ("10.0.0.1", ["[2001:470::5]:443"], "2001:470::5"),
        ("10.0.0.1", ["[2001:470::5]"], "2001:470::5"),
        ("10.0.0.1", ['"[2001:470::5]:443"'], "2001:470::5"),
        ("10.0.0.1", ["[::ffff:203.0.113.1]:80"], "203.0.113.1"),
        ("10.0.0.1", ["fe80::1%eth0"], "fe80::1"),
    ],
)
def test_whom_a_proxy_connects_for(peer: str, forwarded: list[str], client: str):
    assert PROXIES.client(peer, forwarded) == (client, True)


@pytest.mark.parametrize(
    "word",
    [
        "unknown", "_hidden", "_secret:80", "", " ", "203.0.113.1:", "203.0.113.1:x", "203.0.113.1:123456", "[::1",
        "::1]", "[203.0.113.1.5]", "1.2.3", "999.1.1.1", "[]:80", "203.0.113.1;evil", "\udcff",
    ],
)  # fmt: skip
def test_what_is_no_address_is_the_nearest_proxys_that_is_known(word: str):
    assert PROXIES.client("10.0.0.1", [word]) == ("10.0.0.1", False)
    assert PROXIES.client("10.0.0.1", [f"203.0.113.1, {word}"]) == ("10.0.0.1", False)
    assert PROXIES.client("10.0.0.1", [f"{word}, 10.0.0.2"]) == ("10.0.0.2", False)
    assert PROXIES.client("10.0.0.1", [f"{word}, 203.0.113.1"]) == ("203.0.113.1", True)


def test_without_proxies_nobody_is_believed():
    none = Proxies("")
    assert not none
    assert none.client("127.0.0.1", ["1.2.3.4"]) == ("127.0.0.1", True)
    with pytest.raises(ConfigError, match="addresses and networks"):
        Proxies("proxy.local")
