"""The work folder of a run that is not finished: a manifest of what it is, and one file per finished block.

Every file is written under another name and then renamed, so that whatever ends the run, what is there is whole.
Knows nothing of algorithms.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor

from qwenkit.core.errors import InputError, SourceError
from qwenkit.quantize.report import LayerError
from qwenkit.weights.cache import is_disk_full
from qwenkit.weights.files import DTYPES, SafetensorsFile
from qwenkit.weights.write import Entry, write_tensors

_FORMAT = 1
_MANIFEST = "manifest.json"


def partial_folder(out: Path) -> Path:
    """Where the unfinished work for a target folder lies."""
    return out.with_name(f"{out.name}.partial")


class PartialRun:
    """An unfinished run, new or continued; holds a lock until ``close``.

    Args:
        out: the target folder.
        manifest: what decides the results, by name; compared with that of the run that is continued.
        restart: throw away what an earlier run left.

    Raises:
        InputError: an earlier run was asked for something else, or another process is at it.
        SourceError: the folder cannot be written.
    """

    def __init__(self, out: Path, manifest: Mapping[str, Any], *, restart: bool) -> None:
        self.folder = partial_folder(out)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self.folder / "lock")
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout:
                raise InputError(
                    f"another process is quantising to {out}; wait for it, or give another folder"
                ) from None
        try:
            with writing(self.folder):
                self._open(manifest, restart)
        except BaseException:
            self.close()
            raise

    def _open(self, manifest: Mapping[str, Any], restart: bool) -> None:
        wanted = json.loads(json.dumps({"format": _FORMAT, **manifest}))
        found = None if restart else self._read_manifest()
        if found == wanted:
            return
        if found is not None:
            raise InputError(
                f"{self.folder} holds unfinished work of another run ({_difference(found, wanted)}); "
                "ask for the same again to continue it, or add --restart to throw it away"
            )
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _replace(self.folder / _MANIFEST, json.dumps(wanted, indent=2).encode())

    def _read_manifest(self) -> Any:
        try:
            return json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            raise InputError(
                f"{self.folder / _MANIFEST} is damaged; add --restart to throw the unfinished work away"
            ) from None

    def finished(self, num_layers: int) -> int:
        """How many blocks are done, from the first on."""
        return next((i for i in range(num_layers) if not self._block(i).exists()), num_layers)

    def save(self, index: int, tensors: Mapping[str, Tensor], errors: Sequence[LayerError]) -> None:
        """Keeps a finished block.

        Raises:
            SourceError: the disk is full or not writable; what was there before stays.
        """
        temporary = self.folder / "block.tmp"
        rows = json.dumps([asdict(error) for error in errors])
        with writing(self.folder):
            write_tensors(temporary, [Entry.of(*item) for item in tensors.items()], {"errors": rows})
            os.replace(temporary, self._block(index))

    def open(self, index: int) -> SafetensorsFile:
        """The tensors of a finished block.

        Raises:
            CheckpointError: the file is damaged.
        """
        return SafetensorsFile(self._block(index))

    def load(self, index: int) -> dict[str, Tensor]:
        """All tensors of a finished block."""
        file = self.open(index)
        try:
            out = {n: torch.empty(i.shape, dtype=DTYPES[i.dtype]) for n, i in file.tensors.items()}
            for name, tensor in out.items():
                file.read(name, tensor)
            return out
        finally:
            file.close()

    def errors(self, index: int) -> list[LayerError]:
        """What quantising a finished block did."""
        with self._block(index).open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return [LayerError(**row) for row in json.loads(header["__metadata__"]["errors"])]

    def empty_folder(self) -> Path:
        """A new folder inside this one, where a complete result is put together: what breaks off leaves no trace."""
        folder = self.folder / "final"
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        return folder

    def close(self) -> None:
        """Lets others at the folder."""
        self._lock.release()

    def remove(self) -> None:
        """Throws everything away."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _block(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}.safetensors"


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what goes wrong with a disk into one sentence that says the work so far is kept.

    Args:
        folder: where unfinished work lies.

    Raises:
        SourceError: the disk is full or not writable.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise SourceError(
                f"the disk is full; what was done is kept in {folder}: make room and run the same command again"
            ) from error
        where = getattr(error, "filename", None) or folder
        raise SourceError(
            f"{where} cannot be written: {getattr(error, 'strerror', None) or error}; what was done is kept in {folder}"
        ) from error


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _difference(found: Any, wanted: Any) -> str:
    """The first thing in which two manifests differ: ``bits was 4, is now 8``."""
    before, after = dict(_flat(found)), dict(_flat(wanted))
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            return f"{name} was {before.get(name)}, is now {after.get(name)}"
    return "its manifest differs"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name} {key}".strip())
