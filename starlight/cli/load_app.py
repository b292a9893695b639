"""The application that a command line names as ``module:app``, and what is said when it can't be had.

The law: a mistake is told in one line that names the application, the cause and its place. Only where the application's
own code raised is its traceback shown before that line, without the frames of whoever imported it. A wrong word is
exit code 2, an application that fails is 1.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from types import ModuleType
from typing import TYPE_CHECKING, Final

from starlight.cli.options import EXIT_REFUSED, fail
from starlight.config.file import nearest

if TYPE_CHECKING:
    from starlight.app import Starlight

__all__ = ["load"]

_MODULE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def load(application: str) -> Starlight:
    """The application, looked for in the current directory first, as Python does it. Raises `Failure`."""
    from starlight.app import Starlight

    module_name, colon, name = application.partition(":")
    if not (colon and name.isidentifier() and _MODULE.fullmatch(module_name)) or os.path.isfile(module_name):
        fail(f"APP {application!r}: expected module:app, such as auction:app{_meant(module_name, name)}")
    sys.path.insert(0, "")
    module = _import(application, module_name)
    apps = [key for key, value in vars(module).items() if isinstance(value, Starlight)]
    if not hasattr(module, name):
        hint = f"; it has {', '.join(apps)}" if apps else nearest(name, vars(module))
        fail(f"APP {application!r}: module {module_name!r} has no {name!r}{hint}")
    found = getattr(module, name)
    if not isinstance(found, Starlight):
        kind = f"expected a Starlight application, but it is a {type(found).__name__}"
        fail(f"APP {application!r}: {kind}{f'; the module has {apps[0]}' if apps else ''}")
    return found


def _meant(module_name: str, name: str) -> str:
    """``; did you mean auction:app?`` for the name of a file, otherwise nothing."""
    module = re.sub(r"/+", ".", re.sub(r"^(\./+)+|\.pyw?$", "", module_name))
    if module == module_name or not _MODULE.fullmatch(module):
        return ""
    return f"; did you mean {module}:{name if name.isidentifier() else 'app'}?"


def _import(application: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            hint = _nearest_module(error.name)
            fail(f"APP {application!r}: there is no module {error.name!r} here or in the environment{hint}")
        fail(f"APP {application!r}: {error}{_place(error)}", code=EXIT_REFUSED)
    except SyntaxError as error:
        where = f"{_shown(error.filename or module_name)}:{error.lineno or 0}"
        fail(f"APP {application!r}: {type(error).__name__}: {error.msg} ({where})", code=EXIT_REFUSED)
    except SystemExit as error:
        fail(
            f"APP {application!r}: importing it ends the program (exit code {error.code!r}){_place(error)}",
            code=EXIT_REFUSED,
        )
    except Exception as error:
        frames = _own_frames(error)
        if frames:
            print("Traceback (most recent call last):", file=sys.stderr)
            print("".join(traceback.format_list(frames)), end="", file=sys.stderr)
        summary = " ".join("".join(traceback.format_exception_only(error)).split())
        fail(f"APP {application!r}: importing it failed: {summary}{_place(error)}", code=EXIT_REFUSED)


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of the application: those behind the import machinery and this module."""
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen importlib") and os.path.realpath(frame.filename) not in _OURS
    ]


_OURS: Final = (os.path.realpath(__file__), os.path.realpath(importlib.__file__))


def _place(error: BaseException) -> str:
    frames = _own_frames(error)
    return f" ({_shown(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""


def _shown(path: str) -> str:
    """A file's name as short as people write it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _nearest_module(name: str) -> str:
    """A module of the current directory that is like the name."""
    try:
        names = [os.path.splitext(entry.name)[0] for entry in os.scandir(".") if entry.name.endswith(".py")]
    except OSError:
        return ""
    return nearest(name, [one for one in names if one != name])
