"""Tokenizers from GGUF metadata."""

from __future__ import annotations

import itertools
import logging
import random
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, trainers

from qwenkit.core.errors import InputError, TokenizerError
from qwenkit.tokenizer.bpe import TiktokenTokenizer
from qwenkit.tokenizer.gguf_vocab import tokenizer_from_gguf
from qwenkit.tokenizer.hf_json import HfTokenizer, byte_level_to_bytes

VECTORS = [
    ("Hello, we can use", "19556 28 392 416 722"),
    ("Hello world! 123", "19556 905 17 216 33 34 35"),
    ("Café déjà vu.", "51 1939 2756 32564 90 16739 386 101 30"),
    ("  multiple   spaces", "216 2701 256 5600"),
    ("你好", "18645 250 48392 138"),
    ("def f(x):\n    return x", "1604 275 24 104 727 472 1003 1792"),
    ("<|im_start|>user\nHi<|im_end|>\n", "1 4093 198 26843 2 198"),
    ("The capital of France is", "504 3575 282 4649 314"),
]
ALPHABET = [chr(c) for c in range(0x180) if byte_level_to_bytes(chr(c)) != chr(c).encode() or 0x20 < c < 0x7F]


@pytest.mark.parametrize(("text", "expected"), VECTORS)
def test_smollm2_ids(smollm2_tokenizer: HfTokenizer, text: str, expected: str) -> None:
    ids = smollm2_tokenizer.encode(text)
    assert ids == [int(token_id) for token_id in expected.split()]
    assert smollm2_tokenizer.decode(ids) == text


def test_smollm2_metadata(smollm2_tokenizer: HfTokenizer) -> None:
    assert smollm2_tokenizer.vocab_size == 49152
    assert smollm2_tokenizer.control_ids == frozenset(range(17))
    assert (smollm2_tokenizer.bos_token_id, smollm2_tokenizer.eos_token_id) == (1, 2)
    assert not smollm2_tokenizer.add_bos
    assert "SmolLM" in (smollm2_tokenizer.chat_template or "")


def test_loading_is_quick(smollm2_metadata: dict[str, Any]) -> None:
    start = time.perf_counter()
    tokenizer_from_gguf(smollm2_metadata)
    assert time.perf_counter() - start < 2  # 0.1 s here


@given(
    st.lists(st.sampled_from(["<|", "im_", "start|>", "<|im_end|>", "<repo_name>", " ", "é"])).map("".join)
)
@settings(max_examples=150, deadline=None)
def test_plain_text_never_holds_a_special(smollm2_tokenizer: HfTokenizer, text: str) -> None:
    ids = smollm2_tokenizer.encode(text, allowed_special=())
    assert not set(ids) & set(smollm2_tokenizer.special_tokens.values())
    assert smollm2_tokenizer.decode(ids) == text


def test_smollm2_equals_its_published_tokenizer(
    smollm2_tokenizer: HfTokenizer, smollm2_library: Library
) -> None:
    rng = random.Random(0)
    pieces = [
        *"ab cé你1290\n\t!'.",
        "  ",
        "the",
        "'ll",
        "I'm",
        "\r\n",
        "<|im_end|>",
        "<|im_",
        "½",
        "٣",
        "🇨🇳",
        "\u00a0",
    ]
    for _ in range(400):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 25)))
        assert smollm2_tokenizer.encode(text) == smollm2_library.encode(text).ids, text


@pytest.fixture(scope="module")
def smollm2_library(smollm2_metadata: dict[str, Any]) -> Library:
    """SmolLM2's tokenizer put together by hand as its published tokenizer.json does."""
    from tokenizers import AddedToken, decoders, pre_tokenizers

    tokens, kinds = smollm2_metadata["tokenizer.ggml.tokens"], smollm2_metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in smollm2_metadata["tokenizer.ggml.merges"]]
    library = Library(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(
        [AddedToken(t, special=True) for t, k in zip(tokens, kinds, strict=True) if k == 3]
    )
    return library


def _metadata(pre: str | None, *, architecture: str = "qwen2", arrays: type = list) -> dict[str, Any]:
    """A byte-level vocabulary with two merges, specials, a soft token, padding and an unused row."""
    tokens = [*ALPHABET, "he", "hello", "ll", "hell", "<|endoftext|>", "<|im_end|>", "<think>", "<unused>"]
    merges = ["h e", "l l", "he ll", "hell o", "< unused>"]
    kinds = [1] * (len(ALPHABET) + 4) + [3, 3, 4, 5]
    tokens += [f"[PAD{len(tokens)}]", f"[PAD{len(tokens) + 1}]"]
    metadata: dict[str, Any] = {
        "general.architecture": architecture,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*kinds, 4, 5],
        "tokenizer.ggml.merges": merges[:4],
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
    }
    if arrays is not list:
        metadata["tokenizer.ggml.token_type"] = np.array(metadata["tokenizer.ggml.token_type"], np.int32)
        metadata["tokenizer.ggml.tokens"] = np.array(tokens)
    return metadata if pre is None else metadata | {"tokenizer.ggml.pre": pre}


def test_byte_alphabet_of_this_test() -> None:
    assert sorted(byte_level_to_bytes(c)[0] for c in ALPHABET) == list(range(256))


@pytest.mark.parametrize("arrays", [list, np.ndarray])
def test_padding_and_unused_rows(arrays: type) -> None:
    tokenizer = tokenizer_from_gguf(_metadata("qwen2", arrays=arrays))
    tokens = _metadata("qwen2")["tokenizer.ggml.tokens"]
    pads = [i for i, token in enumerate(tokens) if token.startswith("[PAD")]
    unused = tokens.index("<unused>")
    assert set(tokenizer.special_tokens) == {"<|endoftext|>", "<|im_end|>", "<think>"}
    assert tokenizer.vocab_size == unused
    for text in (tokens[pads[0]], tokens[pads[1]], "<unused>"):
        for allowed in ("all", ()):
            ids = tokenizer.encode(text, allowed_special=allowed)
            assert not set(ids) & {*pads, unused}
            assert tokenizer.decode(ids) == text
    # an engine may still come up with such a row; it shows nothing and does not stop the stream
    assert tokenizer.decode([*tokenizer.encode("hello"), *pads], skip_special_tokens=True) == "hello"
    assert tokenizer.token_bytes(pads[0]) == tokens[pads[0]].encode()
    with pytest.raises(InputError, match="not in the vocabulary"):
        tokenizer.token_bytes(len(tokens))


def test_soft_tokens_stay_readable() -> None:
    tokenizer = tokenizer_from_gguf(_metadata("qwen2"))
    ids = tokenizer.encode("<think>hello<|im_end|>")
    assert len(ids) == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>hello"
    assert tokenizer.eos_token_id == ids[-1]


def test_qwen_words_where_pre_is_absent() -> None:
    for pre in (None, "default", "qwen2"):
        tokenizer = tokenizer_from_gguf(_metadata(pre, architecture="qwen"))
        assert tokenizer.encode("e\u0301") == tokenizer.encode("é")
    assert not tokenizer.add_bos


def test_an_absent_pre_elsewhere_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = tokenizer_from_gguf(_metadata(None, architecture="llama"))
    assert "tokenizer.ggml.pre is None" in caplog.text
    assert tokenizer.decode(tokenizer.encode("hello, 12345")) == "hello, 12345"


def test_llama3_takes_whole_words_and_starts_with_bos() -> None:
    metadata = _metadata("llama-bpe", architecture="llama")
    metadata["tokenizer.ggml.merges"] = ["h e"]
    metadata["tokenizer.ggml.bos_token_id"] = metadata["tokenizer.ggml.tokens"].index("<|endoftext|>")
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.encode("hello") == [metadata["tokenizer.ggml.tokens"].index("hello")]
    assert tokenizer.add_bos
    ids = tokenizer.encode("<think><|im_end|>", allowed_special=())
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert not tokenizer_from_gguf(metadata | {"tokenizer.ggml.add_bos_token": False}).add_bos


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "smolm"}, r"'smolm' is not supported; .*default.*; did you mean 'smollm'"),
        ({"tokenizer.ggml.model": "bert"}, "only 'gpt2' and 'llama'"),
        ({"tokenizer.ggml.tokens": []}, "tokens must be a non-empty array"),
        ({"tokenizer.ggml.token_type": [1]}, "1 token types"),
        ({"tokenizer.ggml.token_type": ["x"]}, "holds 'x', which is of the wrong kind"),
        ({"tokenizer.ggml.tokens": [None]}, "holds None"),
        ({"tokenizer.ggml.merges": [1]}, "holds 1"),
        ({"tokenizer.ggml.pre": []}, r"pre=\[\] is not supported"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": ["x"]}, "holds 'x'"),
        ({"tokenizer.ggml.merges": ["abc"]}, "merge 'abc'"),
        ({"tokenizer.ggml.merges": ["q zz"]}, "do not fit together"),
    ],
)
def test_unusable_metadata(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer_from_gguf(_metadata("qwen2") | change)


CORPUS = ["the quick brown fox jumps over the lazy dog", "the other brown dog", "你好 世界 thin thing"] * 2


@pytest.fixture(scope="module")
def sentence_piece() -> tuple[HfTokenizer, Library]:
    """A SentencePiece-like vocabulary as GGUF stores it, and the library tokenizer it was trained with."""
    library = Library(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=specials, show_progress=False, max_token_length=8
    )
    library.train_from_iterator(CORPUS, trainer)
    tokens = [library.id_to_token(i) for i in range(library.get_vocab_size())]
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array([-float(i) for i in range(len(tokens))], np.float32),
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return tokenizer_from_gguf(metadata), library


def test_sentence_piece_merges_from_scores(sentence_piece: tuple[HfTokenizer, Library]) -> None:
    tokenizer, library = sentence_piece
    rng = random.Random(1)
    words = [*"abc thequickbrown", " the", "dog", "你好", "é", "  ", "😀"]
    for _ in range(300):
        text = "".join(rng.choices(words, k=rng.randrange(1, 15)))
        assert tokenizer.encode(text, allowed_special=()) == library.encode(text).ids, text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentence_piece_specials(sentence_piece: tuple[HfTokenizer, Library]) -> None:
    tokenizer, _ = sentence_piece
    assert tokenizer.add_bos
    assert tokenizer.encode("</s>") == [2]
    assert 2 not in tokenizer.encode("</s>", allowed_special=())
    assert tokenizer.decode([1, *tokenizer.encode("é<0x41>")], skip_special_tokens=True) == "é<0x41>"
    assert tokenizer.decode([1, *tokenizer.encode("the")]) == "<s> the"


def test_qwen_vocabulary_through_gguf(qwen_tokenizer: TiktokenTokenizer, tmp_path: Path) -> None:
    """A slice of Qwen's ranks as a converter writes it gives the ids of the slice."""
    to_char = {byte_level_to_bytes(c)[0]: c for c in ALPHABET}
    ranks = {token: rank for token, rank in qwen_tokenizer.ranks.items() if rank < 3000}
    small = TiktokenTokenizer(ranks, {"<|endoftext|>": 3000})
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            left, right = _parts(token, rank, ranks)
            merges.append("".join(to_char[b] for b in left) + " " + "".join(to_char[b] for b in right))
    metadata = {
        "general.architecture": "qwen",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*("".join(to_char[b] for b in t) for t in ranks), "<|endoftext|>"],
        "tokenizer.ggml.token_type": [*[1] * 3000, 3],
        "tokenizer.ggml.merges": merges,
    }
    tokenizer = tokenizer_from_gguf(metadata)
    for text in ("Hello, world! I'm here 123\n\n  if x:", "你好 cafe\u0301", "the " * 20, "<|endoftext|>"):
        assert tokenizer.encode(text) == small.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def _parts(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that a token is merged from: merging with all ranks below its own leaves them."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, rank), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        _, at = min(pair for pair in pairs if pair[0] < rank)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]
