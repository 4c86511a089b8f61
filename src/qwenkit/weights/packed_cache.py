"""Keeps weights that were rearranged for the CPU kernels in the user's cache folder, for an immediate second start.

A file is used only for exactly the weight files, settings and code that it was made from, and after every checksum
has been compared; whatever is wrong with it or with the folder costs one line in the log and nothing else.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.metadata
import logging
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwenkit._version import __version__
from qwenkit.core.environment import cache_dir
from qwenkit.core.errors import CheckpointError, InputError
from qwenkit.layers.quant_linear import Stored
from qwenkit.weights.checkpoint import Checkpoint
from qwenkit.weights.packed_file import OutdatedError, Parameters, read_packed, write_packed
from qwenkit.weights.plan import Parameter

_log = logging.getLogger("qwenkit")
_MIN_BYTES = 2**28
"""Weights of smaller models are rearranged in no time."""
_MAX_BYTES = 32 * 2**30
"""Of all files together."""
_MIN_FREE = 5 * 2**30
"""Bytes of the disk that are left free."""
_SETTLED = 10 * 10**9  # ns; what changed again within one tick of the clock would look the same
_SUFFIX, _UNFINISHED = ".weights", ".tmp"
_CODE = ("config", "kernels", "layers", "weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedCache:
    """The place of one model's weights in the cache."""

    path: Path
    identity: Mapping[str, Any]
    """What the weights are made from; a file of any other is not used."""
    sources: Mapping[Path, os.stat_result]
    """The files that were opened."""

    def read(
        self, block: Callable[[int], Tensor], on_progress: Callable[[int, int], None] | None = None
    ) -> dict[str, tuple[Stored, ...]] | None:
        """The parameters; None where they are not there or not sound.

        Args:
            block: makes a tensor of so many bytes, in which all tensors will lie.
            on_progress: called with (bytes done, bytes in all).
        """
        try:
            found = read_packed(self.path, self.identity, block, on_progress)
            os.utime(self.path)  # the least recently used go first
        except FileNotFoundError:
            return None
        except (OSError, CheckpointError, LookupError, TypeError, ValueError) as error:
            _log.log(
                logging.INFO if isinstance(error, OutdatedError) else logging.WARNING,
                "packed weights are made anew: %s is not used, because %s",
                self.path,
                str(error) or type(error),
            )
            return None
        return found

    def write(self, parameters: Parameters) -> None:
        """Keeps the parameters, if there is room for them and the files they came from are still the same."""
        if any(_identity_of(path) != _stamp(path, found) for path, found in self.sources.items()):
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_unfinished(self.path.parent)
            size = sum(part.nbytes for parts in parameters.values() for part in parts)
            if not _make_room(self.path.parent, size):
                return
            with _unfinished(self.path.with_suffix(_UNFINISHED)) as fd:
                if fd is None:
                    return
                write_packed(fd, self.identity, parameters)
                os.replace(self.path.with_suffix(_UNFINISHED), self.path)
            _log.info("packed weights are kept in %s for the next start", self.path)
        except OSError as error:
            _warn_once(f"packed weights cannot be kept in {self.path.parent}: {error.strerror or error}")


def packed_cache(
    checkpoint: Checkpoint, plan: Mapping[str, Parameter], in_panels: frozenset[str], dtype: torch.dtype
) -> PackedCache | None:
    """Where the weights of a model are kept; None where they are not.

    Args:
        checkpoint: open.
        plan: how its parameters are made.
        in_panels: those that are rearranged.
        dtype: of what is not packed.
    """
    total = sum(parameter.nbytes(dtype) for parameter in plan.values())
    packed = [plan[name] for name in in_panels if not plan[name].is_plain]
    if total < _MIN_BYTES or 2 * sum(parameter.nbytes(dtype) for parameter in packed) < total:
        return None
    sources = checkpoint.store.sources
    oldest = time.time_ns() - _SETTLED
    if any(not stat.S_ISREG(s.st_mode) or s.st_mtime_ns > oldest for s in sources.values()):
        return None
    try:
        folder, code = cache_dir() / "packed", _code()
    except (InputError, OSError, ImportError):  # no home, or not installed as files
        return None
    described = repr((list(plan.items()), sorted(in_panels), checkpoint.quant, checkpoint.format))
    identity = {
        "files": [_stamp(path, found) for path, found in sources.items()],
        "weights": hashlib.sha256(described.encode()).hexdigest(),
        "dtype": str(dtype),
        "code": code,
    }
    model = repr((os.path.realpath(checkpoint.path), identity["weights"], identity["dtype"]))
    name = hashlib.sha256(model.encode()).hexdigest()[:32] + _SUFFIX
    return PackedCache(path=folder / name, identity=identity, sources=sources)


def _stamp(path: Path, found: os.stat_result) -> list[Any]:
    """What tells a file from any other, and from itself once it has been written to."""
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return [os.path.realpath(path), found.st_ino, found.st_size, *times]


def _identity_of(path: Path) -> list[Any] | None:
    try:
        return _stamp(path, path.stat())
    except OSError:
        return None


@functools.cache
def _code() -> list[str]:
    """The code that decides what weights look like in memory, this package's read itself: versions may lag behind."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(path for part in _CODE for path in (root / part).glob("**/*.py")):
        digest.update(file.read_bytes())
    gguf = importlib.metadata.version("gguf")
    return [__version__, digest.hexdigest(), str(torch.__version__), gguf, sys.byteorder]


@contextmanager
def _unfinished(path: Path) -> Iterator[int | None]:
    """A new file that no other process writes, locked; removed afterwards if it is still there. None: one does."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        if not _lock(fd, path):
            yield None
            return
        try:
            os.ftruncate(fd, 0)
            yield fd
        finally:
            if _is_at(fd, path):
                path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> bool:
    """Whether the file is ours until it is closed, and still the one of that name."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _is_at(fd, path)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _remove_unfinished(folder: Path) -> None:
    """Removes what processes that have ended left behind; a lock ends with its process."""
    for path in folder.glob(f"*{_UNFINISHED}"):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if _lock(fd, path):
                path.unlink(missing_ok=True)
        finally:
            os.close(fd)


def _make_room(folder: Path, size: int) -> bool:
    """Removes the least recently used files until there is room; none where all of them would not do."""
    kept = sorted(_kept(folder), key=lambda entry: entry[0])
    used, free = sum(nbytes for _, nbytes, _ in kept), shutil.disk_usage(folder).free
    if size > _MAX_BYTES or free + used - size < _MIN_FREE:
        _warn_once(
            f"packed weights are not kept: {size} bytes are too many for {folder}, where {free} are free and {_MIN_FREE} stay so"
        )
        return False
    for _, nbytes, path in kept:
        if used + size <= _MAX_BYTES and free - size >= _MIN_FREE:
            break
        path.unlink(missing_ok=True)
        used, free = used - nbytes, free + nbytes
    return True


def _kept(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Time of last use, size and path of every file."""
    for path in folder.glob(f"*{_SUFFIX}"):
        try:
            found = path.stat()
        except OSError:
            continue
        yield found.st_mtime_ns, found.st_size, path


@functools.cache
def _warn_once(text: str) -> None:
    _log.warning("%s", text)
