"""What the machine grants a process: read from the kernel's files, never written.

Strategy: one function reads everything that `starlight doctor` judges into one immutable record, so that what judges it
is a function of values. The files are looked for below a root that a test can lay out; a file that isn't there (another
system, a container that hides it) makes its value None, which is not an error.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["SYSCTLS", "Machine", "read_machine"]

SYSCTLS: Final = (
    "net.core.somaxconn",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_mem",
)
"""The kernel's settings that are read, as `sysctl` names them."""

_TIMEX_BYTES: Final = 512
"""More than a struct timex has on any system (208 on 64 bits); only its first fields are read."""

_TIME_ERROR: Final = 5
"""adjtimex(2): the clock is not synchronised."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found; None is what can't be known here.

    Attributes:
        open_files: the hard limit of open files, to which a node raises the soft one; None without a limit.
        sysctls: numbers of the kernel's settings by name; one that can't be read is missing.
        ram_bytes: memory of the machine.
        memory_limit_bytes: what the control group may use; None without a limit.
        cpus: processors this process may run on.
        cpu_quota: processors' worth of time that the control group gets; None without a limit.
        page_bytes: of a page of memory, the unit of `net.ipv4.tcp_mem`.
        is_clock_synchronised: whether something (NTP, PTP, the hypervisor) keeps the clock right.
    """

    open_files: int | None = None
    sysctls: Mapping[str, tuple[int, ...]] | None = None
    ram_bytes: int | None = None
    memory_limit_bytes: int | None = None
    cpus: int = 1
    cpu_quota: float | None = None
    page_bytes: int = 4_096
    is_clock_synchronised: bool | None = None

    def sysctl(self, name: str) -> tuple[int, ...] | None:
        """The numbers of one of the kernel's settings."""
        return (self.sysctls or {}).get(name)


def read_machine(root: Path = Path("/")) -> Machine:
    """The machine as it is now.

    Args:
        root: where `proc` and `sys` are; limits of the process, its processors and the clock are always the real ones.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    found = {name: _numbers(root / "proc/sys" / name.replace(".", "/")) for name in SYSCTLS}
    return Machine(
        open_files=None if hard == resource.RLIM_INFINITY else hard,
        sysctls={name: numbers for name, numbers in found.items() if numbers},
        ram_bytes=_ram_bytes(root),
        memory_limit_bytes=_lowest(_memory_limits(root)),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu_quota=min(_cpu_quotas(root), default=None),
        page_bytes=resource.getpagesize(),
        is_clock_synchronised=_is_clock_synchronised(),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _numbers(path: Path) -> tuple[int, ...]:
    words = _text(path).split()
    return tuple(int(word) for word in words) if all(word.isdecimal() for word in words) else ()


def _ram_bytes(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal" and rest.split()[:1] and rest.split()[0].isdecimal():
            return int(rest.split()[0]) * 1024
    return None


def _lowest(numbers: Iterator[int]) -> int | None:
    return min(numbers, default=None)


def _memory_limits(root: Path) -> Iterator[int]:
    """The limits of the control group and of those above it; "max", and version 1's largest number, are none."""
    for file in _group_files(root, "memory", "memory.max", "memory.limit_in_bytes"):
        for number in _numbers(file):
            if number < 2**60:
                yield number


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Time by period: ``200000 100000`` is two processors' worth; ``max`` (version 1: -1) is no limit."""
    for file in _group_files(root, "cpu", "cpu.max", "cpu.cfs_quota_us"):
        words = _text(file).split()
        if file.name == "cpu.cfs_quota_us":
            words += _text(file.with_name("cpu.cfs_period_us")).split()
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            yield int(words[0]) / int(words[1])


def _group_files(root: Path, controller: str, name: str, name_v1: str) -> Iterator[Path]:
    """A file of this process's control group and of all above it, in either version of the hierarchy."""
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            top, file = base, name
        elif controller in controllers.split(","):
            top, file = base / controller, name_v1
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            yield top.joinpath(*parts[:depth]) / file


def _is_clock_synchronised() -> bool | None:
    """What adjtimex(2) says when it is asked to change nothing: the flag that NTP and PTP daemons keep."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):  # not Linux
        return None
    return None if state < 0 else state != _TIME_ERROR
