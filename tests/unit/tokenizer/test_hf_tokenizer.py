"""Tokenizers from Hugging Face files against what transformers does with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from qwenkit.core.errors import TokenizerError
from qwenkit.tokenizer.bpe import QWEN_PATTERN, TiktokenTokenizer
from qwenkit.tokenizer.hf_files import read_hf_tokenizer
from qwenkit.tokenizer.hf_json import HfTokenizer, byte_level_to_bytes
from qwenkit.tokenizer.load import load_tokenizer_files
from qwenkit.tokenizer.stream import StreamDecoder

CORPUS = [
    "the quick brown fox",
    "the lazy dog",
    "你好，世界",
    "think about tools, thinking",
    "naïve café",
] * 3
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SOFT = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
PIECES = [
    "<|",
    "im_",
    "start|>",
    "<|im_end|>",
    "<think>",
    "<th",
    "ink>",
    "</",
    " ",
    "the ",
    "你",
    "é",
    "\n",
    "ab",
]


def _byte_level(vocab_size: int = 330) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(CORPUS, trainer)
    return library


def _add_specials(library: tokenizers.Tokenizer) -> None:
    library.add_special_tokens([AddedToken(form, special=True, normalized=False) for form in CONTROL])
    library.add_tokens([AddedToken(form, special=False, normalized=False) for form in SOFT])


def _write_json(folder: Path, name: str, data: Any) -> None:
    (folder / name).write_text(json.dumps(data), "utf-8")


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer in the layout of Qwen3."""
    folder = tmp_path_factory.mktemp("qwen3")
    library = _byte_level()
    _add_specials(library)
    library.save(str(folder / "tokenizer.json"))
    config = {
        "eos_token": "<|im_end|>",
        "bos_token": None,
        "add_bos_token": False,
        "chat_template": "{{ messages[0].content }}",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(folder, "tokenizer_config.json", config)
    return folder


@pytest.fixture(scope="module")
def qwen(qwen_folder: Path) -> HfTokenizer:
    return read_hf_tokenizer(qwen_folder)


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer in the layout of Llama 2: space marks, byte tokens, a start token."""
    folder = tmp_path_factory.mktemp("llama")
    library = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=specials, show_progress=False)
    library.train_from_iterator(CORPUS[:2], trainer)
    state = json.loads(library.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # the byte tokens are ordinary ones
    library = tokenizers.Tokenizer.from_str(json.dumps(state))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(steps)
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(folder, "tokenizer_config.json", config)
    return folder


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> HfTokenizer:
    return read_hf_tokenizer(llama_folder)


TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=12).map("".join)


@pytest.mark.parametrize("name", ["qwen_folder", "llama_folder"])
def test_ids_and_text_equal_transformers(name: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(name)
    ours, theirs = read_hf_tokenizer(folder), AutoTokenizer.from_pretrained(folder)

    @given(TEXTS)
    @settings(max_examples=150, deadline=None)
    def check(text: str) -> None:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
        decoder = StreamDecoder(ours)
        streamed = "".join(map(decoder.push, ids)) + decoder.flush()
        assert streamed == ours.decode(ids, skip_special_tokens=True)

    check()
    assert (ours.eos_token_id, ours.bos_token_id) == (theirs.eos_token_id, theirs.bos_token_id)
    assert ours.vocab_size == len(theirs)
    assert ours.add_bos == (name == "llama_folder")


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_plain_text_never_holds_an_added_token(qwen: HfTokenizer, llama: HfTokenizer, text: str) -> None:
    for tokenizer in (qwen, llama):
        ids = tokenizer.encode(text, allowed_special=())
        assert not (set(ids) - {0}) & set(tokenizer.special_tokens.values())  # 0: "<unk>" in the llama layout


def test_surface_forms_as_text_decode_to_themselves(qwen: HfTokenizer) -> None:
    text = "".join(CONTROL + SOFT)
    assert len(qwen.encode(text)) == len(CONTROL + SOFT)
    assert qwen.decode(qwen.encode(text, allowed_special=())) == text
    assert qwen.decode(qwen.encode(text), skip_special_tokens=True) == "".join(SOFT)


def test_some_specials_allowed(qwen: HfTokenizer) -> None:
    end, think = qwen.special_tokens["<|im_end|>"], qwen.special_tokens["<think>"]
    ids = qwen.encode("<think>a<|im_end|>", allowed_special={"<|im_end|>"})
    assert ids == [*qwen.encode("<think>a", allowed_special=()), end]
    assert think not in ids
    assert qwen.encode_segments([think, "a<|im_end|>", end]) == [
        think,
        *qwen.encode("a<|im_end|>", allowed_special=()),
        end,
    ]


@given(text=TEXTS)
@settings(max_examples=100, deadline=None)
def test_splitting_by_hand_equals_the_library(qwen: HfTokenizer, text: str) -> None:
    assert qwen.encode_segments(qwen.split_specials(text)) == qwen.encode(text)


def test_specials_of_the_qwen_layout(qwen: HfTokenizer) -> None:
    assert set(qwen.special_tokens) == {*CONTROL, *SOFT}
    assert qwen.control_ids == {qwen.special_tokens[form] for form in CONTROL}
    assert qwen.eos_token_id == qwen.special_tokens["<|im_end|>"]
    assert (qwen.bos_token_id, qwen.add_bos) == (None, False)
    assert qwen.chat_template == "{{ messages[0].content }}"


def test_blanks_swallowed_by_a_token() -> None:
    library = _byte_level()
    library.add_special_tokens(
        [AddedToken("<end>", special=True, rstrip=True, lstrip=True, normalized=False)]
    )
    tokenizer = _wrap(library)
    text = "a  <end> \n b"
    assert tokenizer.encode_segments(tokenizer.split_specials(text)) == tokenizer.encode(text)


def _wrap(library: tokenizers.Tokenizer) -> HfTokenizer:
    from qwenkit.tokenizer.hf_json import TokenizerInfo

    return HfTokenizer(library, TokenizerInfo())


def test_an_added_token_that_merges_could_spell() -> None:
    library = _byte_level()
    assert len(library.encode("the").ids) == 1
    library.add_tokens([AddedToken("the", special=False, normalized=False)])
    tokenizer = _wrap(library)
    ids = tokenizer.encode("the then", allowed_special=())
    assert tokenizer.special_tokens["the"] not in ids
    assert tokenizer.decode(ids) == "the then"


def test_only_the_first_word_gets_the_space_mark() -> None:
    model = models.BPE(vocab={"▁": 0, "a": 1, "<s>": 2, "▁a": 3}, merges=[("▁", "a")])
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    library.decoder = decoders.Metaspace(prepend_scheme="first")
    library.add_special_tokens(["<s>"])
    tokenizer = _wrap(library)
    assert tokenizer.encode("a<s>a") == [3, 2, 1] == tokenizer.encode_segments(["a", 2, "a"])
    assert tokenizer.encode("<s>a") == [2, 1] == tokenizer.encode_segments([2, "a"])
    assert tokenizer.decode([3, 2, 1]) == library.decode([3, 2, 1], skip_special_tokens=False)


def test_bytes_of_tokens(qwen: HfTokenizer, llama: HfTokenizer) -> None:
    assert qwen.token_bytes(qwen.encode(" ")[0]) == b" "
    assert b"".join(map(qwen.token_bytes, qwen.encode("根é"))) == "根é".encode()
    assert b"".join(map(llama.token_bytes, llama.encode("根 é"))) == " 根 é".encode()
    assert llama.decode(llama.encode("根 é")) == "根 é"
    assert [byte_level_to_bytes(c) for c in ("Ġ", "Ċ", "!", "ÿ")] == [b" ", b"\n", b"!", b"\xff"]


def test_vocab_and_merges(tmp_path: Path) -> None:
    """The layout of Qwen2 without tokenizer.json; the ids are those of the same tokenizer with it."""
    library = _byte_level()
    library.model.save(str(tmp_path))
    first = library.get_vocab_size()
    forms = {form: first + i for i, form in enumerate([*CONTROL, *SOFT])}
    decoder = {str(i): {"content": form, "special": form in CONTROL} for form, i in forms.items()}
    config = {"added_tokens_decoder": decoder, "eos_token": "<|im_end|>", "tokenizer_class": "Qwen2Tokenizer"}
    _write_json(tmp_path, "tokenizer_config.json", config)
    tokenizer = load_tokenizer_files(tmp_path)
    assert tokenizer.special_tokens == forms
    assert tokenizer.control_ids == {first, first + 1, first + 2}
    _add_specials(library)
    for text in ("the <think>quick</think> 123 fox", "naïve cafe\u0301 <|im_end|>"):
        assert tokenizer.encode(text) == library.encode(text).ids


def test_older_lists_of_added_tokens(tmp_path: Path) -> None:
    library = _byte_level()
    library.model.save(str(tmp_path))
    first = library.get_vocab_size()
    _write_json(tmp_path, "added_tokens.json", {"<think>": first + 1, "<|im_end|>": first})
    _write_json(tmp_path, "special_tokens_map.json", {"eos_token": {"content": "<|im_end|>"}})
    tokenizer = load_tokenizer_files(tmp_path)
    assert tokenizer.special_tokens == {"<|im_end|>": first, "<think>": first + 1}
    assert (tokenizer.control_ids, tokenizer.eos_token_id) == ({first}, first)


def test_an_added_token_at_another_id_is_refused(tmp_path: Path) -> None:
    _byte_level().model.save(str(tmp_path))
    _write_json(tmp_path, "added_tokens.json", {"<think>": 400})
    with pytest.raises(TokenizerError, match=r"'<think>' should have id 400 but the vocabulary gives it \d+"):
        load_tokenizer_files(tmp_path)


def test_chat_templates_by_name_and_file(tmp_path: Path, qwen_folder: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((qwen_folder / "tokenizer.json").read_bytes())
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    _write_json(tmp_path, "tokenizer_config.json", {"chat_template": named})
    assert read_hf_tokenizer(tmp_path).chat_templates == {"default": "D", "tool_use": "T"}
    _write_json(tmp_path, "chat_template.json", {"chat_template": "J"})
    assert read_hf_tokenizer(tmp_path).chat_template == "J"
    _write_json(tmp_path, "tokenizer_config.json", {"chat_template": [*named, 1, {"name": "half"}]})
    assert read_hf_tokenizer(tmp_path).chat_templates["tool_use"] == "T"
    (tmp_path / "chat_template.jinja").write_text("F")
    assert read_hf_tokenizer(tmp_path).chat_template == "F"


def test_what_is_found_in_a_folder(tmp_path: Path, qwen_tiktoken: Path, qwen_folder: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"qwen\.tiktoken, or tokenizer\.json, or vocab\.json with merges\.txt"
    ):
        load_tokenizer_files(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((qwen_folder / "tokenizer.json").read_bytes())
    assert isinstance(load_tokenizer_files(tmp_path), HfTokenizer)
    (tmp_path / "qwen.tiktoken").symlink_to(qwen_tiktoken)
    assert isinstance(load_tokenizer_files(tmp_path), TiktokenTokenizer)
    (tmp_path / "other.tiktoken").touch()
    with pytest.raises(TokenizerError, match=r"several vocabularies \(other\.tiktoken, qwen\.tiktoken\)"):
        load_tokenizer_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"\xff"),
        ("tokenizer_config.json", b"[" * 100_000),
        ("special_tokens_map.json", b"[]"),
        ("chat_template.jinja", b"\xff\xfe"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, qwen_folder: Path, name: str, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes((qwen_folder / "tokenizer.json").read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=name):
        load_tokenizer_files(tmp_path)


def test_unsupported_kinds() -> None:
    with pytest.raises(TokenizerError, match="'WordLevel' is not supported"):
        _wrap(tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    library = _byte_level()
    library.decoder = decoders.WordPiece()
    with pytest.raises(TokenizerError, match="decoder of kind WordPiece is not supported"):
        _wrap(library)


def test_truncation_in_the_file_is_ignored(tmp_path: Path) -> None:
    library = _byte_level()
    library.enable_truncation(2)
    library.enable_padding(length=8)
    library.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer_files(tmp_path).encode("a b c d e")) == 9


@pytest.mark.parametrize("length", [9_999, 10_000, 50_000])
def test_long_texts_are_read_like_short_ones(qwen: HfTokenizer, llama: HfTokenizer, length: int) -> None:
    text = ("the quick  brown fox\n你好 naïve think 1234 " * 2000)[:length]
    for tokenizer in (qwen, llama):
        plain = tokenizer._plain()[0]
        assert tokenizer.encode(text) == plain.encode(text, add_special_tokens=False).ids
