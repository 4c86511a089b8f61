"""A full disk and used up memory are told in a sentence; whatever else fails comes through as it is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from qwenkit.core.errors import InputError, QwenkitError
from qwenkit.train.saving import shortages_told

FOLDER = Path("some/run")


def _through(error: Exception, *, cause: Exception | None = None) -> Exception:
    with pytest.raises(Exception) as caught, shortages_told(FOLDER):  # noqa: PT011
        raise error from cause
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
        SafetensorError('Error while serializing: I/O error: StorageFull, "no storage space"'),
        SafetensorError("Error while serializing: IoError(No space left on device (os error 28))"),
    ],
)
def test_a_full_disk(error: Exception) -> None:
    told = _through(error)
    assert type(told) is QwenkitError
    assert told.__cause__ is error
    assert str(told).startswith(f"the disk of {FOLDER} is full; ")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000000 bytes."),
    ],
)
def test_no_memory(error: Exception) -> None:
    told = _through(error)
    assert type(told) is QwenkitError
    assert told.__cause__ is error
    assert str(told).startswith("there is no memory left; lower batch_size")


def test_a_full_disk_behind_another_error() -> None:
    """As libraries do that clean up after a failed write."""
    told = _through(
        RuntimeError("the file could not be written"), cause=OSError(errno.ENOSPC, "No space left")
    )
    assert "is full" in str(told)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "Permission denied"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        SafetensorError("Error while deserializing header: header too large"),
        InputError("the disk of the user's dreams"),
        ValueError("No space left"),
        KeyError("step"),
    ],
)
def test_others_come_through(error: Exception) -> None:
    assert _through(error) is error


def test_nothing_happens() -> None:
    with shortages_told(FOLDER):
        pass
