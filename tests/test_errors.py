"""The exception tree: what its docstring draws is what the classes are, and every error carries what it promises."""

import inspect
import pickle
import re

import pytest

from starlight import close_codes, errors
from starlight.errors import (
    BadMessage,
    CloseConnection,
    ConfigError,
    ConnectionClosed,
    LoginRefused,
    RequestError,
    RequestFailed,
    StarlightError,
)


def drawn_tree() -> dict[str, str]:
    """Child -> parent, read from the drawing in the module's docstring."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│ ]*(?:├── |└── )?)([A-Z]\w+)(?: |$)", line)
        if not found:
            continue
        depth = len(found[1]) // 4
        path[depth:] = [found[2]]
        if depth:
            parents[found[2]] = path[depth - 1]
    return parents


def test_the_drawing_is_the_tree() -> None:
    classes = {
        name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__
    }
    parents = {name: cls.__mro__[1].__name__ for name, cls in classes.items() if cls is not StarlightError}
    assert drawn_tree() == parents
    assert sorted(classes) == sorted(errors.__all__)


def test_everything_is_a_starlight_error() -> None:
    assert all(issubclass(getattr(errors, name), StarlightError) for name in errors.__all__)


def test_close_connection_takes_its_reason_from_the_table() -> None:
    assert CloseConnection(4501).reason == "bad request"
    assert CloseConnection(4501, "").reason == ""
    assert str(CloseConnection(1001, "drain;retry=500")) == "1001 drain;retry=500"
    assert str(CloseConnection(1000)) == "1000"


def test_request_error_knows_its_name() -> None:
    error = RequestError(close_codes.ErrorCode.BAD_REQUEST, "to: missing", 7)
    assert (error.code, error.name, error.message, error.id) == (107, "bad_request", "to: missing", 7)
    assert type(error.code) is int  # it goes into JSON as a number
    assert RequestError(999).name == "error"
    assert RequestError(104).id is None
    assert isinstance(BadMessage(107), RequestError)


def test_config_error_names_key_value_and_allowed() -> None:
    error = ConfigError("STARLIGHT_PORT", "x", "a number", "port")
    assert str(error) == "STARLIGHT_PORT='x': expected a number"
    assert (error.key, error.field, error.value, error.allowed) == ("STARLIGHT_PORT", "port", "x", "a number")
    assert ConfigError("port", "x", "a number").field == "port"
    assert len(str(ConfigError("port", "9" * 100_000, "a number"))) < 200


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("STARLIGHT_PORT", "x", "a number", "port"),
        CloseConnection(4501),
        RequestError(107, "to: missing", "a"),
        BadMessage(107, "not JSON"),
        LoginRefused(4500, "invalid token"),
        ConnectionClosed(1006),
        RequestFailed(120, "not_connected", "nobody"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling_and_print(error: StarlightError) -> None:
    """Errors cross process borders in pools; the arguments kept by Exception must rebuild the same one."""
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error)
    assert vars(twin) == vars(error)
    assert str(twin) == str(error)
    assert str(getattr(error, "code", "STARLIGHT_PORT")) in str(error)
