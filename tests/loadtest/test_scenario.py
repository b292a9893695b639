"""Scenarios as data, and the plan made from them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from starlight.loadtest.errors import BadScenario
from starlight.loadtest.plan import make_plan
from starlight.loadtest.scenario import BUILT_IN, build, load, payload_sizes


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_can_be_planned_at_any_size(name: str) -> None:
    for connections in (2, 100, 1000):
        plan = make_plan(build(name, {"connections": connections}))
        assert len(plan.members) == connections
        assert all(0 < group < plan.groups for groups in plan.members for group in groups)
        assert bool(plan.streams) == bool(BUILT_IN[name].traffic)


def test_everyone_is_in_as_many_channels() -> None:
    plan = make_plan(build("mixed", {}))
    assert {len(groups) for groups in plan.members} == {5}
    assert set(Counter(group for groups in plan.members for group in groups).values()) == {50}


def test_mixed_keeps_its_proportion() -> None:
    plan = make_plan(build("mixed", {"publishers": 10}))
    for order in plan.orders:
        direct = sum(plan.streams[stream][1] > 100 for stream in order)
        assert direct / len(order) == pytest.approx(0.1, abs=0.01)


def test_nobody_sends_directs_to_oneself() -> None:
    for connections in (2, 3, 10, 101):
        plan = make_plan(build("direct", {"connections": connections, "targets": 5}))
        assert all(plan.user_group(plan.senders[sender]) != group for sender, group in plan.streams)
        assert len(set(plan.streams)) == len(plan.streams)


def test_processes_share_all_connections() -> None:
    plan = make_plan(build("idle", {"connections": 10}))
    assert [index for process in range(3) for index in plan.process_range(process, 3)] == list(range(10))


def test_senders_are_never_slow() -> None:
    plan = make_plan(build("slow-readers", {"publishers": 10, "slow_share": 0.5}))
    assert len(plan.slow) == 500 and not plan.slow & set(plan.senders)
    with pytest.raises(BadScenario, match="slow_share"):
        make_plan(build("slow-readers", {"publishers": 0, "slow_share": 0.5}))


@pytest.mark.parametrize(
    "text,low,high",
    [("128", 128, 128), ("16KiB", 16384, 16384), ("uniform:16-64", 16, 64), ("lognormal:128,1", 16, 1 << 18)],
)
def test_sizes(text: str, low: int, high: int) -> None:
    sizes = payload_sizes(text, 1)
    assert low <= min(sizes) and max(sizes) <= high and sizes == payload_sizes(text, 1)


@pytest.mark.parametrize(
    "text", ["15", "0", "-3", "1MiB", "uniform:5", "uniform:64-16", "choice:x", "normal:3,4", "many"]
)
def test_bad_sizes_are_named(text: str) -> None:
    with pytest.raises(BadScenario, match="size is"):
        payload_sizes(text, 1)


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"connections": 0}, "connections is 0"),
        ({"duration_s": 0}, "duration_s"),
        ({"model": "half-open"}, "half-open"),
        ({"slow_share": 1.5}, "slow_share"),
        ({"colour": 1}, "colour"),
        ({"traffic": {"shout": 1}}, "shout"),
        ({"traffic": {"channels": 1}}, "channels is 0"),
        ({"rate": "fast"}, "rate"),
        ({"connections": 5, "publishers": 6}, "publishers"),
    ],
)
def test_bad_fields_are_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadScenario, match=said):
        build("broadcast", changes)


def test_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "evening.toml"
    path.write_text(
        'base = "channels"\nconnections = 40\nmembers = 10\nsize = "uniform:16-64"\n[traffic]\nchannels = 1\n'
    )
    scenario = load(path, {"rate": 5.0})
    assert (scenario.name, scenario.connections, scenario.rate, scenario.channels) == ("evening", 40, 5.0, 100)
    path.write_text("connections = many")
    with pytest.raises(BadScenario, match=r"evening\.toml"):
        load(path)
    with pytest.raises(BadScenario, match=r"missing\.toml"):
        load(tmp_path / "missing.toml")
    path.write_text('base = "evening"')
    with pytest.raises(BadScenario, match="unknown scenario"):
        load(path)
