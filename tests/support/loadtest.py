"""What the tests of the load harness share: the peer process and short runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from starlight.loadtest import Result, Target, run_scenario
from starlight.loadtest.scenario import build

PEER = Path(__file__).with_name("loadtest_peer.py")
SHORT: dict[str, object] = {"connections": 10, "warmup_s": 0, "duration_s": 0.2, "settle_s": 1.0, "rate": 200.0}


class Peer:
    """A running `loadtest_peer.py`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, str(PEER)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().split()[1])

    def url(self, name: str, **options: object) -> str:
        query = "&".join(f"{key}={value}" for key, value in options.items())
        return f"ws://127.0.0.1:{self.port}/{name}?{query}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    started = Peer()
    yield started
    started.close()


def short_run(url: str, base: str = "broadcast", dialect: str = "native", **changes: Any) -> Result:
    """A run of a fraction of a second."""
    return run_scenario(build(base, SHORT | changes), Target(url, dialect))


def broken(result: Result) -> dict[str, int]:
    """The checker's counts that are not zero."""
    check = result.check
    names = ("lost", "duplicates", "reordered", "misdelivered", "damaged")
    return {name: getattr(check, name) for name in names if getattr(check, name)}
