"""docs/: builds as a site without a warning, has every page in its contents, and the code on its pages runs."""

from __future__ import annotations

import asyncio
import os
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import starlight
from starlight.app import Starlight

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    out = tmp_path_factory.mktemp("site")
    run = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d", out / "trees", DOCS, out / "html"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    return out / "html"


def test_every_page_is_there_and_in_the_contents(site: Path):
    contents = (site / "index.html").read_text()
    for page in PAGES:
        assert (site / f"{page}.html").is_file()
        assert f'href="{page}.html"' in contents or page == "index", page


def test_the_reference_has_what_the_package_offers(site: Path):
    text = (site / "api.html").read_text()
    for name in (
        "starlight.app.Starlight.publish", "starlight.client.connect.connect",
        "starlight.client.connect.StarlightClient.join",
        "starlight.errors.ConfigError", "starlight.channels.handlers.Handlers.on", "starlight.channels.client.Client",
        "starlight._fanout.Core.publish",
    ):  # fmt: skip
        assert f'id="{name}"' in text, name


def test_links_out_of_the_folder_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((\.\./[^)#\s]+)", (DOCS / f"{page}.md").read_text()):
            assert (DOCS / link).exists(), f"{page}: {link}"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)


async def run_program(program: str, url: str) -> str:
    """What a page's program prints, with the address of our node in it."""
    program = program.replace("ws://127.0.0.1:8765/ws", url)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode == 0, err.decode()
    return out.decode()


async def test_the_quickstarts_program():
    program, server = blocks("quickstart", "python")
    async with Starlight().serve(port=0) as node:
        assert await run_program(program, node.url) == "1 subscriber\n{'title': 'hi'}\n"
    names: dict[str, object] = {}
    exec(server, names)
    app = names["app"]
    assert isinstance(app, Starlight)
    async with app.serve(port=0) as node, starlight.connect(node.url, user="ada") as client:
        assert await client.request("bid", 120) == "accepted"


async def test_the_tutorials_program_prints_what_the_page_says():
    program, test = blocks("tutorial", "python")
    (printed,) = blocks("tutorial", "text")
    app: Starlight = runpy.run_path(str(ROOT / "examples" / "auction.py"))["app"]
    async with app.serve(port=0) as node:
        assert await run_program(program, node.url) == printed
    app = runpy.run_path(str(ROOT / "examples" / "auction.py"))["app"]
    names: dict[str, object] = {"app": app, "starlight": starlight}
    exec(textwrap.dedent(test), names)
    test_of_the_page = names["test_a_bid"]
    assert callable(test_of_the_page)
    await test_of_the_page()
