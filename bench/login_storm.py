"""What a storm of bad guests costs the others: their p99 of delivery with it and without it, in alternating pairs.

    PYTHONPATH=. python bench/login_storm.py                     # both storms, 9 pairs of 5 s each: about 8 minutes
    PYTHONPATH=. python bench/login_storm.py --pairs 3 --seconds 2

The server is `starlight serve --auth jwt` with its default limits, on core 0. The others are 200 clients with tokens,
to whom one of them broadcasts 100 times a second (the engine of `starlight bench`, which checks every delivery). The
bad guests are `bench/storm.c`, on core 1 like the others, who go before it (SCHED_FIFO where that is allowed, else by
niceness), so that what is measured is the server's delay and not the generator's.

- `logins`: 2,000 bad logins a second from 200 addresses, 10 a second each, so that the limits of an address let them
  all in and each token is verified and refused (4500).
- `connects`: as many connections as the guests can make from 4 addresses; all but 50 a second of each are refused at
  accept.

A pair is one run with the storm and one without it on the same server, in turned order every other time. The ratio of
their p99s is to be at most 2 in the median; its 90% interval stands beside it. `µs each` is the server's additional
CPU for one bad guest, `grown` what the server's memory grew by over all runs of the storm. Prints Markdown.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jwt

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
sys.path.insert(0, str(BENCH))

from harness.quiet import process_cpu_s  # noqa: E402
from harness.servers import LISTENING, START_TIMEOUT_S, build_storm  # noqa: E402
from harness.stats import estimate  # noqa: E402

SERVER_CPU, CLIENT_CPU = 0, 1
OTHERS, RATE_PER_S = 200, 100.0
RAMP_PER_S = 40.0
"""Below the 50 a second that the server lets in from one address."""
WARMUP_S = 0.5
GROUPS = "[groups.default]\ndirect = true\nbroadcast = true\n"


class Storm(NamedTuple):
    """A kind of storm: guests a second (0: as many as can be made), and from how many addresses."""

    title: str
    rate_per_s: int
    sources: int


STORMS = {"logins": Storm("bad logins", 2_000, 200), "connects": Storm("bad connects", 0, 4)}


class Run(NamedTuple):
    """One run: the others' latency, the server's CPU share, and what became of the bad guests."""

    p50_ms: float
    p99_ms: float
    deliveries: int
    faults: int
    cpu_s: float
    seconds: float
    guests: dict[str, float]


def token(user: str, secret: str) -> str:
    now = int(time.time())
    return jwt.encode({"sub": user, "iat": now, "exp": now + 3600}, secret, "HS256")


def bad_guest(secret: str) -> bytes:
    """An upgrade request, and behind it a login whose token was signed with another secret."""
    login = json.dumps({"type": "login", "token": token("mallory", secret[::-1])}).encode()
    key = base64.b64encode(bytes(16)).decode()
    request = (
        "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    return request.encode() + bytes((0x81, 0xFE)) + len(login).to_bytes(2, "big") + bytes(4) + login


@contextmanager
def serving(directory: Path, secret: str) -> Iterator[tuple[int, int]]:
    """The server: its process id and its port."""
    (directory / "secret").write_text(secret)
    (directory / "secret").chmod(0o600)
    (directory / "groups.toml").write_text(GROUPS)
    command = ["taskset", "-c", str(SERVER_CPU), sys.executable, "-m", "starlight", "serve", "--port", "0"]
    command += ["--auth", "jwt", "--jwt-secret-file", str(directory / "secret")]
    command += ["--config", str(directory / "groups.toml")]
    with (directory / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while (found := LISTENING.search((directory / "log").read_text())) is None:
            if server.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"login_storm: the server did not start:\n{(directory / 'log').read_text()}")
            time.sleep(0.05)
        yield server.pid, int(found[1])
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- the others: a process of their own


def go_first() -> str:
    """Have this process, and threads it starts, served before others of its core; says how."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
        return "SCHED_FIFO"
    except OSError:
        pass
    try:
        return f"niceness {os.nice(-15)}"
    except OSError:
        return "no priority"


def measure_others(port: int, seconds: float) -> int:
    """Log the others in, say so, wait for a line, measure, and print the result."""
    from starlight.loadtest import Scenario, Target, dialects, run_scenario

    secret = os.environ["STORM_SECRET"]

    class WithTokens(dialects.Native):
        """The native dialect, with a token for the login."""

        def login(self, user: str, channels: list[str]) -> bytes:
            return json.dumps({"type": "login", "token": token(user, secret)}).encode()

    dialects.DIALECTS["native"] = WithTokens()
    os.sched_setaffinity(0, {CLIENT_CPU})
    print(go_first(), flush=True)
    scenario = Scenario(
        traffic={"broadcast": 1.0}, connections=OTHERS, rate=RATE_PER_S, ramp_per_s=RAMP_PER_S, connecting=8,
        warmup_s=WARMUP_S, duration_s=seconds, check=1.0,
    )  # fmt: skip

    def tell(phase: str, point: object) -> None:
        if phase == "warm-up":
            print("ready", flush=True)
            sys.stdin.readline()

    result = run_scenario(scenario, Target(url=f"ws://127.0.0.1:{port}/ws", sender_receives=True), on_progress=tell)
    faults = result.check.faults + result.disconnects + result.errors
    found = {"p50_ms": result.latency.p50_ms, "p99_ms": result.latency.p99_ms, "deliveries": result.deliveries}
    print(json.dumps({**found, "faults": faults}), flush=True)
    return 0


# ---- runs and pairs


class Bench:
    """One server and its bad guests."""

    def __init__(self, guests: Path, visit: Path, pid: int, port: int, secret: str, seconds: float) -> None:
        self.guests, self.visit, self.pid, self.port = guests, visit, pid, port
        self.environment = {**os.environ, "STORM_SECRET": secret, "PYTHONPATH": str(ROOT)}
        self.seconds = seconds
        self.priority = ""

    def run(self, storm: Storm | None) -> Run:
        """Measure the others, with a storm or without."""
        others = subprocess.Popen(
            [sys.executable, __file__, "--others", str(self.port), "--seconds", str(self.seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment, cwd=ROOT,
        )  # fmt: skip
        assert others.stdin is not None and others.stdout is not None
        self.priority = others.stdout.readline().strip()
        if others.stdout.readline() != "ready\n":
            raise SystemExit("login_storm: the others could not log in")
        bad = None if storm is None else self.begin(storm)
        started_s, cpu_s = time.monotonic(), process_cpu_s(self.pid)
        others.stdin.write("go\n")
        others.stdin.flush()
        found: dict[str, Any] = json.loads(others.stdout.readline())
        seconds, cpu_s = time.monotonic() - started_s, process_cpu_s(self.pid) - cpu_s
        guests: dict[str, float] = {}
        if bad is not None:
            bad.send_signal(signal.SIGTERM)
            guests = json.loads(bad.communicate(timeout=20)[0])
        others.wait(30)
        return Run(**found, cpu_s=cpu_s, seconds=seconds, guests=guests)

    def begin(self, storm: Storm) -> subprocess.Popen[str]:
        command = ["taskset", "-c", str(CLIENT_CPU), str(self.guests), str(self.port)]
        command += [str(storm.rate_per_s), str(storm.sources), str(self.visit)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def pairs(self, storm: Storm, count: int) -> list[tuple[Run, Run]]:
        """(without, with) each; every other pair begins with the storm."""
        made = []
        for number in range(count):
            if number % 2:
                stormy = self.run(storm)
                made.append((self.run(None), stormy))
            else:
                made.append((self.run(None), self.run(storm)))
            calm, stormy = made[-1]
            print(f"{storm.title}: p99 {calm.p99_ms:.2f} -> {stormy.p99_ms:.2f} ms", file=sys.stderr, flush=True)
        return made


def row(storm: Storm, pairs: list[tuple[Run, Run]], grown_bytes: int) -> str:
    """A line of the table."""
    calm, stormy = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    made = sum(run.guests["made"] for run in stormy)
    rate = made / sum(run.guests["seconds"] for run in stormy)
    cpu_s = sum(with_.cpu_s - without.cpu_s * with_.seconds / without.seconds for without, with_ in pairs)
    ratio = estimate([with_.p99_ms / without.p99_ms for without, with_ in pairs])
    shares = [sum(run.guests[name] for run in stormy) / made for name in ("code_4500", "refused", "failed", "late")]
    return (
        f"| {storm.title} | {rate:,.0f} | {shares[0]:.1%} | {shares[1]:.1%} | {shares[2] + shares[3]:.1%} "
        f"| {cpu_s / made * 1e6:.0f} | {sum(run.cpu_s for run in stormy) / sum(run.seconds for run in stormy):.0%} "
        f"| {median(run.p99_ms for run in calm):.2f} | {median(run.p99_ms for run in stormy):.2f} "
        f"| {ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] | {'yes' if ratio.median <= 2 else 'no'} "
        f"| {sum(run.faults for pair in pairs for run in pair)} | {grown_bytes / 1e6:.1f} MB |"
    )


COLUMNS = (
    "storm", "made a second", "4500", "refused at accept", "failed, late", "server µs each", "server CPU",
    "others' p99 ms", "with the storm", "ratio [90%]", "within 2", "faults", "grown",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured in each run (5)")
    parser.add_argument("--storms", default="logins,connects", help="which, with a comma between")
    parser.add_argument("--others", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.others:
        return measure_others(options.others, options.seconds)
    guests, reason = build_storm()
    if reason is not None:
        raise SystemExit(f"login_storm: {reason}")
    secret, is_good = secrets.token_urlsafe(48), True
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "visit").write_bytes(bad_guest(secret))
        with serving(directory, secret) as (pid, port):
            bench = Bench(guests, directory / "visit", pid, port, secret, options.seconds)
            rows = []
            for storm in [STORMS[word] for word in options.storms.split(",")]:
                bench.run(None)  # warm, and not counted
                before_bytes = rss_bytes(pid)
                pairs = bench.pairs(storm, options.pairs)
                rows.append(row(storm, pairs, rss_bytes(pid) - before_bytes))
                is_good = is_good and "| yes |" in rows[-1]
    print(f"{options.pairs} pairs of {options.seconds:g} s, the others with {bench.priority}\n\n{HEAD}")
    print("\n".join(rows))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
