"""Starlight: a WebSocket message system for high message rates.

::

    import starlight

    app = starlight.Starlight()                  # a server: `starlight serve module:app`, or `await app.serve()`
    client = await starlight.connect(url, user="ada")    # a client

Names are loaded when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from starlight._version import __version__

if TYPE_CHECKING:
    from starlight import errors
    from starlight.app import Starlight
    from starlight.channels.options import ChannelOptions
    from starlight.client.connect import connect

__all__ = ["ChannelOptions", "Starlight", "__version__", "connect", "errors"]

_HOMES = {
    "ChannelOptions": "starlight.channels.options",
    "Starlight": "starlight.app",
    "connect": "starlight.client.connect",
}


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name == "errors":
        return importlib.import_module("starlight.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'starlight' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("starlight."):
            hint = "these are sources that nobody compiled: pip install -e . there, or work in another directory"
            raise ImportError(f"{error} in {__path__[0]}; {hint}", name=error.name) from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
