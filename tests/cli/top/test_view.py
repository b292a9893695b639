"""A frame of `starlight top`: rates of two samples, any size, and nothing of a client's but text."""

from __future__ import annotations

from typing import Any

import pytest
from rich.cells import cell_len

from starlight.cli.top.view import NodeView, Sample, Screen, frame
from starlight.ops.client import (
    ChannelRow,
    ChannelsPage,
    ConnectionRow,
    ConnectionsPage,
    Loop,
    Memory,
    Outbox,
    Totals,
    Varz,
)

HOSTILE = "\x1b[2J\x1b[31m[bold]日本\u202e"
SIZES = [(1, 1), (2, 5), (8, 3), (20, 6), (40, 12), (60, 16), (80, 24), (100, 30), (200, 60), (120, None)]


def sample(now: float, name: str = "alpha", **varz: Any) -> Sample:
    """At second `now`, 10 messages have come in, 1,000 gone out and one client been evicted for each second."""
    n = int(now)
    totals = Totals(messages_in=10 * n, deliveries=1_000 * n, bytes_out=100_000 * n, evictions={"4008": n})
    return Sample(
        Varz(node=name, now=now, pid=1, started=1.0, connections=7, clients=6, totals=totals, **varz),
        ConnectionsPage(
            now,
            20,
            [
                ConnectionRow(at, f"user{at}" if at else HOSTILE, outbox_bytes=at, oldest_ms=at * 100.0, is_full=at > 3)
                for at in range(20)
            ],
        ),
        ChannelsPage(now, 2, [ChannelRow("quiet", 3, 500, 90_000), ChannelRow("busy", 5, 10 * n, 1_000 * n)]),
    )


def watched(*seconds: float, name: str = "alpha", **varz: Any) -> NodeView:
    view = NodeView(f"http://{name}.test:8766")
    for now in seconds:
        view.add(sample(now, name, **varz))
    return view


def text(nodes: list[NodeView], width: int = 200, height: int | None = 60) -> str:
    return "\n".join(line.plain for line in frame(nodes, Screen(width, height), "12:00:00", "q leaves"))


def words_of(shown: str, first: str) -> list[str]:
    return next(line.split() for line in shown.splitlines() if line.split()[:1] == [first])


def test_rates_are_of_two_samples() -> None:
    shown = text([watched(10, 12)])
    row = dict(zip(words_of(shown, "NODE"), words_of(shown, "alpha"), strict=True))
    assert (row["STATE"], row["CONNS"], row["CLIENTS"]) == ("serving", "7", "6")
    assert (row["IN/S"], row["DELIV/S"], row["OUT/S"], row["EVICTED"]) == ("10", "1,000", "97.7KiB", "12")
    assert words_of(shown, "deliveries/s")[1] == "1,000"


def test_one_sample_has_no_rates_and_neither_has_a_restart() -> None:
    assert watched(10).rates is None
    view = watched(10, 11)
    assert view.rates is not None
    again = sample(1)
    again.varz.pid = 2
    view.add(again)
    assert view.rates is None
    assert view.channel_rates == {}
    view.add(again)  # no time has passed
    assert view.rates is None


def test_a_node_that_goes_away_and_comes_back() -> None:
    view = watched(10, 11)
    view.fail("connection refused")
    shown = text([view])
    assert "0 of 1 node " in shown
    assert words_of(shown, "alpha")[1:] == ["unreachable", "connection", "refused"]
    assert "user19" not in shown
    view.add(sample(20))
    assert words_of(text([view]), "alpha")[1] == "serving"
    assert "1 of 1 node " in text([view])


def test_a_node_that_never_answered_is_named_by_its_url() -> None:
    view = NodeView("http://gone.test:1")
    assert words_of(text([view]), "http://gone.test:1")[1] == "asking"
    view.fail("no answer in time")
    assert words_of(text([view]), "http://gone.test:1")[1] == "unreachable"


def test_the_slowest_come_first_and_the_channels_by_traffic() -> None:
    shown = text([watched(10, 11)]).splitlines()
    slowest = shown.index("slowest clients")
    assert [line.split()[1] for line in shown[slowest + 2 : slowest + 5]] == ["user19", "user18", "user17"]
    channels = shown.index("channels by traffic")
    assert [line.split()[0] for line in shown[channels + 2 : channels + 4]] == ["busy", "quiet"]


def test_several_nodes_are_summed_and_named() -> None:
    shown = text([watched(10, 11), watched(10, 11, name="beta")])
    assert words_of(shown, "together")[1:5] == ["14", "12", "20", "2,000"]
    assert "beta" in shown.split("slowest clients")[1]


def test_draining_and_alarms_are_coloured() -> None:
    view = watched(
        10, 11, state="draining", loop=Loop(300.0, 300.0), memory=Memory(1, 100, 90), outbox=Outbox(1, 1, 3e3)
    )
    lines = frame([view], Screen(200, 40), "12:00:00")
    row = next(line for line in lines if line.plain.startswith("alpha"))
    styles = {row.plain[span.start : span.end].strip(): str(span.style) for span in row.spans}
    assert styles["draining"] == "yellow"
    assert styles["300ms"] == styles["3.0s"] == styles["90%"] == styles["11"] == "bold red"


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_frame_fits(width: int, height: int | None) -> None:
    gone = watched(10, 11, name="gamma")
    gone.fail("connection refused")
    for nodes in ([watched(10, 11)], [watched(*range(1, 99)), watched(10, name="beta"), gone]):
        lines = frame(nodes, Screen(width, height), "12:00:00", "q leaves")
        assert len(lines) <= (height or 100)
        assert max(cell_len(line.plain) for line in lines) <= width


def test_a_tall_terminal_is_used() -> None:
    assert len(frame([watched(10, 11)], Screen(80, 24), "12:00:00")) >= 18


@pytest.mark.parametrize("is_ascii", [False, True])
def test_nothing_of_a_client_is_unescaped(is_ascii: bool) -> None:
    view = watched(10, name=HOSTILE)
    assert view.latest is not None
    view.latest.connections.connections[:] = [ConnectionRow(1, HOSTILE, address=HOSTILE, oldest_ms=1.0)]
    view.latest.channels.channels[:] = [ChannelRow(HOSTILE)]
    for problem in (None, HOSTILE):
        view.problem = problem
        lines = frame([view], Screen(300, 60, is_ascii), "12:00:00")
        assert all(line.plain.isprintable() for line in lines)
        assert any("[bold]" in line.plain for line in lines)
        assert not is_ascii or all(line.plain.isascii() for line in lines)
