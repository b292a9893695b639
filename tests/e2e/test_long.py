"""Short forms of `python -m tests.long`: some seconds of each, all but speed judged; and how results are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.long import contract, leaks, overload, reuse, soak
from tests.long.__main__ import arguments
from tests.long.outcome import BEGIN, END, PAGE, Outcome, append, read_results, table
from tests.long.streams import Stream, Tally
from tests.support.fakes import IS_SANITIZED, needs_speed


def passed(outcome: Outcome) -> None:
    assert not outcome.faults, outcome.line()
    assert outcome.figures


async def test_leaks() -> None:
    """The memory of so few says little; under a sanitizer nothing."""
    outcome = await leaks.run(connections=1_000 if IS_SANITIZED else 6_000)
    passed(outcome)
    assert outcome.figures["plain"]["evicted"] > 20


async def test_contract() -> None:
    outcome = await contract.run(deliveries=0, seeds=1, seed=3, seconds=3.0, rate=500.0)
    passed(outcome)
    assert outcome.figures["checked deliveries"] > 5_000
    assert outcome.figures["acknowledged"] > 100


async def test_reuse() -> None:
    outcome = await reuse.run(messages=2_000, churn_per_s=200, seconds=1.5, rate=2_000)
    passed(outcome)
    assert outcome.figures["misdelivered"] == 0


@needs_speed
async def test_overload() -> None:
    outcome = await overload.run(seconds=4.0, budget_bytes=8 << 20)
    passed(outcome)
    assert outcome.figures["samples"] > 0


@needs_speed
async def test_soak() -> None:
    outcome = await soak.run(minutes=0.1, rate=60.0)
    passed(outcome)
    assert outcome.figures["checked deliveries"] > 2_000


# ---- the judge of streams, and what it must find

PUBLICATION = b'\x81\x18{"type":"pong","id":"a"}'


def judged(*parts: bytes, how: str = "eof") -> tuple[str, list[str]]:
    tally = Tally()
    stream = Stream("mute", tally)
    for part in parts:
        stream.feed(part)
    return stream.end(how), tally.faults


def test_streams_that_end_as_they_may() -> None:
    close = b"\x88\x02\x0f\xa8"
    assert judged(PUBLICATION, close) == ("close 4008", [])
    assert judged(*(bytes((byte,)) for byte in PUBLICATION + close)) == ("close 4008", [])
    assert judged(PUBLICATION) == ("eof between frames", [])
    assert judged(PUBLICATION, PUBLICATION[:9], how="reset") == ("reset inside a frame", [])


@pytest.mark.parametrize(
    ("parts", "how", "fault"),
    [
        ([PUBLICATION, PUBLICATION[:9]], "eof", "into a frame"),
        ([b"\x88\x02\x0f\xa8", PUBLICATION], "eof", "behind the close"),
        ([b"\x88\x02\x0f\xa8" + PUBLICATION], "eof", "behind the close"),
        ([b"\x81\x7e\x01\x00" + PUBLICATION[2:20] + b"\x88\x02\x0f\xa8"], "reset", "inside of the last frame"),
        ([b"\x81\x05hello"], "eof", "no message"),
        ([b"\x01\x05hello"], "eof", "no frame"),
    ],
)
def test_streams_that_end_as_they_must_not(parts: list[bytes], how: str, fault: str) -> None:
    assert fault in " ".join(judged(*parts, how=how)[1])


# ---- results


def test_a_result_is_appended_and_shown(tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    good = Outcome("soak", "--minutes 1", {"deliveries": 12_345, "p99 ms": 1.5}, seconds=60.4)
    bad = Outcome("leaks", figures={"connects": 5}, shortfalls=["too slow"])
    for outcome in (bad, good):
        append(outcome, results, page)
    assert [record["form"] for record in json.loads(results.read_text())] == ["leaks", "soak"]
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| `soak --minutes 1` |" in text and "| passed | deliveries 12,345, p99 ms 1.50; took 60 s |" in text
    assert "**failed**: too slow" in text
    assert bad.line().startswith("leaks: FAILED: too slow") and good.line().startswith("soak: passed")


def test_the_page_shows_the_results_as_they_are() -> None:
    assert table(read_results()) in PAGE.read_text()


def test_the_command_line() -> None:
    options = arguments(["soak", "--minutes", "2", "--dry"])
    assert (options.form, options.minutes, options.dry, options.seed) == ("soak", 2.0, True, 1)
