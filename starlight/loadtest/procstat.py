"""CPU and memory from /proc: of the server, of the generator, and of everybody else while a run is measured.

CPU of a process is the sum of its threads' `schedstat` (nanoseconds on a CPU), which is finer than the ticks of
`stat`. What others used is everything busy in /proc/stat minus the server and the generator; that file counts in ticks
of 10 ms, so runs under a second say little.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
BUSY_FOREIGN_SHARE = 0.10
"""Others' CPU above this share of one core: the run is called noisy."""
BUSY_STEAL_SHARE = 0.02
"""Steal above this share of one core, likewise."""


@dataclass(frozen=True)
class Usage:
    """A process with its descendants at one moment: CPU nanoseconds by thread, resident and proportional bytes."""

    threads_ns: dict[int, int]
    rss_bytes: int
    pss_bytes: int

    def cpu_s_since(self, before: Usage) -> float:
        """CPU seconds used since `before`. A thread that ended in between is missing."""
        return sum(ns - before.threads_ns.get(thread, 0) for thread, ns in self.threads_ns.items()) / 1e9


@dataclass(frozen=True)
class System:
    """The whole machine at one moment: CPU seconds that were busy, and that the hypervisor took."""

    busy_s: float
    steal_s: float


def descendants(pid: int) -> list[int]:
    """The process and everything below it, as far as it can be read."""
    found = [pid]
    for parent in found:
        for thread in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in thread.read_text().split()]
            except OSError:
                continue
    return found


def usage(pids: list[int]) -> Usage:
    """Measure processes; those that are gone count nothing."""
    threads: dict[int, int] = {}
    rss = pss = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            try:
                threads[int(task.name)] = int((task / "schedstat").read_text().split()[0])
            except (OSError, IndexError, ValueError):
                continue
        memory = _memory(pid)
        rss += memory[0]
        pss += memory[1]
    return Usage(threads, rss, pss)


def _memory(pid: int) -> tuple[int, int]:
    """(Rss, Pss) in bytes; Pss falls back to Rss where smaps_rollup may not be read."""
    try:
        rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0, 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return rss, int(line.split()[1]) * 1024
    except OSError:
        pass
    return rss, rss


def exists(pid: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{pid}/stat").exists()


def system() -> System:
    """Read /proc/stat: user, nice, system, irq and softirq are busy, idle and iowait are not, steal is separate."""
    fields = [int(value) * TICK_S for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, kernel, _idle, _wait, irq, softirq, steal = fields
    return System(user + nice + kernel + irq + softirq, steal)


def cpu_model() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()
