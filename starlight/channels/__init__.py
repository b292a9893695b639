"""Channels: users, clients and channels of a node, and who may do what.

- `hub`: the registry of who is here; logins, membership, what the application pushes.
- `commands`: what clients ask for. A message of a client comes in, calls of the core go out; refusals, and meters.
- `delivery`: what reaches the clients of this node, whatever node it comes from.
- `later`, `under_way`: commands of a hub whose broker answers later; the replies that wait.
- `client`, `channel`: what is kept of each. `options`: what a channel does, by patterns of names.
- `presence`: who is in a channel. `announcements`: who came and went, told to its members.
- `handlers`: the application's functions, and what becomes of their results. `handler_threads`: for those in threads.
"""
