"""Run a fuzzer: see the package's docstring."""

import argparse
import random
import sys
from pathlib import Path
from typing import Any

from tests.fuzz.bench import Bench
from tests.fuzz.decode import Decode
from tests.fuzz.engine import Difference, Fuzzer, load
from tests.fuzz.read import Read

TARGETS: dict[str, Any] = {"read": Read, "decode": Decode, "bench": Bench}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Fuzz the read side, the decoder or the load harness."
    )
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="repeats a run of as many cases")
    parser.add_argument("--case", type=Path, help="run this file of the corpus alone, and print its verdict")
    options = parser.parse_args()
    target = TARGETS[options.target]()
    fuzzer: Fuzzer[Any] = Fuzzer(target, options.seed)
    try:
        if options.case is not None:
            print(target.run(load(target, options.case)))
            return 0
        fuzzer.replay()
        fuzzer.run(options.seconds)
    except Difference as difference:
        print(f"{options.target}: seed {options.seed}, case {fuzzer.n_cases}: {difference}")
        return 1
    finally:
        target.close()
    print(
        f"{options.target}: {fuzzer.n_cases} cases, {len(fuzzer.signatures)} kinds, no difference (seed {options.seed})"
    )
    return 0


sys.exit(main())
