"""The network: from a listening socket to whole messages. What they mean, and when a connection ends, `session` says.

- `accept`: listening sockets, and what is done when descriptors run out. `activation`: those of a service manager.
- `transports`: from an accepted socket to a connection. `tls`: certificate and handshake of wss.
- `gate`, `upgrade`, `origins`: who may connect, and the answer to the handshake. `refusals`: why one was refused.
- `connection`: the transport of a session. picows' frames become messages; and `Endpoint`, what connections share.
- `departures`: notices that a peer has gone while its connection is not read.
- `picows_adapter`: what stands between picows and the transport, so that the core is the only writer.
- `pinned`: the versions whose layout is compiled in.
"""
