"""Stub of the lines of a frame. What it means stands in _lines.pyx."""

from collections.abc import Iterator

class Lines(Iterator[bytes]):
    def __init__(self, frame: bytes) -> None: ...
    def __next__(self) -> bytes: ...
