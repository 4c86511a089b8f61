"""The tokenizer that belongs to a checkpoint, from its folder or from its GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwenkit.core.errors import TokenizerError
from qwenkit.tokenizer.base import Tokenizer
from qwenkit.tokenizer.copy import has_tokenizer
from qwenkit.tokenizer.gguf_vocab import tokenizer_from_gguf
from qwenkit.tokenizer.load import load_tokenizer_files
from qwenkit.weights.adapter_base import fetch_base, is_adapter
from qwenkit.weights.gguf import GgufFile


def tokenizer_of(path: Path, metadata: Mapping[str, Any] | None = None) -> Tokenizer:
    """Reads the tokenizer of a model folder or a .gguf file; an adapter without one has that of its base.

    Args:
        path: folder or file.
        metadata: the file's metadata when it has been read already.

    Raises:
        TokenizerError: no tokenizer files, or they cannot be read.
        CheckpointError: the GGUF file cannot be read.
    """
    if is_adapter(path) and not has_tokenizer(path):
        return tokenizer_of(fetch_base(path)[1])
    if path.is_dir():
        return load_tokenizer_files(path)
    if path.suffix == ".tiktoken":
        raise TokenizerError(f"{path} is a vocabulary file; give the folder that holds it")
    if not metadata:
        file = GgufFile(path)
        metadata = file.metadata
        file.close()
    return tokenizer_from_gguf(metadata)
