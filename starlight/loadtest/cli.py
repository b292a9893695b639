"""`starlight bench`: the harness on the command line.

Exit codes: 0 good, 1 a service level failed, deliveries were wrong or the server broke the protocol, 2 the run could
not be made, 3 a verdict on rate or latency was refused because the generator was saturated; 130 interrupted before
there was anything to say.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from starlight.cli.options import EXIT_INTERRUPTED, PanelCommand, counted, make_app
from starlight.config.printable import printable
from starlight.config.units import parse_duration
from starlight.errors import StarlightError
from starlight.loadtest import assertions as levels
from starlight.loadtest import compare as comparing
from starlight.loadtest import findmax, html, scenario, summary
from starlight.loadtest.dialects import DIALECTS
from starlight.loadtest.errors import BadScenario
from starlight.loadtest.live import LiveTable
from starlight.loadtest.result import Result, read_json, write_json
from starlight.loadtest.runner import run_scenario
from starlight.loadtest.target import DEFAULT_URL, Target

app = make_app("Measure a WebSocket server, and prove what arrived.")

Text = str | None
LOAD = "Load"
OUTPUT = "Output"
PIPED_SIZE = (120, 40)
"""Columns (and rows) of what isn't written to a terminal; COLUMNS goes before it."""


def _console() -> Console:
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=shutil.get_terminal_size(PIPED_SIZE).columns)


def _option(kind: Any, *names: str, default: Any = None, panel: str = LOAD, **more: Any) -> tuple[Any, Any]:
    return Annotated[kind, typer.Option(*names, rich_help_panel=panel, **more)], default


# Each stands for the Scenario field of the same name; None leaves the scenario's own value.
LOAD_OPTIONS: dict[str, tuple[Any, Any]] = {
    "connections": _option(int | None, "--connections", "-c", help="How many connections, publishers included."),
    "duration_s": _option(Text, "--duration", "-d", help="Measured time, such as 5s or 2m."),
    "warmup_s": _option(Text, "--warmup", help="Time before measuring."),
    "settle_s": _option(Text, "--settle", help="At most this long until everything has arrived."),
    "model": _option(Text, "--model", help="open: send at --rate whatever happens; closed: keep --window under way."),
    "rate": _option(
        Text, "--rate", "-r", help="Messages sent a second, all publishers together (open): 500, 20k, 1.5M."
    ),
    "arrival": _option(Text, "--arrival", help="constant or poisson distances (open)."),
    "window": _option(
        int | None, "--window", "-w", help="Messages of one publisher under way; makes the model closed."
    ),
    "size": _option(Text, "--size", "-s", help="Bytes of data: 128, 16KiB, uniform:16-1024, choice:16x0.9,1KiBx0.1 …"),
    "publishers": _option(int | None, "--publishers", "-p", help="Connections that send; 0: all."),
    "channels": _option(int | None, "--channels", help="Number of channels."),
    "members": _option(int | None, "--members", help="Connections in each channel; 0: all."),
    "channel_publishers": _option(int | None, "--channel-publishers", help="Publishers that send to one channel."),
    "targets": _option(int | None, "--targets", help="Users that each publisher sends directs to."),
    "acks": _option(bool | None, "--acks/--no-acks", help="Send with an id and check the replies."),
    "ramp_per_s": _option(float | None, "--ramp", help="Connections opened a second; 0: as fast as they go."),
    "connecting": _option(int | None, "--connecting", help="Connections being opened at once."),
    "slow_share": _option(float | None, "--slow-share", help="Share of the connections that read slowly."),
    "slow_kind": _option(Text, "--slow-kind", help="stall: never read; rate: read --slow-rate bytes a second."),
    "slow_bytes_per_s": _option(int | None, "--slow-rate", help="Bytes a second that a slow reader takes."),
    "slow_tick_ms": _option(float | None, "--slow-tick", help="Milliseconds between two reads of a slow reader."),
    "churn_per_s": _option(float | None, "--churn", help="Reconnects a second."),
    "churn_reset_share": _option(float | None, "--churn-resets", help="Share of them that ends by a TCP reset."),
    "churn_window": _option(int | None, "--storm", help="Reconnects under way at once, as fast as they go."),
    "rejoins_per_s": _option(float | None, "--rejoins", help="Leaves of a channel (and joins again) a second."),
    "check": _option(
        Text, "--check", help="auto, or the share of connections whose deliveries are checked one by one."
    ),
    "order": _option(
        bool | None, "--order/--no-order", help="Check too that all receivers of a channel see one order."
    ),
    "spin": _option(
        bool | None, "--spin/--no-spin", help="Poll without sleeping: the server isn't charged for wake-ups."
    ),
    "processes": _option(int | None, "--processes", help="Generator processes."),
    "seed": _option(int | None, "--seed", help="Of payload sizes."),
}
TARGET_OPTIONS: dict[str, tuple[Any, Any]] = {
    "url": _option(str, "--url", "-u", default=DEFAULT_URL, panel="Target", help="ws://host:port/path"),
    "dialect": _option(str, "--dialect", default="native", panel="Target", help=", ".join(DIALECTS)),
    "header": _option(
        list[str], "--header", default=[], panel="Target", metavar="HEADER", help="More HTTP headers, 'Name: value'."
    ),
    "sender_receives": _option(
        bool | None,
        "--echoes-sender/--skips-sender",
        panel="Target",
        help="Whether a broadcast returns to its sender.",
    ),
    "server_pid": _option(
        list[int], "--server-pid", default=[], panel="Target", metavar="PID", help="Measure this process too."
    ),
}
RUN_OPTIONS: dict[str, tuple[Any, Any]] = {
    "asserts": _option(
        list[str],
        "--assert",
        "-a",
        default=[],
        panel=OUTPUT,
        metavar="LEVEL",
        help="Service level, such as 'p99<20ms'.",
    ),
    "repeat": _option(int, "--repeat", default=1, panel=OUTPUT, help="Run so many times; files then hold all runs."),
    "json_file": _option(Path | None, "--json", panel=OUTPUT, help="Write the results here."),
    "csv_file": _option(Path | None, "--csv", panel=OUTPUT, help="Write one line a run here."),
    "html_file": _option(Path | None, "--html", panel=OUTPUT, help="Write a page about the last run here."),
    "quiet": _option(bool, "--quiet", "-q", default=False, panel=OUTPUT, help="No live table."),
}


def _with_options(*groups: dict[str, tuple[Any, Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function that takes **options the signature Typer builds a command from; `...` as default: required
    argument."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def command(**options: Any) -> None:
            _guard(lambda: function(**options))

        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for group in groups
            for name, (annotation, default) in group.items()
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__doc__ = function.__doc__
        command.__name__ = function.__name__
        return command

    return decorate


def _shown(text: str) -> str:
    """Text that may hold something of a server or of a file: harmless to the terminal, and no markup."""
    return escape(printable(text))


def _guard(function: Callable[[], None]) -> None:
    """Run a command; what is wrong with its input is one line and exit code 2."""
    try:
        function()
    except (StarlightError, OSError) as error:
        Console(stderr=True).print(f"starlight bench: {_shown(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(levels.EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("starlight bench: stopped before anything was measured", highlight=False)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _changes(options: dict[str, Any]) -> dict[str, object]:
    """The scenario fields that were given as flags."""
    changes = {name: options[name] for name in LOAD_OPTIONS if options.get(name) is not None}
    for name in ("duration_s", "warmup_s", "settle_s"):
        if name in changes:
            changes[name] = parse_duration(changes[name], "--" + name.removesuffix("_s"))
    if "rate" in changes:
        changes["rate"] = scenario.parse_rate(str(changes["rate"]), "--rate")
    if "window" in changes:
        changes.setdefault("model", "closed")
    if str(changes.get("size", "")).isdigit():
        changes["size"] = int(changes["size"])
    if "check" in changes and changes["check"] != "auto":
        try:
            changes["check"] = float(changes["check"])
        except ValueError as error:
            raise BadScenario(f"check is {changes['check']!r}, expected 'auto' or a share from 0 to 1") from error
    return changes


def _target(options: dict[str, Any]) -> Target:
    headers = {}
    for header in options["header"]:
        name, colon, value = header.partition(":")
        if not colon:
            raise BadScenario(f"header {header!r}, expected 'Name: value'")
        headers[name.strip()] = value.strip()
    return Target(options["url"], options["dialect"], options["sender_receives"], headers)


def _run(base: scenario.Scenario, options: dict[str, Any]) -> None:
    """Run a scenario as often as asked; print, write and judge; leave with the exit code."""
    console = _console()
    asserted = [levels.parse(text) for text in options["asserts"]]
    target = _target(options)
    _check_files(options)
    runs: list[Result] = []
    code = 0
    verdicts: list[levels.AssertionVerdict] = []
    for _ in range(max(1, options["repeat"])):
        result = _one(base, target, options, console)
        runs.append(result)
        verdicts = levels.judge(asserted, result)
        print_result(console, result, verdicts)
        found = levels.exit_code(verdicts, result)
        code = found if found == levels.EXIT_FAILED or code == 0 else code
        if result.interrupted:
            break
    _write(options, runs, verdicts)
    if code:
        raise typer.Exit(code)


def _one(base: scenario.Scenario, target: Target, options: dict[str, Any], console: Console) -> Result:
    if options["quiet"]:
        return run_scenario(base, target, server_pids=options["server_pid"])
    with LiveTable(console) as table:
        return run_scenario(base, target, server_pids=options["server_pid"], on_progress=table.tell)


def _check_files(options: dict[str, Any]) -> None:
    """Refuse files that can't be written before the run, not after it."""
    for kind in ("json", "csv", "html"):
        path = options[f"{kind}_file"]
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise BadScenario(f"--{kind} {path}: expected a file in a directory that exists")


def _write(options: dict[str, Any], runs: list[Result], verdicts: list[levels.AssertionVerdict]) -> None:
    if options["json_file"]:
        write_json(options["json_file"], runs)
    if options["csv_file"]:
        options["csv_file"].write_text(summary.to_csv(runs), "utf-8")
    if options["html_file"]:
        lines = [(verdict.line, verdict.outcome == "held") for verdict in verdicts]
        options["html_file"].write_text(html.page(runs[-1], lines), "utf-8")


def print_result(console: Console, result: Result, verdicts: list[levels.AssertionVerdict]) -> None:
    """The summary of a run."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in summary.figures(result):
        table.add_row(name, _shown(value))
    console.print(table)
    for notice in result.notices:
        console.print(f"[yellow]note: {_shown(notice)}[/yellow]", highlight=False)
    colour = "red" if result.check.faults or result.protocol_errors or levels.is_void(result) else "green"
    console.print(f"[{colour}]{escape(str(result.check))}[/{colour}]", highlight=False)
    for verdict in verdicts:
        colour = {"held": "green", "failed": "red"}.get(verdict.outcome, "yellow")
        console.print(f"[{colour}]{_shown(verdict.line)}[/{colour}]", highlight=False)


def _add_built_in(name: str, about: str) -> None:
    @_with_options(TARGET_OPTIONS, LOAD_OPTIONS, RUN_OPTIONS)
    def built_in(**options: Any) -> None:
        _run(scenario.build(name, _changes(options)), options)

    app.command(name, cls=PanelCommand, help=about, short_help=about)(built_in)


for _name, _about in {
    "broadcast": "A few publishers send to everyone.",
    "channels": "Channels with some members each; every connection is in several.",
    "direct": "User to user.",
    "echo": "Every connection sends to itself (dialect raw: an echo server).",
    "connect-storm": "Connect and log in, then reconnect as fast as it goes.",
    "slow-readers": "A broadcast of which a share of the receivers doesn't read.",
    "mixed": "Channels mixed with direct messages.",
    "idle": "Only connections: what one costs in memory.",
}.items():
    _add_built_in(_name, _about)

FILE_ARGUMENT: dict[str, tuple[Any, Any]] = {
    "file": (Annotated[Path, typer.Argument(metavar="FILE", help="Scenario file (TOML).")], inspect.Parameter.empty)
}


@app.command("run", cls=PanelCommand, help="Run a scenario from a TOML file; flags change single fields.")
@_with_options(FILE_ARGUMENT, TARGET_OPTIONS, LOAD_OPTIONS, RUN_OPTIONS)
def run_file(**options: Any) -> None:
    _run(scenario.load(options["file"], _changes(options)), options)


FIND_OPTIONS: dict[str, tuple[Any, Any]] = {
    "name": (
        Annotated[str, typer.Argument(metavar="SCENARIO", help="A built-in one, or a TOML file.")],
        inspect.Parameter.empty,
    ),
    "start": _option(str, "--from", default="100", panel="Search", help="First rate tried, messages a second."),
    "most": _option(Text, "--to", panel="Search", help="Highest rate tried."),
    "precision": _option(
        float, "--precision", default=0.05, panel="Search", help="Stop when the bracket is this narrow."
    ),
    "max_probes": _option(int, "--max-probes", default=16, panel="Search", help="Stop after so many runs."),
}


@app.command(
    "find-max",
    cls=PanelCommand,
    help="The highest rate at which the asserted service levels hold (p99<100ms unless given), by bisection.",
    short_help="The highest rate at which the asserted service levels hold.",
)
@_with_options(FIND_OPTIONS, TARGET_OPTIONS, LOAD_OPTIONS, RUN_OPTIONS)
def find_max(**options: Any) -> None:
    console = _console()
    asserted = [levels.parse(text) for text in options["asserts"]] or [levels.parse("p99<100ms")]
    changes = {"duration_s": 2.0, "warmup_s": 0.5} | _changes(options)
    path = Path(options["name"])
    base = scenario.load(path, changes) if path.suffix == ".toml" else scenario.build(options["name"], changes)
    if not any(base.traffic.values()):
        raise BadScenario(f"{base.name} sends nothing, so there is no rate to find")
    target = _target(options)
    _check_files(options)
    found = findmax.find_max(
        base,
        asserted,
        lambda one: run_scenario(one, target, server_pids=options["server_pid"]),
        start=scenario.parse_rate(options["start"], "--from"),
        most=scenario.parse_rate(options["most"], "--to") if options["most"] else float("inf"),
        precision=options["precision"],
        max_probes=max(1, options["max_probes"]),
        on_probe=lambda probe: console.print(
            f"{probe.rate:>12,.0f}/s  {probe.outcome}  {_shown('; '.join(probe.reasons))}", highlight=False
        ),
    )
    console.print(_curve(found))
    _write(options, [probe.result for probe in found.probes], [])
    levels_text = " and ".join(level.text for level in asserted)
    if found.is_interrupted:
        console.print(f"interrupted: {found.rate or 0:,.0f} messages/s hold {escape(levels_text)}, more was not tried")
        raise typer.Exit(EXIT_INTERRUPTED)
    if found.is_generator_limit:
        console.print(
            f"the generator is the limit: at least {found.rate or 0:,.0f} messages/s hold {escape(levels_text)}"
        )
        raise typer.Exit(levels.EXIT_REFUSED)
    if found.rate is None:
        console.print(f"not even the lowest rate tried holds {escape(levels_text)}")
        raise typer.Exit(levels.EXIT_FAILED)
    console.print(f"highest rate that holds {escape(levels_text)}: {found.rate:,.0f} messages/s", highlight=False)


def _curve(found: findmax.Maximum) -> Table:
    table = Table(title="curve", title_justify="left", box=None)
    for name in ("messages/s", "deliveries/s", "p50", "p99", "max", "generator", "outcome"):
        table.add_column(name, justify="right")
    for probe in found.probes:
        result = probe.result
        times = (result.latency.p50_ms, result.latency.p99_ms, result.latency.max_ms)
        share = f"{result.generator.useful_share:.0%}"
        shown = [summary.milliseconds(value) for value in times]
        table.add_row(f"{probe.rate:,.0f}", f"{result.rate:,.0f}", *shown, share, probe.outcome)
    return table


@app.command("compare", help="Ratios of two --json recordings (B to A) with their spread.")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The recording to compare with.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The recording that is compared.")],
) -> None:
    """Ratios of two recordings."""
    _guard(lambda: _compare(_console(), read_json(a), read_json(b)))


def _compare(console: Console, a: list[Result], b: list[Result]) -> None:
    title = f"A: {counted(len(a), 'run')}, B: {counted(len(b), 'run')}; medians, and of B / A; times in ms"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("figure", "A", "B", "ratio", "spread"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for ratio in comparing.compare(a, b):
        spread = "one run, unknown" if ratio.low is None else f"{ratio.low:.3f} … {ratio.high:.3f}"
        style = "bold" if ratio.is_clear else ""
        table.add_row(ratio.metric, f"{ratio.a:,.4g}", f"{ratio.b:,.4g}", f"{ratio.ratio:.3f}", spread, style=style)
    console.print(table)
    for line in comparing.notes(a, b):
        console.print(f"[yellow]note: {_shown(line)}[/yellow]", highlight=False)


def main() -> None:
    """Entry of `python -m starlight.loadtest`."""
    app(prog_name="starlight bench")
