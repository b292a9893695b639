"""Sphinx builds this folder as a site: ``sphinx-build -W docs site``.

It needs `pip install -e '.[docs]'`: the API reference is read from the installed package.
Every page is Markdown that also reads well as it is; a new one appears in the contents by itself.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from starlight._version import __version__

project = "Starlight"
author = "the Starlight authors"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "outside_links"]
exclude_patterns = ["_build", "proxies"]
default_role = "code"
"""Docstrings put code between single backticks, as Markdown does."""

suppress_warnings = ["ref.python"]
"""`Client` is a node's and the library's: a type that is named in a signature alone may be either, and gets no link."""

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"Starlight {release}"
html_copy_source = False
html_show_sourcelink = False


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", name_the_rest)


def name_the_rest(app: Sphinx, page: str, source: list[str]) -> None:
    """In the contents of index.md, put every page that they don't name in place of the line with a star."""
    if page == "index":
        named = set(re.findall(r"^[\w-]+$", source[0], re.MULTILINE))
        rest = sorted(app.env.found_docs - named - {page})
        source[0] = re.sub(r"^\*$", "\n".join(rest), source[0], flags=re.MULTILINE)
