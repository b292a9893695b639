"""The table that changes while a run goes on."""

from __future__ import annotations

from types import TracebackType

from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.table import Table

from starlight.loadtest.result import Point
from starlight.loadtest.summary import milliseconds

ROWS = 8
"""Intervals shown; older ones scroll away."""


class LiveTable:
    """Shows phases and intervals on a terminal; on anything else one line a second. Use as a context manager; `tell`
    is the `on_progress` of `run_scenario`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._points: list[Point] = []
        self._phase = ""
        self._told_s = -1.0
        self._live = Live(self._table(), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveTable:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def tell(self, phase: str, point: Point | None) -> None:
        """Take news of a run."""
        is_new = phase != self._phase
        self._phase = phase
        if point is not None:
            self._points.append(point)
        if self._console.is_terminal:
            self._live.update(self._table(), refresh=True)
        elif point is not None and point.time_s - self._told_s >= 1:
            self._told_s = point.time_s
            self._console.print(" ".join(f"{name} {value}" for name, value in self._cells(point)), highlight=False)
        elif is_new:
            self._console.print(phase, highlight=False)

    @staticmethod
    def _cells(point: Point) -> list[tuple[str, str]]:
        server = "-" if point.server_cpu_share is None else f"{point.server_cpu_share:.0%}"
        return [
            ("time", f"{point.time_s:.1f}s"),
            ("deliveries/s", f"{point.rate:,.0f}"),
            ("sent/s", f"{point.sent_rate:,.0f}"),
            ("p50", milliseconds(point.p50_ms)),
            ("p99", milliseconds(point.p99_ms)),
            ("conns", f"{point.ready:,}"),
            ("errors", f"{point.errors:,}"),
            ("gen.", f"{point.useful_share:.0%}"),
            ("server", server),
        ]

    def _table(self) -> Table:
        # Nine columns of figures fit into 80 characters only without padding on both sides.
        table = Table(title=self._phase or "starting", title_justify="left", box=SIMPLE, padding=(0, 0, 0, 1))
        names = [name for name, _ in self._cells(_EMPTY)]
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for point in self._points[-ROWS:]:
            table.add_row(*(value for _, value in self._cells(point)))
        return table


_EMPTY = Point(time_s=0, rate=0, sent_rate=0, p50_ms=0, p99_ms=0, max_ms=0, ready=0, errors=0, useful_share=0)
