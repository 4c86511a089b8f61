"""Loading the compiled kernels: which library is used, which refused, and which instruction set."""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenkit.core.errors import InputError
from qwenkit.kernels import native

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not compiled")


@pytest.fixture
def other_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the loader looks for the library during this test."""
    monkeypatch.delenv("QWENKIT_ISA", raising=False)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    native._load.cache_clear()
    yield tmp_path / f"_native{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    native._load.cache_clear()


@pytest.mark.parametrize("field", ["_ABI_VERSION", "Layer", "Model", "Pool", "Lora", "Adapter", "Span"])
def test_a_library_of_another_version_is_not_used(
    field: str, other_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(_compiled(), other_library)
    assert native.problem() == ""
    native._load.cache_clear()
    newer = 0 if field == "_ABI_VERSION" else type(field, (ctypes.Structure,), {"_fields_": ()})
    monkeypatch.setattr(native, field, newer)
    assert native.library() is None
    assert "compiled for another version of qwenkit; install qwenkit again" in native.problem()


def test_a_library_without_a_version_is_not_used(other_library: Path) -> None:
    """As the first ones were; any other shared library will do."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    subprocess.run([compiler, "-shared", "-x", "c", "-o", str(other_library), os.devnull], check=True)
    assert native.library() is None
    assert "another version" in native.problem()


def test_a_file_that_is_no_library_is_not_used(other_library: Path) -> None:
    other_library.write_bytes(b"not a library")
    assert native.library() is None
    assert "cannot be loaded" in native.problem()


def _compiled() -> Path:
    folder = Path(str(native.__spec__.origin)).parent
    return next(folder.glob("_native*.so"))


def test_reference_turns_the_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENKIT_ISA", "reference")
    assert native.library() is None
    assert "QWENKIT_ISA" in native.problem()


def test_an_instruction_set_is_known_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENKIT_ISA", "avx1024")
    with pytest.raises(InputError, match="'avx1024' is unknown; use portable, avx2, avx512, amx, reference"):
        native.isa()
    monkeypatch.setenv("QWENKIT_ISA", "portable")
    assert native.isa_name() == "portable"


def test_an_instruction_set_that_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        @staticmethod
        def qk_best_isa() -> int:
            return 1

    monkeypatch.setattr(native, "library", lambda: Old)
    monkeypatch.setenv("QWENKIT_ISA", "amx")
    with pytest.raises(InputError, match="'amx' is more than this CPU has; use avx2"):
        native.isa()
