"""What a long form found: a line for the terminal, a record for docs/reliability-results.json, a row of the table."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlight.loadtest import procstat

DOCS = Path(__file__).parent.parent.parent / "docs"
RESULTS = DOCS / "reliability-results.json"
PAGE = DOCS / "reliability.md"
BEGIN, END = "<!-- results: written by python -m tests.long -->", "<!-- end of results -->"


@dataclass
class Outcome:
    """One run of a form.

    Attributes:
        form: its name.
        arguments: how it was called, as on the command line.
        figures: what was counted and measured, in words that fit a sentence: {"connects": 100000}.
        faults: what is not as promised, in words; empty if all is.
        shortfalls: the same of what also depends on how fast and how busy the machine is, and on how long the run was;
            the short forms in the suite don't judge them.
        seconds: how long it took.
        started: when, in UTC.
    """

    form: str
    arguments: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    shortfalls: list[str] = field(default_factory=list)
    seconds: float = 0.0
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def require(self, holds: bool, fault: str) -> None:
        """Note a fault unless it holds."""
        if not holds:
            self.faults.append(fault)

    def expect(self, holds: bool, shortfall: str) -> None:
        """Note a shortfall unless it holds."""
        if not holds:
            self.shortfalls.append(shortfall)

    @property
    def is_good(self) -> bool:
        """Whether all is as promised."""
        return not self.faults and not self.shortfalls

    def line(self) -> str:
        """For the terminal."""
        verdict = "passed, " if self.is_good else "FAILED: " + "; ".join(self.faults + self.shortfalls) + "; "
        return f"{self.form}: {verdict}{sentence(self.figures)} ({self.seconds:.0f} s)"

    def record(self) -> dict[str, Any]:
        """For the file, with the machine it ran on."""
        machine = {"cpu": procstat.cpu_model(), "cores": os.cpu_count() or 0}
        return {
            "form": self.form,
            "arguments": self.arguments,
            "started": self.started,
            "seconds": round(self.seconds),
            "faults": self.faults + self.shortfalls,
            "figures": self.figures,
            "machine": machine,
        }


def sentence(figures: dict[str, Any]) -> str:
    """The figures in words."""
    return ", ".join(f"{name} {_text(value)}" for name, value in figures.items())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + sentence(value) + ")"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def read_results(path: Path = RESULTS) -> list[dict[str, Any]]:
    """All records, oldest first."""
    records: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return records


def append(outcome: Outcome, results: Path = RESULTS, page: Path = PAGE) -> None:
    """Add a record to the file and renew the table in the page."""
    records = [*read_results(results), outcome.record()]
    results.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")
    write_table(records, page)


def table(records: list[dict[str, Any]]) -> str:
    """The last result of each form, as Markdown."""
    last = {record["form"]: record for record in records}
    rows = ["| form | date | verdict | figures |", "|---|---|---|---|"]
    for form in ("leaks", "contract", "reuse", "overload", "channels", "comeback", "pause", "soak"):
        if form in last:
            found = last[form]
            verdict = "**failed**: " + "; ".join(found["faults"]) if found["faults"] else "passed"
            rows.append(
                f"| `{form}{' ' + found['arguments'] if found['arguments'] else ''}` | {found['started'][:10]} "
                f"| {verdict} | {sentence(found['figures'])}; took {found['seconds']:,} s |"
            )
    return "\n".join(rows)


def write_table(records: list[dict[str, Any]], page: Path = PAGE) -> None:
    """Put the table between its marks."""
    text = page.read_text()
    new = re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{table(records)}\n{END}", text, flags=re.DOTALL
    )
    page.write_text(new)
