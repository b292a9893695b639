"""Fuzzers of what strangers' bytes reach first: the read side of a connection, the decoder of messages, and what
`starlight bench` reads of a server.

    python -m tests.fuzz read --seconds 3600          # or: decode, bench; --seed N repeats a run
    python -m tests.fuzz read --case tests/fuzz/corpus/read/some-case

Strategy: `engine` mutates cases of a corpus and compares two verdicts on each, ours and that of code nobody here wrote.
A case that looks new (its signature: frames and outcome) joins the pool of the run. A difference is made as small as
it goes and written to the corpus; mend the fault, and keep the file: the test suite replays the corpus.

Why no atheris: it is guided by the coverage of Python's bytecode, and what is fuzzed here is compiled. Why not
Hypothesis: the decoder does 20 times as many cases a second without it, and the core and the codec have their own
property tests. The debug and sanitizer builds make the fuzzers see more: `.ci/sanitize` runs them there.
"""
