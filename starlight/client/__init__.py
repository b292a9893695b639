"""The client for Python. `starlight.connect` is its door; it needs nothing of the server.

- `connect`: the client as an application sees it. `channel`: a channel that it joined.
- `link`: one connection. `backoff`: when to try again. `credentials`: what it logs in with.
- `keepalive`: drops a line that has fallen silent.
- `joins`, `rejoin`: channels are joined many in one message. `pace`: how many, and how soon.
- `inbox`: what came and waits. `requests`: what is waited for.
"""
