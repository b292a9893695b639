"""The package's metadata, without building anything; `.ci/package` builds, installs and uses it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from starlight import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ("cp311", "cp312", "cp313", "cp314")


def tracked(*patterns: str) -> list[str]:
    run = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_the_version_stands_in_one_place():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "starlight._version.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    sources = [
        path for path in tracked("starlight/*.py", "setup.py", "pyproject.toml") if path.endswith((".py", ".toml"))
    ]
    assert [path for path in sources if f'"{__version__}"' in (ROOT / path).read_text()] == ["starlight/_version.py"]


def test_the_changelog_has_a_heading_for_what_is_here():
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in ("Unreleased", __version__)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released == sorted(released, key=lambda text: tuple(map(int, text.split("."))), reverse=True)


def test_every_supported_python_is_named():
    classifiers = PROJECT["project"]["classifiers"]
    for python in PYTHONS:
        assert f"Programming Language :: Python :: 3.{python[3:]}" in classifiers
        assert f"{python}-*" in PROJECT["tool"]["cibuildwheel"]["build"]
    assert PROJECT["project"]["requires-python"] == ">=3.11"


def test_build_and_run_time_pin_the_same_cimported_libraries():
    build = {spec for spec in PROJECT["build-system"]["requires"] if "==" in spec}
    run = {spec for spec in PROJECT["project"]["dependencies"] if "==" in spec}
    assert {"picows", "aiofastnet"} == {spec.partition("==")[0] for spec in run}
    assert run <= build


@pytest.mark.skipif(find_spec("cibuildwheel") is None, reason="cibuildwheel is not installed")
def test_cibuildwheel_makes_a_wheel_for_each():
    run = subprocess.run(
        [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", "linux", "--archs", "x86_64"],
        cwd=ROOT, env={**os.environ, "CIBW_CACHE_PATH": os.devnull}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split() == [f"{python}-manylinux_x86_64" for python in PYTHONS]


def test_the_whole_of_it_is_built_by_the_checks():
    assert os.access(ROOT / ".ci" / "package", os.X_OK)
    assert ".ci/package" in (ROOT / ".ci" / "run").read_text()
