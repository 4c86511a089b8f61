"""The most memory held, and how busy other programs were."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwenkit.bench import neighbours, process_memory
from qwenkit.bench.neighbours import Neighbours
from qwenkit.bench.process_memory import PeakMemory

MIB = 1 << 20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells it")
def test_memory_held_in_between_counts() -> None:
    PeakMemory("cpu")
    before = PeakMemory("cpu").process_bytes()
    peak = PeakMemory("cpu")
    block = bytearray(b"\1" * (64 * MIB))
    peak.sample()
    del block
    found = peak.process_bytes()
    assert before is not None
    assert found is not None
    assert 60 * MIB < found - before < 160 * MIB
    assert peak.gpu_bytes() is None


def proc(folder: Path, held: int, mark: int) -> None:
    (folder / "statm").write_text(f"999 {held * MIB // os.sysconf('SC_PAGE_SIZE')} 5\n")
    (folder / "status").write_text(f"Name: x\nVmHWM:\t{mark * 1024} kB\n")


def test_the_kernels_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory, "_PROC", tmp_path)
    proc(tmp_path, held=5, mark=9)
    peak = PeakMemory("cpu")
    assert (tmp_path / "clear_refs").read_text() == "5"
    assert peak.process_bytes() == 9 * MIB


def test_samples_where_the_mark_cannot_be_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory, "_PROC", tmp_path)
    (tmp_path / "clear_refs").mkdir()  # cannot be written
    proc(tmp_path, held=5, mark=99)
    peak = PeakMemory("cpu")
    peak.sample()
    proc(tmp_path, held=3, mark=99)
    assert peak.process_bytes() == 5 * MIB  # 99 was before


def test_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory, "_PROC", tmp_path / "none")
    assert PeakMemory("cpu").process_bytes() is None


def test_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    reset: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: reset.append(str(device)))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 * MIB)
    peak = PeakMemory("cuda:1")
    assert reset == ["cuda:1"]
    assert peak.gpu_bytes() == 7 * MIB


def watched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, busy: int, own: float, cores: int = 4
) -> float | None:
    """Ten seconds in which all cores were busy for so many ticks, of which this process had so many seconds."""
    stat = folder / "stat"
    monkeypatch.setattr(neighbours, "_STAT", stat)
    monkeypatch.setattr(neighbours, "usable_cores", lambda: cores)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    now = SimpleNamespace(wall=0.0, cpu=1.0)
    clock = SimpleNamespace(perf_counter=lambda: now.wall, process_time=lambda: now.cpu)
    monkeypatch.setattr(neighbours, "time", clock)
    ticks = os.sysconf("SC_CLK_TCK")
    stat.write_text("cpu  100 0 0 5000 0 0 0 0 0 0\ncpu0 1\n")
    watch = Neighbours()
    now.wall, now.cpu = 10.0, 1.0 + own
    stat.write_text(f"cpu  100 {busy * ticks // 2} {busy * ticks // 4} 9000 50 0 0 {busy * ticks // 4} 0 0\n")
    return watch.cores()


def test_cores_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        assert watched(tmp_path, patch, busy=36, own=20.0) == pytest.approx(1.6)
    with monkeypatch.context() as patch:
        assert watched(tmp_path, patch, busy=16, own=20.0) == 0.0
    with monkeypatch.context() as patch:
        assert watched(tmp_path, patch, busy=36, own=20.0, cores=2) is None  # the rest may be somebody else's


def test_cores_that_cannot_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_STAT", tmp_path / "none")
    assert Neighbours().cores() is None
