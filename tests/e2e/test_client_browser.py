"""examples/client.js in a headless Chromium: what Node has no part of, the network's events and frozen pages."""

from __future__ import annotations

import asyncio
import functools
import http.server
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_client_js import CLIENT
from tests.ops.test_console import driver, needs_browser
from tests.support import scripted_server as support_server
from tests.support.fakes import eventually
from tests.support.scripted_server import ScriptedServer

__all__ = ["driver"]  # the fixture
pytestmark = needs_browser

PAGE = """<!doctype html><script type="module">
import { connect } from "./client.js";
window.states = [];
const onState = (state, detail) => states.push([state, detail?.code ?? null]);
window.begin = async (url, options) => { window.client = await connect(url, { user: "ada", onState, ...options }); };
window.isLoaded = true;
</script>"""
SLOW = "{backoffMs: 1e9, backoffMaxMs: 1e9}"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A page with the client, on a port of the kernel's choice."""
    shutil.copy(CLIENT, tmp_path / "client.js")
    (tmp_path / "index.html").write_text(PAGE)
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}/"
        listening.shutdown()
        thread.join()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with support_server.scripted_server() as running:
        yield running


class Page:
    """The page in a tab."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    async def script(self, code: str) -> Any:
        return await asyncio.to_thread(self.driver.execute_script, code)

    async def command(self, method: str, **parameters: Any) -> None:
        await asyncio.to_thread(self.driver.execute_cdp_cmd, method, parameters)

    async def until(self, condition: str) -> None:
        async with asyncio.timeout(30):
            while not await self.script(f"return Boolean({condition})"):
                await asyncio.sleep(0.05)

    async def states(self) -> list[list[Any]]:
        return list(await self.script("return states"))


@pytest.fixture
async def page(driver: Any, site: str, server: ScriptedServer) -> AsyncIterator[Page]:
    page = Page(driver)
    await asyncio.to_thread(driver.get, site)
    await page.until("window.isLoaded")
    yield page
    await page.script("window.client?.close()")
    for connection in server.connections:
        connection.transport.abort()
    await asyncio.to_thread(driver.get, "about:blank")


async def begin(page: Page, server: ScriptedServer, options: str = "{}") -> None:
    await page.script(f"begin('{server.url}', {options})")
    await page.until("window.client")


async def test_it_joins_publishes_and_comes_back(page: Page, server: ScriptedServer) -> None:
    await begin(page, server, "{backoffMs: 10}")
    await page.script("window.heard = []; return client.join('news', ({ data }) => heard.push(data))")
    server.drop_all()
    await page.until("states.length === 3")
    await page.script("return client.publish('news', 'again')")
    await page.until("heard.length")
    assert await page.script("return heard") == ["again"]
    assert await page.states() == [["connected", None], ["reconnecting", 1006], ["connected", None]]


async def test_a_network_that_is_back_ends_the_wait(page: Page, server: ScriptedServer) -> None:
    """The wait would be days."""
    await begin(page, server, SLOW)
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    await page.command("Network.enable")
    await page.command("Network.emulateNetworkConditions", offline=True, **network)
    server.drop_all()
    await page.until("states.length === 2")
    await page.command("Network.emulateNetworkConditions", offline=False, **network)
    await page.until("states.length === 3")
    assert server.opened == 2


async def test_a_frozen_page_that_wakes_finds_its_line_dead(page: Page, server: ScriptedServer) -> None:
    """By the welcome it would ask in an hour."""
    server.welcome = {"ping": 3600, "pong": 1}
    await begin(page, server, SLOW)
    await page.command("Page.enable")
    await page.command("Page.setWebLifecycleState", state="frozen")
    for connection in server.connections:
        connection.transport.pause_reading()
    await page.command("Page.setWebLifecycleState", state="active")
    await page.until("states.length === 2")
    assert (await page.states())[1] == ["reconnecting", 1006]


async def test_a_dead_line_is_dropped_without_its_close(page: Page, server: ScriptedServer) -> None:
    server.welcome = {"ping": 1, "pong": 1}
    await begin(page, server, "{backoffMs: 10}")
    for connection in server.connections:
        connection.transport.pause_reading()
    await page.until("states.length === 3")
    assert await page.states() == [["connected", None], ["reconnecting", 1006], ["connected", None]]
    assert len(server.connections) == 2  # the server has not even noticed


async def test_close_is_final_while_a_token_is_fetched(page: Page, server: ScriptedServer) -> None:
    token = "() => window.asked++ ? new Promise((done) => { window.release = done; }) : 'first'"
    await page.script("window.asked = 0")
    await begin(page, server, f"{{backoffMs: 10, token: {token}}}")
    server.drop_all()
    await page.until("window.release")
    await page.script("client.close(); release('late'); dispatchEvent(new Event('online'))")
    await asyncio.sleep(0.5)
    assert (await page.states())[-1] == ["closed", 1000]
    assert server.opened == 1
    await eventually(lambda: not server.connections)
