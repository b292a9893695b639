"""The results in words: the table (Markdown, which is also readable in a terminal) and the JSON file."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.campaign import Options, RowResult
from harness.rows import CONNECT, CPU, MEMORY, P99, RATE, all_rows
from harness.sample import Verdict, judge, summary
from harness.servers import INSTALLED, PYTHON_PACKAGES, SERVERS, VENV_PYTHON

COLUMNS = ((RATE, "deliveries/s"), (CPU, "server µs"), ("generator_share", "generator"), ("p50_ms", "p50 ms"),
           (P99, "p99 ms"), (MEMORY, "KiB each"), (CONNECT, "connect µs"))  # fmt: skip
PEER_PACKAGES = frozenset({"ws"}.union(*PYTHON_PACKAGES.values()))
OWN_PACKAGES = ("starlight", "picows", "aiofastnet", "uvloop", "orjson", "msgspec")


def number(value: float) -> str:
    """A figure with three significant digits, thousands separated."""
    if value >= 1000:
        return f"{round(value, 2 - len(str(int(value))) + 1):,.0f}"
    return f"{value:.3g}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns; the first line is the heading."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (lines[0], rule, *lines[1:])
    )


def cells_table(result: RowResult) -> str:
    """Medians of each cell of a row; columns that no cell has are left out."""
    row, repetitions = result.row, result.repetitions
    figures = {cell.key: [summary(cell.key, metric, repetitions) for metric, _ in COLUMNS] for cell in row.cells}
    used = [at for at in range(len(COLUMNS)) if any(line[at] for line in figures.values())]
    lines = [["server", *(COLUMNS[at][1] for at in used), "runs", "faults", "cut off"]]
    for key, line in figures.items():
        samples = [repetition[key] for repetition in repetitions if key in repetition]
        values = [number(found.median) if (found := line[at]) else "–" for at in used]
        totals = [sum(sample.faults for sample in samples), sum(sample.disconnects for sample in samples)]
        lines.append([key, *values, str(len(samples)), *map(str, totals)])
    return table(lines)


def bars_table(verdicts: Sequence[Verdict]) -> str:
    """Each bar with its median, interval and whether it was met."""
    lines = [["cell", "metric", "bar", "median", "90% interval", "by CPU", "pairs", "met"]]
    for verdict in verdicts:
        value = verdict.value
        interval = f"{value.low:.3g} – {value.high:.3g}"
        by_cpu = f"{verdict.by_cpu.median:.3g}" if verdict.by_cpu else "–"
        figures = [f"{value.median:.3g}", interval, by_cpu, str(value.count)]
        lines.append([verdict.bar.key, verdict.metric, str(verdict.bar), *figures, "yes" if verdict.is_met else "NO"])
    return table(lines)


def row_verdicts(result: RowResult) -> list[Verdict]:
    return [verdict for bar in result.row.bars if (verdict := judge(bar, result.repetitions)) is not None]


def row_text(result: RowResult) -> str:
    """A row's heading, its medians, its bars, and what was skipped, lifted or discarded."""
    parts = [f"### {result.row.title} (`{result.row.name}`)", "", cells_table(result)]
    verdicts = row_verdicts(result)
    if verdicts:
        parts += ["", bars_table(verdicts)]
    notes = [f"{name}: skipped, {reason}" for name, reason in result.skipped.items()]
    notes += [f"{key}: failed, {reason}" for key, reason in result.failures.items()]
    lifted = {flag for cell in result.row.cells for flag in (" ".join(cell.work.lifted),) if flag}
    notes += [f"flags of starlight: {flags}" for flags in sorted(lifted)]
    notes.append(f"runs discarded for noise: {result.discarded}")
    return "\n".join([*parts, "", *(f"- {note}" for note in notes), ""])


# ---- the machine and the JSON file ----


def _first_line(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else None


def _versions_of(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _peer_versions() -> dict[str, str]:
    if not VENV_PYTHON.exists():
        return {}
    done = subprocess.run([str(VENV_PYTHON), "-m", "pip", "list", "--format=json"], capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    versions = {entry["name"]: entry["version"] for entry in json.loads(done.stdout or "[]")}
    package = INSTALLED / "node_modules" / "ws" / "package.json"
    if package.exists():
        versions["ws"] = json.loads(package.read_text())["version"]
    return {name: version for name, version in versions.items() if name in PEER_PACKAGES}


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, kernel, compilers, versions, and the commit."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": models[0].split(":", 1)[1].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "gcc": _first_line(["gcc", "--version"]),
        "go": _first_line(["go", "version"]),
        "node": _first_line(["node", "--version"]),
        "commit": _first_line(["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]),
        "packages": _versions_of(OWN_PACKAGES),
        "peers": _peer_versions(),
    }


def heading(record: dict[str, Any]) -> str:
    """When, where and with what: the lines above the table."""
    host, options = record["machine"], record["options"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted((host["packages"] | host["peers"]).items()))
    return "\n".join(
        [
            f"## {record['date']}, commit {host['commit']}",
            "",
            f"- {host['processor']}, {host['cores']} cores, Linux {host['kernel']}; one core for each side",
            f"- Python {host['python']}; {host['gcc']}; {host['go']}; node {host['node']}",
            f"- {versions}",
            f"- {options['repetitions']} alternating repetitions of {options['seconds']:g} s,"
            f" SO_SNDBUF {options['send_buffer_bytes']:,} bytes",
            "",
        ]
    )


def row_record(result: RowResult) -> dict[str, Any]:
    """Everything that was measured in a row, for the JSON file: the cells, each run, and the verdicts."""
    return {
        "title": result.row.title,
        "cells": {cell.key: {"server": cell.server, "title": SERVERS[cell.server].title, "work": asdict(cell.work)}
                  for cell in result.row.cells},
        "repetitions": [{key: asdict(sample) for key, sample in rep.items()} for rep in result.repetitions],
        "bars": [{"bar": str(verdict.bar), "cell": verdict.bar.key, "metric": verdict.metric, "is_met": verdict.is_met,
                  "by_cpu": asdict(verdict.by_cpu) if verdict.by_cpu else None,
                **asdict(verdict.value)} for verdict in row_verdicts(result)],
        "discarded": result.discarded,
        "skipped": result.skipped,
        "failures": result.failures,
        "text": row_text(result),
    }  # fmt: skip


def glance(record: Mapping[str, Any]) -> str:
    """Every bar of every measured row in one table: the ratio, its interval, and whether it was met."""
    lines = [["row", "cell", "metric", "bar", "median", "90% interval", "pairs", "met"]]
    for row in all_rows():
        for bar in record["rows"].get(row.name, {}).get("bars", ()):
            interval = f"{number(bar['low'])} – {number(bar['high'])}"
            met = "yes" if bar["is_met"] else "NO"
            figures = [number(bar["median"]), interval, str(bar["count"]), met]
            lines.append([f"`{row.name}`", bar["cell"], bar["metric"], bar["bar"], *figures])
    return table(lines) + "\n"


class ResultsFile:
    """``results/<date>.json``, written after every row, so that an interrupted campaign keeps what it has.

    Rows measured again on the same day replace their former selves; the others stay.
    """

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self.record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
        self.record |= {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "options": {"repetitions": options.repetitions, "seconds": options.seconds,
                        "send_buffer_bytes": options.send_buffer_bytes},
        }  # fmt: skip

    def in_order(self) -> list[str]:
        """The names of the rows that are there, in the order of the table."""
        return [row.name for row in all_rows() if row.name in self.record["rows"]]

    def add(self, result: RowResult) -> None:
        self.record["rows"][result.row.name] = row_record(result)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.record, indent=1, ensure_ascii=False) + "\n")
        part.replace(self.path)
