"""Sessions: a client's connection as the protocol sees it. Nothing here knows a socket.

- `session`: messages strictly one after the other, the login, a share of each turn, signs of life, the ways to end.
  And `SessionHost`, what the sessions of one node share.
- `phases`: one table of all transitions. What is not in it raises.
- `transport`: what a session asks of what carries its messages. `net.connection` is one; the tests have another.
- `counts`: what is counted of sessions and connections.
- `deadlines`: a timing wheel with one node per session.
"""
