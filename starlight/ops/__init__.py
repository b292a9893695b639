"""Operations: what a node tells operators, and what they can do to it, on a port of its own.

- `internal_port`: opens it. `http_connections`: its connections, and how long each may take.
- `answers`: what every answer is made of.
- `http`: keys and routes. `api`: what the routes do, described in `openapi.json`.
- `stats`: what is read when somebody asks. `metrics`: the same for Prometheus.
- `console`: the web console. `client`: talks to all of this from the command line.
"""
