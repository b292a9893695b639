"""The directive ``settings-list``: every setting with its flag, variable, default and reason, from `Settings`."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from starlight.config_types import Entry

from starlight.config import entries


class SettingsList(SphinxDirective):
    """A section for each panel of the settings, and in it a definition list in the order of the fields."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        sections: dict[str, nodes.section] = {}
        for entry in entries():
            if entry.panel not in sections:
                sections[entry.panel] = self._section(entry.panel)
            sections[entry.panel][-1] += _item(entry)
        return list(sections.values())

    def _section(self, title: str) -> nodes.section:
        section = nodes.section("", nodes.title(title, title), ids=[nodes.make_id(title)], names=[title.lower()])
        self.state.document.note_implicit_target(section)
        section += nodes.definition_list()
        return section


def _item(entry: Entry) -> nodes.definition_list_item:
    term = nodes.term()
    for number, word in enumerate(word for word in (entry.flag, entry.variable) if word):
        term += [nodes.Text(", ")] if number else []
        term += nodes.literal(word, word)
    facts = [f"Default: {entry.default_text or 'none'}.", f"It may be {entry.allowed}."]
    if entry.reloads:
        facts.append("SIGHUP applies a change.")
    said = nodes.paragraph("", entry.description)
    shown = nodes.paragraph("", "", nodes.emphasis("", " ".join(facts)))
    return nodes.definition_list_item("", term, nodes.definition("", said, shown))


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_directive("settings-list", SettingsList)
    return {"parallel_read_safe": True}
