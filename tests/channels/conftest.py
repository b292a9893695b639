"""A hub over the real core, with two members."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fakes import Member, Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage(node="n1")
    yield stage
    stage.close()


@pytest.fixture
def ann(stage: Stage) -> Member:
    return stage.member("ann")


@pytest.fixture
def bob(stage: Stage) -> Member:
    return stage.member("bob")
