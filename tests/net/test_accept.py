"""starlight.net.accept: batches, rest without descriptors, the queue of a listening socket at its end, shared sockets.

That a whole node rests and goes on is in `faults/test_network`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from typing import Any

import pytest
import uvloop

from starlight.config.settings import Settings
from starlight.errors import ConfigError
from starlight.net import accept
from starlight.net.accept import BATCH, Listener, bind_all
from starlight.server.node import Node
from tests.support.fakes import eventually
from tests.support.manager import listening_socket
from tests.support.raw_client import RawClient, request
from tests.support.wire_client import WireClient

WIRES = ("ws", "wss")
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


def small(**settings: object) -> Settings:
    return Settings(**{"port": 0, "drain_timeout_s": 5, **settings})


class Port:
    """A listener on a port of the kernel's choice, and what it took."""

    def __init__(self, sockets: list[socket.socket], **options: Any) -> None:
        self.taken: list[socket.socket] = []
        self.port: int = sockets[0].getsockname()[1]
        self.clients: list[socket.socket] = []
        self.listener = Listener(sockets, self._take, name="a port", **options)
        self.listener.start()

    @classmethod
    async def open(cls, **options: Any) -> Port:
        return cls(await bind_all("127.0.0.1", 0), **options)

    def _take(self, sock: socket.socket, peer: tuple[Any, ...]) -> None:
        assert sock.getpeername() == peer and not sock.getblocking()
        self.taken.append(sock)

    def connect(self, number: int = 1) -> None:
        """Clients whose connection the kernel completes."""
        self.clients += [socket.create_connection(("127.0.0.1", self.port)) for _ in range(number)]

    def close(self) -> None:
        self.listener.stop()
        for sock in [*self.taken, *self.clients]:
            sock.close()


class Failing:
    """A listening socket whose accepts fail until it is told to work."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self._sock = sock
        self._number = number
        self.attempts = 0

    def accept(self) -> Any:
        self.attempts += 1
        if self._number:
            raise OSError(self._number, os.strerror(self._number))
        return self._sock.accept()

    def work(self) -> None:
        self._number = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


# --- batches and descriptors -----------------------------------------------------------------------------------------


async def test_the_loop_has_its_turn_between_two_batches():
    port = await Port.open()
    port.connect(2 * BATCH + 1)
    sizes = []
    while len(port.taken) < 2 * BATCH + 1:
        before = len(port.taken)
        await asyncio.sleep(0)
        sizes.append(len(port.taken) - before)
    assert max(sizes) == BATCH
    port.close()


@pytest.mark.parametrize("reserve", [0, 16], ids=["the internal port", "the node's port"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_after_a_failed_accept_it_rests_and_goes_on(
    number: int, reserve: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(accept, "REST_S", 0.3)
    [bound] = await bind_all("127.0.0.1", 0)
    failing = Failing(bound, number)
    port = Port([failing], reserve=reserve)  # type: ignore[list-item]
    port.connect()
    await eventually(lambda: port.listener.is_resting)
    assert failing.attempts == 1, "no busy loop"
    failing.work()
    await eventually(lambda: len(port.taken) == 1)
    assert not port.listener.is_resting
    told = [record.getMessage() for record in caplog.records]
    reason = os.strerror(number)
    assert told[0] == f"a port accepts no connections for now, which wait in the kernel: {reason}"
    assert told[-1] == "a port accepts connections again"
    port.close()


async def test_it_rests_before_the_last_descriptors_are_used_and_goes_on_with_twice_as_many(
    monkeypatch: pytest.MonkeyPatch,
):
    free = 1_000
    monkeypatch.setattr(accept, "has_free_files", lambda wanted: free >= wanted)
    port, internal = await Port.open(reserve=16), await Port.open(reserve=0)
    free = 15
    await eventually(lambda: port.listener.is_resting)
    for one in (port, internal):
        one.connect()
    await eventually(lambda: len(internal.taken) == 1)
    free = 31
    await asyncio.sleep(3 * accept.CHECK_S)
    assert (port.taken, port.listener.is_resting, internal.listener.is_resting) == ([], True, False)
    free = 32
    await eventually(lambda: len(port.taken) == 1)
    port.close()
    internal.close()


async def test_it_also_rests_and_empties_its_queue_where_the_loop_accepts(monkeypatch: pytest.MonkeyPatch):
    free = 1_000
    monkeypatch.setattr(accept, "has_free_files", lambda wanted: free >= wanted)
    made: list[asyncio.Protocol] = []

    def make_protocol() -> asyncio.Protocol:
        made.append(asyncio.Protocol())
        return made[-1]

    port = await Port.open(make_protocol=make_protocol)
    port.connect()
    await eventually(lambda: len(made) == 1)
    free = 15
    await eventually(lambda: port.listener.is_resting)
    port.connect()
    await asyncio.sleep(3 * accept.CHECK_S)
    assert len(made) == 1
    free = 32
    await eventually(lambda: len(made) == 2)
    port.connect(5)
    port.listener.stop()
    await asyncio.sleep(0.05)
    assert (len(made), len(port.taken)) == (2, 5)
    port.close()


async def test_free_descriptors_are_counted_and_given_back():
    opened = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 10, limits[1]))
    try:
        assert accept.has_free_files(0)
        assert not accept.has_free_files(11)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert accept.has_free_files(11)
    assert len(os.listdir("/proc/self/fd")) == opened


@pytest.mark.parametrize("is_resting", [False, True], ids=["accepting", "resting"])
async def test_what_waits_at_the_end_is_accepted_also_if_it_rested(is_resting: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accept, "has_free_files", lambda wanted: not is_resting)
    port = await Port.open()
    if is_resting:
        await eventually(lambda: port.listener.is_resting)
    port.connect(BATCH + 5)
    port.listener.stop()
    assert len(port.taken) == BATCH + 5
    assert port.listener.sockets == []
    port.close()


async def test_who_has_connected_when_the_node_stops_listening_gets_a_close_frame(wire: str):
    if wire == "wss":
        pytest.skip("its client doesn't speak TLS")
    node = Node(small())
    await node.start()
    queued = []
    for _ in range(50):  # without a turn of the loop, so nobody accepts them
        sock = socket.create_connection(("127.0.0.1", node.port))
        sock.sendall(request())
        sock.setblocking(False)
        queued.append(RawClient(sock))
    assert node.connections == 0
    draining = asyncio.ensure_future(node.drain())
    for client in queued:
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")
        assert (await client.hear())["type"] == "bye"
        client.close()
    await asyncio.wait_for(draining, 10)


async def test_who_has_connected_does_so_with_tls_too(wire: str):
    if wire == "ws":
        pytest.skip("the test above")
    node = Node(small())
    await node.start()
    client = asyncio.ensure_future(WireClient.login(node.url, "ann"))
    await asyncio.sleep(0)
    draining = asyncio.ensure_future(node.drain())
    await asyncio.wait([client], timeout=10)
    if client.exception() is None:  # else its login was what the close came before
        assert (await client.result().closed())[0] == 1001
    await asyncio.wait_for(draining, 10)


async def test_the_queue_of_a_socket_that_others_hold_is_left_to_them():
    with listening_socket() as shared:
        first, second = Node(small()), Node(small())
        await first.start([shared.dup()])
        url = first.url
        await (await WireClient.login(url, "ann")).close()
        await asyncio.wait_for(first.drain(), 10)
        waiting = asyncio.ensure_future(WireClient.login(url, "bob"))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await second.start([shared.dup()])
        await asyncio.gather((await asyncio.wait_for(waiting, 10)).closed(), second.drain())


async def test_a_node_accepts_from_a_socket_it_was_given():
    with listening_socket() as shared:
        port = shared.getsockname()[1]
        for _ in range(2):
            node = Node(small(host="192.0.2.1", port=1, insecure_no_auth=True))
            await node.start([shared.dup()])
            assert f"//127.0.0.1:{port}/" in node.url
            client = await WireClient.login(node.url, "ann")
            await asyncio.gather(node.drain(), client.closed())


async def test_a_given_socket_that_strangers_can_reach_wants_authentication():
    with listening_socket("0.0.0.0") as shared:
        with pytest.raises(ConfigError, match="insecure-no-auth"):
            await Node(small()).start([shared.dup()])
        node = Node(small(insecure_no_auth=True))
        await node.start([shared.dup()])
        await node.drain()


async def test_two_nodes_share_a_port_if_both_say_so():
    async with Node(small(reuse_port=True)) as first:
        port = first.port
        async with Node(small(reuse_port=True, port=port)) as second:
            clients = [await WireClient.login(first.url, f"user{number}") for number in range(40)]
            assert first.connections + second.connections == 40
            assert first.connections and second.connections
            for client in clients:
                await client.close()
        with pytest.raises(OSError, match="in use"):
            await Node(small(port=port)).start()
