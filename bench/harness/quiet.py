"""Was the machine ours? Waits for quiet before a run, and tells afterwards how much of it others took.

Strategy. /proc/stat counts the ticks of all processes, and our own processes' ticks are known, so what is left is
foreign; steal is what the hypervisor took. Interrupt time belongs to nobody and is not counted as foreign, since most
of it is our own loopback traffic. Law: a run over the limits is discarded and counted, never corrected.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

TICKS_PER_S = os.sysconf("SC_CLK_TCK")

FOREIGN_LIMIT = 0.05
"""Share of one core that other processes may take during a run: what a system's own housekeeping takes."""

STEAL_LIMIT = 0.02
"""Share of one core that the hypervisor may take."""

QUIET_SAMPLE_S = 0.5
QUIET_TIMEOUT_S = 60.0
"""How long to wait for a quiet machine before measuring all the same (and most likely discarding)."""


@dataclass(frozen=True)
class Ticks:
    """A reading of the clocks: all processes' CPU time, the named ones', stolen time and the wall clock, in seconds."""

    at: float
    busy: float
    own: float
    steal: float


@dataclass(frozen=True)
class Noise:
    """Shares of one core that were not ours during an interval."""

    foreign: float
    steal: float

    @property
    def is_too_much(self) -> bool:
        return self.foreign > FOREIGN_LIMIT or self.steal > STEAL_LIMIT


def process_cpu_s(pid: int) -> float:
    """CPU seconds of a process with all its threads and its finished children; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS_PER_S


def read_ticks(own: Iterable[int]) -> Ticks:
    """Read the clocks; ``own`` are the process ids that count as ours."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, _irq, _softirq, steal, *_ = map(int, file.readline().split()[1:])
    own_s = sum(process_cpu_s(pid) for pid in own)
    return Ticks(time.monotonic(), (user + nice + system) / TICKS_PER_S, own_s, steal / TICKS_PER_S)


def noise_between(before: Ticks, after: Ticks) -> Noise:
    """Return what others took between two readings with the same process ids."""
    elapsed = max(after.at - before.at, 1e-9)
    foreign = (after.busy - before.busy) - (after.own - before.own)
    return Noise(max(foreign, 0.0) / elapsed, (after.steal - before.steal) / elapsed)


def wait_for_quiet(timeout_s: float = QUIET_TIMEOUT_S) -> bool:
    """Sleep until half a second passes within the limits; False if that didn't happen within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        before = read_ticks([os.getpid()])
        time.sleep(QUIET_SAMPLE_S)
        if not noise_between(before, read_ticks([os.getpid()])).is_too_much:
            return True
        if time.monotonic() > deadline:
            return False
