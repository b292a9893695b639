"""What the `websockets` library makes of a peer's bytes: its sans-I/O protocol, fed frame by frame.

`expect` also knows where starlight differs on purpose. Each such difference has a name here, and no other is accepted:

close-in-message    A close between the fragments of a message is answered in kind (RFC 6455 §5.4 allows control frames
                    there); websockets takes 1002.
close-empty         A close without a code is answered with 1000; websockets answers without a code.
length-sign         A length from 2^63 up is 1002 (§5.2: its most significant bit must be 0); websockets takes 1009.
length-not-minimal  Is 1002 (§5.2: the minimal number of bytes must be used); websockets takes it.
fragments           64 frames that do not end their message are 1008; websockets has no limit.
control-size        A ping or pong inside a message is not counted into the message's size; websockets does that.
utf8-early          Bad UTF-8 is 1007 at the fragment that has it; websockets leaves text to a layer above.
whole-frame         What is wrong with a frame that has not arrived as a whole, except its size, may be found only
                    when it has.
two-faults          A frame with two faults may be closed for either.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field

from websockets.exceptions import PayloadTooBig
from websockets.frames import Opcode
from websockets.protocol import OPEN, SERVER, Protocol, Side

from starlight import close_codes
from tests.fuzz.engine import Difference
from tests.fuzz.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, Seen, frame, split
from tests.support.fakes import is_utf8

FRAGMENTS_LIMIT = 64
OPEN_STILL = None
"""In place of a close code."""


@dataclass
class Verdict:
    """What came of a connection's bytes.

    messages: (is text, payload) of each, in order. pings: payloads. closes: the codes that are right, `OPEN_STILL` if
    it may or must stay open. named: which differences were used.
    """

    messages: list[tuple[bool, bytes]] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)
    closes: set[int | None] = field(default_factory=lambda: {OPEN_STILL})
    named: set[str] = field(default_factory=set)


class Reader:
    """Reads one connection's frames, as a server or as a client."""

    def __init__(self, limit_bytes: int, side: Side = SERVER, fragments_limit: int = FRAGMENTS_LIMIT) -> None:
        self.limit_bytes = limit_bytes
        self.side = side
        self.fragments_limit = fragments_limit
        self.protocol = Protocol(side, state=OPEN, max_size=limit_bytes)
        self.verdict = Verdict()
        self.n_fragments = 0
        self.size = 0
        self.is_text = False
        self.message = bytearray()
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def close(self, name: str, *codes: int | None) -> bool:
        """The connection ends here. Returns False, for `read` to pass on."""
        self.verdict.closes = set(codes)
        if name:
            self.verdict.named.add(name)
        return False

    def read(self, seen: Seen, data: bytes) -> bool:
        """One frame; False if the connection is over."""
        is_whole = seen.end <= len(data)
        faults = self.faults(seen)
        if not is_whole and faults:
            if faults == {1009} and seen.has_size:
                return self.close("", 1009)
            return self.close("whole-frame", OPEN_STILL, *faults)
        if len(faults) > 1:
            return self.close("two-faults", *faults)
        if seen.size >= 2**63:
            return self.close("length-sign", 1002)
        if not seen.is_minimal:
            return self.close("length-not-minimal", 1002)
        if seen.opcode > CLOSE and not faults and seen.size > self.limit_bytes - self.size:
            self.verdict.named.add("control-size")
            self.verdict.pings += [seen.payload] if seen.opcode == PING and is_whole else []
            return True
        if not faults and is_whole:
            if seen.opcode == CLOSE:
                return self.read_close(seen)
            self.n_fragments += seen.opcode < CLOSE
            if self.n_fragments >= self.fragments_limit and not seen.is_final and seen.opcode < CLOSE:
                return self.close("fragments", 1008)
        self.protocol.receive_data(data[seen.start : seen.end])
        return self.events(seen, faults)

    def faults(self, seen: Seen) -> set[int]:
        """Codes for what is wrong with a header: for the differences that depend on it, never the verdict itself."""
        codes = set()
        if self.is_malformed(seen):
            codes.add(1002)
            if seen.opcode == CLOSE and not is_utf8(seen.payload[2:]):
                codes.add(1007)
        if seen.size > self.limit_bytes - (0 if seen.opcode >= CLOSE else self.size) and seen.size < 2**63:
            codes.add(1009)
        return codes

    def is_malformed(self, seen: Seen) -> bool:
        if (
            seen.is_masked is not (self.side is SERVER)
            or seen.has_reserved_bits
            or not seen.is_minimal
            or seen.size >= 2**63
        ):
            return True
        if seen.opcode >= CLOSE:
            return seen.opcode > PONG or not seen.is_final or seen.size > 125
        return seen.opcode > BINARY or (seen.opcode == CONTINUATION) != (self.protocol.current_size is not None)

    def read_close(self, seen: Seen) -> bool:
        """A whole close frame with a right header."""
        if self.protocol.current_size is not None:
            self.verdict.named.add("close-in-message")
        alone = Protocol(self.side, state=OPEN)
        alone.receive_data(frame(CLOSE, seen.payload, mask=b"\0\0\0\0" if self.side is SERVER else None))
        sent = alone.close_sent
        assert sent is not None
        code = int.from_bytes(seen.payload[:2], "big")
        if sent.code == 1005:
            return self.close("close-empty", 1000)
        if sent.code == 1007 and not close_codes.valid_on_wire(code):
            return self.close("two-faults", 1002, 1007)
        return self.close("", sent.code)

    def events(self, seen: Seen, faults: set[int]) -> bool:
        """Take what websockets made of a frame."""
        for event in self.protocol.events_received():
            assert event.opcode is not Opcode.CLOSE
            if event.opcode is Opcode.PING:
                self.verdict.pings.append(bytes(event.data))
            elif event.opcode is not Opcode.PONG and not self.fragment(event.opcode, bytes(event.data), event.fin):
                return self.close("utf8-early" if not event.fin else "", 1007)
        failure = self.protocol.parser_exc
        if failure is None:
            return True
        codes = {1009 if isinstance(failure, PayloadTooBig) else 1002}
        if codes == {1009} and seen.opcode >= CLOSE:
            return self.close("control-size", *faults)
        if codes != faults:
            raise Difference(f"{seen}: websockets says {failure!r}, the rules here {faults}")
        return self.close("", *codes)

    def fragment(self, opcode: Opcode, payload: bytes, fin: bool) -> bool:
        """Add it to the message under way; False if the text is not UTF-8."""
        if opcode is not Opcode.CONT:
            self.is_text = opcode is Opcode.TEXT
            self.message.clear()
            self.decoder.reset()
        self.message += payload
        self.size = 0 if fin else len(self.message)
        if self.is_text:
            try:
                self.decoder.decode(payload, final=fin)
            except UnicodeDecodeError:
                return False
            lead = self.decoder.getstate()[0][:2]
            if b"\xed\xa0" <= lead <= b"\xed\xbf":  # half a surrogate: Python's decoder waits for the third byte
                return False
        if fin:
            self.verdict.messages.append((self.is_text, bytes(self.message)))
            self.n_fragments = 0
        return True


def expect(data: bytes, limit_bytes: int, side: Side = SERVER, fragments_limit: int = FRAGMENTS_LIMIT) -> Verdict:
    """What must come of these bytes after the handshake.

    limit_bytes: of a message. side: who receives them. fragments_limit: so many that do not end their message are too
    many.
    """
    reader = Reader(limit_bytes, side, fragments_limit)
    for seen in split(data):
        if not reader.read(seen, data):
            break
    return reader.verdict
