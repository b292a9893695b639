"""The command ``starlight``: the way to all others, and being a client from a terminal.

Strategy: a command is a thin shell. It turns words into settings, calls one function of the layers below, and turns
what may go wrong into one line and an exit code. Nothing is imported before the command that needs it runs, because
`serve` shall accept its first connection within half a second.

Exit codes: 0 done; 1 the server refused what was asked, or the application failed; 2 a wrong word on the command line
or in the environment, a port in use, a server that can't be reached; 130 interrupted, 141 the reader of the output has
gone, both as shells have it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
import typer.core

from starlight.cli.options import (
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_USAGE,
    Failure,
    complain,
    counted,
    fail,
    make_app,
    whole_number,
)
from starlight.config.printable import printable

if TYPE_CHECKING:
    from starlight.client.connect import Message, Publication, StarlightClient

__all__ = ["app", "main"]

EXIT_BROKEN_PIPE: Final = 141

COUNT_MOST: Final = 10**18
DEFAULT_URL: Final = "ws://127.0.0.1:8765/ws"
DEFAULT_USER: Final = "cli"
"""Who `sub`, `pub` and `send` are unless told: a name that says where the message came from."""

LAZY_COMMANDS: Final = {
    "serve": "starlight.cli.serve",
    "top": "starlight.cli.top.command",
    **dict.fromkeys(("conns", "why", "kick", "drain"), "starlight.cli.ops"),
    "config": "starlight.cli.config",
    "doctor": "starlight.cli.doctor.command",
    "token": "starlight.cli.token",
    "bench": "starlight.loadtest.cli",
}
"""Commands that live elsewhere, as `app` of that module or a command of it; shown if there, imported when called."""


class CommandGroup(typer.core.TyperGroup):
    """The commands of this module, and `LAZY_COMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help."""
        there = [name for name, module in LAZY_COMMANDS.items() if _is_installed(module)]
        return sorted([*super().list_commands(ctx), *there], key=lambda name: name != "serve")  # the others as they are

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, imported now if it lives elsewhere; None if there is none."""
        if cmd_name in LAZY_COMMANDS and _is_installed(LAZY_COMMANDS[cmd_name]):
            command = typer.main.get_command(importlib.import_module(LAZY_COMMANDS[cmd_name]).app)
            return getattr(command, "commands", {}).get(cmd_name, command)
        return super().get_command(ctx, cmd_name)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


app = make_app("Starlight: a WebSocket message server.", CommandGroup)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. It is the console script, and writes errors to stderr in one line.

    Args:
        arguments: the words after ``starlight``; None for the process's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = app(args=words or ["--help"], prog_name="starlight", standalone_mode=False)
    except Failure as failure:
        return complain(*failure.messages, code=failure.code)
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except Exception as error:
        described = getattr(error, "format_message", None)  # typer's own complaints about the command line
        if described is None:
            raise
        message = described()
        if message.startswith("Usage:"):  # the help of a group that was given no command
            print(message, file=sys.stderr)
            return EXIT_USAGE
        return complain(message)
    return result if isinstance(result, int) else 0


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from starlight import __version__

        print(f"starlight {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Starlight: a WebSocket message server."""


@app.command(short_help="Echo every message, for conformance suites.", hidden=True)
def conformance(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[str, typer.Option("--port", help="Port to listen on; 0 picks one.", metavar="INTEGER")] = "9001",
) -> int:
    """Echo: every message back to its sender, no login, limits of many megabytes; until SIGTERM or Ctrl-C.

    For suites that test the protocol, such as Autobahn. Not for a network that others are on.
    """
    from starlight.cli.serve import run_node
    from starlight.server.conformance import EchoNode, conformance_settings

    words = {"host": host, "port": port}
    return run_node(conformance_settings, lambda settings: EchoNode(settings).run(), words)


# Clients for the terminal

Url = Annotated[str, typer.Option("--url", envvar="STARLIGHT_URL", help="The server.", metavar="URL")]
User = Annotated[
    str | None,
    typer.Option("--user", envvar="STARLIGHT_USER", help=f"Log in by name. [default: {DEFAULT_USER}]", metavar="USER"),
]
TokenWord = Annotated[
    str | None,
    typer.Option("--token", envvar="STARLIGHT_TOKEN", help="Log in by token.", metavar="TOKEN", show_default=False),
]
Data = Annotated[str, typer.Argument(metavar="DATA", help="JSON, sent as it is; anything else is sent as a string.")]


@app.command(short_help="Print what is published in a channel.")
def sub(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="The channel to join.")],
    url: Url = DEFAULT_URL,
    user: User = None,
    token: TokenWord = None,
    count: Annotated[
        str | None, typer.Option("--count", metavar="N", help="Stop after N messages.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each message as one line of JSON.")] = False,
) -> int:
    """Print what is published in a channel, and what is sent to this user, one line each. Ctrl-C ends it.

    After a lost connection it connects and joins again; a line on stderr says so.
    """
    limit = whole_number("--count", count, COUNT_MOST) if count is not None else None

    async def follow(client: StarlightClient) -> None:
        async with client.join(channel) as joined:
            place = f"joined {printable(channel)} on {printable(url)} as {printable(client.user)}"
            print(place, file=sys.stderr, flush=True)
            await _print_messages(client, joined, limit, as_json)

    return _as_client(follow, url, user, token, reconnect=True)


@app.command(short_help="Publish one message in a channel.")
def pub(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="The channel to publish in.")],
    data: Data,
    url: Url = DEFAULT_URL,
    user: User = None,
    token: TokenWord = None,
) -> int:
    """Publish one message in a channel, and say how many subscribers it went to."""
    payload = _payload(data)

    async def publish(client: StarlightClient) -> None:
        receipt = await client.publish(channel, payload)
        if receipt is not None:
            print(f"published in {printable(channel)} to {counted(receipt.subscribers, 'subscriber')}")

    return _as_client(publish, url, user, token, reconnect=False)


@app.command(short_help="Send one message to a user.")
def send(
    to: Annotated[str, typer.Argument(metavar="USER", help="The user to send to.")],
    data: Data,
    url: Url = DEFAULT_URL,
    user: User = None,
    token: TokenWord = None,
) -> int:
    """Send one message to a user, and say how many of the user's clients it went to."""
    payload = _payload(data)

    async def direct(client: StarlightClient) -> None:
        clients = await client.direct(to, payload)
        print(f"sent to {counted(clients or 0, 'client')} of {printable(to)}")

    return _as_client(direct, url, user, token, reconnect=False)


def _payload(data: str) -> bytes:
    """DATA as JSON: as it is if it is JSON already, otherwise as a string."""
    import json

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        json.loads(data, parse_constant=refuse)  # Python reads NaN and Infinity, which JSON doesn't have
    except (ValueError, RecursionError):
        data = json.dumps(data, ensure_ascii=False)
    try:
        return data.encode()
    except UnicodeEncodeError:
        fail("DATA: expected UTF-8")


def _as_client(
    act: Callable[[StarlightClient], Awaitable[None]], url: str, user: str | None, token: str | None, *, reconnect: bool
) -> int:
    """Connect, act, close; and describe what went wrong in one line."""
    import asyncio

    from starlight.client.connect import connect
    from starlight.errors import ClientError, ConnectFailed, LoginRefused

    if user is not None and token is not None:
        fail("--user and --token: expected one of them")

    async def session() -> None:
        name = DEFAULT_USER if user is None and token is None else user
        async with connect(url, user=name, token=token, reconnect=reconnect, on_state=_report_state) as client:
            await act(client)

    try:
        asyncio.run(session())
    except (ConnectFailed, TimeoutError) as error:
        fail(str(error))
    except LoginRefused as error:
        fail(f"{error}{_login_hint(error.code, token)}", code=EXIT_REFUSED)
    except (ClientError, ValueError) as error:  # a ValueError: DATA is JSON to Python alone, such as NaN
        fail(str(error), code=EXIT_REFUSED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing is left to flush at exit
        return EXIT_BROKEN_PIPE
    return 0


def _login_hint(code: int, token: str | None) -> str:
    from starlight.close_codes import BAD_REQUEST, INVALID_TOKEN

    if code == BAD_REQUEST:
        return "; the server may want --token" if token is None else "; the server may want --user, not --token"
    return "; `starlight token check` says why" if code == INVALID_TOKEN else ""


def _report_state(state: str, code: int | None) -> None:
    if state == "reconnecting":
        print(f"connection lost ({code}), reconnecting", file=sys.stderr, flush=True)


async def _print_messages(client: StarlightClient, joined: Any, limit: int | None, as_json: bool) -> None:
    """Print publications and messages to the user, in the order of arrival of each, until `limit` of them."""
    import asyncio

    printed = 0
    show = _as_json if as_json else _as_text
    waiting = {asyncio.ensure_future(anext(source)): source for source in (joined, client)}
    try:
        while True:
            finished, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in finished:
                print(show(one.result()), flush=True)
                printed += 1
                if printed == limit:
                    return
                source = waiting.pop(one)
                waiting[asyncio.ensure_future(anext(source))] = source
    except StopAsyncIteration:
        return  # the server closed with 1000: it has nothing more to say
    finally:
        for one in waiting:
            one.cancel()


def _as_json(message: Publication | Message) -> str:
    """One line of JSON, in ASCII, so that no control character of a stranger reaches the terminal."""
    import json

    import msgspec

    fields = msgspec.to_builtins(message)
    return json.dumps({key: value for key, value in fields.items() if key in ("data", "from") or value})


def _as_text(message: Publication | Message) -> str:
    """``news ada: hi``: where, who, what. A string is shown bare if it is harmless to a terminal, otherwise as JSON."""
    import json

    from starlight.client.connect import Expiring, Publication

    data = message.seconds if isinstance(message, Expiring) else getattr(message, "data", None)
    text = data if isinstance(data, str) and data.isprintable() else json.dumps(data)
    where = printable(message.channel) if isinstance(message, Publication) else type(message).__name__.lower()
    who = getattr(message, "from_user", None) or getattr(message, "user", None) or "server"
    return f"{where} {who if who.isprintable() else json.dumps(who)}: {text}"
