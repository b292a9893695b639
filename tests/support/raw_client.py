"""A client on a raw socket, for what a proper client can't send, and the node it talks to with a witness beside it.

Where the wire of the test is wss (see conftest.py), every raw client speaks TLS, by hand, below what it sends.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import functools
import json
import logging
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import connect

from starlight.config.settings import Settings
from starlight.server.node import Node
from tests.support.fakes import IS_SANITIZED, eventually
from tests.support.wire_client import WireClient

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
KEY = base64.b64encode(bytes(16)).decode()
TIMEOUT_S = 8.0
RESET = struct.pack("ii", 1, 0)
SO_ATTACH_FILTER = 26
END_TIMEOUT_S = 60.0
Frame = tuple[int, bytes]


def request(
    *lines: str,
    target: str = "/ws",
    method: str = "GET",
    version: str = "HTTP/1.1",
    drop: tuple[str, ...] = (),
    protocols: str = "",
) -> bytes:
    """An upgrade request with further header lines; `drop` names (in lower case) the usual ones to leave out."""
    usual = {
        "host": "Host: x",
        "upgrade": "Upgrade: websocket",
        "connection": "Connection: Upgrade",
        "sec-websocket-version": "Sec-WebSocket-Version: 13",
        "sec-websocket-key": f"Sec-WebSocket-Key: {KEY}",
    }
    if protocols:
        usual["sec-websocket-protocol"] = f"Sec-WebSocket-Protocol: {protocols}"
    head = [f"{method} {target} {version}", *(line for name, line in usual.items() if name not in drop), *lines, "", ""]
    return "\r\n".join(head).encode("latin-1")


def header(opcode: int, size: int, *, fin: bool = True, rsv: int = 0, form: int | None = None) -> bytes:
    """A masked frame's header, its mask all zero. `form` 16 or 64 forces that width of the length."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    if form == 64 or (form is None and size >= 65536):
        return bytes((first, 0x80 | 127)) + size.to_bytes(8, "big") + bytes(4)
    if form == 16 or (form is None and size >= 126):
        return bytes((first, 0x80 | 126)) + size.to_bytes(2, "big") + bytes(4)
    return bytes((first, 0x80 | size)) + bytes(4)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = None) -> bytes:
    """A whole masked frame; the mask is all zero unless one is given."""
    if mask is None:
        return header(opcode, len(payload), fin=fin, rsv=rsv) + payload
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return header(opcode, len(payload), fin=fin, rsv=rsv)[:-4] + mask + masked


def message(type: str, **fields: Any) -> bytes:
    """A message of the protocol in a frame."""
    return frame(TEXT, json.dumps({"type": type, **fields}).encode())


def close_frame(code: int | None = None, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


def set_reset(sock: socket.socket) -> None:
    """Make close(2) a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def vanish(sock: socket.socket) -> None:
    """Let the kernel drop whatever comes for this socket, unseen and unanswered: as if its machine were gone."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF's RET 0
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(drop_all)))


class RawClient:
    """One socket. `rest` is what was read and not yet taken as frames; every wait is bounded."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""
        self.loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, port: int, *, receive_buffer_bytes: int = 0) -> RawClient:
        """A TCP connection; behind the TLS handshake where the wire is wss."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        client = TlsClient(sock) if cls is RawClient and "STARLIGHT_TLS_CERT" in os.environ else cls(sock)
        async with asyncio.timeout(TIMEOUT_S):
            await client.loop.sock_connect(sock, ("127.0.0.1", port))
        if isinstance(client, TlsClient):
            await client.start_tls()
        return client

    @classmethod
    async def upgraded(cls, port: int, protocols: str = "", **options: int) -> RawClient:
        """A connection behind the handshake."""
        client = await cls.connect(port, **options)
        await client.send(request(protocols=protocols))
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 101 "), head
        return client

    @classmethod
    async def login(cls, port: int, user: str = "raw", protocols: str = "", **options: int) -> RawClient:
        """A connection behind the login."""
        client = await cls.upgraded(port, protocols, **options)
        await client.send(message("login", user=user))
        assert (await client.hear())["type"] == "welcome"
        return client

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(TIMEOUT_S):  # not wait_for, which loses cancellations in Python 3.11
            await self.loop.sock_sendall(self.sock, data)

    async def say(self, type: str, **fields: Any) -> None:
        await self.send(message(type, **fields))

    async def receive(self, size: int = 1 << 16) -> bytes:
        """Some bytes; empty at EOF. Raises ConnectionResetError."""
        async with asyncio.timeout(TIMEOUT_S):
            return await self.loop.sock_recv(self.sock, size)

    async def head(self) -> bytes:
        """The head of an HTTP response; what comes behind it goes to `rest`."""
        while b"\r\n\r\n" not in self.rest:
            some = await self.receive()
            assert some, f"EOF behind {self.rest!r}"
            self.rest += some
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        return head

    def take_frame(self) -> Frame | None:
        """The next whole frame of `rest`."""
        rest = self.rest
        if len(rest) < 2:
            return None
        assert rest[0] & 0x80 and not rest[0] & 0x70, f"not a final frame without reserved bits: {rest[:16]!r}"
        assert rest[0] & 0x0F in (TEXT, CLOSE, PING, PONG), f"not an opcode of ours: {rest[:16]!r}"
        assert not rest[1] & 0x80, "a server must not mask"
        size, at = rest[1], 2
        if size >= 126:
            at = 4 if size == 126 else 10
            if len(rest) < at:
                return None
            size = int.from_bytes(rest[2:at], "big")
        if len(rest) < at + size:
            return None
        self.rest = rest[at + size :]
        return rest[0] & 0x0F, rest[at : at + size]

    async def next_frame(self) -> Frame:
        while (found := self.take_frame()) is None:
            some = await self.receive()
            if not some:
                raise EOFError(f"EOF, {len(self.rest)} bytes into a frame")
            self.rest += some
        return found

    async def hear(self) -> dict[str, Any]:
        """The next message; control frames are passed over."""
        while True:
            opcode, payload = await self.next_frame()
            if opcode == CLOSE:
                raise EOFError(f"closed with {payload!r}")
            if opcode == TEXT:
                heard: dict[str, Any] = json.loads(payload)
                return heard

    async def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        """Send a request and return its reply; whatever comes before it is dropped."""
        await self.say(type, id="ask", **fields)
        while (heard := await self.hear()).get("id") != "ask":
            pass
        return heard

    async def to_the_end(self) -> tuple[list[Frame], str]:
        """All frames until the end, and whether that is "eof" or "reset". A torn frame stays in `rest`."""
        async with asyncio.timeout(END_TIMEOUT_S):
            return await self._to_the_end()

    async def _to_the_end(self) -> tuple[list[Frame], str]:
        frames: list[Frame] = []
        while True:
            while (found := self.take_frame()) is not None:
                frames.append(found)
                if found[0] == CLOSE:
                    await self.on_close()
            try:
                some = await self.receive()
            except (ConnectionResetError, BrokenPipeError):
                return frames, "reset"
            if not some:
                return frames, "eof"
            self.rest += some

    async def on_close(self) -> None:
        """The server's close frame was read. Nothing by default: its EOF follows."""

    async def close_code(self) -> int:
        """Read to the end: the code of the close frame, which is the last frame and followed by EOF. 0: no code."""
        frames, end = await self.to_the_end()
        assert end == "eof", f"{end} behind {frames!r}"
        assert not self.rest, f"half a frame: {self.rest[:32]!r}"
        assert frames and frames[-1][0] == CLOSE, f"no close frame at the end of {frames!r}"
        assert sum(opcode == CLOSE for opcode, _ in frames) == 1, "two close frames"
        return int.from_bytes(frames[-1][1][:2], "big")

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        set_reset(self.sock)
        self.sock.close()


@functools.cache
def trusting(authorities: str) -> ssl.SSLContext:
    """A client's context that trusts a file of certificates."""
    return ssl.create_default_context(cafile=authorities)


class _NoNotify(ConnectionResetError):
    """TCP's EOF without TLS's."""


class TlsClient(RawClient):
    """A raw client that speaks TLS by hand, so that it can stop reading. It trusts what the environment says."""

    _tls: ssl.SSLObject

    async def start_tls(self) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trusting(os.environ["SSL_CERT_FILE"]).wrap_bio(
            self._incoming, self._outgoing, server_hostname="127.0.0.1"
        )
        await self._do(self._tls.do_handshake)

    async def _do(self, step: Callable[[], Any]) -> Any:
        """Run a step of the TLS state machine until it is done, with the socket's help."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._send_out()
                some = await super().receive()
                self._incoming.write(some) if some else self._incoming.write_eof()
                continue
            except ssl.SSLEOFError:
                raise _NoNotify("EOF without close_notify") from None
            await self._send_out()
            return result

    async def _send_out(self) -> None:
        if some := self._outgoing.read():
            await super().send(some)

    async def send(self, data: bytes) -> None:
        for i in range(0, len(data), 16_384):
            await self._do(lambda part=data[i : i + 16_384]: self._tls.write(part))

    async def receive(self, size: int = 1 << 16) -> bytes:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                data: bytes = await self._do(lambda: self._tls.read(size))
        except ssl.SSLZeroReturnError:
            return b""
        except _NoNotify:
            return b""  # the TCP connection was ended in order, so nothing was destroyed: that is an EOF as over ws
        return data

    async def on_close(self) -> None:
        """TLS has no EOF in one direction: the server waits for a close frame of ours."""
        with contextlib.suppress(OSError, ssl.SSLError):
            await self.send(close_frame(1000))


class Stage:
    """A node in the test's loop and a witness: a client that must not be hurt by whatever the test does.

    The witness hears a number every few milliseconds; in the end it must have heard them all, in order, and nothing
    else, and must get an answer.

    Attributes:
        heard: the numbers.
        strays: all else that reached the witness: what a test's clients say to everyone.
    """

    def __init__(self, node: Node, witness: WireClient) -> None:
        self.node = node
        self.port = node.port
        self.witness = witness
        self.n_told = 0
        self.heard: list[int] = []
        self.strays: list[dict[str, Any]] = []
        self.clients: list[RawClient] = []

    def keep(self, client: RawClient) -> RawClient:
        self.clients.append(client)
        return client

    async def connect(self, **options: int) -> RawClient:
        return self.keep(await RawClient.connect(self.port, **options))

    async def upgraded(self, protocols: str = "", **options: int) -> RawClient:
        return self.keep(await RawClient.upgraded(self.port, protocols, **options))

    async def login(self, user: str = "raw", protocols: str = "", **options: int) -> RawClient:
        return self.keep(await RawClient.login(self.port, user, protocols, **options))

    def counters(self) -> dict[str, int]:
        return self.node.core.counters()

    async def alone(self) -> None:
        """Wait until the witness is the only connection again."""
        await eventually(lambda: self.node.connections == 1, TIMEOUT_S)
        assert self.counters()["subscribers"] == 1
        assert self.node.hub.counters() == {"users": 1, "clients": 1, "channels": 1}

    async def _tell(self) -> None:
        while True:
            self.tell()
            await asyncio.sleep(0.01)

    def tell(self) -> None:
        self.node.hub.push_to_channel("witness", b"%d" % self.n_told)
        self.n_told += 1

    async def _listen(self) -> None:
        while True:
            heard = await self.witness.hear()
            if heard["type"] == "publication" and heard["channel"] == "witness":
                self.heard.append(heard["data"])
            else:
                self.strays.append(heard)

    async def check_witness(self, telling: asyncio.Task[None], listening: asyncio.Task[None]) -> None:
        """Let it hear all that is under way, and ask for an answer behind it."""
        telling.cancel()
        await self.witness.say("ping", id="end")
        await eventually(lambda: listening.done() or self.strays[-1:] == [{"type": "pong", "id": "end"}], TIMEOUT_S)
        assert not listening.done(), f"the witness was hurt: {listening!r}"
        self.strays.pop()
        assert self.heard == list(range(self.n_told)), "the witness missed something"


class Errors(logging.Handler):
    """Collects what is logged at WARNING or above: no client may make the node complain, or fill its disk.

    Lines about ends are no complaints: an eviction is a warning, and the log's handler bounds them by kind.
    The first refusal of each cause is a warning on purpose; `test_refusals` looks at those.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name not in ("starlight.ends", "starlight.net.refusals"):
            self.lines.append(self.format(record))


@asynccontextmanager
async def stage(
    *,
    quiet: bool = True,
    node: Callable[[Settings], Node] | None = None,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """A serving node with a witness, both checked at the end.

    quiet: nothing may be logged as a warning or worse. node: makes it.
    """
    errors = Errors()
    logging.getLogger().addHandler(errors)
    made = (node or Node)(Settings(**{"port": 0, "drain_timeout_s": 2, "login_timeout_s": 60, **settings}))
    try:
        async with made:
            on_stage = Stage(made, WireClient(await connect(made.url, compression=None)))
            await on_stage.witness.ask("login", user="witness")
            await on_stage.witness.ask("join", channel="witness")
            tasks = [asyncio.create_task(on_stage._tell()), asyncio.create_task(on_stage._listen())]
            try:
                yield on_stage
                await on_stage.check_witness(*tasks)
                assert not on_stage.strays, f"it reached the witness: {on_stage.strays}"
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                for client in on_stage.clients:
                    client.close()
                await on_stage.witness.close()
            await eventually(lambda: made.connections == 0, TIMEOUT_S)
            live = made.core.counters()
            left = {name: live[name] for name in LIVE_COUNTERS if live[name]}
            assert not left, f"left behind: {left}"
    finally:
        logging.getLogger().removeHandler(errors)
    assert not (quiet and errors.lines), "\n".join(errors.lines)


LIVE_COUNTERS = (
    "subscribers", "full", "channels", "memberships", "chunks", "chunk_bytes", "spans", "outbox_messages",
    "outbox_bytes",
)  # fmt: skip


def open_files() -> int:
    """Descriptors that this process has open."""
    return len(os.listdir("/proc/self/fd"))


def socket_of(peername: tuple[str, int]) -> socket.socket:
    """This process's socket that is connected to an address, as a duplicate."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            continue
        try:
            if sock.family == socket.AF_INET and sock.getpeername() == peername:
                return sock.dup()
        except OSError:
            pass
        finally:
            sock.detach()
    raise AssertionError(f"nobody is connected to {peername}")


def resident_bytes() -> int:
    """Memory of this process; 0 if it is not to be judged."""
    if IS_SANITIZED:
        return 0
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
