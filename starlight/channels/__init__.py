"""Channels: users, clients and channels of a node, and who may do what.

- `hub`: the registry. A message of a client comes in, calls of the core go out.
- `records`: what the hub keeps of a client and of a channel. `presence`: who is in a channel.
- `handlers`: the application's functions, and what becomes of their results. `fair_threads`: threads for some of them.
"""
