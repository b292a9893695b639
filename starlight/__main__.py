"""The console script ``starlight``, and ``python -m starlight``."""

import signal
import sys


def run() -> int:
    """Run the command line; returns the exit code. Ctrl-C while it is loaded ends it without a traceback."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # not in the background of a shell, where it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from starlight.cli.main import main

    signal.signal(signal.SIGINT, handler)
    return main()


if __name__ == "__main__":
    sys.exit(run())
