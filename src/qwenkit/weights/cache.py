"""The download cache: where it is, room on its disk, progress by watching a folder grow.

Knows nothing of hubs or packages.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from qwenkit.core.environment import cache_dir
from qwenkit.core.errors import SourceError

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with bytes done and bytes in all (None: not known), from another thread."""

_POLL_SECONDS = 0.2
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
# pip and the hub's Rust downloader report a full disk as text only.
_FULL_TEXTS = ("no space left on device", "disk quota exceeded", "os error 28)", "os error 122)")


class NoNetworkError(SourceError):
    """A server cannot be reached; the caller adds which local models would do."""


def models_dir() -> Path:
    """The folder that holds one folder per built-in model."""
    return cache_dir() / "models"


def free_space(folder: Path) -> int | None:
    """Bytes free where ``folder`` is or would be made; None if that cannot be read."""
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def format_size(num_bytes: int) -> str:
    """Bytes in MB or GB (powers of ten), as people say them."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def require_space(folder: Path, num_bytes: int, what: str) -> None:
    """Checks for room before a download begins.

    Raises:
        SourceError: the disk has less room than ``num_bytes``.
    """
    free = free_space(folder)
    if free is not None and free < num_bytes:
        raise SourceError(
            f"{what} needs {format_size(num_bytes)} in {folder}, and {format_size(free)} are free; "
            "make room there or point QWENKIT_CACHE (built-in models) or HF_HOME (hub models) elsewhere"
        )


def is_disk_full(error: BaseException) -> bool:
    """True if the error, or one it came from, says that the disk or the quota is full."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno in _FULL_ERRNOS:
            return True
        if says_disk_full(str(current)):
            return True
        pending += [current.__cause__, current.__context__]
    return False


def says_disk_full(text: str) -> bool:
    """True if a program's error text says that the disk or the quota is full."""
    lowered = text.lower()
    return any(mark in lowered for mark in _FULL_TEXTS)


def disk_full_error(what: str, folder: Path) -> SourceError:
    """The error for a disk that filled up while fetching; nothing half-written may be left when it is raised."""
    free = free_space(folder)
    room = "" if free is None else f" ({format_size(free)} free now)"
    return SourceError(
        f"the disk filled up while fetching {what}; what was half-written in {folder} is removed{room}: "
        "make room there or point QWENKIT_CACHE (built-in models) or HF_HOME (hub models) elsewhere"
    )


def unwritable_error(what: str, folder: Path, error: OSError) -> SourceError:
    """The error for a cache folder that cannot be used."""
    return SourceError(
        f"cannot keep {what} in {folder}: {error.strerror or error}; "
        "point QWENKIT_CACHE (built-in models) or HF_HOME (hub models) to a folder you can write to"
    )


def reason_of(error: BaseException) -> str:
    """The first line of an error's text, cut short, or its type if it has no text."""
    lines = str(error).strip().splitlines()
    reason = lines[0].rstrip(" .:") if lines else type(error).__name__
    return reason if len(reason) <= 160 else f"{reason[:159]}…"


def folder_size(folder: Path) -> int:
    """Bytes in all files below ``folder``; files that vanish meanwhile count nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total


@contextmanager
def watch_size(folder: Path, total: int | None, on_progress: Progress | None) -> Iterator[None]:
    """Reports how much ``folder`` has grown, a few times a second, while the block runs.

    Watching the disk works the same for pip, for the hub and for whatever fetches the bytes inside them. An
    exception of ``on_progress`` ends the watch and is raised when the block has ended well.
    """
    if on_progress is None:
        yield
        return
    start, best = folder_size(folder), 0
    done = threading.Event()
    failures: list[Exception] = []

    def watch() -> None:
        nonlocal best
        while not done.wait(_POLL_SECONDS) and not failures:
            grown = max(best, folder_size(folder) - start)
            best = grown if total is None else min(grown, total)
            try:
                on_progress(best, total)
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=watch, name="qwenkit-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]
    final = folder_size(folder) - start if total is None else total
    on_progress(max(best, final), total)
