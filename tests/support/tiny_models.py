"""Complete model folders with random weights and a tokenizer of single bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from qwenkit.config.families import FAMILIES
from qwenkit.config.generation import GREEDY, GenerationConfig
from qwenkit.tokenizer.bpe import TiktokenTokenizer
from qwenkit.tokenizer.hf_json import HfTokenizer, TokenizerInfo
from qwenkit.weights.save import save_model
from tests.support.byte_tokenizer import TEMPLATE
from tests.support.networks import family_config, random_network

SIZES: dict[str, Any] = {
    "vocab_size": 288,
    "hidden_size": 64,
    "num_layers": 3,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 32,
    "ffn_size": 96,
}
"""Groups of 64 divide the width and not the feed-forward size; groups of 32 divide both."""
SPECIALS = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
QWEN3_MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
"""Tokens of their own that decoding does not leave out."""


def byte_level(chat_template: str | None = TEMPLATE, *, marks: Sequence[str] = ()) -> HfTokenizer:
    """Bytes are tokens; three specials follow, then the marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(form, special=True, normalized=False) for form in SPECIALS])
    library.add_tokens([AddedToken(form, special=False, normalized=False) for form in marks])
    templates = {} if chat_template is None else {"default": chat_template}
    return HfTokenizer(library, TokenizerInfo(eos_token="<|im_end|>", chat_templates=templates))


def byte_tiktoken() -> TiktokenTokenizer:
    """The same in the format of first-generation Qwen."""
    return TiktokenTokenizer({bytes([i]): i for i in range(256)}, SPECIALS)


def write_model(folder: Path, family: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """A model of the family, in float32."""
    # The vocabulary file of first-generation Qwen brings 208 specials.
    own = {"num_kv_heads": 2, "vocab_size": 480} if family == "qwen" else {}
    model = random_network(family_config(family, **SIZES | own | changes), seed=seed)
    tokenizer = byte_tiktoken() if family == "qwen" else byte_level()
    generation = GenerationConfig(defaults=GREEDY, eos_ids=(258,))
    save_model(folder, model, FAMILIES[family], generation=generation, tokenizer=tokenizer)
    return folder


def write_text(path: Path, num_bytes: int = 4096) -> Path:
    """Some text; every part of it differs."""
    text = " ".join(f"{i * i % 997} apples, {i} pears;" for i in range(num_bytes // 16))
    path.write_text(text[:num_bytes], encoding="utf-8")
    return path
