"""Builds the optional CPU kernels; everything else is in pyproject.toml.

Without a compiler the build goes on and plain torch does the work (`qwenkit doctor` says so).
"""

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
    "-w",
]

setup(
    ext_modules=[
        Extension(
            "qwenkit.kernels._native",
            sources=SOURCES,
            depends=HEADERS,
            language="c++",
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
