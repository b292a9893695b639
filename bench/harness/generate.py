"""The generator's process: does one scenario, given as JSON on stdin, and writes the harness's result to stdout.

A process of its own for each run, pinned to the generator's core: whatever a run leaves behind in memory can't disturb
the next one, and a run that hangs can be ended.
"""

from __future__ import annotations

import os
import sys

import msgspec

from starlight.loadtest import LoadTestError, Scenario, Target, run_scenario


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One run: what, where, the server's process and the core to run on."""

    scenario: Scenario
    url: str
    dialect: str
    server_pid: int
    cpu: int


def main() -> int:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    os.sched_setaffinity(0, {order.cpu})
    # Every server here also sends a broadcast to the one it came from, so nothing has to be probed.
    target = Target(url=order.url, dialect=order.dialect, sender_receives=True)
    try:
        result = run_scenario(order.scenario, target, server_pids=[order.server_pid])
    except LoadTestError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    sys.stdout.buffer.write(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
