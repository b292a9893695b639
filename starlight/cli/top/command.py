"""The command ``starlight top``: what nodes do, live in a terminal.

Strategy: a thread per node asks it every so often and puts the answer into its `NodeView`; the main thread draws a
frame when one of them has news or the terminal has another size, and reads keys meanwhile. So a node that is slow or
away holds up neither the others nor the keys. What a frame looks like stands in `_top_view.py`.

Exit codes: 0 done; 1 with --once, a node refused to answer; 2 a wrong word on the command line, no terminal, or with
--once, a node that can't be reached; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Final, TextIO

import typer

from starlight.cli.options import EXIT_REFUSED, EXIT_USAGE, KeyFile, Nodes, complain, make_app
from starlight.config.units import parse_duration
from starlight.errors import ConfigError, NodeRefused, OperatorError
from starlight.ops.client import DEFAULT_NODE, NodeClient, clients

if TYPE_CHECKING:
    from rich.text import Text

    from starlight.cli.top.view import NodeView, Sample, Screen

__all__ = ["app"]

DEFAULT_NODES: Final = [DEFAULT_NODE]
INTERVAL_MIN_S: Final = 0.2
"""Asking more often than this shows noise, and costs the node something."""

KEY_POLL_S: Final = 0.1
"""How often keys, news and the size of the terminal are looked at."""

ONCE_SIZE: Final = (120, 40)
"""Columns and rows of a frame whose output isn't a terminal; COLUMNS goes before it, and rows don't limit it."""

app = make_app("Show what nodes do, live.")


@app.command(short_help="Show what nodes do, live.")
def top(
    node: Nodes = DEFAULT_NODES,
    key_file: KeyFile = "",
    interval: Annotated[str, typer.Option("--interval", metavar="DURATION", help="Between two samples.")] = "1s",
    once: Annotated[bool, typer.Option("--once", help="Print one frame, of two samples, and exit.")] = False,
) -> int:
    """Show what nodes do, live: rates, connections, evictions, loop lag, memory, the slowest clients, busy channels.

    Rates are of the time between two samples. Leave with q. A node that doesn't answer is asked again each time.
    """
    try:
        interval_s = parse_duration(interval, "--interval")
        if interval_s < INTERVAL_MIN_S:
            raise ConfigError("--interval", interval, "200ms or more")
        watch = NodePoller(clients(node, key_file), interval_s)
    except ConfigError as error:
        return complain(str(error))
    if once:
        return _once(watch)
    if not sys.stdout.isatty():
        return complain("top: expected a terminal; --once prints one frame to anything else")
    return _live(watch, interval)


class NodePoller:
    """Asks nodes in the background.

    Args:
        nodes: to ask, each in a thread of its own.
        interval_s: from the start of one sample to that of the next.
    """

    def __init__(self, nodes: Sequence[NodeClient], interval_s: float) -> None:
        from starlight.cli.top.view import NodeView

        self.views: list[NodeView] = [NodeView(client.url) for client in nodes]
        self.worst = 0
        """The worst exit code of the last sample of any node."""
        self._clients = nodes
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._news = 0

    def start(self, n_samples: int | None = None) -> list[threading.Thread]:
        """Start asking, so many times or until `stop`; the threads keep no process from ending."""
        threads = [
            threading.Thread(target=self._follow, args=(client, view, n_samples), daemon=True)
            for client, view in zip(self._clients, self.views, strict=True)
        ]
        for thread in threads:
            thread.start()
        return threads

    def stop(self) -> None:
        """Ask no more."""
        self._ended.set()

    @property
    def news(self) -> int:
        """A number that is another one whenever a node has answered, or failed to."""
        return self._news

    def frame(self, screen: Screen, title: str, hint: str = "") -> list[Text]:
        """The lines of a frame, of what is known now."""
        from starlight.cli.top.view import frame

        with self._lock:
            return frame(self.views, screen, title, hint)

    def _follow(self, client: NodeClient, view: NodeView, n_samples: int | None) -> None:
        left = n_samples
        while not self._ended.is_set():
            began_s = time.monotonic()
            self._ask(client, view)
            left = None if left is None else left - 1
            if left == 0:
                return
            self._ended.wait(max(0.0, began_s + self._interval_s - time.monotonic()))

    def _ask(self, client: NodeClient, view: NodeView) -> None:
        try:
            sample, problem = _sample(client), None
        except OperatorError as error:
            sample, problem = None, error
        with self._lock:
            if sample is not None:
                view.add(sample)
            else:
                view.fail(str(problem).removeprefix(f"{client.url}: "))
                self.worst = max(self.worst, EXIT_REFUSED if isinstance(problem, NodeRefused) else EXIT_USAGE)
            self._news += 1


def _sample(client: NodeClient) -> Sample:
    from starlight.cli.top.view import LISTED, Sample

    return Sample(
        varz=client.varz(),
        connections=client.connections("oldest", limit=LISTED),
        channels=client.channels("deliveries", limit=LISTED),
    )


def _now() -> str:
    return time.strftime("%H:%M:%S")


def _once(watch: NodePoller) -> int:
    """Print one frame to whatever stdout is; the worst of the nodes' exit codes."""
    from rich.console import Console

    from starlight.cli.top.view import Screen

    for thread in watch.start(n_samples=2):
        thread.join()
    console = Console(width=shutil.get_terminal_size(ONCE_SIZE).columns, highlight=False)
    for line in watch.frame(Screen(console.width, None, _is_ascii(console.encoding)), _now()):
        console.print(line)
    return watch.worst


def _live(watch: NodePoller, interval: str) -> int:
    """Draw frames until q."""
    from rich.console import Console, Group
    from rich.live import Live

    from starlight.cli.top.view import Screen

    console = Console(highlight=False)
    drawn: object = None
    watch.start()
    try:
        with _keys(sys.stdin) as keys, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                state = (watch.news, console.size)
                if state != drawn:
                    screen = Screen(*console.size, _is_ascii(console.encoding))
                    lines = watch.frame(screen, f"{_now()} · every {interval}", "q leaves")
                    live.update(Group(*lines), refresh=True)
                    drawn = state
                if "q" in keys.wait(KEY_POLL_S).lower():
                    return 0
    finally:
        watch.stop()


def _is_ascii(encoding: str) -> bool:
    return not encoding.lower().startswith("utf")


class Keyboard:
    """What is typed; nothing if nobody can type."""

    def __init__(self, file: TextIO | None) -> None:
        self._fd = file.fileno() if file is not None else -1

    def wait(self, timeout_s: float) -> str:
        """Keys pressed within that time, as soon as there are some."""
        if self._fd < 0:
            time.sleep(timeout_s)
            return ""
        if not select.select([self._fd], [], [], timeout_s)[0]:
            return ""
        typed = os.read(self._fd, 64)
        if not typed:  # the terminal is gone
            self._fd = -1
        return typed.decode("ascii", "ignore")


@contextlib.contextmanager
def _keys(stdin: TextIO) -> Iterator[Keyboard]:
    """Keys as they are pressed and not shown, while it lasts; Ctrl-C stays what it is."""
    if not stdin.isatty():
        yield Keyboard(None)
        return
    import termios
    import tty

    before = termios.tcgetattr(stdin)
    tty.setcbreak(stdin)
    try:
        yield Keyboard(stdin)
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
