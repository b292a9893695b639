"""A figure for each scenario of `starlight bench` against `starlight serve`; its engine's ceiling at the floor.

    python bench/scenarios.py [--duration 4s] [--ceiling]

The server runs on core 0, the generator spins on core 1. Prints Markdown. `--ceiling` drives the bare C server
(bench/.peers/floor, which `bench/run` builds) at windows 1, 16 and 64: what the generator itself can receive.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ("lost", "duplicates", "reordered", "misdelivered", "damaged", "disordered")
SCENARIOS = ("broadcast", "channels", "direct", "echo", "connect-storm", "slow-readers", "mixed")


@contextmanager
def running(command: list[str], pattern: str) -> Iterator[tuple[int, str]]:
    """A server on core 0; gives its process id and what the pattern found in the line that says where it listens."""
    server = subprocess.Popen(
        ["taskset", "-c", "0", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if found := re.search(pattern, line):
                yield server.pid, found[1]
                return
        raise SystemExit(f"{command[0]} ended before it listened")
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def bench(pid: int, url: str, name: str, flags: list[str]) -> dict[str, Any]:
    """One run of the harness on core 1; its result as JSON has it."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = ["taskset", "-c", "1", sys.executable, "-m", "starlight", "bench", name, "--url", url, "--spin"]
        command += ["--server-pid", str(pid), "--quiet", "--json", report.name, *flags]
        subprocess.run(command, cwd=ROOT, check=False, timeout=120, stdout=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads(Path(report.name).read_text())["runs"][0]
    return result


def row(name: str, result: dict[str, Any]) -> str:
    """A line of the table: deliveries, or for the storm connects."""
    server, share = result["server"], result["generator"]["useful_share"]
    if name == "connect-storm":
        latency, rate, cpu_us = result["connect"], result["connects_per_s"], server["connect_us"]
    else:
        latency, rate, cpu_us = result["latency"], result["rate"], server["cpu_us_per_delivery"]
    return (
        f"| {name} | {rate:,.0f} | {latency['p50_ms']:.2f} | {latency['p99_ms']:.2f} | {cpu_us:.2f} | {share:.2f} "
        f"| {sum(result['check'][fault] for fault in FAULTS)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", default="4s")
    parser.add_argument("--ceiling", action="store_true")
    options = parser.parse_args()
    print("| scenario | deliveries/s (connects/s) | p50 ms | p99 ms | server µs each | generator share | faults |")
    print("|---|---|---|---|---|---|---|")
    if options.ceiling:
        floor = str(ROOT / "bench" / ".peers" / "floor")
        for window in (1, 16, 64):
            with running([floor, "--mode", "turn", "--port", "0", "--sndbuf", "65536"], r"listening (\d+)") as found:
                flags = ["--connections", "1000", "--window", str(window), "--duration", options.duration]
                result = bench(found[0], f"ws://127.0.0.1:{found[1]}/ws", "broadcast", flags)
            print(row(f"floor, window {window}", result), flush=True)
        return
    for name in SCENARIOS:
        serve = [sys.executable, "-m", "starlight", "serve", "--port", "0"]
        with running(serve, r"listens on (ws://\S+)") as (pid, url):
            print(row(name, bench(pid, url, name, ["--duration", options.duration])), flush=True)


if __name__ == "__main__":
    main()
