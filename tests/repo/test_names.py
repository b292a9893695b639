"""Names that mislead: two classes of one name, tours that leave a module out, questions that change something."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "starlight"
FOLDERS = sorted({path.parent for path in PACKAGE.rglob("__init__.py")} - {PACKAGE})
SUFFIXES = {".py", ".pyx", ".pxd"}

_COMPILED_CLASS = re.compile(r"^(?:cdef\s+)?class\s+(\w+)", re.MULTILINE)


def classes(path: Path) -> list[str]:
    """The classes that a file defines; those of a compiled module are in its .pyx, its .pxd and .pyi repeat them."""
    if path.suffix == ".pyx":
        return _COMPILED_CLASS.findall(path.read_text())
    return [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def modules(folder: Path) -> set[str]:
    """What is in a folder, but files without a suffix of Python and Cython: modules, and folders that are packages."""
    files = {path.stem for path in folder.iterdir() if path.suffix in SUFFIXES}
    folders = {path.name for path in folder.iterdir() if (path / "__init__.py").exists()}
    return (files | folders) - {"__init__", "__main__"}


def test_no_two_classes_share_a_name() -> None:
    homes = defaultdict(set)
    for path in PACKAGE.rglob("*"):
        if path.suffix in {".py", ".pyx"}:
            for name in classes(path):
                homes[name].add(module_of(path))
    assert {name: sorted(where) for name, where in homes.items() if len(where) > 1} == {}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(PACKAGE).as_posix())
def test_a_folders_tour_names_each_of_its_modules(folder: Path) -> None:
    tour = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    named = {name.rstrip("/").removesuffix(".py").removesuffix(".pyx") for name in re.findall(r"`+([\w.]+/?)`+", tour)}
    missing = sorted(modules(folder) - named)
    assert not missing, f"{folder.name}/__init__.py says nothing of {', '.join(missing)}"


def test_a_tour_that_leaves_a_module_out_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "rooms"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""Rooms.\n\n- `hall`: the first one.\n"""\n')
    (folder / "hall.py").write_text("")
    (folder / "attic.pyx").write_text("")
    with pytest.raises(AssertionError, match="says nothing of attic"):
        test_a_folders_tour_names_each_of_its_modules(folder)
