"""The echo for conformance suites, and the bar for what the Autobahn suite said (`tests/autobahn/run` runs it)."""

import collections
import json
import re
import signal
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from starlight.cli import main as cli
from starlight.server.conformance import EchoNode, conformance_settings
from tests.cli.test_main import running, url_of

EXPECTED = Path(__file__).parents[1] / "autobahn" / "expected.json"
LARGE_BYTES = 16 * 2**20


async def test_messages_come_back_as_they_came() -> None:
    async with (
        EchoNode(conformance_settings(port=0)) as node,
        connect(node.url, compression=None, max_size=None) as peer,
    ):
        for message in ("", "héllo", b"", b"\xff\0", "x" * 70_000, bytes(LARGE_BYTES)):
            await peer.send(message)
            assert await peer.recv() == message
        await peer.send(["a", "b", "c"])
        assert await peer.recv() == "abc"
        await peer.send(b"%d" % i for i in range(2_000))  # fragments, far more than a node allows
        assert await peer.recv() == b"".join(b"%d" % i for i in range(2_000))
        await peer.close(3999, "enough")
        assert (peer.close_code, peer.close_reason) == (3999, "")
    assert node.core.counters()["subscribers"] == 0


async def test_the_command() -> None:
    async with running("conformance", "--port", "0") as serving:
        url = await url_of(serving)
        assert re.fullmatch(r"ws://127\.0\.0\.1:\d+/", url)
        async with connect(url) as peer:
            await peer.send(b"back")
            assert await peer.recv() == b"back"
        assert await serving.end(signal.SIGTERM) == 0


def test_the_command_refuses_a_wrong_port(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["conformance", "--port", "abc"]) == 2
    assert "--port abc: expected a whole number" in capsys.readouterr().err


def test_the_bar_for_autobahn() -> None:
    """0 failed, 0 unclean, at most 2 non-strict, of 301; .ci/run compares every run with this file."""
    cases = json.loads(EXPECTED.read_text())
    counts = collections.Counter(behavior for verdict in cases.values() for behavior in set(verdict))
    assert len(cases) == 301
    assert set(counts) <= {"OK", "NON-STRICT", "INFORMATIONAL"}
    assert counts["NON-STRICT"] <= 2
    assert counts["INFORMATIONAL"] <= 3  # cases for which RFC 6455 defines no outcome
