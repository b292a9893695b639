"""On which loops a module's coroutine tests run: `LOOPS` in the module, asyncio's own where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

ASYNCIO = {"asyncio": asyncio.new_event_loop}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The hook of pytest-asyncio."""
    return getattr(item.getparent(pytest.Module).obj, "LOOPS", ASYNCIO)
