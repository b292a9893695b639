"""The command line: `main` finds the commands, and each is one file.

- `serve`, `config`, `token`, `ops` (conns, kick, drain), `top/`, `doctor/`.
- `load_app`: finds `module:app`. `options`: what several commands share. `terminal`: how a terminal is written to.
"""
