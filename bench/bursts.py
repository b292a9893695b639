"""Bursts to readers that are as fast as their line: is one ever evicted? And when are readers that take nothing?

    PYTHONPATH=. python bench/bursts.py                            # TCP, TLS, the Python client: about 4 minutes
    PYTHONPATH=. python bench/bursts.py --chromium                 # a tab of headless Chromium too
    PYTHONPATH=. python bench/bursts.py --netns                    # the line shaped by the kernel (root)
    PYTHONPATH=. python bench/bursts.py --seconds 4 --every 3      # does it work here?
    PYTHONPATH=. python bench/bursts.py --python ../other/.venv/bin/python     # the package of another checkout

The node is `starlight serve` with its default limits on core 0, a fresh one for each reader; everything else is on core
1. One client publishes 5 MB every 10 s, in publications of 16 KiB as fast as the node takes them, to a channel that one
reader has joined. The reader's line carries 20 Mbit/s, so a burst is read in 2 s and the line is idle for 8 s.

- `tcp`, `tls`: a raw client with a receive buffer of 64 KiB that takes bytes by a token bucket.
- `python`: `starlight.connect` of the package that this script runs with, behind a forwarder that does so
  (`harness/link.py`). It comes back after an eviction, so there may be more than one.
- `chromium`: a WebSocket of a page in a tab, behind the same forwarder.
- With `--netns` all of them read as fast as they can, in a network namespace whose line the kernel shapes.

The second table is about readers that take nothing, ever: publications of 16 KiB (limit of bytes) or of 100 bytes
(limit of messages) come at a steady pace, and the node is asked every 20 ms what the reader's outbox holds. `at the
limit` is when it was first seen there after the first publication, `evicted` how much later the reader was gone. An
outbox that is evicted as it reaches the limit is never seen at it; then both are the same moment.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.server
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
sys.path.insert(0, str(BENCH))

from harness.link import Namespaces, namespaces, paced_link  # noqa: E402
from harness.node import Node, node, version_of  # noqa: E402
from harness.wire import TEXT, Bucket, Ended, Wire  # noqa: E402

SERVER_CPU, CLIENT_CPU = 0, 1
CHANNEL = "bursts"
READY = "ready"
PUBLICATION_BYTES = 16 * 1024
RECEIVE_BUFFER_BYTES = 64 * 1024
DRAIN_S = 2.0
"""After the last burst was due to have arrived: what is not there by then is missing."""
STUCK: dict[str, tuple[int, float]] = {"bytes": (16 * 1024, 0.005), "messages": (100, 0.002)}
"""Bytes of a publication, and seconds between two."""
STUCK_LIMIT_S = 60.0
POLL_S = 0.02
PAGE = b"<!doctype html><title>reader</title>"
SCRIPT = """
const [url, channel] = arguments;
window.found = { publications: 0, bytes: 0, code: null, joined: false };
const socket = new WebSocket(url, "starlight.v1");
socket.onopen = () => {
  socket.send(JSON.stringify({ type: "login", id: 1, user: "reader" }));
  socket.send(JSON.stringify({ type: "join", id: 2, channel }));
};
socket.onmessage = ({ data }) => {
  const message = JSON.parse(data);
  if (message.type === "ok" && message.id === 2) window.found.joined = true;
  if (message.type === "publication") { window.found.publications += 1; window.found.bytes += data.length; }
};
socket.onclose = ({ code }) => { window.found.code = code; };
"""


# ---- readers: each a process of its own, which prints `ready` and, at a line on stdin, what it found


def tell(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def read_raw(address: tuple[str, int], pace: Bucket | None, tls: ssl.SSLContext | None) -> None:
    """A raw client, by TCP or TLS."""
    buffer_bytes = RECEIVE_BUFFER_BYTES if pace is not None else 0
    wire = Wire(address, receive_buffer_bytes=buffer_bytes, tls=tls, timeout_s=3_600)
    wire.ask(type="login", id=1, user="reader")
    wire.ask(type="join", id=2, channel=CHANNEL)
    wire.pace = pace.wait if pace is not None else None
    found: dict[str, Any] = {"publications": 0, "bytes": 0, "code": None}

    def read() -> None:
        try:
            while True:
                opcode, payload = wire.read_frame()
                if opcode == TEXT and payload.startswith(b'{"type":"publication"'):
                    found["publications"] += 1
                    found["bytes"] += len(payload)
        except Ended as end:
            found["code"] = end.code
        except OSError:
            found["code"] = 1006

    threading.Thread(target=read, daemon=True).start()
    print(READY, flush=True)
    sys.stdin.readline()
    tell(found)


async def read_python(url: str) -> None:
    """The package's own client. It comes back by itself, so its ends are counted by what it reports."""
    import starlight

    found: dict[str, Any] = {"publications": 0, "bytes": 0, "code": None, "missed": 0}

    def report(state: str, code: int | None) -> None:
        if state in ("reconnecting", "closed") and found["code"] is None:
            found["code"] = code

    async def read(client: Any) -> None:
        async with client.join(CHANNEL) as joined:
            print(READY, flush=True)
            async for publication in joined:
                found["publications"] += 1
                found["bytes"] += len(publication.data)
                found["missed"] += publication.missed

    async with starlight.connect(url, user="reader", on_state=report) as client:
        reading = asyncio.create_task(read(client))
        await asyncio.to_thread(sys.stdin.readline)
        tell(found)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await reading


def read_chromium(url: str, page: str) -> None:
    """A tab of headless Chromium."""
    from selenium import webdriver

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver_path = shutil.which("chromedriver")
    if not chromium or not driver_path:
        raise SystemExit("bursts: --chromium needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", f"user-data-dir={profile}"):
            options.add_argument(f"--{word}")
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
        try:
            driver.get(page)
            driver.execute_script(SCRIPT, url, CHANNEL)
            while not driver.execute_script("return window.found.joined"):
                time.sleep(0.05)
            print(READY, flush=True)
            sys.stdin.readline()
            tell(driver.execute_script("return window.found"))
        finally:
            driver.quit()


def reader_main(options: argparse.Namespace) -> int:
    """The process of one reader."""
    os.sched_setaffinity(0, {CLIENT_CPU})
    host, _, port = options.address.rpartition(":")
    if options.reader == "python":
        asyncio.run(read_python(f"ws://{options.address}/ws"))
    elif options.reader == "chromium":
        with serving_page(options.page_port) as page:
            read_chromium(f"ws://{options.address}/ws", page)
    else:
        tls = None
        if options.reader == "tls":
            tls = ssl.create_default_context(cafile=options.certificate)
        pace = None if options.netns else Bucket(options.mbit * 1e6 / 8)
        read_raw((host, int(port)), pace, tls)
    return 0


@contextmanager
def serving_page(port: int) -> Iterator[str]:
    """An empty page, whose origin the node lets in."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.shutdown()


# ---- one run


def certificate(directory: Path, address: str) -> tuple[Path, Path]:
    """A certificate for localhost and an address, and its key."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", f"subjectAltName=DNS:localhost,IP:{address}",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return cert, key


class Publisher:
    """A client that publishes and lets the node's answers pass."""

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext | None) -> None:
        self.wire = Wire(address, tls=tls, timeout_s=60)
        self.wire.ask(type="login", id=1, user="publisher")
        self.number = 1

    def publish(self, size: int, count: int) -> None:
        """So many publications of so many bytes of data; returns when the node has taken them."""
        for _ in range(count):
            self.wire.send(type="publish", channel=CHANNEL, data="x" * (size - 2))
        self.number += 1
        self.wire.ask(type="ping", id=self.number)


@contextmanager
def started(name: str, options: argparse.Namespace, net: Namespaces | None) -> Iterator[tuple[Node, list[str], Any]]:
    """A node, the command of a reader of it, and the context of TLS (None without)."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        flags: list[str] = []
        host = net.node_address if net else "127.0.0.1"
        flags += ["--host", host, "--insecure-no-auth"] if net else []
        words: list[str] = []
        tls = None
        if name == "tls":
            cert, key = certificate(directory, host)
            flags += ["--tls-cert", str(cert), "--tls-key", str(key)]
            words += ["--certificate", str(cert)]
            tls = ssl.create_default_context(cafile=str(cert))
        if name == "chromium":
            with socket.create_server(("127.0.0.1", 0)) as free:
                page_port = free.getsockname()[1]
            flags += ["--allowed-origins", f"http://127.0.0.1:{page_port}"]
            words += ["--page-port", str(page_port)]
        server = stack.enter_context(node(flags, python=options.python, cpu=SERVER_CPU))
        address = (host, server.port)
        if net is None and name in ("python", "chromium"):
            address = stack.enter_context(paced_link(address, options.mbit * 1e6 / 8)).address
        words += ["--address", f"{address[0]}:{address[1]}", "--mbit", str(options.mbit)]
        words += ["--netns"] if net else []
        yield server, [*(net.inside if net else []), sys.executable, __file__, "--reader", name, *words], tls


def burst_run(name: str, options: argparse.Namespace, net: Namespaces | None) -> dict[str, Any]:
    """One reader and its bursts: a row of the first table."""
    with started(name, options, net) as (server, command, tls):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert reader.stdout is not None
            if reader.stdout.readline().strip() != READY:
                raise SystemExit(f"bursts: the reader {name} did not start")
            publisher = Publisher((net.node_address if net else "127.0.0.1", server.port), tls)
            count = max(1, round(options.burst_bytes / PUBLICATION_BYTES))
            bursts = 0
            began_s = time.monotonic()
            while bursts * options.every < options.seconds:
                time.sleep(max(0.0, began_s + bursts * options.every - time.monotonic()))
                publisher.publish(PUBLICATION_BYTES, count)
                bursts += 1
            time.sleep(options.burst_bytes * 8 / (options.mbit * 1e6) + DRAIN_S)
            varz = server.ask("/varz")
            said, _ = reader.communicate("now\n", timeout=60)
        finally:
            if reader.poll() is None:
                reader.kill()
                reader.wait()
        return {
            "reader": name,
            "bursts": bursts,
            "published": bursts * count,
            **json.loads(said),
            "evictions": varz["totals"]["evictions"],
            "rss_peak_bytes": server.status("VmHWM"),
            "budget_bytes": varz["memory"]["budget_bytes"],
        }


def stuck_run(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """A reader that takes nothing: a row of the second table."""
    size, every_s = STUCK[kind]
    with node([], python=options.python, cpu=SERVER_CPU) as server:
        address = ("127.0.0.1", server.port)
        stuck = Wire(address, receive_buffer_bytes=RECEIVE_BUFFER_BYTES)
        stuck.ask(type="login", id=1, user="stuck")
        stuck.ask(type="join", id=2, channel=CHANNEL)
        limits = stuck_limits(options.python)
        publisher = Publisher(address, None)
        stop = threading.Event()

        def publish() -> None:
            while not stop.wait(every_s):
                publisher.publish(size, 1)

        thread = threading.Thread(target=publish, daemon=True)
        began_s = time.monotonic()
        thread.start()
        limit_s, gone_s, most = None, None, 0
        while time.monotonic() - began_s < STUCK_LIMIT_S and gone_s is None:
            row, now_s = server.connection("stuck"), time.monotonic() - began_s
            held = 0 if row is None else row["outbox_bytes" if kind == "bytes" else "outbox_messages"]
            most = max(most, held)
            if row is None:
                gone_s = now_s
            elif held >= limits[kind] and limit_s is None:
                limit_s = now_s
            time.sleep(POLL_S)
        stop.set()
        thread.join(20)
        evictions = server.ask("/varz")["totals"]["evictions"]
        stuck.close()
        past_s = None if gone_s is None else gone_s - (limit_s if limit_s is not None else gone_s)
        return {
            "kind": kind, "limit": limits[kind], "most_seen": most,
            "limit_s": limit_s if limit_s is not None else gone_s, "evicted_after_s": past_s,
            "evictions": evictions, "rss_peak_bytes": server.status("VmHWM"),
        }  # fmt: skip


def stuck_limits(python: str) -> dict[str, int]:
    """The default limits of an outbox of the package that is measured."""
    ask = "from starlight.config.settings import Settings as S; s = S(); print(s.outbox_bytes, s.outbox_messages)"
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True, cwd=empty, check=True, timeout=60)
    in_bytes, messages = map(int, done.stdout.split())
    return {"bytes": in_bytes, "messages": messages}


# ---- the report


def named(evictions: dict[str, int]) -> str:
    """``4008: 1``, or a dash."""
    return ", ".join(f"{reason}: {count}" for reason, count in evictions.items() if count) or "-"


BURST_COLUMNS = (
    "reader", "bursts", "publications arrived", "MB", "ever evicted", "closed with", "evictions", "peak memory",
    "budget",
)  # fmt: skip
STUCK_COLUMNS = ("limit", "most seen", "at the limit after s", "evicted s later", "evictions", "peak memory")


def burst_line(row: dict[str, Any]) -> str:
    evicted = "YES" if any(row["evictions"].values()) else "no"
    share = row["publications"] / row["published"]
    return (
        f"| {row['reader']} | {row['bursts']} | {row['publications']} of {row['published']} ({share:.0%}) "
        f"| {row['bytes'] / 1e6:.1f} | {evicted} | {row['code'] or '-'} | {named(row['evictions'])} "
        f"| {row['rss_peak_bytes'] / 1e6:.0f} MB | {row['budget_bytes'] / 1e6:.0f} MB |"
    )


def stuck_line(row: dict[str, Any]) -> str:
    def seconds(value: float | None) -> str:
        return "never" if value is None else f"{value:.2f}"

    return (
        f"| {row['limit']:,} {row['kind']} | {row['most_seen']:,} | {seconds(row['limit_s'])} "
        f"| {seconds(row['evicted_after_s'])} | {named(row['evictions'])} | {row['rss_peak_bytes'] / 1e6:.0f} MB |"
    )


def table(columns: Sequence[str], lines: Sequence[str]) -> str:
    """A table in Markdown; nothing without lines."""
    return "\n".join(["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *lines]) if lines else ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="whose package is served (this one's)")
    parser.add_argument("--readers", default="tcp,tls,python", help="which, with commas between (tcp,tls,python)")
    parser.add_argument("--chromium", action="store_true", help="and a tab of Chromium")
    parser.add_argument("--netns", action="store_true", help="shape the line by `tc tbf` in a network namespace")
    parser.add_argument("--stuck", default=",".join(STUCK), help="limits of readers that take nothing")
    parser.add_argument("--seconds", type=float, default=60.0, help="of bursts for each reader (60)")
    parser.add_argument("--every", type=float, default=10.0, help="seconds from burst to burst (10)")
    parser.add_argument("--burst-bytes", type=int, default=5_000_000, help="of each burst (5,000,000)")
    parser.add_argument("--mbit", type=float, default=20.0, help="what the line carries, Mbit/s (20)")
    parser.add_argument("--json", type=Path, help="where the rows go (bench/results/<date>-bursts.json)")
    parser.add_argument("--page-port", type=int, default=0, help=argparse.SUPPRESS)
    for name in ("reader", "address", "certificate"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.reader:
        return reader_main(options)
    names = [name for name in options.readers.split(",") if name] + (["chromium"] if options.chromium else [])
    os.sched_setaffinity(0, {CLIENT_CPU})
    version = version_of(options.python)
    bursts, stuck = [], []
    with ExitStack() as stack:
        net = stack.enter_context(namespaces(options.mbit * 1e6 / 8)) if options.netns else None
        for name in names:
            bursts.append(burst_run(name, options, net))
            print(burst_line(bursts[-1]), file=sys.stderr, flush=True)
    for kind in filter(None, options.stuck.split(",")):
        stuck.append(stuck_run(kind, options))
        print(stuck_line(stuck[-1]), file=sys.stderr, flush=True)
    today = datetime.now(UTC).date().isoformat()
    path = options.json or BENCH / "results" / f"{today}-bursts.json"
    record = {name: getattr(options, name) for name in ("seconds", "every", "burst_bytes", "mbit", "netns")}
    record = {"script": "bursts", "date": today, "version": version, **record, "bursts": bursts, "stuck": stuck}
    path.write_text(json.dumps(record, indent=1) + "\n")
    line = f"{options.mbit:g} Mbit/s{' (tc tbf)' if options.netns else ''}"
    print(f"{options.burst_bytes / 1e6:g} MB every {options.every:g} s over {line}, {version}")
    print(table(BURST_COLUMNS, [burst_line(row) for row in bursts]))
    print(table(STUCK_COLUMNS, [stuck_line(row) for row in stuck]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
