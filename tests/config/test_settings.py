"""Settings: where their values come from, what is refused, and how the refusal reads."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from starlight.config.settings import Settings, allowed, entries, hidden_errors, origins, unknown_variables
from starlight.errors import ConfigError
from tests.support.settings import clean_environment, other_values  # noqa: F401  # pytest finds fixtures by name

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_defaults_are_those_of_the_documents() -> None:
    assert Settings().model_dump() == {
        "host": "127.0.0.1",
        "port": 8765,
        "path": "/ws",
        "node_name": "",
        "auth": "none",
        "insecure_no_auth": False,
        "config_file": "",
        "jwt_secret": SecretStr(""),
        "jwt_secret_file": "",
        "jwt_key_file": "",
        "jwt_jwks_url": "",
        "jwt_algorithms": "",
        "jwt_issuer": "",
        "jwt_audience": "",
        "jwt_leeway_s": 10.0,
        "jwt_groups_claim": "groups",
        "session_secret_file": "",
        "session_previous_secret_file": "",
        "session_ttl_s": 3600.0,
        "connections_per_user": 20,
        "connections_per_address": 500,
        "connection_rate": 50,
        "message_rate": 200,
        "byte_rate_bytes": 2**20,
        "channels_per_client": 1000,
        "name_limit_bytes": 255,
        "allowed_origins": "",
        "trusted_proxies": "",
        "tls_cert": "",
        "tls_key": "",
        "outbox_messages": 256,
        "outbox_bytes": 2**20,
        "evict_after_s": 0.5,
        "coalesce_delay_s": 0.0,
        "dry_run": "",
        "read_limit_bytes": 65_536,
        "send_buffer_bytes": 65_536,
        "handshake_timeout_s": 5.0,
        "login_timeout_s": 5.0,
        "ping_interval_s": 25.0,
        "pong_timeout_s": 10.0,
        "write_timeout_s": 10.0,
        "max_connections": 10_000,
        "memory_budget_bytes": 512 * 2**20,
        "drain_timeout_s": 10.0,
        "drain_notice_s": 0.0,
        "drain_rate": 1_500,
        "reuse_port": False,
        "internal_host": "127.0.0.1",
        "internal_port": None,
        "internal_key_file": "",
        "log_format": "auto",
        "log_file": "",
        "log_level": "info",
    }


def test_defaults_are_within_their_own_bounds() -> None:
    assert Settings(**Settings().model_dump()) == Settings()


@pytest.mark.parametrize("field", list(Settings.model_fields))
def test_every_setting_says_what_it_is(field: str) -> None:
    assert len(Settings.model_fields[field].description or "") > 20
    assert allowed(field)


@pytest.mark.parametrize("field", list(Settings.model_fields))
def test_an_argument_before_a_variable_before_the_file_before_the_default(
    field: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = next(entry for entry in entries() if entry.name == field)
    in_argument, in_variable, in_file = other_values(entry)
    file = tmp_path / "starlight.toml"
    file.write_text("# a comment\n" + (f"{field} = {entry.toml(in_file)}\n" if is_for_files(field) else ""))
    configured: dict[str, Any] = {"config_file": str(file)} if is_for_files(field) else {}

    def now(**arguments: Any) -> tuple[Any, str, str]:
        given = {**configured, **arguments}
        origin = origins(given)[field]
        return getattr(Settings(**given), field), origin.kind, origin.key

    default = Settings.model_fields[field].default
    assert Settings.model_fields[field].annotation is SecretStr or default not in (in_argument, in_variable, in_file)
    if is_for_files(field):
        assert now() == (in_file, "file", f"{file}:2: {field}")
    else:
        assert now() == (default, "default", field)
    monkeypatch.setenv(entry.variable, secret_text(in_variable) or entry.text(in_variable))
    if field == "config_file":
        monkeypatch.setenv(entry.variable, str(file))
        assert now() == (str(file), "variable", entry.variable)
        assert now(config_file="") == ("", "argument", field)
        return
    assert now() == (in_variable, "variable", entry.variable)
    assert now(**{field: in_argument}) == (in_argument, "argument", field)


def is_for_files(field: str) -> bool:
    """A secret stays out of the file, and a file doesn't name another."""
    return field not in ("jwt_secret", "config_file")


def secret_text(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else ""


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARLIGHT_OUTBOX_BYTES", "2MiB")
    monkeypatch.setenv("STARLIGHT_EVICT_AFTER_S", "0")
    monkeypatch.setenv("STARLIGHT_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("STARLIGHT_PORT", "0")
    monkeypatch.setenv("STARLIGHT_SOMETHING_ELSE", "1")  # a warning of `serve`, and nothing else
    settings = Settings(outbox_bytes="3MiB", ping_interval_s="500ms")
    assert (settings.outbox_bytes, settings.ping_interval_s) == (3 * 2**20, 0.5)
    assert (settings.evict_after_s, settings.log_level, settings.port) == (0.0, "debug", 0)


WRONG_SETTINGS = [
    ("port", 65_536, "a whole number from 0 to 65535"),
    ("port", "http", "a whole number from 0 to 65535"),
    ("host", "", "one address such as 127.0.0.1"),
    ("host", "unix:./s.sock", "no Unix socket"),
    ("host", "127.0.0.1,::1", "no list"),
    ("path", "ws", "a path such as /ws"),
    ("path", "/ws?x=1", "a path such as /ws"),
    ("path", "/w\r\ns", "a path such as /ws"),
    ("auth", "basic", "one of none, jwt"),
    ("log_level", "loud", "one of critical, error, warning, info, debug"),
    ("outbox_messages", 0, "a whole number from 1 to 1000000"),
    ("outbox_bytes", "1XB", "a size such as 64KiB, 1MiB, 64KB or a whole number of bytes, 1KiB to 1GiB"),
    ("outbox_bytes", "2GiB", "1KiB to 1GiB"),
    ("evict_after_s", "2m", "a duration such as 250ms, 10s, 2m or a number of seconds, 0s to 1m"),
    ("login_timeout_s", 0, "10ms to 5m"),
    ("drain_timeout_s", -1, "0s to 1h"),
    ("max_connections", None, "a whole number"),
    ("nonsense", 1, "the name of a setting"),
    ("outbox_byte", 1, "the name of a setting; did you mean outbox_bytes?"),
    ("port", True, "a whole number from 0 to 65535"),
]


@pytest.mark.parametrize(("field", "value", "expected"), WRONG_SETTINGS)
def test_wrong_arguments(field: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        Settings(**{field: value})
    assert (caught.value.key, caught.value.field, caught.value.value) == (field, field, value)
    assert str(caught.value).startswith(f"{field}={value!r}: expected ")


@pytest.mark.parametrize(("field", "value", "expected"), [row for row in WRONG_SETTINGS if isinstance(row[1], str)])
def test_wrong_environment(field: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"STARLIGHT_{field.upper()}", value)
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        Settings()
    assert (caught.value.key, caught.value.field) == (f"STARLIGHT_{field.upper()}", field)
    assert caught.value.value == value  # as it was written, not as it was parsed


@pytest.mark.parametrize("field", ["evict_after_s", "coalesce_delay_s", "drain_timeout_s", "port"])
def test_zero_where_it_means_something(field: str) -> None:
    assert getattr(Settings(**{field: 0}), field) == 0


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "starlight.toml"
    path.write_text(text)
    return str(path)


def wrong(**values: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Settings(**values)
    return [str(error) for error in (caught.value, *caught.value.others)]


def test_all_that_is_wrong_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path, WRONG_FILE)
    monkeypatch.setenv("STARLIGHT_OUTBOX_BYTES", "1XB")
    lines = wrong(config_file=path, read_limit_bytes=1)
    assert len(lines) == 9
    for expected in (
        f"{path}:2: port='x': expected a whole number from 0 to 65535",
        f'{path}:3: outbox_mesages=7: expected the name of a setting, [groups.<name>] or [channels."<pattern>"]; '
        "did you mean outbox_messages?",
        f"{path}:4: message_rate=True: expected a whole number from 0 to",
        f"{path}:5: jwt_secret='(hidden)': expected no secret in this file; jwt_secret_file names a file of its own",
        f"{path}:6: config_file='other.toml': expected no other file to be named in here",
        f"{path}:7: ping-interval='1s': expected the name of a setting, [groups.<name>] or [channels.\"<pattern>\"]; "
        "did you mean ping_interv",
        f"{path}:8: server={{'host': 'x'}}: expected the name of a setting",
        "STARLIGHT_OUTBOX_BYTES='1XB': expected a size",
        "read_limit_bytes=1: expected a size",
    ):
        assert [line for line in lines if line.startswith(expected)], expected


WRONG_FILE = """# comment
port = "x"
outbox_mesages = 7
message_rate = true
jwt_secret = "canary"
config_file = "other.toml"
ping-interval = "1s"
[server]
host = "x"
"""


def test_lists_and_switches_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'allowed_origins = ["https://a", "https://b"]\ninsecure_no_auth = true\nport = 0')
    settings = Settings(config_file=path)
    assert (settings.allowed_origins, settings.insecure_no_auth, settings.port) == ("https://a, https://b", True, 0)
    assert wrong(allowed_origins=["a", 1])


@pytest.mark.parametrize("field", [entry.name for entry in entries() if entry.metavar == "FILE"])
def test_no_file_has_a_name_with_a_zero_byte(field: str) -> None:
    (line,) = wrong(**{field: "a\0b"})
    assert line.startswith(f"{field}='a\\x00b': expected a") and "file" in line


def test_a_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = str(tmp_path / "none.toml")
    (line,) = wrong(config_file=path)
    assert line.startswith("config_file='/")
    assert "a TOML file that can be read (no such file" in line
    monkeypatch.setenv("STARLIGHT_CONFIG_FILE", path)
    assert wrong()[0].startswith("STARLIGHT_CONFIG_FILE=")
    assert Settings(config_file="").config_file == ""


def test_wrong_values_behind_a_variable_are_found_on_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path, 'port = "x"\nhost = "localhost"\n')
    monkeypatch.setenv("STARLIGHT_PORT", "0")
    monkeypatch.setenv("STARLIGHT_HOST", "127.0.0.1")
    assert Settings(config_file=path).port == 0
    (error,) = hidden_errors({"config_file": path})
    assert str(error).startswith(f"{path}:1: port='x': expected")
    assert hidden_errors({}) == []


def test_a_variable_of_kubernetes_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARLIGHT_PORT", "tcp://10.0.0.1:8765")
    assert "enableServiceLinks" in wrong()[0]


def test_unknown_variables() -> None:
    names = ["STARLIGHT_PORTS", "STARLIGHT_PORT", "starlight_port", "STARLIGHT_URL", "STARLIGHT_XYZZY", "PATH"]
    names += ["STARLIGHT_SERVICE_HOST", "STARLIGHT_SERVICE_PORT_WS", "STARLIGHT_PORT_8765_TCP_ADDR"]  # Kubernetes
    assert unknown_variables(names) == [
        "STARLIGHT_PORTS: no such variable; did you mean STARLIGHT_PORT?",
        "STARLIGHT_XYZZY: no such variable",
    ]


def test_what_a_reload_takes_over() -> None:
    old = Settings(port=1, message_rate=5, connection_rate=6)
    new = Settings(port=2, message_rate=7, drain_timeout_s=1, max_connections=5)
    merged = old.reloaded(new)
    assert (merged.port, merged.message_rate, merged.connection_rate, merged.drain_timeout_s) == (1, 7, 50, 1.0)
    assert merged.max_connections == 10_000
    assert merged.model_fields_set == {"port", "message_rate", "drain_timeout_s"}  # set on purpose: see `Limits.of`


def test_an_empty_text_is_none_where_that_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path, "internal_port = 9")
    assert Settings(config_file=path).internal_port == 9
    monkeypatch.setenv("STARLIGHT_INTERNAL_PORT", "")
    assert Settings(config_file=path).internal_port is None
    assert Settings(internal_port="0").internal_port == 0
    assert wrong(port="") and wrong(internal_port="x")
