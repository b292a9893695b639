"""Run a long form: see the package's docstring."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

from tests.long import channels, comeback, contract, leaks, overload, pause, reuse, soak
from tests.long.outcome import Outcome, append, read_results, write_table


def arguments(given: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.long", description="Run a long form.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--seed", type=int, default=1, help="of all that is drawn (default: 1)")
    common.add_argument("--dry", action="store_true", help="don't write the result down")
    forms = parser.add_subparsers(dest="form", required=True)
    one = forms.add_parser("leaks", parents=[common])
    one.add_argument("--connections", type=int, default=leaks.CONNECTIONS)
    one.add_argument("--tls-share", type=float, default=leaks.TLS_SHARE)
    one = forms.add_parser("contract", parents=[common])
    one.add_argument("--deliveries", type=int, default=contract.DELIVERIES)
    one.add_argument("--seeds", type=int, default=contract.SEEDS)
    one.add_argument("--rate", type=float, default=1_200.0, help="messages a second")
    one = forms.add_parser("reuse", parents=[common])
    one.add_argument("--messages", type=int, default=reuse.MESSAGES)
    one.add_argument("--churn-per-s", type=float, default=reuse.CHURN_PER_S)
    one = forms.add_parser("overload", parents=[common])
    one.add_argument("--seconds", type=float, default=overload.SECONDS)
    one = forms.add_parser("channels", parents=[common])
    one.add_argument("--channels", type=int, default=channels.CHANNELS)
    one = forms.add_parser("comeback", parents=[common])
    one.add_argument("--clients", type=int, default=comeback.CLIENTS)
    one = forms.add_parser("pause", parents=[common])
    one.add_argument("--seconds", type=float, default=pause.SECONDS)
    one.add_argument("--clients", type=int, default=pause.CLIENTS)
    one = forms.add_parser("soak", parents=[common])
    one.add_argument("--minutes", type=float, default=soak.MINUTES)
    one.add_argument("--rate", type=float, default=soak.RATE, help="messages a second")
    forms.add_parser("table", help="write the table of results again")
    return parser.parse_args(given)


def coroutine_of(options: argparse.Namespace) -> Coroutine[Any, Any, Outcome]:
    """The form that was asked for."""
    if options.form == "leaks":
        return leaks.run(options.connections, options.seed, options.tls_share)
    if options.form == "contract":
        return contract.run(options.deliveries, options.seeds, options.seed, rate=options.rate)
    if options.form == "reuse":
        return reuse.run(options.messages, options.churn_per_s, options.seed)
    if options.form == "overload":
        return overload.run(options.seconds, seed=options.seed)
    if options.form == "channels":
        return channels.run(options.channels)
    if options.form == "comeback":
        return comeback.run(options.clients)
    if options.form == "pause":
        return pause.run(options.seconds, options.clients)
    return soak.run(options.minutes, options.seed, options.rate)


def main() -> int:
    given = sys.argv[1:]
    options = arguments(given)
    if options.form == "table":
        write_table(read_results())
        return 0
    outcome = asyncio.run(coroutine_of(options))
    outcome.arguments = " ".join(argument for argument in given[1:] if argument != "--dry")
    print(outcome.line(), flush=True)
    if not options.dry:
        append(outcome)
    return 0 if outcome.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
