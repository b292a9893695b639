"""Build the compiled modules. Everything else about the package stands in pyproject.toml.

Environment variables (never sys.argv, so that they work the same under pip, `build` and by hand):

STARLIGHT_BUILD
    ``release`` (default): -O3, no assertions, no bounds checks.
    ``debug``: -O1 -g, the core's invariants asserted after every public call.
    ``sanitize``: debug plus AddressSanitizer and UndefinedBehaviorSanitizer.
STARLIGHT_ANNOTATE
    ``1``: write Cython's annotated HTML beside each module.
CFLAGS, LDFLAGS
    Appended by setuptools as usual.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

MODE = os.environ.get("STARLIGHT_BUILD", "release")
COMPILE_ARGS = {
    "release": ["-O3", "-DNDEBUG", "-fno-plt"],
    "debug": ["-O1", "-g", "-UNDEBUG", "-DSTARLIGHT_DEBUG"],
    "sanitize": [
        "-O1",
        "-g",
        "-UNDEBUG",
        "-DSTARLIGHT_DEBUG",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ],
}
if MODE not in COMPILE_ARGS:
    raise SystemExit(f"STARLIGHT_BUILD={MODE!r}: expected one of {', '.join(COMPILE_ARGS)}")
LINK_ARGS = ["-fsanitize=address,undefined"] if MODE == "sanitize" else []


def extensions() -> list[Extension]:
    return [
        Extension(
            ".".join(path.with_suffix("").parts),
            [str(path)],
            extra_compile_args=["-std=gnu11", "-Wno-unused-function", *COMPILE_ARGS[MODE]],
            extra_link_args=LINK_ARGS,
        )
        for path in sorted(Path("starlight").rglob("*.pyx"))
    ]


setup(
    ext_modules=cythonize(
        extensions(),
        annotate=os.environ.get("STARLIGHT_ANNOTATE") == "1",
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "freethreading_compatible": False,
        },
    ),
)
