"""Brokers: how what a client asks for reaches the clients of all nodes.

- `base`: the seam. What a broker does, what it asks of a node, and an answer that comes later.
- `memory`: the broker of a node that is alone: its own hub, called directly.
"""
