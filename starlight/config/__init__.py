"""Settings: one set of names for flags, environment variables and the TOML file.

- `settings`: every setting with its default and its reason. `fields`: their types. `file`: TOML and secrets.
- `units`: sizes and durations. `addresses`: hosts. `machine`: what the machine grants a process.
- `reconfigure`: how changed settings reach what serves. `patterns`: of names, with stars.
- `named_files`: whether the files that settings name have changed. `printable`: how a stranger's text is shown.
"""
