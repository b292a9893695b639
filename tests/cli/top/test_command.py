"""`starlight top`: one frame for scripts, and the live form on a terminal, while a node goes away and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from starlight.cli import main as cli
from tests.cli.test_ops import nobody_listens
from tests.support.internal import KEY, ROOT, Serving, serving, traffic

HOSTILE = "eve\u202e[bold]"
TIMEOUT_S = 30.0
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[()][A-Z0-9])")


class Screen:
    """`starlight top` on a terminal of its own, whose output is kept."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self.process = process
        self.master = master
        self.raw = ""
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            self.raw += os.read(self.master, 1 << 16).decode("utf-8", "replace")
        except OSError:  # its terminal is closed at the end
            asyncio.get_running_loop().remove_reader(self.master)

    async def shows(self, pattern: str) -> str:
        """Wait until what comes from now on has this in it; returns it without escapes."""
        begin = len(self.raw)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    plain = _ESCAPES.sub("", self.raw[begin:])
                    if re.search(pattern, plain):
                        return plain
                    assert self.process.returncode is None, self.raw
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"never {pattern!r}: {self.raw[begin:]!r}") from None

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def press(self, key: str) -> int:
        """Press a key that ends it; its exit code."""
        os.write(self.master, key.encode())
        async with asyncio.timeout(TIMEOUT_S):
            return await self.process.wait()


@asynccontextmanager
async def top(*words: str, columns: int = 120, rows: int = 40) -> AsyncIterator[Screen]:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def own_terminal() -> None:  # so that Ctrl-C reaches it
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "starlight", "top", *words),
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONUTF8": "1"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=own_terminal,
    )
    try:
        yield Screen(process, master)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(slave)
        os.close(master)


@asynccontextmanager
async def busy(node: Serving, channel: str = "news") -> AsyncIterator[None]:
    """Two clients, one of which publishes what both get."""
    async with node.client("ada") as ada, node.client(HOSTILE) as eve, ada.join(channel), eve.join(channel):
        publishing = asyncio.ensure_future(traffic(ada, channel, seconds=60))
        try:
            yield
        finally:
            publishing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await publishing


async def once(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = await asyncio.to_thread(cli.main, ["top", "--once", *words])
    out, err = capsys.readouterr()
    return code, out, err


async def test_one_frame(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    async with serving() as node, busy(node):
        code, out, err = await once(capsys, "--node", node.internal_url, "--interval", "500ms")
    assert (code, err) == (0, "")
    assert "1 of 1 node " in out
    lines = [line.split() for line in out.splitlines()]
    names = next(line for line in lines if line[:1] == ["NODE"])
    row = dict(zip(names, lines[lines.index(names) + 1], strict=True))
    assert (row["STATE"], row["CLIENTS"], row["CHANNELS"], row["EVICTED"]) == ("serving", "2", "1", "0")
    assert float(row["DELIV/S"].replace(",", "")) > 0
    channel = next(line for line in lines if line[:1] == ["news"])
    assert float(channel[1]) > float(channel[2]) > 0  # deliveries, publications
    assert out.replace("\n", "").isprintable()


async def test_one_frame_of_nodes_that_are_away(capsys: pytest.CaptureFixture[str]) -> None:
    gone = nobody_listens()
    async with serving() as node:
        code, out, _ = await once(capsys, "--node", gone, "--node", node.internal_url, "--interval", "200ms")
    assert code == 2
    assert "1 of 2 nodes" in out
    assert re.search(rf"{re.escape(gone)} +unreachable +connection refused", out)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--interval", "1ms"), "--interval='1ms': expected 200ms or more"),
        (("--interval", "x"), "--interval='x': expected a duration"),
        (("--node", "ws://127.0.0.1:1"), "--node='ws://127.0.0.1:1': expected the URL"),
        ((), "top: expected a terminal; --once prints one frame to anything else"),
    ],
)
def test_wrong_words(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], complaint: str) -> None:
    assert cli.main(["top", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"starlight: {complaint}")


async def test_live_while_the_node_goes_away_and_comes_back(tmp_path: Path) -> None:
    async with serving() as node:
        port = int(node.internal_url.rsplit(":", 1)[1])
        async with top("--node", node.internal_url, "--interval", "200ms") as screen:
            async with busy(node):
                shown = await screen.shows(r"serving[^\n]* [1-9][\d,]* [\s\S]*channels by traffic[\s\S]*news")
                assert "\u202e" not in screen.raw
                assert "q leaves" in shown
            await node.end()
            await screen.shows(r"0 of 1 node[\s\S]*unreachable +connection refused")
            async with serving(None, port) as again:
                await screen.shows(r"1 of 1 node[\s\S]*serving")
                assert again.internal_url == node.internal_url
                for columns, rows in ((30, 6), (5, 2), (160, 50)):
                    screen.resize(columns, rows)
                    await screen.shows("s" if columns == 5 else "starlight top")
                assert await screen.press("q") == 0
            assert "\x1b[?1049h" in screen.raw
            assert screen.raw.rindex("\x1b[?1049l") > screen.raw.rindex("starlight top")  # left as it was found
            assert KEY not in screen.raw


async def test_interrupted() -> None:
    async with serving() as node, top("--node", node.internal_url) as screen:
        await screen.shows("serving")
        assert await screen.press("\x03") == 130
        assert "\x1b[?1049l" in screen.raw
        assert "Traceback" not in screen.raw


async def test_several_nodes_with_a_key(tmp_path: Path) -> None:
    async with serving(tmp_path / "key") as one, serving() as other:
        words = ("--node", one.internal_url, "--node", other.internal_url, "--key-file", str(tmp_path / "key"))
        async with top(*words) as screen:
            await screen.shows(r"2 of 2 nodes[\s\S]*together")
            assert await screen.press("Q") == 0
