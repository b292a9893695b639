"""The pinned libraries: one version in three places, and no other one is worked with."""

import re
from pathlib import Path

import picows
import pytest

from starlight.net.pinned import PINNED, check_versions

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_pyproject_builds_with_and_installs_the_same_versions():
    pins = re.findall(r'"(picows|aiofastnet)==([\d.]+)"', PYPROJECT.read_text())
    assert sorted(pins) == sorted([*PINNED.items()] * 2)


def test_the_installed_versions_are_the_pinned_ones():
    check_versions()


def test_another_version_is_refused_at_import(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(picows, "__version__", "2.3.2")
    with pytest.raises(ImportError, match=r"built for picows 2\.3\.1, and 2\.3\.2 is installed"):
        check_versions()
