"""What is read of the machine: from a tree laid out as kernels do it, and from the real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from starlight.config.machine import SYSCTLS, Machine, read_machine


def lay_out(root: Path, files: dict[str, str]) -> Path:
    """Files below a root, as `proc` and `sys` have them."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_nothing_there_is_nothing_known(tmp_path: Path):
    machine = read_machine(tmp_path)
    assert (machine.ram_bytes, machine.memory_limit_bytes, machine.cpu_quota) == (None, None, None)
    assert [machine.sysctl(name) for name in SYSCTLS] == [None] * len(SYSCTLS)
    assert machine.cpus >= 1


def test_settings_of_the_kernel(tmp_path: Path):
    machine = read_machine(
        lay_out(
            tmp_path,
            {
                "proc/sys/net/core/somaxconn": "4096\n",
                "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
                "proc/sys/net/ipv4/tcp_mem": "nonsense\n",
                "proc/meminfo": "MemFree: 1 kB\nMemTotal:       1024 kB\n",
            },
        )
    )
    assert machine.sysctl("net.core.somaxconn") == (4096,)
    assert machine.sysctl("net.ipv4.ip_local_port_range") == (32768, 60999)
    assert machine.sysctl("net.ipv4.tcp_mem") is None
    assert machine.ram_bytes == 2**20


def test_the_lowest_limit_of_nested_control_groups_counts(tmp_path: Path):
    base = "sys/fs/cgroup/"
    machine = read_machine(
        lay_out(
            tmp_path,
            {
                "proc/self/cgroup": "0::/a.slice/b.service\n",
                base + "memory.max": "max\n",
                base + "a.slice/memory.max": "1000\n",
                base + "a.slice/b.service/memory.max": "2000\n",
                base + "a.slice/cpu.max": "max 100000\n",
                base + "a.slice/b.service/cpu.max": "50000 100000\n",
            },
        )
    )
    assert (machine.memory_limit_bytes, machine.cpu_quota) == (1000, 0.5)


def test_control_groups_of_version_1(tmp_path: Path):
    machine = read_machine(
        lay_out(
            tmp_path,
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/x\n3:memory:/x\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",  # no limit
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "5000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
        )
    )
    assert (machine.memory_limit_bytes, machine.cpu_quota) == (5000, 2.0)


def test_a_path_of_a_control_group_leads_nowhere_else(tmp_path: Path):
    lay_out(tmp_path, {"proc/self/cgroup": "0::/../../etc\n", "etc/memory.max": "7\n"})
    assert read_machine(tmp_path).memory_limit_bytes is None


@pytest.mark.skipif(not Path("/proc/sys/net/core").exists(), reason="not Linux")
def test_the_real_machine():
    machine = read_machine()
    assert isinstance(machine, Machine)
    assert machine.ram_bytes is not None and machine.ram_bytes > 2**20
    assert machine.cpus == len(os.sched_getaffinity(0))
    assert machine.page_bytes == os.sysconf("SC_PAGE_SIZE")
