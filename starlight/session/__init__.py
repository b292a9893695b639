"""Sessions: what a client's connection is apart from its socket.

- `deadlines`: a timing wheel with one node per connection.
- `fragments`: a message that comes in several frames is put together here, and nowhere else.
- `counts`: what is counted of connections.
"""
