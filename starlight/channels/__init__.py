"""Channels: users, clients and channels of a node, and who may do what.

- `hub`: the registry of who is here; logins, membership, what the application pushes.
- `commands`: what clients ask for. A message of a client comes in, calls of the core go out; refusals, and meters.
- `client`, `channel`: what is kept of each. `presence`: who is in a channel.
- `handlers`: the application's functions, and what becomes of their results. `fair_threads`: threads for some of them.
"""
