"""starlight config: each of its commands, and that what they write can be read."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from starlight import ChannelOptions
from starlight.channels.options import read_channel_options
from starlight.cli import main as cli
from starlight.config.settings import Settings, entries
from tests.support.settings import clean_environment, other_values  # noqa: F401  # pytest finds fixtures by name
from tests.support.tls import write_certificate
from tests.support.tokens import SECRET, write

pytestmark = pytest.mark.usefixtures("clean_environment")

GROUPS = """
[groups.default]
subscribe = ["news", "user:{user}:*"]
[groups."a:b"]
publish = []
direct = true
[channels."a:*"]
announce = "users"
[channels]
b = { announce_delay = 0.5, presence = false, clients_limit = 7 }
"""

APPLICATION = """
from starlight import ChannelOptions, Starlight
channels = {"in:code": ChannelOptions(announce="users")}
app = Starlight(path="/from-code", read_limit_bytes="8KiB", channels=channels)
"""


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, list[str]]:
    """A command's output, and the lines it wrote to stderr without `starlight: ` before them."""
    assert cli.main(["config", *words]) == code
    captured = capsys.readouterr()
    return captured.out, [line.removeprefix("starlight: ") for line in captured.err.splitlines()]


# init


def test_init_writes_every_setting_and_the_file_is_right(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "starlight.toml"
    assert run(capsys, "init", str(path)) == (f"wrote {path}; check it with: starlight config check {path}\n", [])
    text = path.read_text()
    assert tomllib.loads(text) == {}  # all of it is commented out
    assert run(capsys, "check", str(path)) == (f"{path}: ok\n", [])
    assert run(capsys, "init") == (text, [])
    path.write_text(re.sub(r"^# (\[|[a-z_]+ = )", r"\1", text, flags=re.MULTILINE))  # and now nothing is
    settings = Settings(config_file=str(path))
    assert settings.model_dump(exclude={"config_file"}) == Settings().model_dump(exclude={"config_file"})
    assert settings.model_fields_set == set(Settings.model_fields) - {"jwt_secret"}
    assert set(tomllib.loads(path.read_text())["groups"]) == {"default", "staff"}
    [(pattern, options)] = read_channel_options(str(path)).items()
    assert (pattern, options) == ("ticker:*", ChannelOptions())
    assert options.model_fields_set == set(ChannelOptions.model_fields)
    assert run(capsys, "check", str(path)) == (f"{path}: ok\n", [])
    for entry in entries():
        assert entry.is_secret or entry.name == "config_file" or f"flag {entry.flag}; variable {entry.variable}" in text


def test_init_replaces_nothing_unless_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "starlight.toml"
    path.write_text("port = 1\n")
    assert run(capsys, "init", str(path), code=2)[1] == [f"{path}: there is such a file; --force replaces it"]
    assert path.read_text() == "port = 1\n"
    run(capsys, "init", "--force", str(path))
    assert "# port = 8765" in path.read_text()
    assert "no such file" in run(capsys, "init", str(tmp_path / "a" / "b.toml"), code=2)[1][0]


# check


def test_check_tells_all_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "starlight.toml"
    path.write_text(
        'prot = 1\nmessage_rate = "x"\npath = "x"\n[groups.a]\ndirct = true\n[groups.b]\npublish = 1\n'
        "[channels.c]\nanounce = 1\n"
    )
    monkeypatch.setenv("STARLIGHT_PATH", "/ws")  # hides what the file says
    monkeypatch.setenv("STARLIGHT_PONG_TIMEOUT_S", "soon")
    monkeypatch.setenv("STARLIGHT_PONG_TIMEOUT", "1s")
    out, lines = run(capsys, "check", str(path), code=2)
    assert out == ""
    warning, *errors = lines
    assert warning == "warning: STARLIGHT_PONG_TIMEOUT: no such variable; did you mean STARLIGHT_PONG_TIMEOUT_S?"
    starts = [
        f'{path}:1: prot=1: expected the name of a setting, [groups.<name>] or [channels."<pattern>"]; '
        "did you mean port?",
        f"{path}:9: channels.c.anounce=1: expected an option of a channel: announce, announce_delay, presence, "
        "clients_limit; did you mean announce?",
        f"{path}:2: message_rate='x': expected a whole number",
        f"{path}:3: path='x': expected a path such as /ws",
        f"{path}:5: groups.a.dirct=True: expected a table with some of broadcast, direct, presence, publish, "
        "subscribe; did you mean direct?",
        f"{path}:7: groups.b.publish=1: expected a list of channel patterns",
        "STARLIGHT_PONG_TIMEOUT_S='soon': expected a duration",
    ]
    assert len(errors) == len(starts)
    for start in starts:
        assert [line for line in errors if line.startswith(start)], (start, errors)


def test_check_looks_into_the_files_that_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "starlight.toml"
    path.write_text(
        f'tls_cert = "{tmp_path}/none.pem"\nauth = "jwt"\njwt_secret_file = "{tmp_path}/none"\n'
        'allowed_origins = "nonsense"\ntrusted_proxies = ["999.0.0.1"]\n'
    )
    monkeypatch.setenv("STARLIGHT_CONFIG_FILE", str(path))
    _, lines = run(capsys, "check", code=2)
    for number, name in ((1, "tls_cert"), (3, "jwt_secret_file"), (4, "allowed_origins"), (5, "trusted_proxies")):
        assert [line for line in lines if line.startswith(f"{path}:{number}: {name}=")], (name, lines)
    certificate, key = write_certificate(tmp_path)
    secret = write(tmp_path / "secret", SECRET)
    path.write_text(
        f'tls_cert = "{certificate}"\ntls_key = "{key}"\nauth = "jwt"\njwt_secret_file = "{secret}"\n'
        f'session_secret_file = "{secret}"\nallowed_origins = ["https://a.example"]\ntrusted_proxies = "10.0.0.0/8"\n'
    )
    assert run(capsys, "check") == (f"{path}: ok\n", [])


def test_check_without_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(capsys, "check") == ("the environment: ok\n", [])
    (line,) = run(capsys, "check", str(tmp_path / "none.toml"), code=2)[1]
    assert "a TOML file that can be read (no such file" in line
    monkeypatch.setenv("STARLIGHT_HOST", "0.0.0.0")
    (line,) = run(capsys, "check", code=2)[1]
    assert line.startswith("STARLIGHT_HOST='0.0.0.0': expected a loopback address while auth is none")


def test_check_names_patterns_that_never_win(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "starlight.toml"
    path.write_text('[channels."a:*"]\npresence = false\n[channels."a:**"]\n[channels."*"]\n')
    out, lines = run(capsys, "check", str(path))
    assert out == f"{path}: ok\n"
    assert lines == [f"warning: {path}:1: channels.a:* never wins: a:** goes before it wherever it fits"]


# show


def test_show_says_where_each_value_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shown.py").write_text(APPLICATION)
    path = tmp_path / "starlight.toml"
    path.write_text("# mine\nport = 0\nmessage_rate = 7\noutbox_bytes = 2097152\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("STARLIGHT_MESSAGE_RATE", "8")
    monkeypatch.setenv("STARLIGHT_JWT_SECRET", SECRET)
    words = ["shown:app", "--config", str(path), "--path", "/flag", "--evict-after", "1s"]
    out, _ = run(capsys, "show", "--origin", *words)
    assert SECRET not in out
    shown = {name: (value, origin) for name, value, origin in re.findall(r"^(?:# )?(\w+) = (.*?) +# (.*)$", out, re.M)}
    assert list(shown) == list(Settings.model_fields)
    assert shown["port"] == ("0", f"{path}:2")
    assert shown["outbox_bytes"] == ('"2MiB"', f"{path}:4")
    assert shown["message_rate"] == ("8", "variable STARLIGHT_MESSAGE_RATE")
    assert shown["jwt_secret"] == ('"(hidden)"', "variable STARLIGHT_JWT_SECRET")
    assert shown["path"] == ('"/flag"', "flag --path")
    assert shown["evict_after_s"] == ('"1s"', "flag --evict-after")
    assert shown["read_limit_bytes"] == ('"8KiB"', "code")
    assert shown["config_file"] == (f'"{path}"', "flag --config")
    assert shown["host"] == ('"127.0.0.1"', "default")


def test_what_show_prints_is_a_file_of_the_same_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wanted = {
        entry.name: other_values(entry)[0] for entry in entries() if entry.name not in ("jwt_secret", "config_file")
    }
    first = tmp_path / "first.toml"
    named = {entry.name: entry for entry in entries()}
    first.write_text("".join(f"{name} = {named[name].toml(value)}\n" for name, value in wanted.items()) + GROUPS)
    for words in ((), ("--origin",)):
        out, _ = run(capsys, "show", *words, "--config", str(first))
        second = tmp_path / "second.toml"
        second.write_text(out)
        assert Settings(config_file=str(second)).model_dump(include=set(wanted)) == wanted
        assert tomllib.loads(out)["groups"] == tomllib.loads(GROUPS)["groups"]
        assert tomllib.loads(out)["channels"] == {
            "a:*": {"announce": "users", "announce_delay": "2s", "presence": True, "clients_limit": 0},
            "b": {"announce": False, "announce_delay": "500ms", "presence": False, "clients_limit": 7},
        }
    assert f'[groups."a:b"]{" " * 36}  # {first}:' in out
    assert re.search(rf'^\[channels\."a:\*"\] +# {first}:\d+$', out, re.MULTILINE)


def test_show_refuses_what_serve_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    _, lines = run(capsys, "show", "--port", "x", "--outbox-bytes", "1XB", code=2)
    assert lines[0] == "--port x: expected a whole number from 0 to 65535"
    assert lines[1].startswith("--outbox-bytes 1XB: expected a size")


# env and schema


def test_env_lists_every_variable_and_can_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, _ = run(capsys, "env")
    found = dict(re.findall(r"^# (STARLIGHT_\w+)=(.*)$", out, re.MULTILINE))
    assert list(found) == [entry.variable for entry in entries()]
    assert all(name in out for name in ("STARLIGHT_URL", "STARLIGHT_USER", "STARLIGHT_TOKEN"))
    found.pop("STARLIGHT_CONFIG_FILE")
    used = subprocess.run(
        [sys.executable, "-m", "starlight", "config", "check"],
        env={**os.environ, **found}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (used.returncode, used.stderr) == (0, "")


@pytest.fixture
def schema(capsys: pytest.CaptureFixture[str]) -> Any:
    return jsonschema.Draft202012Validator(json.loads(run(capsys, "schema")[0]))


def test_the_schema_is_one_and_describes_every_key(schema: Any) -> None:
    schema.check_schema(schema.schema)
    keys = set(Settings.model_fields) - {"jwt_secret", "config_file"} | {"groups", "channels"}
    assert set(schema.schema["properties"]) == keys
    assert all(schema.schema["properties"][key]["description"] for key in keys)


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_the_schema_takes_what_the_settings_take(entry: Any, schema: Any, tmp_path: Path) -> None:
    path = tmp_path / "starlight.toml"
    for value in other_values(entry):
        path.write_text(f"{entry.name} = {entry.toml(value)}\n")
        is_right = not (entry.is_secret or entry.name == "config_file")
        assert schema.is_valid(tomllib.loads(path.read_text())) == is_right
    for wrong in (None, {}, -1, "/not/a/number", ["a", 1], "1XB"):
        if schema.is_valid({entry.name: wrong}) and entry.name != "path":  # the form of a path is not in the schema
            path.write_text(f"{entry.name} = {json.dumps(wrong)}\n")
            assert Settings(config_file=str(path))


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("port = 1\n[groups.a]\npublish = ['x']\ndirect = true", True),
        ("allowed_origins = ['a', 'b']", True),
        ("ping_interval_s = 1.5", True),
        ("prot = 1", False),
        ("port = 65536", False),
        ("[groups.a]\ndirct = true", False),
        ('[channels."a:*"]\nannounce = "users"\nannounce_delay = "5s"\npresence = false\nclients_limit = 1', True),
        ("[channels.a]\nannounce = false\nannounce_delay = 5", True),
        ('[channels.a]\nannounce = "user"', False),
        ("[channels.a]\nannounce = true", False),
        ("[channels.a]\nanounce = false", False),
        ('[channels."a b"]\nannounce = false', False),
        ("[groups.a]\npublish = 'x'", False),
    ],
)
def test_the_schema_on_files(text: str, is_right: bool, schema: Any) -> None:
    assert schema.is_valid(tomllib.loads(text)) == is_right
