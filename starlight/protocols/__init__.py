"""Protocols: what the bytes of a message mean. Pure: no socket, no clock, no state.

`base` says what a protocol provides, a codec, and which encodings a node has of its codecs; `spoken` is what a node
speaks by default. Each protocol is a folder. `native` is Starlight's own, JSON in text frames (docs/protocol.md).

`fragments`: a WebSocket message that comes in several frames, put together for the server and the Python client. (The
load harness has its own, in C: it checks stamps as bytes arrive, without the GIL, and judges a server, not a client.)
"""
