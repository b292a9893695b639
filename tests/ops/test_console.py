"""The console in a headless Chromium, served by a node that runs; the part without a browser is tested everywhere."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import shutil
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from starlight.ops.console import page
from tests.support.internal import Serving, serving, traffic
from tests.support.tokens import AUDIENCE, ISSUER, SECRET, token, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
DRIVER = shutil.which("chromedriver") or ""
webdriver = pytest.importorskip("selenium.webdriver") if CHROMIUM and DRIVER else None
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")

HOSTILE = "<img src=x onerror=document.title='pwned'>\u202e"
TIMEOUT_S = 30.0


def test_the_policy_allows_what_stands_in_the_page_and_nothing_else() -> None:
    content, headers = page()
    text, policy = content.decode(), headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        blocks = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL)
        assert len(blocks) == 1
        digest = base64.b64encode(hashlib.sha256(blocks[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_the_page_needs_nothing_from_elsewhere_and_makes_no_markup_of_data() -> None:
    text = page()[0].decode()
    assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}  # the name of SVG
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\son\w+=", text)


class Browser:
    """The console in a tab."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    async def script(self, code: str, *arguments: Any) -> Any:
        return await asyncio.to_thread(self.driver.execute_script, code, *arguments)

    async def text(self, id: str) -> str:
        return str(await self.script("return document.getElementById(arguments[0]).textContent", id))

    async def shows(self, id: str, pattern: str) -> str:
        """Wait until an element has this in its text."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not re.search(pattern, text := await self.text(id)):
                    await asyncio.sleep(0.1)
                return text
        except TimeoutError:
            raise AssertionError(f"#{id} never {pattern!r}: {await self.text(id)!r}") from None

    async def type(self, id: str, text: str) -> None:
        def act() -> None:
            field = self.driver.find_element("id", id)
            field.clear()
            field.send_keys(text)

        await asyncio.to_thread(act)

    async def submit(self, form: str) -> None:
        def act() -> None:
            self.driver.find_element("css selector", f"#{form} > button").click()

        await asyncio.to_thread(act)

    async def open(self, url: str) -> None:
        await asyncio.to_thread(self.driver.get, url)

    def complaints(self) -> list[str]:
        """What the browser complained of: refused by the policy, failed requests, exceptions."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("chromium")
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1440,1100"):
        options.add_argument(f"--{word}")
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    started.set_script_timeout(TIMEOUT_S)
    started.set_page_load_timeout(TIMEOUT_S)
    yield started
    started.quit()


@pytest.fixture
def browser(driver: Any) -> Iterator[Browser]:
    driver.get("about:blank")
    driver.get_log("browser")
    yield Browser(driver)
    driver.get("about:blank")


@asynccontextmanager
async def opened(browser: Browser, *words: str) -> AsyncIterator[Serving]:
    """A node, and its console in the browser."""
    async with serving(None, 0, *words) as node:
        await browser.open(node.internal_url + "/")
        await browser.shows("state", "serving")
        yield node


async def test_it_is_served_with_its_policy() -> None:
    def get(url: str) -> tuple[bytes, dict[str, str]]:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read(), dict(answer.headers)

    async with serving() as node:
        content, headers = await asyncio.to_thread(get, node.internal_url + "/")
    assert content == page()[0]
    assert page()[1].items() <= headers.items()


@needs_browser
async def test_rates_connections_and_channels(browser: Browser) -> None:
    async with opened(browser) as node, node.client("ada") as ada, node.client(HOSTILE) as eve:
        async with ada.join("news"), eve.join("news"):
            publishing = asyncio.ensure_future(traffic(ada, "news", 60))
            try:
                await browser.shows("tiles", r"Messages in/s\d[\d.]")
                await browser.shows("tiles", r"Deliveries/s[1-9]")
                await browser.shows("channels", r"news[1-9][\d.]+")
                await browser.shows("connections", r"ada.*127\.0\.0\.1:")
                assert "<img src=x" in await browser.text("connections")  # as text
                assert "\u202e" not in await browser.text("connections")
                await browser.type("filter", "ada")
                await browser.shows("connections-total", "^1$")
                assert await browser.script("return document.querySelectorAll('.tile .curve[d^=M]').length") == 8
                label = await browser.script("return document.querySelector('.tile svg').getAttribute('aria-label')")
                assert label.startswith("Clients: 2 now")
            finally:
                publishing.cancel()
                await asyncio.wait([publishing])
        assert "pwned" not in browser.driver.title
        assert browser.complaints() == []


@needs_browser
async def test_being_a_client(browser: Browser) -> None:
    async with opened(browser) as node, node.client("ada") as ada, ada.join("news") as news:
        assert await browser.script("return document.getElementById('url').value") == node.url
        await browser.type("word", "bob")
        await browser.submit("login")
        await browser.shows("client-state", "logged in as bob on node")
        await browser.type("join-channel", "news")
        await browser.submit("join")
        await browser.shows("joined", "news")
        await ada.publish("news", {"html": HOSTILE})
        await browser.shows("messages", "news ada:.*<img src=x")
        await browser.type("publish-channel", "news")
        await browser.type("publish-data", '{"n": 1.0, "big": 12345678901234567890}')
        await browser.submit("publish")
        await browser.shows("messages", "published in news to 2 subscribers")
        await anext(news)  # ada's own
        assert (await anext(news)).data == {"n": 1.0, "big": 12345678901234567890}
        await browser.type("publish-data", "not JSON")
        await browser.submit("publish")
        assert (await anext(news)).data == "not JSON"
        await browser.type("direct-user", "ada")
        await browser.type("direct-data", "psst")
        await browser.submit("direct")
        assert (await anext(aiter(ada))).data == "psst"
        await ada.direct("bob", "yourself")
        await browser.shows("messages", "direct ada: yourself")
        await browser.type("direct-user", "nobody")
        await browser.submit("direct")
        await browser.shows("messages", "direct 120 not_connected")
        await browser.script("document.querySelector('#joined button').click()")
        await browser.shows("messages", "left news")
        await browser.submit("login")  # out
        await browser.shows("client-state", "not logged in")
        await browser.shows("messages", "closed 1000")
        assert "pwned" not in browser.driver.title
        assert browser.complaints() == []


@needs_browser
async def test_logging_in_by_token(browser: Browser, tmp_path: Path) -> None:
    secret_file = write(tmp_path / "secret", SECRET)
    words = ("--auth", "jwt", "--jwt-secret-file", secret_file, "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE)
    async with opened(browser, *words):
        await browser.script("const by = document.getElementById('by'); by.value = 'token'; by.onchange()")
        await browser.type("word", "nonsense")
        await browser.submit("login")
        await browser.shows("messages", "closed 4500")
        await browser.type("word", token("ann"))
        await browser.submit("login")
        await browser.shows("client-state", "logged in as ann")


@needs_browser
async def test_the_origin_has_to_be_allowed(browser: Browser) -> None:
    """By default pages of the same host may connect, so the console may; a list has to name it."""
    async with opened(browser, "--allowed-origins", "https://app.example.com"):
        await browser.submit("login")
        await browser.shows("messages", r"closed no connection: .* origin http://127\.0\.0\.1:\d+ may not connect")


@needs_browser
async def test_by_another_name_of_loopback(browser: Browser) -> None:
    async with serving() as node:
        await browser.open(node.internal_url.replace("127.0.0.1", "localhost") + "/")
        await browser.shows("state", "serving")
        assert await browser.script("return document.getElementById('url').value") == node.url.replace(
            "127.0.0.1", "localhost"
        )
        await browser.submit("login")
        await browser.shows("client-state", "logged in as console")


@needs_browser
async def test_a_node_that_goes_away_and_comes_back(browser: Browser) -> None:
    async with opened(browser) as node:
        await browser.submit("login")
        await browser.shows("client-state", "logged in")
        await node.end()
        await browser.shows("state", "unreachable")
        await browser.shows("messages", "bye 1001.*closed 1001")
        async with serving(None, int(node.internal_url.rsplit(":", 1)[1])) as again:
            await browser.shows("state", "serving")
            assert await browser.script("return document.getElementById('url').value") == again.url
