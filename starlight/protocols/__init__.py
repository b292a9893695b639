"""Protocols: what the bytes of a message mean. Pure: no socket, no clock, no state.

Each protocol is a folder. `native` is Starlight's own, JSON in text frames (docs/protocol.md).
"""
