"""The command ``starlight``: serve, and be a client from a terminal.

Strategy: a command is a thin shell. It turns words into settings, calls one function of the layers below, and turns
what may go wrong into one line and an exit code. Nothing is imported before the command that needs it runs, because
`serve` shall accept its first connection within half a second.

Exit codes: 0 done; 1 the server refused what was asked, or the application failed; 2 a wrong word on the command line
or in the environment, a port in use, a server that can't be reached; 130 interrupted, 141 the reader of the output has
gone, both as shells have it.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
import typer.core

if TYPE_CHECKING:
    from starlight.app import Starlight
    from starlight.client import Client, Message, Publication
    from starlight.config import Settings
    from starlight.errors import ConfigError, ListenFailed

__all__ = ["app", "main"]

EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141

DEFAULT_URL: Final = "ws://127.0.0.1:8765/ws"
DEFAULT_USER: Final = "cli"
"""Who `sub`, `pub` and `send` are unless told: a name that says where the message came from."""

LAZY_COMMANDS: Final = {
    "top": "starlight.cli_top",
    **dict.fromkeys(("conns", "kick", "drain"), "starlight.cli_ops"),
    "token": "starlight.cli_token",
    "bench": "starlight.loadtest.cli",
}
"""Commands that live elsewhere, as `app` of that module or a command of it; shown if there, imported when called."""


class CommandGroup(typer.core.TyperGroup):
    """The commands of this module, and `LAZY_COMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help."""
        there = [name for name, module in LAZY_COMMANDS.items() if _is_installed(module)]
        return [*super().list_commands(ctx), *there]

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


app = typer.Typer(
    cls=CommandGroup,
    help="Starlight: a WebSocket message server.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing rich would take longer than everything else
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. It is the console script, and writes errors to stderr in one line.

    Args:
        arguments: the words after ``starlight``; None for the process's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = app(args=words or ["--help"], prog_name="starlight", standalone_mode=False)
    except _Failure as failure:
        return _complain(failure.message, failure.code)
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except Exception as error:
        described = getattr(error, "format_message", None)  # typer's own complaints about the command line
        if described is None:
            raise
        return _complain(described(), EXIT_USAGE)
    return result if isinstance(result, int) else 0


class _Failure(Exception):
    """Ends the command with one line and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def _fail(message: str, code: int = EXIT_USAGE) -> NoReturn:
    raise _Failure(message, code)


def _complain(message: str, code: int) -> int:
    print(f"starlight: {' '.join(message.split())}", file=sys.stderr)
    return code


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


# serve


def _flag(name: str, default: str, what: str, metavar: str = "TEXT") -> Any:
    """A flag of `serve`. Left out, its setting comes from the environment or the default, which the help shows."""
    return typer.Option(name, help=f"{what} [default: {default}]", metavar=metavar, show_default=False)


# Every flag is text here: `Settings` parses it, so that flags, environment and code follow one set of rules.
@app.command(short_help="Listen, and carry messages between clients.")
def serve(
    application: Annotated[
        str | None, typer.Argument(metavar="APP", help="Your application, as module:app.", show_default=False)
    ] = None,
    host: Annotated[str | None, _flag("--host", "127.0.0.1", "Address to listen on.")] = None,
    port: Annotated[str | None, _flag("--port", "8765", "Port to listen on; 0 picks one.", "INTEGER")] = None,
    path: Annotated[str | None, _flag("--path", "/ws", "Path of the WebSocket endpoint.")] = None,
    auth: Annotated[
        str | None, _flag("--auth", "none", "Whether users log in by name or by token.", "none|jwt")
    ] = None,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="Let anybody in from any network with --auth none.")
    ] = False,
    config: Annotated[str | None, _flag("--config", "none", "TOML file with the groups of users.", "FILE")] = None,
    jwt_secret_file: Annotated[
        str | None, _flag("--jwt-secret-file", "none", "Secret of HS256, HS384 and HS512 tokens.", "FILE")
    ] = None,
    jwt_key_file: Annotated[
        str | None, _flag("--jwt-key-file", "none", "Public key of RS, PS, ES and EdDSA tokens.", "FILE")
    ] = None,
    jwt_jwks_url: Annotated[str | None, _flag("--jwt-jwks-url", "none", "The issuer's keys.", "URL")] = None,
    jwt_algorithms: Annotated[
        str | None, _flag("--jwt-algorithms", "what fits the key", "Algorithms to accept, with commas.", "LIST")
    ] = None,
    jwt_issuer: Annotated[str | None, _flag("--jwt-issuer", "any", "The only issuer to accept.", "TEXT")] = None,
    jwt_audience: Annotated[
        str | None, _flag("--jwt-audience", "none", "What tokens must be meant for.", "TEXT")
    ] = None,
    jwt_leeway: Annotated[
        str | None, _flag("--jwt-leeway", "10s", "How far the issuer's clock may be off.", "DURATION")
    ] = None,
    jwt_groups_claim: Annotated[
        str | None, _flag("--jwt-groups-claim", "groups", "The claim that names groups.", "TEXT")
    ] = None,
    session_secret_file: Annotated[
        str | None, _flag("--session-secret-file", "random", "Key of session tokens.", "FILE")
    ] = None,
    session_ttl: Annotated[
        str | None, _flag("--session-ttl", "1h", "How long a login lasts at most.", "DURATION")
    ] = None,
    connections_per_user: Annotated[
        str | None, _flag("--connections-per-user", "20 with tokens", "Of one user at once.", "INTEGER")
    ] = None,
    connections_per_address: Annotated[
        str | None, _flag("--connections-per-address", "500 with tokens", "Of one address at once.", "INTEGER")
    ] = None,
    connection_rate: Annotated[
        str | None, _flag("--connection-rate", "50 with tokens", "New ones of an address a second.", "INTEGER")
    ] = None,
    message_rate: Annotated[
        str | None, _flag("--message-rate", "200 with tokens", "Messages of a client a second.", "INTEGER")
    ] = None,
    byte_rate: Annotated[
        str | None, _flag("--byte-rate", "1MiB with tokens", "Bytes of a client a second.", "SIZE")
    ] = None,
    channels_per_client: Annotated[
        str | None, _flag("--channels-per-client", "1000", "Channels one client may join.", "INTEGER")
    ] = None,
    clients_per_channel: Annotated[
        str | None, _flag("--clients-per-channel", "0", "Clients one channel may have; 0 for any.", "INTEGER")
    ] = None,
    name_limit: Annotated[
        str | None, _flag("--name-limit", "255", "The longest name of a user or channel, in bytes.", "INTEGER")
    ] = None,
    allowed_origins: Annotated[
        str | None, _flag("--allowed-origins", "same host", "Pages that may connect, with commas.", "LIST")
    ] = None,
    trusted_proxies: Annotated[
        str | None, _flag("--trusted-proxies", "none", "Proxies to believe X-Forwarded-For.", "LIST")
    ] = None,
    tls_cert: Annotated[str | None, _flag("--tls-cert", "none", "Certificate and chain, for wss.", "FILE")] = None,
    tls_key: Annotated[str | None, _flag("--tls-key", "none", "Private key of --tls-cert.", "FILE")] = None,
    outbox_messages: Annotated[
        str | None, _flag("--outbox-messages", "256", "Messages an outbox holds before it counts as slow.", "INTEGER")
    ] = None,
    outbox_bytes: Annotated[
        str | None, _flag("--outbox-bytes", "1MiB", "Bytes an outbox holds before its client is evicted.", "SIZE")
    ] = None,
    evict_after: Annotated[
        str | None, _flag("--evict-after", "250ms", "How long a full socket may stay over the messages.", "DURATION")
    ] = None,
    coalesce_delay: Annotated[
        str | None, _flag("--coalesce-delay", "0s", "How much longer to collect before writing.", "DURATION")
    ] = None,
    read_limit: Annotated[
        str | None, _flag("--read-limit", "64KiB", "The largest message a client may send.", "SIZE")
    ] = None,
    send_buffer: Annotated[
        str | None, _flag("--send-buffer", "64KiB", "The kernel's send buffer of each connection.", "SIZE")
    ] = None,
    handshake_timeout: Annotated[
        str | None, _flag("--handshake-timeout", "5s", "For the HTTP request.", "DURATION")
    ] = None,
    login_timeout: Annotated[str | None, _flag("--login-timeout", "5s", "For the login message.", "DURATION")] = None,
    ping_interval: Annotated[str | None, _flag("--ping-interval", "25s", "Between two pings.", "DURATION")] = None,
    pong_timeout: Annotated[str | None, _flag("--pong-timeout", "10s", "For the pong to a ping.", "DURATION")] = None,
    write_timeout: Annotated[
        str | None, _flag("--write-timeout", "10s", "How long a full socket may take nothing.", "DURATION")
    ] = None,
    max_connections: Annotated[
        str | None, _flag("--max-connections", "10000", "Connections at once.", "INTEGER")
    ] = None,
    memory_budget: Annotated[
        str | None, _flag("--memory-budget", "512MiB", "Memory for all outboxes together.", "SIZE")
    ] = None,
    drain_timeout: Annotated[
        str | None, _flag("--drain-timeout", "10s", "For emptying outboxes after SIGTERM.", "DURATION")
    ] = None,
    drain_notice: Annotated[
        str | None, _flag("--drain-notice", "0s", "How long of that it only says it isn't ready.", "DURATION")
    ] = None,
    drain_rate: Annotated[str | None, _flag("--drain-rate", "1500", "Closes a second of a drain.", "INTEGER")] = None,
    reuse_port: Annotated[
        bool, typer.Option("--reuse-port", help="Let the next process listen on the port before this one ends.")
    ] = False,
    log_format: Annotated[
        str | None, _flag("--log-format", "auto", "For people, or for programs.", "auto|console|json")
    ] = None,
    log_level: Annotated[
        str | None, _flag("--log-level", "info", "Least severe line to log.", "critical|error|warning|info|debug")
    ] = None,
) -> int:
    """Serve: listen, and carry messages between clients until SIGTERM or Ctrl-C.

    Each flag may also come from the environment as STARLIGHT_ and the setting's name, such as STARLIGHT_PORT or
    STARLIGHT_OUTBOX_BYTES; a flag wins. Sizes are written 64KiB or 1MB, durations 250ms or 10s.
    """
    words = {
        "host": host,
        "port": port,
        "path": path,
        "auth": auth,
        "insecure_no_auth": "true" if insecure_no_auth else None,
        "config_file": config,
        "jwt_secret_file": jwt_secret_file,
        "jwt_key_file": jwt_key_file,
        "jwt_jwks_url": jwt_jwks_url,
        "jwt_algorithms": jwt_algorithms,
        "jwt_issuer": jwt_issuer,
        "jwt_audience": jwt_audience,
        "jwt_leeway_s": jwt_leeway,
        "jwt_groups_claim": jwt_groups_claim,
        "session_secret_file": session_secret_file,
        "session_ttl_s": session_ttl,
        "connections_per_user": connections_per_user,
        "connections_per_address": connections_per_address,
        "connection_rate": connection_rate,
        "message_rate": message_rate,
        "byte_rate_bytes": byte_rate,
        "channels_per_client": channels_per_client,
        "clients_per_channel": clients_per_channel,
        "name_limit_bytes": name_limit,
        "allowed_origins": allowed_origins,
        "trusted_proxies": trusted_proxies,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "outbox_messages": outbox_messages,
        "outbox_bytes": outbox_bytes,
        "evict_after_s": evict_after,
        "coalesce_delay_s": coalesce_delay,
        "read_limit_bytes": read_limit,
        "send_buffer_bytes": send_buffer,
        "handshake_timeout_s": handshake_timeout,
        "login_timeout_s": login_timeout,
        "ping_interval_s": ping_interval,
        "pong_timeout_s": pong_timeout,
        "write_timeout_s": write_timeout,
        "max_connections": max_connections,
        "memory_budget_bytes": memory_budget,
        "drain_timeout_s": drain_timeout,
        "drain_notice_s": drain_notice,
        "drain_rate": drain_rate,
        "reuse_port": "true" if reuse_port else None,
        "log_format": log_format,
        "log_level": log_level,
    }
    return _serve(application, {field: word for field, word in words.items() if word is not None})


@app.command(short_help="Echo every message, for conformance suites.", hidden=True)
def conformance(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[str, typer.Option("--port", help="Port to listen on; 0 picks one.", metavar="INTEGER")] = "9001",
) -> int:
    """Echo: every message back to its sender, no login, limits of many megabytes; until SIGTERM or Ctrl-C.

    For suites that test the protocol, such as Autobahn. Not for a network that others are on.
    """
    from starlight.conformance import EchoNode, conformance_settings

    words = {"host": host, "port": port}
    return _run(conformance_settings, lambda settings: EchoNode(settings).run(), words)


FLAGS: Final = {
    "config_file": "--config",
    "jwt_leeway_s": "--jwt-leeway",
    "session_ttl_s": "--session-ttl",
    "byte_rate_bytes": "--byte-rate",
    "name_limit_bytes": "--name-limit",
    "evict_after_s": "--evict-after",
    "coalesce_delay_s": "--coalesce-delay",
    "read_limit_bytes": "--read-limit",
    "send_buffer_bytes": "--send-buffer",
    "handshake_timeout_s": "--handshake-timeout",
    "login_timeout_s": "--login-timeout",
    "ping_interval_s": "--ping-interval",
    "pong_timeout_s": "--pong-timeout",
    "write_timeout_s": "--write-timeout",
    "memory_budget_bytes": "--memory-budget",
    "drain_timeout_s": "--drain-timeout",
    "drain_notice_s": "--drain-notice",
}
"""The flags that are shorter than their settings' names; in any other, underscores become hyphens."""


def _serve(name: str | None, words: dict[str, str]) -> int:
    """Run an application, or one without handlers, with these settings; returns when it has drained."""
    from starlight.app import Starlight

    application = _load(name) if name else Starlight()
    return _run(application.settings, lambda _: application.run(**words), words)


def _run(make: Callable[..., Settings], run: Callable[[Settings], None], words: dict[str, str]) -> int:
    """Make settings of words and run a server with them; what is wrong with either is told in terms of the flags."""
    from starlight.errors import ConfigError, ListenFailed

    try:
        settings = make(**words)
        run(settings)
    except ConfigError as error:
        _fail(_describe(error, words))
    except ListenFailed as error:
        _fail(_why_not_listening(error, settings))
    return 0


def _describe(error: ConfigError, words: dict[str, str]) -> str:
    """``--port abc: expected a whole number``; or the variable's or the setting's name, if it came from there."""
    if error.key not in words:
        return str(error)
    flag = FLAGS.get(error.field, "--" + error.field.replace("_", "-"))
    return f"{flag} {error.value}: expected {error.allowed}"


def _why_not_listening(error: ListenFailed, settings: Settings) -> str:
    """A failure to listen in terms of the flags."""
    if error.errno == errno.EADDRINUSE:
        return f"--port {settings.port}: already in use on {settings.host}; choose another, or 0 to have one picked"
    if error.errno == errno.EACCES:
        return f"--port {settings.port}: not permitted; ports below 1024 need privileges"
    return f"--host {settings.host} --port {settings.port}: {error.strerror or error}"


def _load(application: str) -> Starlight:
    """The application named as ``module:app``, looked for in the current directory first, as Python does it."""
    module_name, colon, name = application.partition(":")
    if not (module_name and colon and name.isidentifier()):
        _fail(f"APP {application!r}: expected module:app, such as auction:app")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise  # the module is there, and what it imports is not: its own traceback says more
        _fail(f"APP {application!r}: there is no module {error.name!r} here or in the environment")
    if not hasattr(module, name):
        _fail(f"APP {application!r}: module {module_name!r} has no {name!r}")

    from starlight.app import Starlight

    found = getattr(module, name)
    if not isinstance(found, Starlight):
        _fail(f"APP {application!r}: expected a Starlight application, but it is a {type(found).__name__}")
    return found


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
    limit = _whole_number("--count", count) if count is not None else None

    async def follow(client: Client) -> None:
        async with client.join(channel) as joined:
            print(f"joined {channel} on {url} as {client.user}", file=sys.stderr, flush=True)
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

    async def publish(client: Client) -> None:
        receipt = await client.publish(channel, payload)
        if receipt is not None:
            print(f"published in {channel} to {_counted(receipt.subscribers, 'subscriber')}")

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

    async def direct(client: Client) -> None:
        clients = await client.direct(to, payload)
        print(f"sent to {_counted(clients or 0, 'client')} of {to}")

    return _as_client(direct, url, user, token, reconnect=False)


def _whole_number(flag: str, word: str) -> int:
    if not (word.isascii() and word.isdecimal() and 1 <= int(word[:19]) <= 10**18):
        _fail(f"{flag} {word}: expected a whole number from 1 to {10**18}")
    return int(word)


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


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
        _fail("DATA: expected UTF-8")


def _as_client(
    act: Callable[[Client], Awaitable[None]], url: str, user: str | None, token: str | None, *, reconnect: bool
) -> int:
    """Connect, act, close; and describe what went wrong in one line."""
    import asyncio

    from starlight.client import connect
    from starlight.errors import ConnectFailed, ConnectionClosed, LoginRefused, RequestFailed

    if user is not None and token is not None:
        _fail("--user and --token: expected one of them")

    async def session() -> None:
        name = DEFAULT_USER if user is None and token is None else user
        async with connect(url, user=name, token=token, reconnect=reconnect, on_state=_report_state) as client:
            await act(client)

    try:
        asyncio.run(session())
    except (ConnectFailed, TimeoutError) as error:
        _fail(str(error))
    except (LoginRefused, RequestFailed, ConnectionClosed) as error:
        _fail(str(error), EXIT_REFUSED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing is left to flush at exit
        return EXIT_BROKEN_PIPE
    return 0


def _report_state(state: str, code: int | None) -> None:
    if state == "reconnecting":
        print(f"connection lost ({code}), reconnecting", file=sys.stderr, flush=True)


async def _print_messages(client: Client, joined: Any, limit: int | None, as_json: bool) -> None:
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

    from starlight.client import Publication

    data = getattr(message, "data", None)
    text = data if isinstance(data, str) and data.isprintable() else json.dumps(data)
    where = message.channel if isinstance(message, Publication) else type(message).__name__.lower()
    who = getattr(message, "from_user", None) or getattr(message, "user", None) or "server"
    return f"{where} {who if who.isprintable() else json.dumps(who)}: {text}"
