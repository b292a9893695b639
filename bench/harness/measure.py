"""One run: from a row's work to the load harness's scenario, and from its result to a sample."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from harness import ROOT
from harness.quiet import Noise
from harness.rows import Work
from harness.sample import Sample
from harness.servers import Running

if TYPE_CHECKING:
    from starlight.loadtest import Result, Scenario

GENERATE = Path(__file__).with_name("generate.py")
WARM_UP_S = 0.7
SETTLE_S = 20.0
"""How long to wait for what is under way at the end: python-socketio needs 5 s for 64 broadcasts to 1,000."""
RAMP_TIMEOUT_S = 90.0
"""How long all clients together may take to connect and log in: 15,000 of them, or 5,000 of a slow peer."""
GRACE_S = RAMP_TIMEOUT_S + SETTLE_S + 20.0
"""A run that takes so much longer than its own seconds hangs."""

SLOW_TICK_MS = 250.0
SLOW_HEADROOM = 1.2
"""The slow readers read four times a second, and could read this much more than comes: only just fast enough."""
ENVELOPE_BYTES = 64
"""About what stands around the data of a message on the wire."""
STORM_CONNECTING = 32


class MeasureError(RuntimeError):
    """The run could not be made; the message is one line."""


def scenario_of(work: Work, seconds: float) -> Scenario:
    """Return the harness's scenario for a piece of work."""
    from starlight.loadtest import Scenario

    traffic = {
        "broadcast": {"broadcast": 1.0},
        "publish": {"channels": 1.0},
        "channels": {"channels": 1 - work.direct_share, "direct": work.direct_share},
        "direct": {"direct": 1.0},
    }.get(work.kind, {})
    flow_bytes_per_s = (work.rate_per_s or 0) * (work.payload_bytes + ENVELOPE_BYTES)
    return Scenario(
        name=work.kind,
        traffic=traffic,
        connections=work.connections,
        publishers=work.publishers,
        channels=work.channels or int(work.kind == "publish"),
        members=work.members,
        model="open" if work.window is None else "closed",
        rate=work.rate_per_s or 0.0,
        window=work.window or 1,
        size=work.payload_bytes,
        acks=work.kind == "publish",
        warmup_s=WARM_UP_S,
        duration_s=seconds,
        settle_s=SETTLE_S,
        ramp_timeout_s=RAMP_TIMEOUT_S,
        slow_share=work.stalled_share or work.slow_share,
        slow_kind="rate" if work.slow_share else "stall",
        slow_bytes_per_s=max(1, int(flow_bytes_per_s * SLOW_HEADROOM)),
        slow_tick_ms=SLOW_TICK_MS,
        churn_window=STORM_CONNECTING if work.kind == "connect" else 0,
        spin=True,
    )


def sample_of(result: Result, work: Work) -> Sample:
    """Return what the table wants of a result."""
    server, machine, latency = result.server, result.machine, result.latency
    if server is None:
        raise MeasureError("the server's process could not be read")
    sends = work.kind not in ("idle", "connect")
    return Sample(
        rate=result.rate if sends else None,
        server_us=server.cpu_us_per_delivery,
        generator_share=result.generator.useful_share if sends else None,
        p50_ms=latency.p50_ms if latency.count else None,
        p99_ms=latency.p99_ms if latency.count else None,
        memory_kib=server.connection_bytes / 1024 if work.kind == "idle" and server.connection_bytes else None,
        connect_us=server.connect_us if work.kind == "connect" else None,
        deliveries=result.deliveries,
        faults=result.check.faults + result.errors,
        checked_share=result.check.share,
        disconnects=result.disconnects,
        noise=Noise(machine.foreign_share or 0.0, machine.steal_share),
    )


def measure(running: Running, work: Work, seconds: float, cpu: int) -> Sample:
    """Let the generator do ``work`` for ``seconds`` on core ``cpu`` against a running server.

    Raises:
        MeasureError: the harness refused, ended otherwise than it should, or took too long.
    """
    from starlight.loadtest import Result

    order = {
        "scenario": msgspec.to_builtins(scenario_of(work, seconds)),
        "url": running.url,
        "dialect": running.server.dialect(work.kind),
        "server_pid": running.pid,
        "cpu": cpu,
    }
    try:
        done = subprocess.run(
            [sys.executable, str(GENERATE)],
            input=msgspec.json.encode(order),
            capture_output=True,
            timeout=seconds + GRACE_S,
            check=False,
            env=os.environ | {"PYTHONPATH": ROOT},
        )
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"the generator didn't end within {seconds + GRACE_S:g} s") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise MeasureError(lines[-1] if lines else f"the generator ended with code {done.returncode}")
    return sample_of(msgspec.json.decode(done.stdout, type=Result), work)
