"""Stubs of the fragmented messages. What each thing means stands in fragments.pyx."""

class Fragments:
    data: bytearray
    is_text: bool
    def __init__(self, is_text: bool) -> None: ...
