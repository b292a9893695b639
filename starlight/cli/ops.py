"""The commands ``starlight conns``, ``why``, ``kick`` and ``drain``: ask and change nodes over their internal ports.

The key never stands on the command line, which everybody on a machine can read; it comes from a file. Several nodes
are asked one after another, and one that fails keeps none of the others from being asked.

Exit codes: 0 done; 1 a node refused what was asked, or there was nobody to kick; 2 a wrong word on the command line, or
a node that can't be reached.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Final

import typer

from starlight.cli.options import EXIT_REFUSED, KeyFile, Nodes, complain, counted, fail, make_app, whole_number
from starlight.cli.terminal import Column, clean, duration, rows, size
from starlight.close_codes import CLOSE_CODES, error_name, reconnect_policy
from starlight.config.units import parse_duration
from starlight.ends import CAUSES
from starlight.errors import ConfigError, NodeRefused, NodeUnreachable
from starlight.ops.client import CONNECTIONS_LIMIT, DEFAULT_NODE, ConnectionRow, EndRow, NodeClient, clients

__all__ = ["app"]

DEFAULT_NODES: Final = [DEFAULT_NODE]
WAIT_STEP_S: Final = 0.2

app = make_app("Ask nodes, and change them, over their internal ports.")

SORTS: Final[dict[str, Callable[[ConnectionRow], float]]] = {
    "outbox": lambda row: -row.outbox_bytes,
    "oldest": lambda row: -(row.oldest_ms if row.oldest_ms is not None else -1.0),
    "messages_in": lambda row: -row.messages_in,
    "connected": lambda row: -row.connected_s,
}
"""How connections of several nodes are put in one order: as each node puts its own, by the names of ``/connz``."""


@app.command(short_help="List the connections of nodes.")
def conns(
    node: Nodes = DEFAULT_NODES,
    key_file: KeyFile = "",
    sort: Annotated[
        str, typer.Option("--sort", metavar="|".join(SORTS), help="What the first ones have most of.")
    ] = "outbox",
    user: Annotated[
        str | None, typer.Option("--user", metavar="USER", help="Only those of this user.", show_default=False)
    ] = None,
    limit: Annotated[str, typer.Option("--limit", metavar="N", help="At most so many, up to 1000.")] = "100",
    as_json: Annotated[bool, typer.Option("--json", help="Print each connection as one line of JSON.")] = False,
) -> int:
    """List connections: first those with the largest outbox, the oldest message, the most messages in, or the age."""
    if sort not in SORTS:
        return complain(f"--sort {sort}: expected {', '.join(SORTS)}")
    most = whole_number("--limit", limit, CONNECTIONS_LIMIT)
    found: list[tuple[str, ConnectionRow]] = []
    totals: list[int] = []

    def ask(client: NodeClient) -> None:
        name = client.varz().node
        answer = client.connections(sort, user, most)
        totals.append(answer.total)
        found.extend((name, row) for row in answer.connections)

    code = _each(node, key_file, ask, user)
    if not totals:
        return code
    found.sort(key=lambda pair: SORTS[sort](pair[1]))
    shown = found[:most]
    _print_json(shown) if as_json else _print_table(shown, len(node) > 1)
    if sum(totals) > len(shown):
        print(f"{len(shown)} of {sum(totals)} connections", file=sys.stderr)
    return code


def _print_json(found: Sequence[tuple[str, ConnectionRow]]) -> None:
    """One line each, in ASCII, so that no control character of a stranger reaches the terminal."""
    import json

    import msgspec

    for name, row in found:
        print(json.dumps({"node": name, **msgspec.to_builtins(row)}))


def _print_table(found: Sequence[tuple[str, ConnectionRow]], with_node: bool) -> None:
    titles = ("ID", "USER", "ADDRESS", "CONNECTED", "CHANNELS", "IN", "OUTBOX", "MSGS", "OLDEST", "STATE", "PROTOCOL")
    columns = [Column(title, 0, is_left=title in ("USER", "ADDRESS", "STATE", "PROTOCOL")) for title in titles]
    table = [
        [
            str(row.id),
            clean(row.user),
            clean(row.address),
            duration(row.connected_s),
            str(row.channels),
            str(row.messages_in),
            size(row.outbox_bytes),
            str(row.outbox_messages),
            duration(row.oldest_ms / 1_000 if row.oldest_ms is not None else None),
            _state(row),
            clean(row.subprotocol),
        ]
        for _, row in found
    ]
    if with_node:
        columns.append(Column("NODE", 0, is_left=True))
        for line, (name, _) in zip(table, found, strict=True):
            line.append(clean(name))
    print("\n".join(rows(columns, table)))


def _state(row: ConnectionRow) -> str:
    """Whether its socket is full, and whether it is read from."""
    return ",".join(word for word, holds in (("full", row.is_full), ("paused", row.is_reading_paused)) if holds) or "-"


@app.command(short_help="Say why a user was disconnected.")
def why(
    user: Annotated[
        str | None, typer.Argument(metavar="[USER]", help="Whose connections; by default everybody's.")
    ] = None,
    node: Nodes = DEFAULT_NODES,
    key_file: KeyFile = "",
    code: Annotated[
        str | None, typer.Option("--code", metavar="CODE", help="Only ends with this close code.", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="DURATION", help="Only the last 10m, say. [default: a day]", show_default=False
        ),
    ] = None,
    limit: Annotated[str, typer.Option("--limit", metavar="N", help="At most so many, up to 1000.")] = "10",
    as_json: Annotated[bool, typer.Option("--json", help="Print each end as one line of JSON.")] = False,
) -> int:
    """Say how connections ended lately, the latest first: the code, who asked, what was unsent, and what to do.

    Nodes remember the last 10,000 ends for a day, refused logins among them. Exit code 1 if there was none.
    """
    wanted = _close_code(code)
    most = whole_number("--limit", limit, CONNECTIONS_LIMIT)
    try:
        since_s = time.time() - parse_duration(since, "--since") if since is not None else 0.0
    except ConfigError as error:
        return complain(str(error))
    found: list[tuple[str, EndRow]] = []
    totals: list[int] = []

    def ask(client: NodeClient) -> None:
        answer = client.ends(user, wanted, max(0.0, since_s), most)
        totals.append(answer.total)
        found.extend((answer.node, end) for end in answer.ends)

    worst = _each(node, key_file, ask, user)
    if not totals:
        return worst
    found.sort(key=lambda pair: -pair[1].at)
    shown = found[:most]
    _print_ends_json(shown) if as_json else _print_ends(shown)
    if sum(totals) > len(shown):
        print(f"{len(shown)} of {sum(totals)} ends", file=sys.stderr)
    if not shown:
        whom = f" of {clean(user)}" if user is not None else ""
        print(f"starlight: no end{whom} is remembered", file=sys.stderr)
    return worst or (0 if shown else EXIT_REFUSED)


def _print_ends_json(found: Sequence[tuple[str, EndRow]]) -> None:
    """As `_print_json`."""
    import json

    import msgspec

    for name, end in found:
        print(json.dumps({"node": name, **msgspec.to_builtins(end)}))


def _print_ends(found: Sequence[tuple[str, EndRow]]) -> None:
    """Some lines for each: when and who, why, what was unsent, what to do."""
    for name, end in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(end.at))
        print(f"{when}  {clean(end.user)} at {clean(end.address)}: {_code_words(end)}")
        text = CAUSES.get(end.cause)
        print(f"    {text.meaning if text is not None else clean(end.cause)}", end="")
        print(f" ({clean(end.detail)})" if end.detail else "")
        error = f", last error {end.last_error} {error_name(end.last_error)}" if end.last_error is not None else ""
        print(
            f"    connected for {duration(end.connected_s)}, {counted(end.messages_in, 'message')} in"
            f"{error}; client {clean(end.client)} on {clean(name)}"
        )
        if end.outbox_messages:
            age = duration(end.oldest_ms / 1_000 if end.oldest_ms is not None else None)
            unsent = f"{counted(end.outbox_messages, 'message')}, {size(end.outbox_bytes)}, the oldest {age} old"
            print(f"    unsent: {unsent}")
        if text is not None and text.advice:
            print(f"    to do: {text.advice}")


def _code_words(end: EndRow) -> str:
    """The code, what it means, and what went with it if that says more."""
    row = CLOSE_CODES.get(end.code)
    name = row.name.lower().replace("_", " ") if row is not None else "unknown code"
    policy = {"never": "stays away", "reconnect": "comes back", "backoff": "comes back with backoff"}
    said = f' "{clean(end.reason)}"' if end.reason and (row is None or end.reason != row.reason) else ""
    return f"{end.code} {name}{said}, the client {policy[reconnect_policy(end.code)]}"


def _close_code(word: str | None) -> int | None:
    """A close code as it stands on the command line."""
    if word is not None and not (word.isascii() and word.isdecimal() and 1_000 <= int(word[:5]) <= 4_999):
        fail(f"--code {word}: expected a close code such as 4503 or 4011")
    return int(word) if word is not None else None


@app.command(short_help="Disconnect a user.")
def kick(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user to disconnect.")],
    node: Nodes = DEFAULT_NODES,
    key_file: KeyFile = "",
    code: Annotated[
        str | None,
        typer.Option("--code", metavar="CODE", help="Close code. [default: 4503, stay away]", show_default=False),
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option("--reason", metavar="TEXT", help="What the clients are told with it.", show_default=False),
    ] = None,
) -> int:
    """Disconnect all clients of a user, on every node named; exit code 1 if there was none.

    Clients that follow the protocol stay away after 4503, and come back after 4011. Neither keeps the user from logging
    in again: for that, revoke the user's tokens.
    """
    wanted = _close_code(code)
    counts: list[int] = []

    def disconnect(client: NodeClient) -> None:
        counts.append(client.disconnect(user, wanted, reason))

    worst = _each(node, key_file, disconnect, user, reason)
    if not counts:
        return worst
    print(f"disconnected {counted(sum(counts), 'client')} of {clean(user)}")
    return worst or (0 if sum(counts) else EXIT_REFUSED)


@app.command(short_help="Have nodes drain and end.")
def drain(
    node: Nodes = DEFAULT_NODES,
    key_file: KeyFile = "",
    wait: Annotated[
        str | None,
        typer.Option("--wait", metavar="DURATION", help="Return when they have drained.", show_default=False),
    ] = None,
) -> int:
    """Have nodes drain: they turn unready, take no new connections, close their clients over the drain time, and end.

    With --wait, exit code 1 if one hasn't drained by then.
    """
    try:
        wait_s = parse_duration(wait, "--wait") if wait is not None else None
    except ConfigError as error:
        return complain(str(error))
    draining: list[tuple[NodeClient, int]] = []

    def start(client: NodeClient) -> None:
        pid = client.varz().pid
        client.drain()
        draining.append((client, pid))
        print(f"{client.url} drains", flush=True)

    code = _each(node, key_file, start)
    if wait_s is None:
        return code
    late = _await(draining, time.monotonic() + wait_s)
    for client in late:
        print(f"starlight: {client.url} has not drained within {wait}", file=sys.stderr)
    return code or (EXIT_REFUSED if late else 0)


def _await(draining: Sequence[tuple[NodeClient, int]], deadline_s: float) -> list[NodeClient]:
    """Wait until these have no clients any more; returns those that still had some at the deadline."""
    left = list(draining)
    while True:
        left = [(client, pid) for client, pid in left if not _has_drained(client, pid)]
        if not left or time.monotonic() >= deadline_s:
            return [client for client, _ in left]
        time.sleep(WAIT_STEP_S)


def _has_drained(client: NodeClient, pid: int) -> bool:
    """Whether the process has ended, was followed by another, or has no connection left."""
    try:
        varz = client.varz()
    except NodeUnreachable as error:
        return not isinstance(error.__cause__, TimeoutError)  # silent is not gone
    except NodeRefused:
        return False
    return varz.pid != pid or varz.connections == 0


def _each(nodes: Sequence[str], key_file: str, act: Callable[[NodeClient], None], *words: str | None) -> int:
    """Do it with every node; returns the worst exit code, having said what went wrong where.

    Args:
        nodes: URLs of internal ports.
        key_file: of their key; the empty string for none.
        act: asks one node.
        words: what else of the command line goes over the wire, which has to be UTF-8.
    """
    try:
        for word in words:
            (word or "").encode()
        asked = clients(nodes, key_file)
    except ConfigError as error:
        return complain(str(error))
    except UnicodeEncodeError:
        return complain("USER: expected UTF-8")
    worst = 0
    for client in asked:
        try:
            act(client)
        except NodeUnreachable as error:
            worst = max(worst, complain(str(error)))
        except NodeRefused as error:
            hint = ""
            if error.status in (401, 403):
                hint = f"; the key came from {key_file}" if key_file else "; --key-file names the file with the key"
            worst = max(worst, complain(f"{error}{hint}", code=EXIT_REFUSED))
        finally:
            client.close()
    return worst
