"""Authentication and authorization: who a client is, until when, and how much it may ask for.

- `login`: what is kept of a login, and how long it lasts. `identity`: what it comes to, and the authenticators.
- `tokens`, `jwks`: JSON Web Tokens and where their keys come from. `session_tokens`: our own, and what was revoked.
- `permissions`: what a client may do. `limits`: how often and how much. `dry_run`: limits that only count.
- `user_room`: where a user has as many connections as allowed, silent ones make room for the next.
"""
