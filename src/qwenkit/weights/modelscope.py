"""Models from ModelScope, through its own library and cache; only the files that are needed, and never code."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from qwenkit.core.environment import cache_dir
from qwenkit.core.errors import SourceError
from qwenkit.core.lazy import import_extra
from qwenkit.weights import cache
from qwenkit.weights.cache import NoNetworkError
from qwenkit.weights.hub import HubId
from qwenkit.weights.selection import missing_files, select_files

_log = logging.getLogger(__name__)


def fetch_modelscope_model(wanted: HubId) -> Path:
    """The folder (or .gguf file) of a ModelScope model, fetched first if needed.

    Raises:
        SourceError: no network, no such model, revision or file, or no room.
        MissingExtraError: the modelscope package is not installed.
    """
    api = import_extra("modelscope.hub.api", "hub").HubApi
    download = import_extra("modelscope.hub.snapshot_download", "hub").snapshot_download
    revision = {} if wanted.revision is None else {"revision": wanted.revision}
    try:
        folder = _download(api(), download, wanted, revision)
    except SourceError:
        raise
    except Exception as error:
        if cache.is_disk_full(error):
            raise cache.disk_full_error(f"modelscope:{wanted}", cache_dir()) from error
        cached = _cached(download, wanted, revision)
        explained = _explain(error, wanted)
        if cached is None:
            raise explained from error
        _log.warning("%s; using the copy in the cache", explained)
        folder = cached
    missing = missing_files(folder, wanted.file)
    if missing:
        raise SourceError(
            f"modelscope:{wanted} is incomplete in {folder}: {', '.join(missing[:3])} missing; fetch again"
        )
    if wanted.file is not None:
        return folder / wanted.file
    files = sorted(folder.glob("*.gguf"))
    return files[0] if files and not (folder / "config.json").is_file() else folder


def _download(api: Any, download: Any, wanted: HubId, revision: dict[str, str]) -> Path:
    listing = api.get_model_files(wanted.repo, recursive=True, **revision)
    names = [entry["Path"] for entry in listing if entry.get("Type") != "tree"]
    chosen = select_files(names, f"modelscope:{wanted}", wanted.file)
    return Path(download(wanted.repo, allow_patterns=chosen, **revision))


def _cached(download: Any, wanted: HubId, revision: dict[str, str]) -> Path | None:
    try:
        folder = Path(download(wanted.repo, local_files_only=True, **revision))
        return folder if folder.is_dir() and not missing_files(folder, wanted.file) else None
    except Exception:
        return None


def _explain(error: Exception, wanted: HubId) -> SourceError:
    text = f"modelscope:{wanted} cannot be fetched ({cache.reason_of(error)})"
    names = {kind.__name__ for kind in type(error).__mro__}
    # requests' ConnectionError and modelscope's NetworkError share no class that could be imported here.
    if names & {"ConnectionError", "NetworkError", "Timeout", "TimeoutError"}:
        return NoNetworkError(text)
    return SourceError(f"{text}; check the id on modelscope.cn, or give a local folder")
