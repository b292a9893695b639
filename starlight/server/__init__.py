"""A node: it starts and ends everything else.

- `node`: the order of start and stop. `process`: signals and the exit. `drain`: how clients are sent away.
- `exit_guard`, `stall`: an end in time, and a name for what holds the loop. `mistakes`: all errors of a configuration.
- `reload`: SIGHUP. `logs`: the log. `memory`: gives freed memory back to the system.
- `conformance`: an echo for conformance suites.
"""
