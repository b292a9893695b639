"""docs/faults.md: every row has tests, every test that it names is there, and none with a row's number is left out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "faults.md"
ROWS = range(1, 70)
SAME = {"the same": 0, "as 1": 1, "as 14": 14, "as 41": 41}


@cache
def names_in(module: str) -> set[str]:
    """The names of a module's test functions."""
    tree = ast.parse((TESTS / f"{module}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def rows() -> dict[int, set[tuple[str, str]]]:
    """The (module, test) of each row, in the page's order."""
    found: dict[int, set[tuple[str, str]]] = {}
    for line in PAGE.read_text().splitlines():
        if not re.match(r"\| \d+ \|", line):
            continue
        number, _, _, cell = (part.strip() for part in line.strip("|").split(" | "))
        tests: set[tuple[str, str]] = set()
        for part in cell.split("; "):
            if part in SAME:
                tests |= found[SAME[part] or max(found)]
                continue
            module, *names = re.findall(r"`([\w/]+)`", part)
            tests |= {(module, name) for name in names}
        found[int(number)] = tests
    return found


def test_every_row_has_tests_that_are_there():
    found = rows()
    assert list(found) == list(ROWS)
    for number, tests in found.items():
        assert tests, number
        for module, name in tests:
            assert name in names_in(module), f"row {number}: {module} has no {name}"


def test_every_test_with_a_number_is_in_its_row():
    found = rows()
    for path in sorted(TESTS.rglob("test_*.py")):
        module = path.relative_to(TESTS).with_suffix("").as_posix()
        for name in names_in(module):
            numbers = re.match(r"test_(\d{1,2})_(?:and_(\d{1,2})_)?", name)
            for number in numbers.groups() if numbers else ():
                assert number is None or (module, name) in found[int(number)], f"row {number}: {module}: {name}"


def test_the_forms_that_it_names_are_there():
    text = PAGE.read_text()
    for form in set(re.findall(r"tests\.long (\w+)", text)):
        assert (TESTS / "long" / f"{form}.py").is_file(), form
