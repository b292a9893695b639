"""The command line: processes where processes matter, `main` in this one for what is refused."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from starlight import __version__
from starlight.cli import main as cli
from starlight.client.connect import Expiring
from starlight.config.fields import Entry
from starlight.config.settings import entries
from tests.support.fakes import eventually
from tests.support.scripted_server import scripted_server
from tests.support.settings import other_values

STARLIGHT = [sys.executable, "-m", "starlight"]
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 20.0

APPLICATION = """
from starlight import Starlight
app = Starlight(path="/from-code", read_limit_bytes="8KiB")
not_an_app = 1
"""


class Process:
    """A `starlight` command with its output read line by line; killed at the end if it still runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self, stream: str, containing: str) -> str:
        """The next line of ``stdout`` or ``stderr`` that contains a text; lines before it are skipped."""
        reader = getattr(self.process, stream)
        async with asyncio.timeout(TIMEOUT_S):
            while line := (await reader.readline()).decode():
                if containing in line:
                    return line.rstrip("\n")
        raise AssertionError(f"{stream} ended without {containing!r}")

    async def end(self, number: signal.Signals | None = None) -> int:
        """Its exit code, after a signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        async with asyncio.timeout(TIMEOUT_S):
            return await self.process.wait()


@asynccontextmanager
async def running(*words: str, cwd: Path = ROOT, **environment: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *STARLIGHT,
        *words,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()  # also closes the pipes


async def url_of(serving: Process) -> str:
    found = re.search(r"ws://\S+", await serving.line("stderr", "listens on"))
    assert found
    return found[0]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must end with 2 and one line; returns the line."""
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("starlight: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("starlight: ").rstrip("\n")


# serve


async def test_two_terminals() -> None:
    async with running("serve", "--port", "0") as serving:
        url = await url_of(serving)
        async with running("sub", "news", "--url", url, "--user", "ada", "--count", "3") as sub:
            assert await sub.line("stderr", "joined") == f"joined news on {url} as ada"
            for words, said in (
                (("pub", "news", "hi"), "published in news to 1 subscriber"),
                (("pub", "news", '{"a": 1.0}', "--user", "bob"), "published in news to 1 subscriber"),
                (("send", "ada", "psst"), "sent to 1 client of ada"),
                (("pub", "sport", "1"), "published in sport to 0 subscribers"),
            ):
                async with running(*words, "--url", url) as command:
                    assert await command.line("stdout", "") == said
                    assert await command.end() == 0
            assert [await sub.line("stdout", "") for _ in range(3)] == [
                "news cli: hi",
                'news bob: {"a": 1.0}',
                "direct cli: psst",
            ]
            assert await sub.end() == 0
        assert await serving.end(signal.SIGTERM) == 0


async def test_the_start_line_has_the_address_and_the_limits() -> None:
    words = ["--port", "0", "--path", "/chat", "--outbox-bytes", "2MiB", "--ping-interval", "500ms"]
    async with running("serve", *words, STARLIGHT_OUTBOX_MESSAGES="77", STARLIGHT_PATH="/ignored") as serving:
        line = await serving.line("stderr", "listens on")
        assert re.search(r"ws://127\.0\.0\.1:[1-9]\d*/chat ", line)
        assert "outbox=77/2MiB" in line
        assert "ping=500ms" in line
        assert await serving.end(signal.SIGINT) == 0


async def test_an_application_from_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(APPLICATION)
    async with running("serve", "mine:app", "--port", "0", cwd=tmp_path, STARLIGHT_PATH="/environment") as serving:
        line = await serving.line("stderr", "listens on")
        assert "/from-code " in line
        assert "read_limit=8KiB" in line
        assert await serving.end(signal.SIGTERM) == 0
    async with running("serve", "mine:app", "--port", "0", "--path", "/flag", cwd=tmp_path) as serving:
        assert (await url_of(serving)).endswith("/flag")


@pytest.mark.parametrize(
    ("application", "complaint"),
    [
        ("mine", "APP 'mine': expected module:app, such as auction:app"),
        ("mine:", "APP 'mine:': expected module:app, such as auction:app"),
        ("mine:app.x", "APP 'mine:app.x': expected module:app, such as auction:app"),
        ("nowhere:app", "APP 'nowhere:app': there is no module 'nowhere' here or in the environment"),
        ("mine:missing", "APP 'mine:missing': module 'mine' has no 'missing'; it has app"),
        (
            "mine:not_an_app",
            "APP 'mine:not_an_app': expected a Starlight application, but it is a int; the module has app",
        ),
        ("./mine:app", "APP './mine:app': expected module:app, such as auction:app; did you mean mine:app?"),
        ("mine.py:app", "APP 'mine.py:app': expected module:app, such as auction:app; did you mean mine:app?"),
        ("./a/mine.py", "APP './a/mine.py': expected module:app, such as auction:app; did you mean a.mine:app?"),
        ("..mine:app", "APP '..mine:app': expected module:app, such as auction:app"),
        ("mien:app", "APP 'mien:app': there is no module 'mien' here or in the environment; did you mean mine?"),
    ],
)
def test_a_wrong_application_is_named(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    application: str,
    complaint: str,
) -> None:
    (tmp_path / "mine.py").write_text(APPLICATION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert refused(capsys, "serve", application) == complaint


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import no_such_dependency\n", ["APP 'mine:app': No module named 'no_such_dependency' (mine.py:1)"]),
        ("def app(:\n", ["APP 'mine:app': SyntaxError: invalid syntax (mine.py:1)"]),
        ("import sys\nsys.exit(3)\n", ["APP 'mine:app': importing it ends the program (exit code 3) (mine.py:2)"]),
        (
            "def make():\n    return undefined\n\napp = make()\n",
            [
                "Traceback (most recent call last):",
                '  File "{path}", line 4, in <module>',
                "    app = make()",
                '  File "{path}", line 2, in make',
                "    return undefined",
                "APP 'mine:app': importing it failed: NameError: name 'undefined' is not defined (mine.py:2)",
            ],
        ),
    ],
)
def test_an_application_that_fails_is_told_by_its_own_lines_alone(
    source: str, expected: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    done = subprocess.run(
        [*STARLIGHT, "serve", "mine:app"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines = [line.removeprefix("starlight: ") for line in done.stderr.splitlines()]
    lines = [line for line in lines if not set(line) <= set(" ^~")]
    assert (done.returncode, lines) == (1, [line.format(path=path) for line in expected])


def test_all_that_is_wrong_in_code_file_and_environment_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text('message_rate = "x"\n[groups.a]\npublsh = ["x"]\ndirect = 3\n')
    (tmp_path / "mine.py").write_text(
        "from starlight import Starlight\n"
        "groups = {'b': {'subscrib': ['x']}}\n"
        "app = Starlight(prot=1, auth='jvt', tls_cert='/nope', groups=groups, config_file='wrong.toml')\n"
        "if __name__ == '__main__':\n    app.run()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STARLIGHT_PING_INTERVAL_S": "soon"}
    expected = [
        "prot=1: expected the name of a setting; did you mean port?",
        "auth='jvt': expected one of none, jwt; did you mean jwt?",
        "wrong.toml:1: message_rate='x': expected a whole number",
        "wrong.toml:3: groups.a.publsh=['x']: expected a table with some of",
        "wrong.toml:4: groups.a.direct=3: expected true or false",
        "groups.b.subscrib=['x']: expected a table with some of",
        "STARLIGHT_PING_INTERVAL_S='soon': expected a duration",
        "tls_cert='/nope': expected a file that can be read",
    ]
    for command in ([*STARLIGHT, "serve", "mine:app"], [sys.executable, "mine.py"]):
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment
        )
        lines = [line.removeprefix("starlight: ") for line in done.stderr.splitlines() if ": expected " in line]
        lines = [line.removeprefix("starlight.errors.ConfigError: ") for line in lines]
        assert len(lines) == len(expected), done.stderr
        for start in expected:
            assert [line for line in lines if line.startswith(start)], (start, lines)


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--port", "abc", "a whole number from 0 to 65535"),
        ("--port", "65536", "a whole number from 0 to 65535"),
        ("--path", "ws", "a path such as /ws"),
        ("--auth", "basic", "one of none, jwt"),
        ("--outbox-messages", "0", "a whole number from 1 to"),
        ("--outbox-bytes", "1XB", "a size such as 64KiB"),
        ("--evict-after", "soon", "a duration such as 250ms"),
        ("--coalesce-delay", "2s", "0s to 1s"),
        ("--read-limit", "1", "128B to 64MiB"),
        ("--send-buffer", "-1", "a size such as 64KiB"),
        ("--handshake-timeout", "0", "a duration such as 250ms"),
        ("--login-timeout", "1y", "a duration such as 250ms"),
        ("--ping-interval", "nan", "a duration such as 250ms"),
        ("--pong-timeout", "", "a duration such as 250ms"),
        ("--write-timeout", "1e9", "a duration such as 250ms"),
        ("--max-connections", "many", "a whole number from 1 to"),
        ("--memory-budget", "1KiB", "1MiB to"),
        ("--drain-timeout", "2h", "0s to 1h"),
        ("--log-level", "loud", "one of critical, error, warning, info, debug"),
    ],
)
def test_a_wrong_value_names_flag_value_and_what_is_allowed(
    capsys: pytest.CaptureFixture[str], flag: str, value: str, allowed: str
) -> None:
    complaint = refused(capsys, "serve", flag, value)
    assert complaint.startswith(f"{flag} {value}".strip())
    assert ": expected " in complaint
    assert allowed in complaint


def test_a_wrong_value_of_the_environment_names_the_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STARLIGHT_PORT", "abc")
    assert refused(capsys, "serve") == "STARLIGHT_PORT='abc': expected a whole number from 0 to 65535"


def test_auth_jwt_wants_something_to_verify_tokens_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "serve", "--port", "0", "--auth", "jwt").startswith("--auth jwt: expected something to ")


@pytest.mark.parametrize("group", ["config", "token", "bench"])
def test_a_group_without_a_command_shows_its_help(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([group]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"Usage: starlight {group} ") and "\nCommands:\n" in err


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        complaint = refused(capsys, "serve", "--port", str(port))
    assert complaint == f"--port {port}: already in use on 127.0.0.1; choose another, or 0 to have one picked"


def test_a_host_that_is_not_ours_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "serve", "--port", "0", "--host", "203.0.113.1", "--insecure-no-auth").startswith(
        "--host 203.0.113.1 --port 0: "
    )


def test_the_help_shows_every_setting_with_its_default_in_its_panel(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    plain = " ".join(text.split())
    places = []
    for entry in entries():
        if entry.is_secret:
            assert f"--{entry.name.replace('_', '-')} " not in text  # everybody may read a command line
            continue
        shown = f" [default: {entry.default_text}]" if entry.default_text and not entry.is_switch else ""
        words = entry.flag if entry.is_switch else f"{entry.flag} {entry.metavar}"
        assert f"{words} {entry.short}{shown}" in plain
        places.append((text.index(f"\n{entry.panel}:\n"), text.index(f"  {entry.flag} ")))
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("entry", [entry for entry in entries() if entry.flag], ids=lambda entry: entry.name)
def test_every_flag_goes_before_its_variable(
    entry: Entry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flagged, in_variable, _ = other_values(entry)
    if entry.name == "config_file":
        flagged, in_variable = "", str(tmp_path / "none.toml")
    monkeypatch.setenv(entry.variable, entry.text(in_variable))
    words = [entry.flag] if flagged is True else [entry.flag, entry.text(flagged)]
    assert cli.main(["config", "show", "--origin", *words]) == 0
    (line,) = re.findall(rf"^(?:# )?{entry.name} = .*$", capsys.readouterr().out, re.MULTILINE)
    assert re.fullmatch(rf"(?:# )?{entry.name} = {re.escape(entry.toml(flagged))} +# flag {entry.flag}", line)


def test_a_switch_can_be_turned_off(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARLIGHT_INSECURE_NO_AUTH", "true")
    for words, value in (((), "true"), (("--no-insecure-no-auth",), "false")):
        assert cli.main(["config", "show", *words]) == 0
        assert f"insecure_no_auth = {value}\n" in capsys.readouterr().out


# Clients for the terminal


async def test_sub_comes_back_and_says_so() -> None:
    async with scripted_server() as server, running("sub", "news", "--url", server.url, "--count", "1") as sub:
        await sub.line("stderr", "joined")
        await server.close_all(4011)
        assert await sub.line("stderr", "lost") == "connection lost (4011), reconnecting"
        await eventually(lambda: len(server.seen("join")) == 2)
        async with running("pub", "news", "x", "--url", server.url) as pub:
            assert await pub.end() == 0
        assert await sub.line("stdout", "") == "news someone: x"
        assert await sub.end() == 0


async def test_sub_prints_json_and_no_control_characters() -> None:
    async with scripted_server() as server:
        words = ("sub", "news", "--url", server.url, "--count", "2")
        async with running(*words) as text, running(*words, "--json") as as_json:
            for sub in (text, as_json):
                await sub.line("stderr", "joined")
            # One at a time: publications and messages to the user are two streams, in no order between them.
            await server.push({"type": "publication", "channel": "news", "from": "e\x1b[2J", "data": "\x1b[2J\x9b"})
            assert await text.line("stdout", "") == r'news "e\u001b[2J": "\u001b[2J\u009b"'
            assert json.loads(await as_json.line("stdout", "")) == {
                "type": "publication",
                "channel": "news",
                "from": "e\x1b[2J",
                "data": "\x1b[2J\x9b",
            }
            await server.push({"type": "server", "data": None})
            assert await text.line("stdout", "") == "server server: null"
            assert json.loads(await as_json.line("stdout", "")) == {"type": "server", "data": None}


async def test_sub_ends_with_130_on_ctrl_c_and_quietly() -> None:
    async with scripted_server() as server, running("sub", "news", "--url", server.url) as sub:
        await sub.line("stderr", "joined")
        assert await sub.end(signal.SIGINT) == 130
        assert await sub.process.communicate() == (b"", b"")


async def test_sub_ends_when_nobody_reads_it_any_more() -> None:
    async with scripted_server() as server, running("sub", "news", "--url", server.url) as sub:
        await sub.line("stderr", "joined")
        sub.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # what `| head -1` does
        await asyncio.sleep(0)  # the pipe is closed in the next turn
        for _ in range(2):
            await server.push({"type": "server", "data": 1})
        assert await sub.end() == 141
        assert await sub.process.communicate() == (b"", b"")


async def test_sub_ends_with_1_when_the_server_wants_no_more_of_it() -> None:
    async with scripted_server() as server, running("sub", "news", "--url", server.url) as sub:
        await sub.line("stderr", "joined")
        await server.close_all(4503, "disconnected by the operator")
        assert await sub.line("stderr", "") == "starlight: connection closed: 4503 disconnected by the operator"
        assert await sub.end() == 1


@pytest.mark.parametrize(
    ("word", "sent"),
    [
        ("hi", "hi"),
        ("", ""),
        ("1", 1),
        ('"1"', "1"),
        ("null", None),
        ('{"a": [1]}', {"a": [1]}),
        ("{broken", "{broken"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("é\n", "é\n"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_data_is_json_or_a_string(word: str, sent: object) -> None:
    assert json.loads(cli._payload(word)) == sent


def test_data_that_is_json_is_not_touched() -> None:
    assert cli._payload('{"n": 1.00, "n": 123456789012345678901234567890}') == (
        b'{"n": 1.00, "n": 123456789012345678901234567890}'
    )


async def test_what_the_server_refuses_is_one_line_and_1() -> None:
    async with running("serve", "--port", "0") as serving:
        url = await url_of(serving)
        for words, complaint in (
            (("send", "nobody", "x"), "120 not_connected"),
            (("pub", "no channel", "x"), "107 bad_request"),
            (("sub", "no channel"), "107 bad_request"),
            (("sub", "news", "--user", ""), "login refused: 4501"),
            (("pub", "news", "x" * 70_000), "a message of 70,052 bytes was not sent"),
        ):
            async with running(*words, "--url", url) as command:
                assert (await command.line("stderr", "")).startswith(f"starlight: {complaint}")
                assert await command.end() == 1


@pytest.mark.parametrize("command", [("sub", "news"), ("pub", "news", "hi"), ("send", "ada", "hi")])
def test_a_server_that_cannot_be_reached_is_one_line(capsys: pytest.CaptureFixture[str], command: tuple[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"ws://127.0.0.1:{free.getsockname()[1]}/ws"
    assert refused(capsys, *command, "--url", url) == f"{url}: nothing listens there (connection refused)"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("sub",), "Missing argument 'CHANNEL'."),
        (("frob",), "No such command 'frob'."),
        (("serve", "--no-such-flag"), "No such option: --no-such-flag"),
        (("sub", "news", "--count", "x"), "--count x: expected a whole number from 1 to 1000000000000000000"),
        (("sub", "news", "--count", "0"), "--count 0: expected a whole number from 1 to 1000000000000000000"),
        (("pub", "news", "x", "--user", "a", "--token", "b"), "--user and --token: expected one of them"),
        (("pub", "news", "\udcff"), "DATA: expected UTF-8"),
        (("pub", "news", "x", "--url", "nonsense"), "nonsense: not a WebSocket URL"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str], complaint: str
) -> None:
    assert refused(capsys, *words).startswith(complaint)


# The whole


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"starlight {__version__}\n"
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in ("serve", "sub", "pub", "send"))
    assert cli.main([]) == 0
    assert capsys.readouterr().out == text


def test_python_m_starlight() -> None:
    run = subprocess.run([*STARLIGHT, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert run.stdout == f"starlight {__version__}\n"


def test_commands_from_elsewhere_are_imported_when_called(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "import typer\napp = typer.Typer()\n@app.command()\ndef bench(number: int) -> int:\n    return number\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.LAZY_COMMANDS, "bench", "elsewhere")
    assert cli.main(["--version"]) == 0
    assert "elsewhere" not in sys.modules
    assert cli.main(["bench", "7"]) == 7
    monkeypatch.setitem(cli.LAZY_COMMANDS, "bench", "nowhere.at.all")
    assert cli.main(["bench"]) == 2
    assert "No such command 'bench'" in capsys.readouterr().err


# what an ordinary mistake is told


async def test_a_client_with_the_wrong_scheme_or_path_is_told_in_one_line() -> None:
    async with running("serve", "--port", "0") as serving:
        url = await url_of(serving)
        for wrong, said in (
            (url.replace("ws://", "wss://"), "no TLS is spoken there: ws:// rather than wss://?"),
            (url.removesuffix("/ws"), "Starlight's is /ws unless --path says otherwise"),
            (f"{url}?token=x", "the server answered 400: no query is taken here"),
        ):
            async with running("pub", "news", "hi", "--url", wrong) as pub:
                out, err = await pub.process.communicate()
                assert (pub.process.returncode, out, err.count(b"\n")) == (2, b"", 1), err
                assert said in err.decode()
        async with running("pub", "news", "hi", "--url", url, "--token", "x") as pub:
            assert "may want --user" in await pub.line("stderr", "login refused: 4501")


@pytest.mark.parametrize("group", ["bench", "config", "token"])
def test_a_command_that_needs_another_word_shows_its_help(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([group]) == 2
    assert capsys.readouterr().err.startswith(f"Usage: starlight {group} ")


def test_a_message_without_data_is_shown_by_what_it_says() -> None:
    assert cli._as_text(Expiring(30)) == "expiring server: 30"


def test_ctrl_c_while_the_command_line_is_loaded_shows_no_traceback() -> None:
    program = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from starlight.__main__ import run
run()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=TIMEOUT_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


UNCOMPILED = """\
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
from starlight import Starlight
"""
"""An editable installation would find the compiled modules elsewhere."""


def test_sources_that_nobody_compiled_say_so(tmp_path: Path) -> None:
    for source in (ROOT / "starlight").rglob("*.py"):
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", UNCOMPILED],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1
    assert "sources that nobody compiled: pip install -e ." in done.stderr.splitlines()[-1]
