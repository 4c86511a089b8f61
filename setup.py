"""Builds the optional CPU kernels; everything else is in pyproject.toml.

Without a compiler the build goes on and plain torch does the work (`qwenkit doctor` says so).
"""

import os
from pathlib import Path

from setuptools import Extension, setup

SOURCES = sorted(str(p) for p in Path("csrc").glob("*.cpp"))
HEADERS = sorted(str(p) for pattern in ("*.h", "*.inc") for p in Path("csrc").glob(pattern))
# Fusing multiplication and addition where the source does not say so would make instruction sets differ.
FLAGS = [
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-pthread",
    "-g0",
]
# What a user's compiler says about our source helps nobody, but ours shall be silent: QWENKIT_WERROR=1 makes warnings
# errors and the library a must.
STRICT = os.environ.get("QWENKIT_WERROR") == "1"
ALLOWED = [
    "missing-field-initializers",  # the last fields of a struct, which are then zero
    "psabi",  # vector types of other instruction sets, which never leave a file
    "uninitialized",  # GCC warns of its own intrinsics
    "maybe-uninitialized",
    "unknown-warning-option",  # of Clang, which does not know all of these
]
WARNINGS = ["-Wall", "-Wextra", "-Werror", *(f"-Wno-{name}" for name in ALLOWED)] if STRICT else ["-w"]

setup(
    ext_modules=[
        Extension(
            "qwenkit.kernels._native",
            sources=SOURCES,
            depends=HEADERS,
            language="c++",
            extra_compile_args=[*FLAGS, *WARNINGS],
            extra_link_args=["-pthread"],
            optional=not STRICT,
        )
    ]
)
