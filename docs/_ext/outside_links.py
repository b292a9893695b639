"""Links to files of the repository outside docs/ (sources, configurations, ``bench/README.md``) become plain text.

On a hosting site such a link works; on the built site there is nothing behind it. A link to what isn't in the
repository either is an error, here as there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

PAGES = (".md", ".rst")


class OutsideLinks(SphinxPostTransform):
    """Runs before MyST resolves what it takes for pages, and before files are copied for download."""

    default_priority = 1

    def run(self, **_: Any) -> None:
        """Replace every link of the page to an existing file that is no page of the site."""
        folder = Path(self.env.doc2path(self.env.docname)).parent
        links = [*self.document.findall(addnodes.pending_xref), *self.document.findall(addnodes.download_reference)]
        for link in links:
            target = str(link.get("reftarget", "")).partition("#")[0]
            if target and self._is_outside(folder, target):
                link.replace_self(nodes.inline("", "", *link.children))

    def _is_outside(self, folder: Path, target: str) -> bool:
        path = (Path(self.env.srcdir) / target.lstrip("/")) if target.startswith("/") else folder / target
        is_page = path.resolve().is_relative_to(Path(self.env.srcdir).resolve()) and path.suffix in PAGES
        return path.exists() and not is_page


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_post_transform(OutsideLinks)
    return {"parallel_read_safe": True}
