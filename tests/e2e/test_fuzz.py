"""The fuzzers' corpora, and a few seconds of each fuzzer; `python -m tests.fuzz` runs them for longer."""

import random
from typing import Any

import pytest

from tests.fuzz.bench import Bench
from tests.fuzz.decode import Decode
from tests.fuzz.engine import Difference, Fuzzer
from tests.fuzz.frames import BINARY, FIN, RSV1, TEXT, any_frame, frame, split
from tests.fuzz.read import Case, Read

SECONDS = 4.0
SEED = 5
"""The same cases every time, if not as many: new ones are for `.ci/sanitize` and by hand."""


@pytest.mark.parametrize("make", [Decode, Read, Bench])
def test_fuzz(make: type[Decode] | type[Read] | type[Bench]) -> None:
    target: Any = make()
    try:
        fuzzer: Fuzzer[Any] = Fuzzer(target, SEED)
        fuzzer.replay()
        fuzzer.run(SECONDS)
    finally:
        target.close()


class Broken(Decode):
    """A decoder with a fault: it can't stand the letter z."""

    def run(self, case: bytes) -> int:
        if b"z" in case:
            raise Difference("z")
        return len(case)


def test_a_difference_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzzer = Fuzzer(Broken(), seed=1)
    saved: list[bytes] = []
    monkeypatch.setattr(fuzzer, "save", lambda case: saved.append(case) or "")
    fuzzer.pool = [b"some text", b"another"]
    with pytest.raises(Difference, match="z"):
        fuzzer.run(60)
    assert saved == [b"z"]


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        (b"", "messages"),
        (frame(TEXT, b"ping!", mask=None), "messages"),
        (frame(BINARY, b"hello", mask=None), "messages"),
        (frame(TEXT, b"hello", mask=None), "close code"),
        (frame(TEXT, b"hello", first=FIN | RSV1, mask=None), "reserved bit"),
        (frame(TEXT, b"hello", mask=None) + frame(8, b"\x03\xe8", mask=None), "close code"),
        (frame(TEXT, b"hello", mask=None) + frame(8, b"\x03\xea", mask=None)[:-1], "half a frame"),
        (frame(TEXT, b"hello", mask=None) + frame(8, b"\x03\xea", mask=None) * 2, "behind the close"),
        (frame(TEXT, b"hello", mask=None) + frame(10, b"?", mask=None) + frame(8, b"\x03\xea", mask=None), "pongs"),
    ],
)
def test_the_read_fuzzer_sees_a_wrong_answer(monkeypatch: pytest.MonkeyPatch, wire: bytes, complaint: str) -> None:
    target = Read()

    async def talk(case: Case) -> bytes:
        return wire

    monkeypatch.setattr(target, "talk", talk)
    try:
        with pytest.raises(Difference, match=complaint):
            target.run(Case(frame(TEXT, b"hello") + frame(TEXT, b"bad", first=FIN | RSV1)))
    finally:
        target.close()


def test_cases_survive_their_files() -> None:
    rng = random.Random(7)
    case = Case(b"".join(any_frame(rng) for _ in range(20)), (1, 5, 100), True)
    target = Read()
    try:
        assert target.read(target.write(case)) == case
    finally:
        target.close()
    text = bytes(range(256))
    assert Decode().read(Decode().write(text)) == text


def test_splitting_finds_the_frames() -> None:
    rng = random.Random(7)
    frames = [any_frame(rng) for _ in range(200)]
    found = split(b"".join(frames))
    assert [one.end - one.start for one in found] == [len(one) for one in frames]
