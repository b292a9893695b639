"""Frames as a client may send them, right and wrong; and a plain splitter that knows where each begins and ends."""

from __future__ import annotations

import random
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN, RSV1, RSV2, RSV3, MASKED = 0x80, 0x40, 0x20, 0x10, 0x80


def frame(
    opcode: int, payload: bytes = b"", *, first: int = FIN, mask: bytes | None = b"\0\0\0\0", width: int = 0
) -> bytes:
    """A frame. first: the other bits of its first byte. mask: None for an unmasked one. width: bytes of the length
    beyond the seven bits, if not as few as possible."""
    size = len(payload)
    width = width or (0 if size < 126 else 2 if size < 65_536 else 8)
    short = size if width == 0 else 126 if width == 2 else 127
    head = bytes([first | opcode, short | (0 if mask is None else MASKED)]) + (
        size.to_bytes(width, "big") if width else b""
    )
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


@dataclass(frozen=True)
class Seen:
    """Where a frame is in the bytes, and what its header says."""

    start: int
    end: int
    first: int
    size: int
    has_size: bool
    is_minimal: bool
    is_masked: bool
    payload: bytes

    @property
    def opcode(self) -> int:
        return self.first & 0x0F

    @property
    def is_final(self) -> bool:
        return bool(self.first & FIN)

    @property
    def has_reserved_bits(self) -> bool:
        return bool(self.first & (RSV1 | RSV2 | RSV3))


def split(data: bytes) -> list[Seen]:
    """The frames in these bytes, whatever is wrong with them; the last may end behind them."""
    found: list[Seen] = []
    at = 0
    while at + 2 <= len(data):
        first, second = data[at], data[at + 1]
        short = second & 0x7F
        width = 2 if short == 126 else 8 if short == 127 else 0
        least = 126 if width == 2 else 65_536 if width == 8 else 0
        has_size = at + 2 + width <= len(data)
        size = short if not width else int.from_bytes(data[at + 2 : at + 2 + width], "big") if has_size else least
        is_masked = bool(second & MASKED)
        body = at + 2 + width + 4 * is_masked
        key = data[body - 4 : body] if is_masked and body <= len(data) else b"\0\0\0\0"
        payload = bytes(byte ^ key[i % 4] for i, byte in enumerate(data[body : body + size]))
        found.append(Seen(at, body + size, first, size, has_size, size >= least, is_masked, payload))
        at = body + size
    return found


TEXTS = [b"", b"a", b"hello", "κόσμε".encode(), "\U0010ffff".encode()]
TEXTS += [b"\xf4\x90\x80\x80", b"\xed\xa0\x80", b"\xc0\xaf", b"\xce", b"\xba", b"\xf0\x9f", b"\x98\x80", b"\xff"]
TEXTS += [b"x" * 125, b"x" * 126, b"x" * 600, b"x" * 1_100]
CODES = [0, 999, 1000, 1001, 1003, 1004, 1005, 1006, 1007, 1011, 1014, 1015, 1016, 2999, 3000, 4999, 5000, 65_535]


def any_frame(rng: random.Random) -> bytes:
    """A frame that may be wrong in one way."""
    opcode = rng.choice((CONTINUATION, TEXT, TEXT, BINARY, BINARY, CLOSE, PING, PONG, *range(16)))
    payload = rng.choice(TEXTS)
    if opcode == CLOSE and rng.random() < 0.9:
        payload = rng.choice(CODES).to_bytes(2, "big") + rng.choice((b"", b"", *TEXTS[:14]))
    first = FIN if rng.random() < 0.7 else rng.choice((0, 0, 0, 0, FIN | RSV1, FIN | RSV2, RSV3))
    mask = rng.randbytes(4) if rng.random() < 0.95 else None
    width = rng.choice((2, 8)) if rng.random() < 0.05 else 0
    if width == 2 and len(payload) > 65_535:
        width = 8
    return frame(opcode, payload, first=first, mask=mask, width=width)
