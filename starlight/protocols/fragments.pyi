"""Stubs of the fragmented messages. What each thing means stands in fragments.pyx."""

class Fragments:
    data: bytearray
    is_text: bool
    def __init__(self, is_text: bool) -> None: ...
    def take(self, payload: bytes, is_last: bool, frames_limit: int, limit_bytes: int) -> int: ...
