"""session/ knows no socket: it imports neither picows nor net."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import starlight.session

FOLDER = Path(starlight.session.__file__).parent
SOURCES = [path for path in FOLDER.iterdir() if path.suffix in {".py", ".pyx", ".pxd", ".pyi"}]


def test_importing_a_session_loads_no_transport():
    code = "import sys, starlight.session.session; print([name for name in sys.modules if name.startswith(WANTED)])"
    code = code.replace("WANTED", "('picows', 'aiofastnet', 'uvloop', 'starlight.net')")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout.strip() == "[]"


def test_no_source_of_a_session_names_a_socket():
    assert len(SOURCES) >= 8
    for path in SOURCES:
        found = re.findall(
            r"^\s*(?:from|c?import)\s+(picows|socket|ssl|select|uvloop|aiofastnet|starlight\.net)\b",
            path.read_text(),
            re.M,
        )
        assert found == [], path.name
        assert not re.search(r"\b(getsockopt|get_extra_info|fileno|shutdown)\b", path.read_text()), path.name
