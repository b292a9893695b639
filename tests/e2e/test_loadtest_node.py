"""The harness against a real node: everything at once, with both subprotocols, and nothing may be wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.loadtest import broken, short_run

WATCHDOG_S = 10


@pytest.fixture(scope="module")
def node() -> Iterator[str]:
    command = [sys.executable, "-m", "starlight", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"ws://\S+", process.stdout.readline())
        assert found
        yield found[0]
        process.terminate()
        process.stdout.read()
        assert process.wait(WATCHDOG_S) == 0


@pytest.mark.parametrize("dialect", ["native", "lines"])
def test_everything_at_once(node: str, dialect: str) -> None:
    result = short_run(
        node,
        "mixed",
        dialect,
        traffic={"broadcast": 0.1, "channels": 0.7, "direct": 0.2},
        connections=60,
        channels=10,
        members=30,
        publishers=10,
        rate=1000.0,
        acks=True,
        churn_per_s=50.0,
        churn_reset_share=0.5,
        rejoins_per_s=50.0,
        size="uniform:16-2000",
        duration_s=0.5,
    )
    assert broken(result) == {} and result.check.deliveries > 5000
    assert result.acks == result.counters["sent"] - result.errors
    assert "not_connected" in result.first_error if result.errors else True  # a direct to one who is reconnecting
    assert result.churned > 10 and result.rejoins > 10 and result.disconnects == 0


def test_coalesced_broadcasts(node: str) -> None:
    result = short_run(node, connections=50, model="closed", window=64)
    assert broken(result) == {} and result.check.deliveries > result.counters["receives"]
