"""The CPU kernels and their threads under the sanitizers of the C++ compiler, over random models."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _sanitize(*arguments: str, optimisation: str, tmp_path: Path) -> None:
    compiler = os.environ.get("CXX", "g++")
    program = tmp_path / "empty"
    kinds = "address,undefined" if "address" in arguments else "thread"
    build = [compiler, "-x", "c++", f"-fsanitize={kinds}", "-", "-o", str(program)]
    if shutil.which(compiler) is None or subprocess.run(build, input=b"int main() {}").returncode:
        pytest.skip(f"{compiler} has no sanitizers here")
    done = subprocess.run(
        [str(ROOT / "scripts" / "sanitize"), *arguments],
        env={**os.environ, "OPTIMISATION": optimisation},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "ok: " in done.stdout


@pytest.mark.slow
def test_addresses_and_undefined_behaviour(tmp_path: Path) -> None:
    """A few of the cases; `make sanitize` runs all."""
    _sanitize("15", "address", optimisation="-O0", tmp_path=tmp_path)


def test_threads_of_the_pool(tmp_path: Path) -> None:
    _sanitize("1", "pool", optimisation="-O1", tmp_path=tmp_path)
