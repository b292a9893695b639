"""On which loops and wires a module's tests run.

`LOOPS` in the module: the loops of its coroutines, asyncio's own where there is none. `WIRES = ("ws", "wss")` in the
module: each test runs once over each; for wss every node gets a certificate from the environment, and every client
that asks OpenSSL for its default authorities trusts it, as raw clients do. `WS_ONLY` in the module: tests that can't be
run over TLS, by name, and why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.tls import speak_tls

ASYNCIO = {"asyncio": asyncio.new_event_loop}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The hook of pytest-asyncio."""
    return getattr(item.getparent(pytest.Module).obj, "LOOPS", ASYNCIO)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The hook of pytest: parametrises what `WIRES` asks for."""
    wires = getattr(metafunc.module, "WIRES", None)
    if wires and "wire" in metafunc.fixturenames:
        reason = getattr(metafunc.module, "WS_ONLY", {}).get(metafunc.function.__name__)
        marks = [pytest.mark.skip(reason=f"over ws alone: {reason}")] if reason else []
        metafunc.parametrize(
            "wire", [pytest.param(wire, marks=marks if wire == "wss" else ()) for wire in wires], indirect=True
        )


@pytest.fixture(autouse=True)
def wire(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The wire of this test: ws or wss."""
    chosen: str = getattr(request, "param", "ws")
    if chosen == "wss":
        speak_tls(monkeypatch, tmp_path)
    return chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """A captured log line may hold what UTF-8 can't, such as half a surrogate pair; xdist sends reports in UTF-8."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
