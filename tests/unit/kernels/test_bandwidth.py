"""Reading memory: the buffer's size, the best pass, limits of time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qwenkit.core.errors import InputError
from qwenkit.kernels import bandwidth
from qwenkit.kernels.bandwidth import buffer_size, largest_cache, read_bandwidth

MIB = 1 << 20
GIB = 1 << 30


@pytest.mark.parametrize("threads", [1, 3])
def test_every_pass_reads_the_whole_buffer_once(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(bandwidth, "_read", lambda piece: read.append(piece.nbytes))
    found = read_bandwidth(threads, buffer_bytes=16 * MIB + 4, passes=4, seconds=60)
    assert sum(read) == 4 * (16 * MIB + 4)
    assert len(read) == 4 * threads
    assert (found.threads, found.buffer_bytes) == (threads, 16 * MIB + 4)


def test_the_best_pass_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = iter((0.05, 0.01, 0.03))
    monkeypatch.setattr(bandwidth, "_read", lambda piece: time.sleep(next(pauses)))
    found = read_bandwidth(1, buffer_bytes=16 * MIB, passes=3, seconds=60)
    assert 16 * MIB / 0.03 < found.bytes_per_second <= 16 * MIB / 0.01


def test_time_is_limited_but_one_pass_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    monkeypatch.setattr(bandwidth, "_read", lambda piece: (passes.append(1), time.sleep(0.02)))
    read_bandwidth(1, buffer_bytes=16 * MIB, seconds=0)
    assert len(passes) == 1
    read_bandwidth(1, buffer_bytes=16 * MIB, seconds=0.05)
    assert 2 <= len(passes) <= 6


def test_it_is_a_speed_of_memory() -> None:
    found = read_bandwidth(1, buffer_bytes=64 * MIB, seconds=0.1)
    assert 1e8 < found.bytes_per_second < 1e12


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_impossible_threads(threads: int) -> None:
    with pytest.raises(InputError, match=f"threads={threads} is not possible; use 1 to 256"):
        read_bandwidth(threads, buffer_bytes=16 * MIB)


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "available_memory", lambda: 20 * MIB)
    with pytest.raises(InputError, match="too few to measure memory rather than caches"):
        read_bandwidth(1)


@pytest.mark.parametrize(
    ("caches", "free", "largest", "buffer"),
    [
        ({"index0": "48K", "index3": "307200K"}, 64 * GIB, 300 * MIB, 1200 * MIB),
        ({"index3": "16M"}, 64 * GIB, 16 * MIB, GIB),
        ({"index3": "2G"}, 64 * GIB, 2 * GIB, 4 * GIB),
        ({"index3": "nonsense"}, 64 * GIB, 0, GIB),
        ({}, GIB, 0, GIB // 2),
        ({}, 0, 0, GIB),  # free memory cannot be told
    ],
)
def test_sizes(
    caches: dict[str, str],
    free: int,
    largest: int,
    buffer: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in caches.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(text + "\n")
    monkeypatch.setattr(bandwidth, "_CACHES", tmp_path)
    monkeypatch.setattr(bandwidth, "available_memory", lambda: free)
    assert largest_cache() == largest
    assert buffer_size() == buffer
