"""When weights are kept for the next start, when they are made anew, and what happens where they cannot be kept."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from qwenkit.backends.options import LocalOptions
from qwenkit.core.errors import InputError
from qwenkit.model.transformer import Transformer
from qwenkit.weights import load, packed_cache, packed_file
from tests.support.kept import assert_same, built, settled
from tests.support.tiny_models import write_model


def test_weights_that_changed_are_read_again(folder: Path, model: Path, count_loads: list[int]) -> None:
    built(model)
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    found = file.stat()
    file.write_bytes(
        data
    )  # the same size, and below the same time: only what the system notes tells them apart
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert file.stat().st_size == found.st_size
    again = built(model)
    assert len(count_loads) == 2
    assert_same(again, built(model, cached=False))
    assert len(list(folder.iterdir())) == 1  # in place of the old one
    built(model)
    assert len(count_loads) == 3


def test_a_copy_in_its_place_is_read_again(folder: Path, model: Path, count_loads: list[int]) -> None:
    built(model)
    file = model / "model.safetensors"
    shutil.copy2(file, model / "new")
    (model / "new").replace(file)
    built(model)
    assert len(count_loads) == 2


def test_other_code_makes_them_anew(
    folder: Path,
    model: Path,
    count_loads: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    built(model)
    monkeypatch.setattr(packed_cache, "_code", lambda: ["0.0.0", "other"])
    built(model)
    assert len(count_loads) == 2
    assert not caplog.records  # nothing is wrong


def test_other_settings_have_files_of_their_own(folder: Path, model: Path, count_loads: list[int]) -> None:
    types = (torch.bfloat16, torch.float16)
    plain = {dtype: built(model, cached=False, dtype=dtype) for dtype in types}
    for dtype in types:
        built(model, dtype=dtype)
    assert len(list(folder.iterdir())) == 2
    count_loads.clear()
    for dtype in types:
        assert_same(built(model, dtype=dtype), plain[dtype])
    assert not count_loads


def test_files_written_a_moment_ago_may_change_unseen(folder: Path, model: Path) -> None:
    os.utime(model / "model.safetensors")
    built(model)
    assert not folder.exists()


def test_files_that_change_during_the_load_are_not_kept(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = load._load_all

    def meanwhile(*args: Any) -> Any:
        found = make(*args)
        os.utime(model / "model.safetensors", ns=(10**18, 10**18 + 1))
        return found

    monkeypatch.setattr(load, "_load_all", meanwhile)
    built(model)
    assert not folder.exists()


def test_what_needs_no_cache_has_none(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(model, cached=False)
    built(model, panels=False)
    built(model, panels=False, packed=False, head="auto")
    built(settled(write_model(model.parent / "dense")), head="auto")
    built(model, head="auto")  # most of it is not packed
    monkeypatch.setattr(packed_cache, "_MIN_BYTES", 2**28)
    built(model)
    assert not folder.exists()


def test_a_folder_that_cannot_be_made(
    folder: Path, model: Path, count_loads: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.mkdir()
    folder.write_text("a file")
    plain = built(model, cached=False)
    for _ in range(2):
        assert_same(built(model), plain)
    assert len(count_loads) == 3
    lines = [r.message for r in caplog.records if "cannot be kept" in r.message]
    assert len(lines) == 1


@pytest.mark.parametrize("after", [0, 3])
def test_a_disk_that_fills_up(
    after: int,
    folder: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write, calls = os.pwrite, []

    def full(fd: int, data: Any, offset: int) -> int:
        calls.append(1)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(2):
        built(model)
        assert list(folder.iterdir()) == []
        calls.clear()
    assert [r.message.partition(":")[2].strip() for r in caplog.records] == ["No space left on device"]


def test_an_interrupt_leaves_nothing_behind(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packed_file, "_write_chunk", interrupt)
        with pytest.raises(KeyboardInterrupt):
            built(model)
    assert list(folder.iterdir()) == []
    built(model)
    assert len(list(folder.iterdir())) == 1


def test_what_ended_processes_left_is_removed(folder: Path, model: Path) -> None:
    folder.mkdir(parents=True)
    stale, busy = folder / "a.tmp", folder / "b.tmp"
    stale.write_bytes(b"half")
    with busy.open("wb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        built(model)
        assert not stale.exists()
        assert busy.exists()
    (kept,) = folder.glob("*.weights")
    kept.rename(kept.with_suffix(".tmp"))  # as if killed before the last step
    built(model)
    assert [path.suffix for path in folder.iterdir() if path != busy] == [".weights"]


def test_only_one_process_writes(folder: Path, model: Path, count_loads: list[int]) -> None:
    built(model)
    (kept,) = folder.iterdir()
    kept.unlink()
    with kept.with_suffix(".tmp").open("wb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        built(model)
        assert not kept.exists()
        assert kept.with_suffix(".tmp").exists()
    built(model)
    assert kept.exists()


def test_threads_at_once(folder: Path, model: Path) -> None:
    plain = built(model, cached=False)
    found: list[Transformer] = []
    threads = [threading.Thread(target=lambda: found.append(built(model))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for network in found:
        assert_same(network, plain)
    assert [path.suffix for path in folder.iterdir()] == [".weights"]


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def entries(folder: Path, count: int, size: int) -> list[Path]:
    """Files of other models; the first was used last."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.weights" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes(size))
        os.utime(path, ns=(10**18 - i, 10**18 - i))
    return paths


def test_the_least_recently_used_go_first(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(model)
    (kept,) = folder.iterdir()
    size = kept.stat().st_size
    kept.unlink()
    paths = entries(folder, 4, size)
    monkeypatch.setattr(packed_cache, "_MAX_BYTES", 3 * size + size // 2)
    built(model)
    assert sorted(folder.iterdir()) == sorted([*paths[:2], kept])
    built(model)  # reading counts as use
    assert min(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns) == paths[1]


@pytest.mark.parametrize(("reserve", "left"), [(10, [0, 1]), (12, [0]), (14, [])])
def test_the_disk_keeps_its_reserve(
    reserve: int, left: list[int], folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(model)
    (kept,) = folder.iterdir()
    size = kept.stat().st_size
    kept.unlink()
    paths = entries(folder, 3, size)
    monkeypatch.setattr(packed_cache, "_MIN_FREE", reserve * size // 2)
    monkeypatch.setattr(packed_cache.shutil, "disk_usage", lambda _: Disk(0, 0, 5 * size))
    built(model)
    assert sorted(folder.iterdir()) == sorted([*(paths[i] for i in left), kept])


def test_nothing_is_removed_in_vain(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = entries(folder, 3, 1000)
    monkeypatch.setattr(packed_cache.shutil, "disk_usage", lambda _: Disk(0, 0, 10))
    for _ in range(2):
        built(model)
    assert sorted(folder.iterdir()) == sorted(paths)
    assert len(caplog.records) == 1
    monkeypatch.undo()


def test_loading_leaves_the_number_of_threads_alone(folder: Path, model: Path) -> None:
    before = torch.get_num_threads()
    built(model)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *seen] == [before, before]


def test_the_option() -> None:
    assert LocalOptions().packed_cache == "auto"
    with pytest.raises(InputError, match="use auto or off"):
        LocalOptions(packed_cache="on")
