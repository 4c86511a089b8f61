"""Copies the tokenizer files of a model folder as they are. Knows nothing of what is in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

_VOCABULARIES = ("tokenizer.json", "*.tiktoken", "vocab.json")
_FILES = (
    *_VOCABULARIES,
    "merges.txt",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a vocabulary."""
    return any(any(folder.glob(pattern)) for pattern in _VOCABULARIES)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies vocabulary, settings and chat templates, whichever there are.

    Python files are never copied, and so neither is the key of tokenizer_config.json that would ask for them.

    Args:
        source: a model or adapter folder.
        target: an existing folder; files of the same name are replaced.

    Raises:
        OSError: a file cannot be read or written.
    """
    for path in sorted({path for pattern in _FILES for path in source.glob(pattern) if path.is_file()}):
        place = target / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        text = _without_code(path) if path.name == "tokenizer_config.json" else None
        if text is None:
            shutil.copyfile(path, place)
        else:
            place.write_text(text, encoding="utf-8")


def _without_code(path: Path) -> str | None:
    """The settings without the names of Python files; None: they have none, or cannot be understood."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(settings, dict) or settings.pop("auto_map", None) is None:
        return None
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
