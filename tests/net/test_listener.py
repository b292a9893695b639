"""starlight.net.listener: the queue of a listening socket at its end, sockets of others, SO_REUSEPORT; resting is in
`test_faults_network.py`."""

from __future__ import annotations

import asyncio
import socket

import pytest

from starlight.config.settings import Settings
from starlight.errors import ConfigError
from starlight.server.node import Node
from tests.support.manager import listening_socket
from tests.support.raw_client import RawClient, request
from tests.support.wire_client import WireClient

WIRES = ("ws", "wss")


def small(**settings: object) -> Settings:
    return Settings(**{"port": 0, "drain_timeout_s": 5, **settings})


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
