"""Which files of a repository make a model: chosen from a list of names, or looked for in a folder.

Knows nothing of where the files come from, and does not open weight files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from qwenkit.core.errors import SourceError

# Never *.py: a model folder is data. Weights are added by rank below.
_SMALL = ("*.json", "*.tiktoken", "*.txt", "*.model", "*.jinja")
# Best first; within a repository only one kind is fetched.
_WEIGHTS = (
    ("model*.safetensors",),
    ("adapter_model*.safetensors",),
    ("*.safetensors",),
    ("pytorch_model*.bin", "adapter_model*.bin"),
)
_LEFT_OUT = ("consolidated*", "training_args.bin", "optimizer.*", "trainer_state.json")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.[a-z]+)")
_TOKENIZERS = ("tokenizer.json", "*.tiktoken", "vocab.json", "tokenizer.model")


def select_files(names: Collection[str], model: str, file: str | None = None) -> list[str]:
    """The files to fetch of a repository, small ones first and weights last.

    Args:
        names: every file of the repository, with folders.
        model: what to call it in errors.
        file: the one .gguf file wanted, or None for the whole model.

    Raises:
        SourceError: no such file, no weights, or several .gguf files and no choice made.
    """
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if file is not None:
        if file not in ggufs:
            raise SourceError(f"{model} holds no {file}; its .gguf files are: {', '.join(ggufs) or 'none'}")
        return [file]
    top = sorted(n for n in names if "/" not in n and not any(fnmatchcase(n, p) for p in _LEFT_OUT))
    small = [name for name in top if any(fnmatchcase(name, pattern) for pattern in _SMALL)]
    for patterns in _WEIGHTS:
        weights = [name for name in top if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if weights:
            return small + weights
    return [_only_gguf(ggufs, model)]


def _only_gguf(ggufs: list[str], model: str) -> str:
    if not ggufs:
        raise SourceError(
            f"{model} holds no weights that can be read: .safetensors, pytorch_model*.bin or .gguf"
        )
    if len(ggufs) > 1 or "/" in ggufs[0]:
        repository = model.partition(":")[0]
        raise SourceError(
            f"{model} holds {len(ggufs)} .gguf files: {', '.join(ggufs)}; choose one as '{repository}:{ggufs[0]}'"
        )
    return ggufs[0]


def missing_files(folder: Path, file: str | None = None, *, tokenizer: bool = False) -> list[str]:
    """What a model folder lacks to be loaded: weights, shards that an index or a name promises, config.

    Args:
        folder: the folder.
        file: the one .gguf file wanted, or None for the whole model.
        tokenizer: count missing tokenizer files too: where nobody knows what the folder should hold.
    """
    if file is not None:
        return [] if (folder / file).is_file() else [file]
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if "config.json" not in names and any(name.endswith(".gguf") for name in names):
        return []
    weights = [name for name in names if name.endswith((".safetensors", ".bin")) and not _is_left_out(name)]
    missing = _missing_shards(folder, weights)
    if "adapter_config.json" in names:
        return missing
    if "config.json" not in names:
        missing.append("config.json")
    if tokenizer and not any(fnmatchcase(name, pattern) for name in names for pattern in _TOKENIZERS):
        missing.append("tokenizer files")
    return missing


def _is_left_out(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _LEFT_OUT)


def _missing_shards(folder: Path, weights: list[str]) -> list[str]:
    for index in _INDEXES:
        # An index of the kind that was not fetched says nothing.
        if (folder / index).is_file() and (index == _INDEXES[0] or not _has_safetensors(weights)):
            return _missing_of_index(folder, index, weights)
    if not weights:
        return ["weights"]
    missing = []
    for match in filter(None, map(_SHARD.fullmatch, weights)):
        for number in range(1, int(match["count"]) + 1):
            name = f"{match['stem']}-{number:05}-of-{match['count']}{match['end']}"
            if name not in weights and name not in missing:
                missing.append(name)
    return missing


def _has_safetensors(weights: list[str]) -> bool:
    return any(name.endswith(".safetensors") for name in weights)


def _missing_of_index(folder: Path, index: str, weights: list[str]) -> list[str]:
    try:
        shards = set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(str(name) for name in shards if name not in weights)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"a readable {index}"]
