"""What the README promises is there: its two commands, the session, the names its examples use."""

import ast
import os
import re
from pathlib import Path

from typer.testing import CliRunner

import starlight
from starlight.cli import main as cli
from starlight.loadtest.cli import app as bench

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_two_commands_of_one_line_each() -> None:
    assert blocks("sh") == [
        "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/starlight serve\n",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest\n",
    ]


def test_the_checks_run_the_tests_by_the_readmes_command() -> None:
    run = (ROOT / ".ci" / "run").read_text()
    found = re.search(r"grep -E '(.*)' README\.md", run)
    assert found
    assert len([line for line in README.splitlines() if re.search(found[1], line)]) == 1
    assert "pip install" not in run
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_session_uses_commands_that_exist() -> None:
    used = set(re.findall(r"starlight (\w+) ", "".join(blocks("console"))))
    assert used == {"sub", "pub", "send", "bench"}
    commands = {command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    assert used - {"bench"} <= commands  # bench is an application of its own, mounted when it is called
    assert CliRunner().invoke(bench, ["broadcast", "--help"]).exit_code == 0


def test_the_examples_are_python_and_use_public_names() -> None:
    for example in blocks("python"):
        tree = ast.parse(example)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "starlight":
                assert node.attr in starlight.__all__
