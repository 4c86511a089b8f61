"""Models from the Hugging Face hub, into its usual cache: only the files that are needed, and never code.

The hub's own settings hold (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE). Files come one after the other in the
calling thread, so that Ctrl-C works at once; weights come last and the branch name is recorded after them, so a
download that was cut off never looks whole.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenkit._version import __version__
from qwenkit.core.errors import SourceError
from qwenkit.weights import cache
from qwenkit.weights.cache import NoNetworkError, Progress
from qwenkit.weights.selection import missing_files, select_files

_log = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[^@:\s]+))?(?::(?P<file>[^:\s]+\.gguf))?", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubId:
    """What ``org/name[@revision][:file.gguf]`` says."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}" + (f":{self.file}" if self.file else "")


def parse_hub_id(text: str) -> HubId | None:
    """Reads ``org/name``, ``org/name@revision``, ``org/name:file.gguf`` or both; None if it is none of them."""
    match = _HUB_ID.fullmatch(text)
    if match is None or ".." in text:
        return None
    return HubId(repo=match["repo"], revision=match["revision"], file=match["file"])


def fetch_hub_model(wanted: HubId, *, on_progress: Progress | None = None, force: bool = False) -> Path:
    """The snapshot folder (or .gguf file) of a hub model, fetched or brought up to date first.

    When that fails but the cache holds all of it, the cached copy is used, with one warning that says so.

    Raises:
        SourceError: no network, no access, no such model, revision or file, or no room.
    """
    fixed = wanted.revision is not None and _COMMIT.fullmatch(wanted.revision) is not None
    cached, problem = find_snapshot(wanted)
    if cached is not None and (fixed or _is_offline()) and not force:
        return cached
    try:
        return _download(wanted, on_progress, force)
    except SourceError:
        raise
    except Exception as error:
        explained, may_use_cache = _explain(error, wanted)
        if cached is not None and may_use_cache and not force:
            _log.warning("%s; using the copy in the cache", explained)
            return cached
        if problem and isinstance(explained, NoNetworkError):
            raise NoNetworkError(
                f"{explained}, and the copy in the cache is incomplete: {problem}"
            ) from error
        raise explained from error


def find_snapshot(wanted: HubId) -> tuple[Path | None, str]:
    """The complete snapshot (or .gguf file) in the hub's cache, without network.

    Returns:
        The path, or None; and what is missing if there is a snapshot that is not complete.
    """
    folder = _repo_folder(wanted.repo)
    commit = _commit_of(folder, wanted.revision or "main")
    snapshot = folder / "snapshots" / commit
    if not commit or not snapshot.is_dir():
        return None, ""
    missing = _missing_in(snapshot, wanted, commit)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return None, f"{', '.join(missing[:3])}{more} missing"
    return _result(snapshot, wanted.file), ""


def cached_models() -> Iterator[tuple[str, Path]]:
    """Id and path of every complete model on the main branch in the hub's cache; .gguf files one by one."""
    for folder in sorted(_glob(_hub_cache(), "models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        commit = _commit_of(folder, "main")
        snapshot = folder / "snapshots" / commit
        ggufs = sorted(_glob(snapshot, "**/*.gguf")) if commit else []
        if ggufs and not (snapshot / "config.json").is_file():
            yield from ((f"{repo}:{file.relative_to(snapshot)}", file) for file in ggufs if file.is_file())
            continue
        path, _ = find_snapshot(HubId(repo=repo))
        if path is not None:
            yield repo, path


def _missing_in(snapshot: Path, wanted: HubId, commit: str) -> list[str]:
    listing = _cached_listing(wanted.repo, commit)
    if listing is not None:
        try:
            names = select_files(listing, str(wanted), wanted.file)
        except SourceError as error:
            return [str(error)]
        missing = [name for name in names if not (snapshot / name).is_file()]
        if missing:
            return missing
    return missing_files(snapshot, wanted.file, tokenizer=True)


def _cached_listing(repo: str, commit: str) -> list[str] | None:
    """The repository's file list as an earlier download recorded it, if this version of the hub library does."""
    try:
        from huggingface_hub import get_cached_repo_tree

        return [entry.path for entry in get_cached_repo_tree(repo, revision=commit)]
    except Exception:
        return None


def _download(wanted: HubId, on_progress: Progress | None, force: bool) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    library: dict[str, Any] = {"library_name": "qwenkit", "library_version": __version__}
    info = HfApi(**library).model_info(wanted.repo, revision=wanted.revision, files_metadata=True)
    if not info.sha:
        raise SourceError(
            f"the hub names no commit for {wanted}; check HF_ENDPOINT, it may not be a model hub"
        )
    sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}
    names = select_files(sizes, str(wanted), wanted.file)
    folder = _repo_folder(wanted.repo)
    snapshot = folder / "snapshots" / info.sha
    todo = names if force else [name for name in names if not (snapshot / name).is_file()]
    total = sum(sizes[name] for name in todo)
    cache.require_space(folder, total, str(wanted))
    before = _incomplete(folder)
    try:
        with cache.watch_size(folder / "blobs", total or None, on_progress if todo else None):
            for name in todo:
                hf_hub_download(
                    wanted.repo,
                    name,
                    revision=info.sha,
                    force_download=force,
                    tqdm_class=_silent_bar(),
                    **library,
                )
    except BaseException as error:
        if cache.is_disk_full(error):
            for path in _incomplete(folder) - before:
                path.unlink(missing_ok=True)
        raise
    if wanted.revision != info.sha:
        _record_commit(wanted, names[0], library)
    missing = missing_files(snapshot, wanted.file)
    if missing:
        raise SourceError(
            f"{wanted} is not a complete model on the hub: it lacks {', '.join(missing[:3])}; "
            "choose another repository or revision"
        )
    # Where several .gguf files leave it open: the repository listed one, so the others are not of this commit.
    return _result(snapshot, wanted.file) or snapshot / names[-1]


def _record_commit(wanted: HubId, name: str, library: Mapping[str, Any]) -> None:
    """Lets the hub library note which commit the branch means; the file is in the cache by now."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(wanted.repo, name, revision=wanted.revision, tqdm_class=_silent_bar(), **library)
    except Exception as error:
        _log.warning("%s is fetched but will not be found offline: %s", wanted, cache.reason_of(error))


def _commit_of(folder: Path, revision: str) -> str:
    """The commit that a branch or tag meant when it was last fetched, or an empty string."""
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        return (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _result(snapshot: Path, file: str | None) -> Path | None:
    """The path to load; None where several .gguf files leave it open."""
    if file is not None:
        return snapshot / file
    files = sorted(snapshot.glob("*.gguf"))
    if not files or (snapshot / "config.json").is_file():
        return snapshot
    return files[0] if len(files) == 1 else None


def _explain(error: Exception, wanted: HubId) -> tuple[SourceError, bool]:
    """One sentence for whatever the hub library raised, and whether a cached copy may stand in."""
    from huggingface_hub import errors

    if cache.is_disk_full(error):
        return cache.disk_full_error(str(wanted), _repo_folder(wanted.repo)), False
    root = _root_cause(error)
    place = _endpoint()
    if isinstance(root, errors.GatedRepoError):
        advice = f"accept its terms at {place}/{wanted.repo} and set HF_TOKEN to a token of that account"
        return SourceError(f"{wanted.repo} is gated; {advice}"), True
    if isinstance(root, errors.RevisionNotFoundError):
        advice = "check it on the model's page or leave it out for the newest"
        return SourceError(f"{wanted.repo} has no revision {wanted.revision!r}; {advice}"), False
    if isinstance(root, errors.RepositoryNotFoundError):
        advice = "check the spelling, or set HF_TOKEN if it is private"
        return SourceError(f"the hub at {place} shows no model {wanted.repo!r}; {advice}"), True
    if isinstance(root, errors.OfflineModeIsEnabled):
        return NoNetworkError(
            f"{wanted} is not all in the cache and HF_HUB_OFFLINE forbids to fetch it"
        ), True
    if isinstance(root, errors.HfHubHTTPError):
        return _explain_status(root, wanted, place), True
    if type(root).__module__.partition(".")[0] in {"httpx", "httpx2", "httpcore", "httpcore2", "requests"}:
        reason = f"no connection to the hub at {place} ({cache.reason_of(root)})"
        return NoNetworkError(f"{wanted} cannot be fetched: {reason}"), True
    if isinstance(root, OSError) and root.errno is not None:
        return cache.unwritable_error(str(wanted), _repo_folder(wanted.repo), root), True
    reason = cache.reason_of(root)
    return SourceError(f"{wanted} cannot be fetched: {reason}; try again, or give a local folder"), True


def _explain_status(error: Any, wanted: HubId, place: str) -> SourceError:
    status = error.response.status_code
    if status in {401, 403}:
        advice = "set HF_TOKEN to a token that may read it, or unset it for a public model"
        return SourceError(f"the hub at {place} refuses {wanted.repo} (HTTP {status}); {advice}")
    if status == 429 or status >= 500:
        return NoNetworkError(f"{wanted} cannot be fetched: the hub at {place} answers HTTP {status}")
    return SourceError(
        f"the hub at {place} answers HTTP {status} for {wanted}; check the name and HF_ENDPOINT"
    )


def _root_cause(error: BaseException) -> BaseException:
    """The hub library wraps the telling error in 'not in the cache' or 'force download failed'."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError | ValueError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _silent_bar() -> Any:
    """A progress bar class that shows nothing; progress is read off the disk (cache.watch_size)."""
    bar = importlib.import_module("huggingface_hub.utils").tqdm

    def start(self: Any, *args: Any, **options: Any) -> None:
        bar.__init__(self, *args, **{**options, "disable": True})

    return type("SilentBar", (bar,), {"__init__": start})


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _repo_folder(repo: str) -> Path:
    return _hub_cache() / f"models--{repo.replace('/', '--')}"


def _incomplete(folder: Path) -> set[Path]:
    return set(_glob(folder / "blobs", "*.incomplete"))


def _glob(folder: Path, pattern: str) -> Iterable[Path]:
    return folder.glob(pattern) if folder.is_dir() else ()
