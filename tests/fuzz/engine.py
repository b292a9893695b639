"""The loop of a fuzzer: pick a case, mutate it, compare two verdicts, keep what is new, make a difference small."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Generic, Protocol, TypeVar

CORPUS = Path(__file__).parent / "corpus"

POOL_LIMIT = 4_000
"""Cases of a run that cases are made of; more would thin out the rare ones."""
SHRINK_LIMIT = 3_000
"""Attempts to make a difference smaller."""

Case = TypeVar("Case")


class Difference(AssertionError):
    """The two verdicts on a case differ."""


class Target(Protocol[Case]):
    """What is fuzzed."""

    name: str

    def run(self, case: Case) -> Hashable:
        """The case's signature. Raises `Difference`."""

    def mutate(self, rng: random.Random, case: Case, other: Case) -> Case:
        """A case like this one; `other` is another of the pool to take parts from."""

    def smaller(self, case: Case) -> Iterator[Case]:
        """Simpler cases, the simplest first."""

    def read(self, text: str) -> Case:
        """A case from its file in the corpus."""

    def write(self, case: Case) -> str:
        """The reverse of `read`."""


def load(target: Target[Case], path: Path) -> Case:
    """A case of the corpus."""
    return target.read(path.read_bytes().decode())


class Fuzzer(Generic[Case]):
    """A run: everything in it follows from the seed, the corpus and the number of cases."""

    def __init__(self, target: Target[Case], seed: int) -> None:
        self.target = target
        self.rng = random.Random(seed)
        self.pool: list[Case] = []
        self.signatures: set[Hashable] = set()
        self.n_cases = 0

    def replay(self) -> None:
        """Run every case of the corpus."""
        for path in sorted((CORPUS / self.target.name).iterdir()):
            case = load(self.target, path)
            try:
                self.signatures.add(self.target.run(case))
            except Difference as difference:
                raise Difference(f"{path.name}: {difference}") from None
            self.pool.append(case)
            self.n_cases += 1

    def run(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Fuzz so long. Raises `Difference`, with the smallest case that was found to show it."""
        until_s = clock() + seconds
        while clock() < until_s:
            for _ in range(20):
                self.step()

    def step(self) -> None:
        """One case."""
        case = self.rng.choice(self.pool)
        for _ in range(1 + int(self.rng.expovariate(0.7))):
            case = self.target.mutate(self.rng, case, self.rng.choice(self.pool))
        self.n_cases += 1
        try:
            signature = self.target.run(case)
        except Difference:
            smallest, difference = self.shrink(case)
            raise Difference(f"{difference}\n{self.save(smallest)}") from None
        if signature not in self.signatures:
            self.signatures.add(signature)
            if len(self.pool) < POOL_LIMIT:
                self.pool.append(case)
            else:
                self.pool[self.rng.randrange(POOL_LIMIT)] = case

    def shrink(self, case: Case) -> tuple[Case, str]:
        """The smallest case that still makes a difference (any: it need not be the same one), and the difference."""
        attempts, difference = 0, self.difference(case) or "(it did not differ a second time)"
        progress = True
        while progress and attempts < SHRINK_LIMIT:
            progress = False
            for simpler in self.target.smaller(case):
                attempts += 1
                found = self.difference(simpler)
                if found is not None:
                    case, difference, progress = simpler, found, True
                    break
                if attempts >= SHRINK_LIMIT:
                    break
        return case, difference

    def difference(self, case: Case) -> str | None:
        """What differs; None if nothing does."""
        try:
            self.target.run(case)
        except Difference as difference:
            return str(difference)
        return None

    def save(self, case: Case) -> str:
        """Write a case to the corpus; what to tell about it."""
        text = self.target.write(case)
        name = f"found-{random.Random(text).randrange(16**8):08x}"
        path = CORPUS / self.target.name / name
        path.write_bytes(text.encode())  # not as text, so that no line end is changed
        return f"saved as tests/fuzz/corpus/{self.target.name}/{name}:\n{text[:2_000]}"


def mutate_bytes(rng: random.Random, data: bytes, other: bytes, tokens: list[bytes]) -> bytes:
    """One small change: a bit, a byte, a token put in, a piece cut out, doubled or taken from another case."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + 1 + int(rng.expovariate(0.2)))
    kind = rng.randrange(8)
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1 and at < len(data):
        return data[:at] + rng.randbytes(1) + data[at + 1 :]
    if kind == 2:
        return data[:at] + data[end:]
    if kind == 3:
        return data[:end] + data[at:end] * (1 + rng.randrange(3)) + data[end:]
    if kind == 4 and other:
        start = rng.randrange(len(other))
        return data[:at] + other[start : start + 1 + int(rng.expovariate(0.1))] + data[end:]
    if kind == 5:
        return data[:at] + rng.choice(tokens) + data[end:]
    if kind == 6:
        return data[:at]
    return data[:at] + rng.choice(tokens) + data[at:]


def smaller_bytes(data: bytes) -> Iterator[bytes]:
    """The same with a piece left out: halves first, single bytes last; then with plainer bytes."""
    size = len(data) // 2
    while size:
        for at in range(0, len(data), size):
            yield data[:at] + data[at + size :]
        size //= 2
    if len(data) == 1:
        yield b""
