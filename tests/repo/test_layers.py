"""The order of the layers, for `import` and for `cimport`, and the public names."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import starlight

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "starlight"
COMPILED_MAY_IMPORT = {"net": {"picows"}, "session": {"asyncio"}}
"""What a compiled module may import besides the compiler's and the standard library's plain modules."""

PLAIN = {"cython", "cpython", "libc", "posix", "__future__"} | set(sys.stdlib_module_names) - {"asyncio", "json"}

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
LAYERS: list[str] = next(contract["layers"] for contract in CONTRACTS if contract["id"] == "layers")
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in re.findall(r"\w+", layer)}
CORE_LAYERS: list[str] = next(contract["layers"] for contract in CONTRACTS if contract["id"] == "core")
CORE_RANK = {name: rank for rank, layer in enumerate(CORE_LAYERS) for name in re.findall(r"\w+", layer)}
UNRANKED = {"__init__", "__main__", "_version"}

SOURCES = [path for path in sorted(PACKAGE.rglob("*")) if path.suffix in {".py", ".pyi", ".pyx", ".pxd"}]
COMPILED = [path for path in SOURCES if path.suffix in {".pyx", ".pxd"}]

_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+(?:c?import)\s+\(?([\w, ]*)|c?import\s+([\w.]+))", re.MULTILINE)


def module_of(path: Path) -> str:
    """The name in `LAYERS` a file belongs to: the module or subpackage right below `starlight`."""
    return path.relative_to(PACKAGE).parts[0].split(".")[0]


def imported(path: Path) -> Iterator[str]:
    """Everything a file imports, as dotted names; from `starlight` itself, what is taken of it."""
    text = path.read_text()
    if path.suffix in {".py", ".pyi"}:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: imports are absolute"
                yield from names_in(node.module or "", [alias.name for alias in node.names])
        return
    for source, names, plain in _IMPORT.findall(text):
        yield from names_in(source, re.findall(r"\w+", names)) if source else [plain]


def names_in(source: str, names: list[str]) -> list[str]:
    return [f"starlight.{name}" for name in names] if source == "starlight" else [source]


def wrong_imports(path: Path) -> Iterator[str]:
    """Imports of our own modules that are not below the file's, each as a line."""
    importer = module_of(path)
    for name in imported(path):
        _, _, inside = name.partition("starlight.")
        target, _, inner = inside.partition(".")
        if target == importer == "core":
            is_wrong = CORE_RANK[inner] <= CORE_RANK[path.stem]
        elif target == importer or target not in RANK:
            continue
        else:
            same_line = RANK[target] == RANK[importer]
            is_wrong = RANK[target] < RANK[importer] or (same_line and "|" in LAYERS[RANK[importer]])
        if is_wrong:
            yield f"{path.relative_to(ROOT)} imports {name}, which is not below it"


def test_import_linter_is_satisfied() -> None:
    run = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


def test_every_module_has_a_layer() -> None:
    assert {module_of(path) for path in SOURCES} - UNRANKED - set(RANK) == set()


def test_the_page_names_every_module() -> None:
    rows = re.findall(r"^\| \d+ \| (.+?) \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    named = re.findall(r"`([\w*]+)/?`", " ".join(rows))
    assert [module for module in RANK if not any(fnmatchcase(module, name) for name in named)] == []
    assert [name for name in named if not any(fnmatchcase(module, name) for module in RANK)] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_below(path: Path) -> None:
    if module_of(path) not in UNRANKED:
        assert list(wrong_imports(path)) == []


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_compiled_module_imports_only_what_its_layer_may(path: Path) -> None:
    outside = {name.split(".")[0] for name in imported(path)} - {"starlight"}
    assert outside - PLAIN - COMPILED_MAY_IMPORT.get(module_of(path), set()) == set()


TOUCHES_THE_CORE = re.compile(r"\b(?:subscriber|core|channel)\.(?:s|c)\.|\bsubscriber_t\b")
MAY_TOUCH_THE_CORE = {"_fanout", "core", "_inspect"}
"""The core itself, and what only reads it."""


def test_only_the_core_touches_its_records() -> None:
    touching = {module_of(path) for path in COMPILED if TOUCHES_THE_CORE.search(path.read_text())}
    assert touching == MAY_TOUCH_THE_CORE


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("from starlight.net.connection cimport Connection", "starlight.net.connection"),
        ("    cimport starlight.channels.hub", "starlight.channels.hub"),
        ("from starlight.net cimport connection", "starlight.net"),
        ("from starlight.channels.hub import Hub", "starlight.channels.hub"),
        ("from starlight.core.wire cimport (a,\n    b)", None),
    ],
)
def test_the_scan_sees_a_wrong_cimport(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, complaint: str
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    planted = tmp_path / "_fanout.pyx"
    planted.write_text(text)
    complaints = list(wrong_imports(planted))
    assert [complaint in line for line in complaints] == [True] if complaint else complaints == []


WRITES_A_PROTOCOL = re.compile(r"""\{"type":|protocols\.native(?:\.| import )(?:codec|lines|pushes|replies)""")


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in SOURCES
        if module_of(path) in {"channels", "session", "net", "server", "auth", "_fanout", "core"}
    ],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_only_protocols_writes_a_protocols_bytes(path: Path) -> None:
    """Compiled modules included, which import-linter doesn't see."""
    assert WRITES_A_PROTOCOL.findall(path.read_text()) == []


def test_public_names() -> None:
    assert sorted(starlight.__all__) == ["ChannelOptions", "Starlight", "__version__", "connect", "errors"]
    assert set(starlight.__all__) <= set(dir(starlight))
    assert re.fullmatch(r"\d+\.\d+\.\d+", starlight.__version__)
    assert issubclass(starlight.errors.ClientError, starlight.errors.StarlightError)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        starlight.nothing  # noqa: B018


def test_connect_is_the_function_whatever_was_imported_before() -> None:
    code = "import starlight.client.connect as home, starlight; print(starlight.connect is home.connect)"
    assert _python(code) == "True\n"


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("asyncio", "picows", "uvloop", "pydantic", "typer", "msgspec", "orjson")
    code = f"import sys, starlight; print([name for name in {heavy!r} if name in sys.modules])"
    assert _python(code) == "[]\n"


def test_the_client_needs_no_server_and_the_command_line_nothing_until_it_runs() -> None:
    code = (
        "import sys; show = lambda *names: print([name for name in names if name in sys.modules]);"
        "import starlight.cli.main; show('pydantic', 'picows', 'uvloop', 'rich', 'asyncio');"
        "import starlight.client.connect; show('pydantic', 'uvloop', 'starlight.channels.hub')"
    )
    assert _python(code) == "[]\n[]\n"


def test_a_node_loads_only_what_it_serves_with() -> None:
    """From the command to the first accepted connection is half a second; each of these takes up to a third of that."""
    slow = ("aiohttp", "prometheus_client", "rich", "structlog", "jwt", "cryptography", "hdrh")
    loads = "import sys, starlight.cli.serve, starlight.server.node"
    code = f"{loads}; print([name for name in {slow!r} if name in sys.modules])"
    assert _python(code) == "[]\n"


def _python(code: str) -> str:
    """What a fresh interpreter prints."""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    return run.stdout
