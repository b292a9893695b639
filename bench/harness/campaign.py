"""The measuring itself: every cell of a row once per repetition, in turn, on a quiet machine.

Strategy. A fresh server process per run; the order of the cells is turned round in every other repetition, so that a
drift of the machine favours nobody. Law: a run with foreign CPU or steal over the limit is discarded, counted, and
tried again; what still isn't quiet after TRIES leaves its cell without a sample in that repetition, and its ratios
with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness import quiet, servers
from harness.measure import MeasureError, measure
from harness.rows import Cell, Row
from harness.sample import Sample
from harness.servers import SERVERS, CannotStart

TRIES = 3
SERVER_CPU = 0
GENERATOR_CPU = 1
SEND_BUFFER_BYTES = 64 << 10
"""SO_SNDBUF of every server that allows it: Starlight's default."""


@dataclass(frozen=True)
class Options:
    """How a campaign is run: repetitions, seconds of each run, SO_SNDBUF, whether noise matters, and who is told."""

    repetitions: int
    seconds: float
    send_buffer_bytes: int = SEND_BUFFER_BYTES
    ignore_noise: bool = False
    tell: Callable[[str], None] = print


@dataclass
class RowResult:
    """A measured row: its repetitions, what was discarded and why, and which servers were skipped."""

    row: Row
    repetitions: list[dict[str, Sample]] = field(default_factory=list)
    discarded: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def prepare(rows: Sequence[Row], tell: Callable[[str], None]) -> dict[str, str]:
    """Build or install every server that the rows need; return the reasons of those that can't be, by name."""
    reasons = {}
    for name in dict.fromkeys(cell.server for row in rows for cell in row.cells):
        reason = SERVERS[name].prepare()
        if reason:
            reasons[name] = reason
            tell(f"skipped: {SERVERS[name].title}: {reason}")
    return reasons


def run_cell(cell: Cell, options: Options) -> Sample:
    """Start the cell's server, let the generator do its work, stop the server.

    Raises:
        CannotStart, MeasureError: with the reason in one line.
    """
    server = SERVERS[cell.server]
    extra = cell.work.lifted if server.name == "starlight" else ()
    with servers.running(server, options.send_buffer_bytes, SERVER_CPU, extra) as started:
        return measure(started, cell.work, options.seconds, GENERATOR_CPU)


def quiet_sample(cell: Cell, options: Options, result: RowResult) -> Sample | None:
    """Run a cell until a run was quiet, at most TRIES times; None if none was."""
    for _ in range(1 if options.ignore_noise else TRIES):
        if not options.ignore_noise:
            quiet.wait_for_quiet()
        sample = run_cell(cell, options)
        if options.ignore_noise or not sample.noise.is_too_much:
            return sample
        result.discarded += 1
    return None


def run_row(row: Row, options: Options, skipped: dict[str, str]) -> RowResult:
    """Measure one row: all repetitions of all cells whose server is there and hasn't failed."""
    result = RowResult(row, skipped={cell.server: skipped[cell.server] for cell in row.cells if cell.server in skipped})
    for number in range(options.repetitions):
        cells = [cell for cell in row.cells if cell.server not in skipped and cell.key not in result.failures]
        samples: dict[str, Sample] = {}
        for cell in reversed(cells) if number % 2 else cells:
            try:
                sample = quiet_sample(cell, options, result)
            except (CannotStart, MeasureError) as error:
                result.failures[cell.key] = str(error)
                options.tell(f"{row.name}: {cell.key}: {error}")
                continue
            if sample is not None:
                samples[cell.key] = sample
        result.repetitions.append(samples)
        options.tell(f"{row.name}: repetition {number + 1} of {options.repetitions}, {result.discarded} runs discarded")
    return result
