"""The versions of the libraries whose C layouts are compiled into `connection`, checked when it is imported.

Cython compares the sizes of their classes by itself; another version with the same sizes and reordered methods would
call the wrong ones, silently.
"""

from __future__ import annotations

from typing import Final

import aiofastnet
import picows

__all__ = ["PINNED", "check_versions"]

PINNED: Final = {"picows": "2.3.1", "aiofastnet": "1.2.0"}
"""Package: the only version this was built for; pyproject.toml installs them."""


def check_versions() -> None:
    """Raises ImportError unless the pinned versions are installed."""
    for module in (picows, aiofastnet):
        name, installed = module.__name__, module.__version__
        if installed != PINNED[name]:
            raise ImportError(f"starlight was built for {name} {PINNED[name]}, and {installed} is installed")
