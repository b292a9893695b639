"""The long forms: what takes minutes and proves what docs/reliability.md promises.

    python -m tests.long leaks      100,000 connections that do everything a client can do, and nothing is left
    python -m tests.long contract   10 million deliveries over 20 seeds under churn, stalls, resets and evictions
    python -m tests.long reuse      descriptors used again 2,000 times a second, and no message to the wrong user
    python -m tests.long overload   a minute of more than anybody reads, within --memory-budget
    python -m tests.long channels   a million channels at a time, and their memory comes back
    python -m tests.long comeback   10,000 clients are cut off and come back at once
    python -m tests.long pause      the process stands still for 30 s, and nobody is evicted for it
    python -m tests.long soak       half an hour of mixed load
    python -m tests.long table      write the results into docs/reliability.md again

Each starts a server in a process of its own, talks to it over loopback, prints a line, and appends what it found to
docs/reliability-results.json unless told not to (`--dry`). `tests/e2e/test_long.py` has a short form of each. The load
comes from the compiled engine of `starlight.loadtest`, and its delivery checker judges; what the engine can't be,
clients that stall, reset and publish in pieces, is here in Python.
"""
