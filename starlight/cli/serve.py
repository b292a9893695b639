"""The command ``starlight serve``, and running any node from the command line.

Its flags are made of `Settings`: see `_cli.takes_settings`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlight.cli.load_app import load
from starlight.cli.options import Application, PanelCommand, describe, fail, make_app, takes_settings, words_of

if TYPE_CHECKING:
    from starlight.config.settings import Settings
    from starlight.errors import ListenFailed

__all__ = ["app", "load", "run_node"]

app = make_app("Listen, and carry messages between clients.")


@app.command(cls=PanelCommand, short_help="Listen, and carry messages between clients.")
@takes_settings
def serve(
    application: Application = None,
    **flags: Any,
) -> int:
    """Serve: listen, and carry messages between clients until SIGTERM or Ctrl-C.

    Each flag may also come from the environment as STARLIGHT_ and the setting's name, such as STARLIGHT_PORT or
    STARLIGHT_OUTBOX_BYTES, or from the file of --config; a flag wins over a variable, and that over the file. Sizes are
    written 64KiB or 1MB, durations 250ms or 10s. `starlight config env` lists the variables, `config show --origin`
    says where each value comes from.
    """
    from starlight.app import Starlight
    from starlight.server.process import take_early_signals

    take_early_signals()
    words = words_of(flags)
    found = load(application) if application else Starlight()
    return run_node(found.settings, lambda _: found.run(**words), words, found.given)


def run_node(
    make: Callable[..., Settings],
    run: Callable[[Settings], None],
    words: dict[str, str],
    given: dict[str, Any] | None = None,
) -> int:
    """Make settings of words and run a server with them; what is wrong is told in terms of where it was written.

    Args:
        make: makes settings of words.
        run: serves with them, until it is over.
        words: what was given on the command line.
        given: what was given in code.
    """
    from starlight.errors import ConfigError, ListenFailed

    try:
        settings = make(**words)
        run(settings)
    except ConfigError as error:
        fail(*describe(error, words, given))
    except ListenFailed as error:
        fail(_why_not_listening(error, settings))
    return 0


def _why_not_listening(error: ListenFailed, settings: Settings) -> str:
    """A failure to listen in terms of the flags."""
    kind = error.setting.removesuffix("port").replace("_", "-")  # "" or "internal-"
    host, port = (getattr(settings, error.setting.removesuffix("port") + part) for part in ("host", "port"))
    if error.errno == errno.EADDRINUSE:
        return f"--{kind}port {port}: already in use on {host}; choose another, or 0 to have one picked"
    if error.errno == errno.EACCES:
        return f"--{kind}port {port}: not permitted; ports below 1024 need privileges"
    return f"--{kind}host {host} --{kind}port {port}: {error.strerror or error}"
