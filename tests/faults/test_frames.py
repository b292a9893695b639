"""Rows 14-32 of the fault table: frames that break RFC 6455, or only annoy; beside each a witness that is not hurt."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from tests.support.fakes import IS_SANITIZED
from tests.support.raw_client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawClient,
    Stage,
    close_frame,
    frame,
    header,
    message,
    request,
    stage,
)
from tests.support.server_process import server_process
from tests.support.witness import witness

WIRES = ("ws", "wss")
LOOPS = {"uvloop": uvloop.new_event_loop}  # as in production


async def code_for(on_stage: Stage, wire: bytes, *, split: bool = False) -> int:
    """What a logged-in client's bytes are closed with; `split`: sent in packets of one byte."""
    client = await on_stage.login()
    if split:
        for i in range(len(wire)):
            await client.send(wire[i : i + 1])
            await asyncio.sleep(0)
    else:
        await client.send(wire)
    code = await client.close_code()
    client.close()
    return code


BAD_FRAMES = {
    "14 unmasked": (b"\x81\x02hi", 1002),
    "14 unmasked, empty": (b"\x81\x00", 1002),
    "15 rsv1": (frame(TEXT, b"{}", rsv=4), 1002),
    "15 rsv2": (frame(TEXT, b"{}", rsv=2), 1002),
    "15 rsv3": (frame(PING, b"", rsv=1), 1002),
    **{f"16 opcode {opcode:#x}": (frame(opcode, b"{}"), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "17 fragmented ping": (frame(PING, b"", fin=False), 1002),
    "17 fragmented close": (frame(CLOSE, b"", fin=False), 1002),
    "17 ping of 126": (frame(PING, bytes(126)), 1002),
    "17 close of 126": (frame(CLOSE, b"\x03\xe8" + bytes(124)), 1002),
    "18 stray continuation": (frame(CONTINUATION, b"{}"), 1002),
    "18 stray continuation, not final": (frame(CONTINUATION, b"{}", fin=False), 1002),
    "18 text inside text": (frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"), 1002),
    "18 binary inside text": (frame(TEXT, b"{", fin=False) + frame(BINARY, b"}", fin=False), 1002),
    "19 125 in 16 bits": (header(TEXT, 125, form=16) + bytes(125), 1002),
    "19 65535 in 64 bits": (header(TEXT, 65535, form=64), 1002),
    "20 2^63-1 after a part": (frame(TEXT, b"{", fin=False) + header(CONTINUATION, 2**63 - 1), 1009),
    "20 2^63-1 at once": (header(TEXT, 2**63 - 1), 1009),
    "21 2^63": (header(TEXT, 2**63, form=64), 1002),
    "21 2^64-1": (header(BINARY, 2**64 - 1, form=64), 1002),
    "22 one byte over in one frame": (header(TEXT, 65537), 1009),
    "22 over in fragments": (frame(TEXT, b" " * 40_000, fin=False) + frame(CONTINUATION, b" " * 40_000), 1009),
    "23 empty fragments": (frame(TEXT, b"", fin=False) + frame(CONTINUATION, b"", fin=False) * 9_999, 1008),
    "23 fragments of a byte": (frame(TEXT, b"{", fin=False) + frame(CONTINUATION, b" ", fin=False) * 9_999, 1008),
    "26 not UTF-8": (frame(TEXT, b"\xff"), 1007),
    "26 a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "26 overlong": (frame(TEXT, b"\xc0\x80"), 1007),
    "26 cut short": (frame(TEXT, b"\xc3"), 1007),
    "26 bad in a fragment, before the end": (frame(TEXT, b"\xff", fin=False), 1007),
    "26 cut short over fragments": (frame(TEXT, b"\xe2", fin=False) + frame(CONTINUATION, b"\x82"), 1007),
    **{f"27 close {code}": (close_frame(code), 1002) for code in (0, 1, 999, 1004, 1005, 1006, 1015, 5000, 65535)},
    "27 close of one byte": (frame(CLOSE, b"\x03"), 1002),
    "27 close with a bad reason": (close_frame(1000, b"\xff"), 1007),
}


@pytest.mark.parametrize("split", [False, True], ids=["at once", "in packets of one byte"])
async def test_each_broken_frame_is_closed_with_its_code_and_nobody_else_notices(split: bool):
    """All at the same time, as over TLS each of them takes a second."""
    cases = {name: case for name, case in BAD_FRAMES.items() if len(case[0]) < 200 or not split}
    async with stage() as on_stage:
        codes = await asyncio.gather(*(code_for(on_stage, wire, split=split) for wire, _ in cases.values()))
        assert dict(zip(cases, codes, strict=True)) == {name: code for name, (_, code) in cases.items()}
        await on_stage.alone()


async def test_20_a_length_that_is_only_declared_allocates_nothing():
    async with server_process() as server, witness(server.port):

        async def declare(wire: bytes) -> int:
            client = await RawClient.login(server.port, "large")
            await client.send(wire)
            code = await client.close_code()
            client.close()
            return code

        wires = [
            part + header(opcode, size)
            for size in (65_537, 2**30, 2**40, 2**63 - 1)
            for part, opcode in ((b"", TEXT), (frame(TEXT, b"{", fin=False), CONTINUATION))
        ]
        before = await server.ask("memory")
        assert set(await asyncio.gather(*map(declare, wires))) == {1009}
        after = await server.ask("memory")
        assert after["most_virtual_bytes"] - before["most_virtual_bytes"] < 2**29 or IS_SANITIZED
        assert after["resident_bytes"] - before["resident_bytes"] < 4 << 20


async def test_23_the_64th_fragment_is_one_too_many_unless_it_ends_the_message():
    async with stage() as on_stage:
        client = await on_stage.login()
        text = b'{"type":"ping"}'
        pieces = [text[:1]] + [b" "] * 62 + [text[1:]]
        await client.send(frame(TEXT, pieces[0], fin=False))
        for piece in pieces[1:-1]:
            await client.send(frame(CONTINUATION, piece, fin=False))
        await client.send(frame(CONTINUATION, pieces[-1]))
        assert (await client.hear())["type"] == "pong"
        await client.send(frame(TEXT, b"", fin=False) + frame(CONTINUATION, b"", fin=False) * 62)
        await client.send(frame(PING, b"still here"))
        assert await client.next_frame() == (PONG, b"still here")
        await client.send(frame(CONTINUATION, b"", fin=False))
        assert await client.close_code() == 1008


HEADERS_THAT_CROSS = [
    (40_000, b"", 0, header(CONTINUATION, 25_537)),
    (40_000, b"", 0, header(CONTINUATION, 25_537, fin=False)),
    (40_000, frame(PING, b"between"), 1, header(CONTINUATION, 40_000)),
    (65_535, frame(PING) + frame(PONG, b"x" * 125), 1, header(CONTINUATION, 2)),
    (1, b"", 0, header(CONTINUATION, 65_536)),
    (1, b"", 0, header(CONTINUATION, 2**63 - 1)),
]


@pytest.mark.parametrize(("n_bytes", "between", "n_pings", "crossing"), HEADERS_THAT_CROSS)
@pytest.mark.parametrize("cut", ["whole", "pieces"])
async def test_22_a_fragment_is_refused_at_the_header_that_crosses_the_limit(n_bytes, between, n_pings, crossing, cut):
    async with stage() as on_stage:
        client = await on_stage.login()
        await client.send(frame(TEXT, b" " * n_bytes, fin=False) + (between + crossing if cut == "whole" else b""))
        if cut == "pieces":
            for byte in between + crossing:
                await client.send(bytes([byte]))
                await asyncio.sleep(0.001)
        frames, end = await client.to_the_end()
        assert [opcode for opcode, _ in frames[:-1]] == [PONG] * n_pings
        assert (end, frames[-1][0], frames[-1][1][:2]) == ("eof", CLOSE, (1009).to_bytes(2))


async def test_22_fragments_up_to_the_limit_are_a_message():
    async with stage() as on_stage:
        client = await on_stage.login()
        text = b'{"type":"ping"}'.ljust(65_536)
        await client.send(frame(TEXT, text[:40_000], fin=False) + frame(PING, b"between"))
        await client.send(frame(CONTINUATION, text[40_000:65_000], fin=False) + frame(CONTINUATION, text[65_000:]))
        assert await client.next_frame() == (PONG, b"between")
        assert (await client.hear())["type"] == "pong"


async def test_26_a_code_point_may_be_split_over_fragments():
    async with stage() as on_stage:
        client = await on_stage.login()
        text = '{"type":"direct","to":"raw","data":"Zoë 🦊"}'.encode()
        wire = [frame(TEXT, text[:1], fin=False)]
        wire += [frame(CONTINUATION, text[i : i + 1], fin=False) for i in range(1, len(text) - 1)]
        await client.send(b"".join(wire) + frame(CONTINUATION, text[-1:]))
        assert (await client.hear())["data"] == "Zoë 🦊"


async def test_28_a_second_close_and_data_behind_a_close_are_ignored():
    async with stage() as on_stage:
        client = await on_stage.login()
        await client.send(close_frame(1000) + close_frame(1001) + message("broadcast", data=1, id=1) + b"\xff" * 70_000)
        assert await client.close_code() == 1000
        empty = await on_stage.login()
        await empty.send(close_frame() + close_frame())
        assert await empty.close_code() == 1000
        empty.close()
        client.close()
        await on_stage.alone()


@pytest.mark.parametrize("bad", [b"\x81\x00", frame(3, b""), frame(TEXT, b"{}", rsv=4), frame(TEXT, b"\xff")])
async def test_29_what_stands_behind_a_bad_frame_is_never_delivered_and_what_stands_before_it_is(bad: bytes):
    async with stage() as on_stage:
        client = await on_stage.login()
        await client.send(message("direct", to="raw", data="before") + bad + message("broadcast", data="behind"))
        frames, _ = await client.to_the_end()
        assert [opcode for opcode, _ in frames] == [TEXT, CLOSE]
        assert b"before" in frames[0][1]


async def test_32_an_extension_is_declined_and_the_connection_works():
    async with stage() as on_stage:
        client = await on_stage.connect()
        await client.send(request("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"))
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 101 ") and b"xtensions" not in head
        await client.send(message("login", user="raw"))
        assert (await client.hear())["type"] == "welcome"


async def test_30_a_ping_flood_by_a_client_that_never_reads_costs_nothing_and_ends():
    """At most one pong waits for it, and the write timeout ends it."""
    async with server_process(write_timeout_s=0.5, send_buffer_bytes=4096) as server, witness(server.port):
        client = await RawClient.login(server.port, "flood", receive_buffer_bytes=4096)
        await server.until(subscribers=2)
        before = await server.ask("status")
        flood = frame(PING, b"x" * 125) * 100
        with pytest.raises(ConnectionError):
            for _ in range(100_000):
                await client.send(flood)
        after = await server.until(subscribers=1)
        assert after["evicted_timeout_total"] == 1
        assert after["chunk_bytes"] <= before["chunk_bytes"] + (256 << 10)  # the witness's
        assert after["resident_bytes"] - before["resident_bytes"] < 1 << 20
        client.close()
