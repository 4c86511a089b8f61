"""Finds and reads the tokenizer files of a model folder, whichever kind they are."""

from __future__ import annotations

from pathlib import Path

from qwenkit.core.errors import TokenizerError
from qwenkit.tokenizer.base import Tokenizer

EXTRA_VOCABULARY = "qwen_extra.tiktoken"
"""Name of the file that adds tokens to a ``.tiktoken`` vocabulary."""


def load_tokenizer_files(folder: Path | str) -> Tokenizer:
    """The tokenizer of a model folder; a ``.tiktoken`` file wins over Hugging Face files.

    Raises:
        TokenizerError: no tokenizer files, more than one candidate, or malformed files.
    """
    folder = Path(folder)
    vocabularies = sorted(path for path in folder.glob("*.tiktoken") if path.name != EXTRA_VOCABULARY)
    if len(vocabularies) > 1:
        names = ", ".join(path.name for path in vocabularies)
        raise TokenizerError(f"{folder} holds several vocabularies ({names}); keep one of them")
    if vocabularies:
        from qwenkit.tokenizer.bpe import TiktokenTokenizer

        extra = folder / EXTRA_VOCABULARY
        return TiktokenTokenizer.from_file(vocabularies[0], extra=extra if extra.exists() else None)
    if (folder / "tokenizer.json").exists() or all(
        (folder / n).exists() for n in ("vocab.json", "merges.txt")
    ):
        from qwenkit.tokenizer.hf_files import read_hf_tokenizer

        return read_hf_tokenizer(folder)
    raise TokenizerError(
        f"no tokenizer files in {folder}; put there qwen.tiktoken, or tokenizer.json, or vocab.json with merges.txt"
    )
