"""Nodes with an internal port, in processes of their own, for the commands and the console that talk to it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import starlight
from starlight.client.connect import StarlightClient

ROOT = Path(__file__).parents[2]
KEY = "k" * 32 + "-of-a-test"
TIMEOUT_S = 30.0


class Serving:
    """A `starlight serve` that runs: the URLs of its two ports."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, internal_url: str) -> None:
        self.process = process
        self.url = url
        self.internal_url = internal_url
        self._reading = asyncio.ensure_future(self._read())  # so that it never waits for us to read its log

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while await self.process.stderr.read(1 << 16):
            pass

    def client(self, user: str, **options: Any) -> Any:
        """`starlight.connect` to it."""
        return starlight.connect(self.url, user=user, **options)

    async def end(self) -> int:
        """Have it drain; its exit code."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT_S):
            return await self.process.wait()

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading


@asynccontextmanager
async def serving(key_file: Path | None = None, internal_port: int = 0, *words: str) -> AsyncIterator[Serving]:
    """Serve with an internal port; with a key in this file, which is written, if one is named."""
    environment = {"PYTHONPATH": str(ROOT), "STARLIGHT_INTERNAL_PORT": str(internal_port)}
    if key_file is not None:
        key_file.write_text(KEY + "\n")
        key_file.chmod(0o600)
        environment["STARLIGHT_INTERNAL_KEY_FILE"] = str(key_file)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "starlight", "serve", "--port", "0", "--drain-timeout", "2s", *words),
        cwd=ROOT,
        env={**os.environ, **environment},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        node = Serving(process, *await _urls(process))
    except BaseException:
        process.kill()
        await process.communicate()
        raise
    try:
        yield node
    finally:
        await node.close()


async def _urls(process: asyncio.subprocess.Process) -> tuple[str, str]:
    """The two URLs in what it says at the start."""
    assert process.stderr is not None
    said = ""
    async with asyncio.timeout(TIMEOUT_S):
        while line := (await process.stderr.readline()).decode():
            said += line
            found = [re.search(rf"\b{scheme}://[\w.:\[\]]+:\d+[\w/]*", said) for scheme in ("ws", "http")]
            if found[0] and found[1]:
                return found[0][0], found[1][0].rstrip("/")
    raise AssertionError(f"it ended: {said}")


async def traffic(client: StarlightClient, channel: str, seconds: float = 1.0) -> None:
    """Publish fifty times a second."""
    for n in range(round(seconds * 50)):
        await client.publish(channel, n)
        await asyncio.sleep(0.02)
