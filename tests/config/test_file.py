"""starlight.config.file: what is read, and on which line a key stands."""

from pathlib import Path

import pytest

from starlight.config.file import LIMIT_BYTES, ConfigFile, nearest
from starlight.errors import ConfigError

TEXT = '''# port = 1
note = """
port = 2
[groups.a]
"""
"quoted" = [
  "port = 3",
]
  port = 4
groups.dotted.direct = true
[groups.a]
publish = ["x"]
direct = true
[ groups . "b" ]
direct = false
publish = ["y"]
[server]
port = 5
'''


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("note",), 2),
        (("quoted",), 6),
        (("port",), 9),
        (("groups", "a"), 11),
        (("groups", "a", "publish"), 12),
        (("groups", "a", "direct"), 13),
        (("groups", "b", "direct"), 15),
        (("groups", "b", "publish"), 16),
        (("groups", "dotted", "direct"), 10),
        (("server",), 17),
        (("nowhere",), 0),
        (("groups", "nowhere", "publish"), 0),
        (("groups", "a", "nowhere"), 11),  # its table, at least
    ],
)
def test_the_line_of_a_key(keys: tuple[str, ...], line: int) -> None:
    file = ConfigFile("a.toml", TEXT)
    assert file.line(*keys) == line
    shown = ".".join(keys)
    assert file.place(*keys) == (f"a.toml:{line}: {shown}" if line else f"a.toml: {shown}")


def test_settings_are_all_but_the_groups() -> None:
    assert set(ConfigFile("a.toml", TEXT).settings) == {"note", "quoted", "port", "server"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"port =", "a TOML file (Invalid value"),
        (b"port = 1\nport = 2", "a TOML file (Cannot overwrite a value"),
        (b"\xff", "a TOML file ("),
        (b"#" * (LIMIT_BYTES + 1), "a TOML file (too large)"),
    ],
)
def test_files_that_are_none(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        ConfigFile.read(str(path), "STARLIGHT_CONFIG_FILE")
    assert expected in str(caught.value)
    assert (caught.value.key, caught.value.field) == ("STARLIGHT_CONFIG_FILE", "config_file")


@pytest.mark.parametrize("name", ["nowhere.toml", ".", "a\0b"])
def test_names_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a TOML file that can be read"):
        ConfigFile.read(str(tmp_path / name))


def test_the_nearest_name() -> None:
    known = ["outbox_bytes", "outbox_messages", "port"]
    assert nearest("Outbox-Byte", known) == "; did you mean outbox_bytes?"
    assert nearest("xyzzy", known) == nearest("", known) == ""
    assert nearest("STARLIGHT_PROT", ["STARLIGHT_PORT"], "STARLIGHT_") == "; did you mean STARLIGHT_PORT?"
    assert nearest("STARLIGHT_XYZZY", ["STARLIGHT_PORT"], "STARLIGHT_") == ""
