"""Writes tokenizer files that load here and elsewhere."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from qwenkit.core.errors import TokenizerError
from qwenkit.tokenizer.base import Tokenizer
from qwenkit.tokenizer.bpe import TiktokenTokenizer
from qwenkit.tokenizer.hf_json import HfTokenizer


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes the files of ``tokenizer`` into ``folder``.

    A library tokenizer becomes tokenizer.json and tokenizer_config.json with the chat template inside; a tiktoken
    vocabulary becomes qwen.tiktoken and tokenizer_config.json.

    Raises:
        TokenizerError: a kind that has no file format.
        OSError: the disk is full or not writable.
    """
    if isinstance(tokenizer, HfTokenizer):
        tokenizer.library.save(str(folder / "tokenizer.json"))
        _write_config(folder, _hf_config(tokenizer))
    elif isinstance(tokenizer, TiktokenTokenizer):
        first_special = min(tokenizer.special_tokens.values())
        lines = [
            b"%s %d\n" % (base64.b64encode(token), rank)
            for token, rank in sorted(tokenizer.ranks.items(), key=lambda item: item[1])
        ]
        plain = lines[:first_special]
        (folder / "qwen.tiktoken").write_bytes(b"".join(plain))
        if len(lines) > len(plain):  # the vocabulary extension has the ids behind the specials
            (folder / "qwen_extra.tiktoken").write_bytes(b"".join(lines[len(plain) :]))
        _write_config(folder, {"model_max_length": 8192, "tokenizer_class": "QWenTokenizer"})
    else:
        raise TokenizerError(f"a tokenizer of type {type(tokenizer).__name__} cannot be saved")


def _hf_config(tokenizer: HfTokenizer) -> dict[str, Any]:
    forms = {token_id: form for form, token_id in tokenizer.special_tokens.items()}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
        "clean_up_tokenization_spaces": False,
    }
    for key, token_id in (("eos_token", tokenizer.eos_token_id), ("bos_token", tokenizer.bos_token_id)):
        if token_id in forms:
            config[key] = forms[token_id]
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    return config


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
