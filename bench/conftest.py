"""Runs the benches of the core with null_sink.c preloaded: builds it, and hands over to a pytest that has it loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH))

from harness.servers import build_null_sink  # noqa: E402


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run pytest again with LD_PRELOAD set; go on without it where it can't be built (kernel time is then included)."""
    if "null_sink" in os.environ.get("LD_PRELOAD", "") or os.environ.get("STARLIGHT_BENCH_UDP"):
        return None
    library, reason = build_null_sink()
    if reason:
        print(f"no null sinks ({reason}): sends go to UDP sockets, so that kernel time is included")
        return None
    environment = os.environ | {"LD_PRELOAD": str(library)}
    command = [sys.executable, "-m", "pytest", *config.invocation_params.args]
    return subprocess.run(command, env=environment, check=False).returncode
