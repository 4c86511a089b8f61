"""A cache of packed weights for models of any size."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from qwenkit.weights import load, packed_cache, packed_file
from tests.support.kept import settled
from tests.support.quantised import copied


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    """Where files are kept: as in use, but for models of any size, in small chunks, and with all of the disk."""
    monkeypatch.setenv("QWENKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_cache, "_MIN_BYTES", 0)
    monkeypatch.setattr(packed_cache, "_MIN_FREE", 0)
    monkeypatch.setattr(packed_file, "_CHUNK", 4096)
    monkeypatch.setattr(packed_file, "_PIECE", 1000)
    packed_cache._warn_once.cache_clear()
    caplog.set_level(logging.WARNING, logger="qwenkit")
    return tmp_path / "cache" / "packed"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return settled(copied("qwen1-tiny-gptq-int4", tmp_path / "model"))


@pytest.fixture
def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time weights were made from the model's own files."""
    loads: list[int] = []
    make = load._load_all

    def counted(*args: Any) -> Any:
        loads.append(1)
        return make(*args)

    monkeypatch.setattr(load, "_load_all", counted)
    return loads
