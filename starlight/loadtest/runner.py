"""A run from end to end: connect, warm up, measure, let everything arrive, judge, close.

    ramp -> (probe) -> warm-up -> measured time -> settle -> verdict -> close

Every step has a time limit. Whatever ends early (Ctrl-C, `stop`) still gives the Result of what was measured.
"""

from __future__ import annotations

import os
import platform
import random
import resource
import string
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from starlight.config.printable import printable
from starlight.loadtest import _engine, checker, procstat
from starlight.loadtest._engine import Arena, Engine
from starlight.loadtest.dialects import DIALECTS, Dialect, StreamTarget, Template
from starlight.loadtest.errors import BadScenario, BadTarget
from starlight.loadtest.plan import TrafficPlan, make_plan
from starlight.loadtest.result import FAULTS, DeliveryCheck, Generator, Latency, MachineUse, Point, Result, ServerUse
from starlight.loadtest.scenario import MOST_LOGGED, Scenario, payload_sizes
from starlight.loadtest.summary import protocol_errors_text
from starlight.loadtest.target import Target, websocket_keys
from starlight.loadtest.workers import Fleet, fleet

PADDING_PERIOD = 4096
PROBE_S = 2.0
STEP_S = 0.25
CALM_S = 0.2
"""After the ramp, before the server's memory is read: time for it to finish what the last logins started."""
GIVE_UP_S = 2.0
"""Closed model: a sender none of whose messages got done for so long goes on without them."""
CHECK_LIMIT_SHARE = 0.8
"""With `check = auto`, a generator busier than this in the warm-up checks only SAMPLED_RECEIVERS."""
SAMPLED_RECEIVERS = 32
FILES_RESERVE = 64
FIRST_SOURCE = 0x7F000001

Progress = Callable[[str, Point | None], None]
"""Called with the phase's name, and in the measured time with each interval."""


def run_scenario(
    scenario: Scenario,
    target: Target,
    *,
    server_pids: Sequence[int] = (),
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Run a scenario against a target.

    Args:
        scenario: what to do.
        target: where, and in which dialect.
        server_pids: processes whose CPU and memory (with their descendants') are measured.
        on_progress: told about phases and intervals, from the calling thread.
        stop: ends the measuring early when set.

    Raises:
        BadScenario: the scenario can't be done with this dialect or on this machine.
        BadTarget: the target is not there, refuses, or speaks something else.
        KeyboardInterrupt: only while connecting; later it ends the measuring.
    """
    dialect = DIALECTS[target.dialect]
    _check_possible(scenario, dialect, server_pids)
    plan = make_plan(scenario)
    arena = Arena(plan.groups, plan.streams, plan.orders, plan.senders, scenario.processes)
    address, is_loopback = target.resolve()

    def make(process: int) -> Engine:
        return _make_engine(scenario, target, dialect, plan, arena, process, address, is_loopback)

    with fleet(arena, make, scenario.processes) as workers:
        run = _Run(scenario, target, dialect, plan, workers, list(server_pids), on_progress or _silent, stop)
        return run.all()


def _silent(phase: str, point: Point | None) -> None:
    return None


def _check_possible(scenario: Scenario, dialect: Dialect, server_pids: Sequence[int]) -> None:
    for kind, weight in scenario.traffic.items():
        if weight and kind not in dialect.kinds:
            raise BadScenario(f"this dialect has no {kind} messages, only {', '.join(dialect.kinds)}")
    if (scenario.acks or scenario.rejoins_per_s) and not dialect.has_replies:
        raise BadScenario("acks and rejoins need the dialect native or lines")
    if scenario.rejoins_per_s and not scenario.channels:
        raise BadScenario("rejoins_per_s needs channels")
    for pid in server_pids:
        if not procstat.exists(pid):
            raise BadScenario(f"there is no process {pid} (server pid)")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    each = -(-scenario.connections // scenario.processes)
    if hard != resource.RLIM_INFINITY and each + FILES_RESERVE > hard:
        raise BadScenario(
            f"{each} connections in one process need more than the {hard} open files allowed (ulimit -n); "
            "use --processes"
        )


def _make_engine(
    scenario: Scenario,
    target: Target,
    dialect: Dialect,
    plan: TrafficPlan,
    arena: Arena,
    process: int,
    address: bytes,
    is_loopback: bool,
) -> Engine:
    """One process's engine, ready to ramp."""
    mine = plan.process_range(process, scenario.processes)
    share = 1.0 if scenario.check == "auto" else scenario.check
    checked = {index for index in range(scenario.connections) if int((index + 1) * share) > int(index * share)}
    slow_kind = 2 if scenario.slow_kind == "rate" else 1
    connections = [
        (
            plan.user_group(index),
            plan.members[index],
            dialect.login(f"u{index}", [f"c{group}" for group in plan.members[index]]),
            slow_kind if index in plan.slow else 0,
            index in checked,
        )
        for index in mine
    ]
    engine = Engine(arena, process, mine.start, connections)
    request, key_at = target.request()
    protocols = ",".join(target.subprotocols).encode()
    spare = FIRST_SOURCE + 8 * process if is_loopback else 0
    needs_sources = scenario.connections > 20_000 or scenario.churn_per_s > 0 or scenario.churn_window > 0
    engine.set_target(address, request, key_at, websocket_keys(), spare if needs_sources else 0, protocols)
    _set_dialect(engine, scenario, target, dialect, plan, mine)
    _set_load(engine, scenario, plan, mine)
    if scenario.order:
        engine.log_deliveries(MOST_LOGGED)
    return engine


def _set_dialect(
    engine: Engine, scenario: Scenario, target: Target, dialect: Dialect, plan: TrafficPlan, mine: range
) -> None:
    def group(number: int) -> StreamTarget:
        if number == 0:
            return StreamTarget("everyone", "")
        if number <= scenario.channels:
            return StreamTarget("channel", f"c{number}")
        return StreamTarget("user", f"u{number - 1 - scenario.channels}")

    templates: list[Template | None] = [None] * plan.groups
    for sender, number in plan.streams:
        if plan.senders[sender] in mine and templates[number] is None:
            templates[number] = dialect.publish(group(number), scenario.acks)
    channels = range(1, scenario.channels + 1)
    engine.set_dialect(
        form=dialect.form,
        opcode=dialect.opcode,
        json=dialect.has_replies,
        welcome=dialect.welcome,
        templates=templates,
        joins={number: dialect.join(number, f"c{number}") for number in channels},
        leaves={number: dialect.leave(number, f"c{number}") for number in channels},
        sender_receives=target.sender_receives is not False,
        acks=scenario.acks,
    )


def _set_load(engine: Engine, scenario: Scenario, plan: TrafficPlan, mine: range) -> None:
    sizes = payload_sizes(scenario.size, scenario.seed)
    draw = random.Random(scenario.seed)
    alphabet = string.ascii_letters + string.digits
    padding = "".join(draw.choices(alphabet, k=max(sizes) + PADDING_PERIOD)).encode()
    own = sum(connection in mine for connection in plan.senders)
    part = own / len(plan.senders) if plan.senders else 0.0
    is_open = scenario.model == "open"
    engine.set_load(
        window=0 if is_open else scenario.window,
        rate_per_s=scenario.rate * part if is_open else 0.0,
        poisson=scenario.arrival == "poisson",
        sizes=sizes,
        padding=padding,
        spin=scenario.spin,
        give_up_s=GIVE_UP_S,
        seed=scenario.seed,
    )
    share = len(mine) / scenario.connections
    slow_bytes = max(1, round(scenario.slow_bytes_per_s * scenario.slow_tick_ms / 1000))
    is_rate = scenario.slow_kind == "rate"
    engine.set_slow(slow_bytes if is_rate else 0, int(scenario.slow_tick_ms * 1e6), scenario.slow_receive_buffer_bytes)
    engine.set_churn(
        per_s=scenario.churn_per_s * share,
        window=-(-scenario.churn_window // scenario.processes),
        reset_share=scenario.churn_reset_share,
        rejoins_per_s=scenario.rejoins_per_s * share,
    )
    engine.set_ramp(max(1, scenario.connecting // scenario.processes), scenario.ramp_per_s * share)


@dataclass
class _Moment:
    """Everything that is measured as a difference."""

    time_s: float
    counters: dict[str, int]
    per_process: list[dict[str, int]]
    server: procstat.Usage
    own: procstat.Usage
    system: procstat.System


class _Run:
    """The steps of one run and what they found."""

    def __init__(
        self,
        scenario: Scenario,
        target: Target,
        dialect: Dialect,
        plan: TrafficPlan,
        workers: Fleet,
        server_pids: list[int],
        on_progress: Progress,
        stop: threading.Event | None,
    ) -> None:
        self.scenario, self.target, self.dialect, self.plan = scenario, target, dialect, plan
        self.workers, self.arena = workers, workers.arena
        self.server_pids = server_pids
        self.on_progress, self.stop = on_progress, stop
        self.interrupted = False
        self.ramp_s = 0.0
        self.disordered = 0
        self.series: list[Point] = []
        self.started = datetime.now(UTC).isoformat(timespec="seconds")

    def all(self) -> Result:
        before = self.moment()
        self.ramp()
        self.workers.call("run", _engine.IDLE, CALM_S if self.server_pids else CALM_S / 4)
        ramped = self.moment()
        try:
            self.probe()
            self.workers.call("start_schedule")
            now = _engine.now_ns()
            self.workers.call("set_measure", now + (1 << 60), now + (1 << 61))
            if self.scenario.warmup_s > 0:
                self.on_progress("warm-up", None)
                self.traffic(self.scenario.warmup_s, measured=False)
                self.reduce_checking(ramped)
        except KeyboardInterrupt:
            self.interrupted = True
        begin = self.measure_begin()
        try:
            if not self.stopped():
                self.traffic(self.scenario.duration_s, measured=True)
        except KeyboardInterrupt:
            self.interrupted = True
        end = self.moment()
        self.settle()
        result = self.result(before, ramped, begin, end)
        self.workers.call("close_all")
        self.workers.call("run", _engine.CLOSE, 1.5)
        self.workers.call("abandon")
        return result

    def stopped(self) -> bool:
        if self.stop is not None and self.stop.is_set():
            self.interrupted = True
        return self.interrupted

    def moment(self) -> _Moment:
        """Sample both sides and the machine, the counters last."""
        server = [pid for root in self.server_pids for pid in procstat.descendants(root)]
        own = [pid for pid in procstat.descendants(os.getpid()) if pid not in server]
        usages = procstat.usage(server), procstat.usage(own)
        per_process = [self.arena.counters(process) for process in range(self.scenario.processes)]
        return _Moment(time.monotonic(), self.arena.counters(), per_process, *usages, procstat.system())

    # ---- phases

    def ramp(self) -> None:
        """Connect and log in. Raises BadTarget with what the first connection that failed said."""
        self.on_progress("connecting", None)
        limit, began = self.scenario.ramp_timeout_s, time.monotonic()
        futures = [worker.call("run", _engine.RAMP, limit) for worker in self.workers.workers]
        self.workers.wait(futures, STEP_S, lambda: self.on_progress("connecting", None))
        failure = self.first("failure")
        self.ramp_s = max(time.monotonic() - began, 1e-9)
        ready = self.arena.counters()["ready"]
        if failure:
            found = self.by_name("protocol_errors")
            broken = f"; protocol errors: {protocol_errors_text(found)}" if found else ""
            count = f"{ready} of {self.scenario.connections} were ready"
            raise BadTarget(f"{self.target.url}: {failure} ({count}{broken})")
        wanted = self.scenario.connections
        if ready < wanted:
            raise BadTarget(f"{self.target.url}: only {ready} of {wanted} connections were ready after {limit:g} s")

    def probe(self) -> None:
        """Find out by one message whether a plain server's broadcast comes back to its sender."""
        only_broadcast = [kind for kind, weight in self.scenario.traffic.items() if weight] == ["broadcast"]
        if self.target.sender_receives is not None or self.dialect.has_replies or not only_broadcast:
            return
        self.on_progress("probing", None)
        sender = self.plan.senders[0]
        worker = next(
            index
            for index in range(self.scenario.processes)
            if sender in self.plan.process_range(index, self.scenario.processes)
        )
        first = self.plan.process_range(worker, self.scenario.processes).start
        self.workers.wait([self.workers.workers[worker].call("publish_one")])
        limit = time.monotonic() + PROBE_S
        others = self.scenario.connections - len(self.plan.slow) - 1
        while self.arena.counters()["deliveries"] < others and time.monotonic() < limit:
            self.workers.call("run", _engine.IDLE, 0.02)
        self.workers.call("run", _engine.IDLE, 0.1)
        heard = self.workers.wait([self.workers.workers[worker].call("deliveries_of", sender - first)])[0]
        if not heard:
            self.workers.call("set_sender_receives", False)

    def reduce_checking(self, ramped: _Moment) -> None:
        """Where checking every delivery makes the generator the bottleneck, check some receivers and count the
        others."""
        scenario = self.scenario
        churns = scenario.churn_per_s or scenario.churn_window or scenario.rejoins_per_s
        if scenario.check != "auto" or churns or self.useful_share(ramped, self.moment()) < CHECK_LIMIT_SHARE:
            return
        for process, worker in enumerate(self.workers.workers):
            mine = self.plan.process_range(process, scenario.processes)
            step = max(1, len(mine) // SAMPLED_RECEIVERS)
            self.workers.wait([worker.call("count_only", [i for i in range(len(mine)) if i % step])])

    def measure_begin(self) -> _Moment:
        now = _engine.now_ns()
        self.workers.call("set_measure", now, now + int(self.scenario.duration_s * 1e9))
        self.arena.interval(0)
        return self.moment()

    def traffic(self, seconds: float, measured: bool) -> None:
        """Send for some time; watch it from here."""
        last = [self.moment()]
        begin = last[0].time_s

        def step() -> None:
            if self.stopped():
                self.arena.stop()
            if measured:
                last[0] = self.step(begin, last[0])

        futures: list[Future[Any]] = [worker.call("run", _engine.TRAFFIC, seconds) for worker in self.workers.workers]
        self.workers.wait(futures, STEP_S, step)
        if measured:
            self.step(begin, last[0])
        elif self.stopped():
            self.arena.stop()

    def step(self, begin: float, last: _Moment) -> _Moment:
        """One interval of the measured time."""
        now = self.moment()
        elapsed = now.time_s - last.time_s
        if elapsed < STEP_S / 5:
            return last
        _, p50, p99, most = self.arena.interval(0)
        point = Point(
            time_s=round(now.time_s - begin, 3),
            rate=_delta(now, last, "deliveries") / elapsed,
            sent_rate=_delta(now, last, "sent") / elapsed,
            p50_ms=p50 / 1e6,
            p99_ms=p99 / 1e6,
            max_ms=most / 1e6,
            ready=now.counters["ready"],
            errors=now.counters["errors"] + now.counters["closed_by_server"] + now.counters["connect_failures"],
            useful_share=self.useful_share(last, now),
            server_cpu_share=now.server.cpu_s_since(last.server) / elapsed if self.server_pids else None,
        )
        self.series.append(point)
        self.on_progress("measuring", point)
        return now

    def settle(self) -> None:
        """Send nothing more; wait until everything has arrived, then a little for what came twice. Then judge."""
        self.on_progress("settling", None)
        self.arena.resume()
        seconds = min(self.scenario.settle_s, 1.0) if self.interrupted else self.scenario.settle_s
        self.workers.call("run", _engine.SETTLE, seconds)
        self.workers.call("run", _engine.IDLE, min(seconds, 0.05))
        self.workers.call("finish")
        if self.scenario.order:
            self.on_progress("checking the order", None)
            groups = [group for _, group in self.plan.streams]
            self.disordered = checker.count_disorder(self.workers.call("deliveries_log"), groups)

    # ---- figures

    def useful_share(self, before: _Moment, after: _Moment) -> float:
        """The busiest process's share of the time that was neither idle nor asleep."""
        elapsed_ns = max(after.time_s - before.time_s, 1e-9) * 1e9
        shares = [
            1 - (b["idle_ns"] - a["idle_ns"]) / elapsed_ns
            for a, b in zip(before.per_process, after.per_process, strict=True)
        ]
        return min(max(shares, default=0.0), 1.0) if max(shares, default=0.0) > 0 else 0.0

    def result(self, before: _Moment, ramped: _Moment, begin: _Moment, end: _Moment) -> Result:
        total = self.arena.counters()
        duration = max(end.time_s - begin.time_s, 1e-9)
        deliveries, sent = _delta(end, begin, "deliveries"), _delta(end, begin, "sent")
        connects = _delta(end, begin, "connects")
        server = self.server_figures(before, ramped, begin, end) if self.server_pids else None
        generator = self.generator(begin, end)
        latency, latency_actual = (Latency.of(self.arena.histogram(which)) for which in (0, 1))
        machine = self.machine(begin, end)
        return Result(
            scenario=msgspec.structs.asdict(self.scenario),
            url=self.target.url,
            dialect=self.target.dialect,
            started=self.started,
            duration_s=duration,
            interrupted=self.interrupted,
            connections=ramped.counters["ready"],
            sent=sent,
            deliveries=deliveries,
            rate=deliveries / duration,
            sent_rate=sent / duration,
            overdue=end.counters["overdue"],
            latency=latency,
            latency_actual=latency_actual,
            connect=Latency.of(self.arena.histogram(2)),
            connects=ramped.counters["connects"] + connects,
            connects_per_s=connects / duration or ramped.counters["connects"] / self.ramp_s,
            ack=Latency.of(self.arena.histogram(3)),
            acks=total["acks"],
            errors=total["errors"],
            first_error=self.first("first_error"),
            disconnects=total["closed_by_server"],
            first_disconnect=self.first("failure"),
            connect_failures=total["connect_failures"],
            close_codes=self.by_name("close_codes"),
            protocol_errors=self.by_name("protocol_errors"),
            churned=total["churned"],
            rejoins=total["rejoins"],
            slow_deliveries=total["slow_deliveries"],
            check=DeliveryCheck(
                deliveries=total["deliveries"],
                disordered=self.disordered,
                **{name: total[name] for name in ("checked", *FAULTS) if name in total},
            ),
            server=server,
            generator=generator,
            machine=machine,
            series=self.series,
            counters=total,
            notices=_notices(self.scenario, generator, machine, total),
        )

    def generator(self, begin: _Moment, end: _Moment) -> Generator:
        elapsed_ns = max(end.time_s - begin.time_s, 1e-9) * 1e9
        return Generator(
            useful_share=self.useful_share(begin, end),
            cpu_s=end.own.cpu_s_since(begin.own),
            preempted_share=_delta(end, begin, "preempted_ns") / elapsed_ns / self.scenario.processes,
            processes=self.scenario.processes,
            spin=self.scenario.spin,
        )

    def by_name(self, method: str) -> dict[str, int]:
        """The counts by name (or close code) that a method of the engines gives, over all processes."""
        total: Counter[str] = Counter()
        for found in self.workers.call(method):
            total.update({str(name): count for name, count in found.items()})
        return dict(total)

    def first(self, method: str) -> str:
        """The first text that a method of the engines gives, if any; it is a server's, so it is made harmless."""
        text = next((text for text in self.workers.call(method) if text), "")
        return printable(" ".join(text.split()))

    def server_figures(self, before: _Moment, ramped: _Moment, begin: _Moment, end: _Moment) -> ServerUse:
        cpu_s = end.server.cpu_s_since(begin.server)
        deliveries = _delta(end, begin, "deliveries")
        opened = ramped.counters["connects"]
        churned = _delta(end, begin, "connects")
        connect_s = cpu_s if churned and not deliveries else ramped.server.cpu_s_since(before.server)
        return ServerUse(
            cpu_s=cpu_s,
            cpu_share=cpu_s / max(end.time_s - begin.time_s, 1e-9),
            cpu_us_per_delivery=cpu_s * 1e6 / deliveries if deliveries else None,
            connect_us=connect_s * 1e6 / (churned if churned and not deliveries else opened),
            rss_bytes=end.server.rss_bytes,
            pss_bytes=end.server.pss_bytes,
            connection_bytes=(ramped.server.pss_bytes - before.server.pss_bytes) / opened,
        )

    def machine(self, begin: _Moment, end: _Moment) -> MachineUse:
        duration = max(end.time_s - begin.time_s, 1e-9)
        known = end.own.cpu_s_since(begin.own) + end.server.cpu_s_since(begin.server)
        foreign = (end.system.busy_s - begin.system.busy_s - known) / duration
        return MachineUse(
            cpu=procstat.cpu_model(),
            cores=os.cpu_count() or 0,
            kernel=platform.release(),
            python=platform.python_version(),
            steal_share=(end.system.steal_s - begin.system.steal_s) / duration,
            foreign_share=max(foreign, 0.0) if self.server_pids else None,
        )


def _delta(after: _Moment, before: _Moment, name: str) -> int:
    return after.counters[name] - before.counters[name]


def _notices(scenario: Scenario, generator: Generator, machine: MachineUse, total: dict[str, int]) -> list[str]:
    """What the reader of the figures has to know."""
    notices = []
    if generator.is_saturated:
        notices.append(
            f"the generator was saturated (useful share {generator.useful_share:.2f}): "
            "rate and latency may be its own, CPU per delivery stays valid"
        )
    if machine.steal_share > procstat.BUSY_STEAL_SHARE:
        notices.append(f"noisy machine: {machine.steal_share:.1%} of a core was stolen by the hypervisor")
    if machine.foreign_share is not None and machine.foreign_share > procstat.BUSY_FOREIGN_SHARE:
        notices.append(f"noisy machine: other processes used {machine.foreign_share:.0%} of a core")
    if scenario.model == "open" and total["overdue"] > max(10, scenario.rate / 10):
        notices.append(f"the schedule fell behind: {total['overdue']:,} messages were due and not yet sent at the end")
    if total["given_up"]:
        notices.append(f"{total['given_up']:,} messages were not delivered to everyone within {GIVE_UP_S:g} s")
    if total["unlogged"]:
        notices.append(f"the order of {total['unlogged']:,} deliveries was not checked: the log was full")
    if total["clipped"]:
        notices.append(f"latency lacks {total['clipped']:,} deliveries that came after their send time was forgotten")
    return notices
