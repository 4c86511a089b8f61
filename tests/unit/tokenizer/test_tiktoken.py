"""The `.tiktoken` tokenizer against the released ids."""

from __future__ import annotations

import base64
import json
import logging
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core.errors import InputError, TokenizerError
from qwenkit.tokenizer.bpe import QWEN_SPECIALS, TiktokenTokenizer
from qwenkit.tokenizer.load import load_tokenizer_files

VECTORS: list[tuple[str, str]] = [
    ("", ""),
    ("Hello, world!", "9707 11 1879 0"),
    (" Hello", "21927"),
    ("hello world", "14990 1879"),
    ("你好", "108386"),
    ("你好，世界！", "108386 3837 99489 6313"),
    (
        "通义千问是阿里云研发的大模型。",
        "31935 64559 99320 56007 20412 102661 99718 100048 104197 104949 1773",
    ),
    ("今天天气怎么样？我想去公园散步。", "100644 104307 104472 11319 104100 85336 102077 111261 1773"),
    ("1234567890", "16 17 18 19 20 21 22 23 24 15"),
    ("3.14159", "18 13 16 19 16 20 24"),
    ("2023-11-30", "17 15 17 18 12 16 16 12 18 15"),
    ("I'm don't we'll SHE'D", "40 2776 1513 944 582 3278 53595 27705"),
    ("def f(x):\n    return x + 1\n", "750 282 2075 982 262 470 856 488 220 16 198"),
    (
        "for (int i = 0; i < n; ++i) { a[i] += 1; }",
        "1958 320 396 600 284 220 15 26 600 366 308 26 3443 72 8 314 264 989 60 1421 220 16 26 335",
    ),
    (
        '<div class="a">\n\t<p>hi</p>\n</div>',
        "2626 536 428 64 881 197 7926 29 6023 522 79 397 522 611 29",
    ),
    ("😀", "141334"),
    (
        "👨\u200d👩\u200d👧\u200d👦 🇨🇳",
        "145367 378 235 145233 378 235 145665 378 235 145988 11162 229 101 145754",
    ),
    ("\n", "198"),
    ("\n\n", "271"),
    ("\n\n\n", "1406"),
    (" ", "220"),
    ("  ", "256"),
    ("   a", "256 264"),
    ("a  b   c", "64 220 293 256 272"),
    ("\t\t", "298"),
    ("a\r\nb", "64 319 65"),
    ("  \n  x", "2303 220 856"),
    ("trailing   ", "376 14277 262"),
    ("Panda", "47 9817"),
    (" Panda", "72410"),
    ("Pandas", "47 55433"),
    (" Pandas", "33506 300"),
    ("根", "99408"),
    (" 根", "51461 117"),
    ("一只猫", "102292 100472"),
    ("我是一只猫", "35946 99639 91680 100472"),
    ("éèê café", "963 4458 5498 51950"),
    ("e\u0301", "963"),
    ("こんにちは世界", "89015 99489"),
    ("안녕하세요", "126246 144370 91145"),
    ("Привет, мир", "53645 26991 8178 11 137144"),
    ("مرحبا بالعالم", "124122 29825 124671 124476 129634"),
    ("ℝ²→∑∫", "149021 29456 51018 145127 145706"),
    ("∀x∈ℕ: x≥0", "144192 87 145690 148211 25 856 144481 15"),
    ("\u3000全角", "22441 35987 63836"),
    ("①②③", "48312 254 48312 94 48312 95"),
    ("①ⅷ½", "48312 254 70467 115 26062"),
    ("The quick brown fox jumps over the lazy dog.", "785 3974 13876 38835 34208 916 279 15678 5562 13"),
    ("答案：A", "102349 5122 32"),
    ("Answer: A", "16141 25 362"),
    ("system", "8948"),
    ("user", "872"),
    ("assistant", "77091"),
    # stop words of the ReAct format
    ("Observation", "37763 367"),
    ("Observation:", "37763 367 25"),
    ("Observation:\n", "37763 367 510"),
    ("\nObservation:", "198 37763 367 25"),
    ("Thought: ", "84169 25 220"),
    ("\nThought:", "198 84169 25"),
    ("Action Input:", "2512 5571 25"),
    ("Final Answer:", "19357 21806 25"),
    ("Human:", "33975 25"),
]

WITH_SPECIALS: list[tuple[str, str, str]] = [
    (
        'print("<|endoftext|>")',
        "1350 445 151643 899",
        "1350 9639 91 8691 723 427 91 82598",
    ),
    (
        "<|im_start|>user\nhi<|im_end|>",
        "151644 872 198 6023 151645",
        "27 91 318 4906 91 29 872 198 6023 27 91 318 6213 91 29",
    ),
    (
        "<|extra_0|><|extra_204|>",
        "151646 151850",
        "27 91 15460 62 15 91 1784 91 15460 62 17 15 19 91 29",
    ),
]

DECODED: list[tuple[str, str, str]] = [
    ("51461", " \ufffd", " "),
    ("51461 117", " 根", " 根"),
    ("378", "\ufffd", ""),
    ("378 235", "\u200d", "\u200d"),
    ("145367 378", "👨\ufffd", "👨"),
    ("11162", " \ufffd", " "),
    ("11162 229", " \ufffd", " "),
    ("48312", "\ufffd", ""),
]


def _ids(text: str) -> list[int]:
    return [int(token_id) for token_id in text.split()]


@pytest.fixture(scope="module")
def tiny() -> TiktokenTokenizer:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abc": 257}
    specials = {form: 258 + i for i, form in enumerate(QWEN_SPECIALS)}
    return TiktokenTokenizer(ranks, specials)


def _write(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(t), r) for t, r in ranks.items()))
    return path


@pytest.mark.parametrize(("text", "expected"), VECTORS)
def test_released_ids_of_ordinary_text(qwen_tokenizer: TiktokenTokenizer, text: str, expected: str) -> None:
    assert qwen_tokenizer.encode(text) == _ids(expected)
    assert qwen_tokenizer.encode(text, allowed_special=()) == _ids(expected)
    assert qwen_tokenizer.decode(_ids(expected)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(("text", "special", "plain"), WITH_SPECIALS)
def test_specials_become_ids_only_where_allowed(
    qwen_tokenizer: TiktokenTokenizer, text: str, special: str, plain: str
) -> None:
    assert qwen_tokenizer.encode(text) == _ids(special)
    assert qwen_tokenizer.encode(text, allowed_special=set()) == _ids(plain)
    assert qwen_tokenizer.decode(_ids(special)) == qwen_tokenizer.decode(_ids(plain)) == text


def test_some_specials_allowed(qwen_tokenizer: TiktokenTokenizer) -> None:
    ids = qwen_tokenizer.encode('print("<|extra_0|>")<|endoftext|>', allowed_special={"<|endoftext|>"})
    assert ids == _ids("1350 9639 91 15460 62 15 91 82598 151643")


def test_disallowed_specials_are_refused_unless_allowed(qwen_tokenizer: TiktokenTokenizer) -> None:
    with pytest.raises(InputError, match=r"<\|im_end\|>"):
        qwen_tokenizer.encode("a<|im_end|>", allowed_special=(), disallowed_special="all")
    with pytest.raises(ValueError, match="forbids"):
        qwen_tokenizer.encode("a<|im_end|>", allowed_special=(), disallowed_special={"<|im_end|>"})
    both = qwen_tokenizer.encode(
        "<|im_end|>", allowed_special={"<|im_end|>"}, disallowed_special={"<|im_end|>"}
    )
    assert both == [151645]
    assert qwen_tokenizer.encode("a", disallowed_special="all") == [64]
    with pytest.raises(InputError, match="allowed_special='none'"):
        qwen_tokenizer.encode("a", allowed_special="none")  # type: ignore[arg-type]


@pytest.mark.parametrize(("ids", "replaced", "ignored"), DECODED)
def test_released_decoding(qwen_tokenizer: TiktokenTokenizer, ids: str, replaced: str, ignored: str) -> None:
    assert qwen_tokenizer.decode(_ids(ids)) == replaced
    assert qwen_tokenizer.decode(_ids(ids), errors="ignore") == ignored


def test_decoding_specials(qwen_tokenizer: TiktokenTokenizer) -> None:
    assert qwen_tokenizer.decode([151643, 9707]) == "<|endoftext|>Hello"
    assert qwen_tokenizer.decode([151643, 9707], skip_special_tokens=True) == "Hello"
    assert qwen_tokenizer.decode([378, 151645, 235], skip_special_tokens=True) == "\ufffd\ufffd"
    with pytest.raises(InputError, match="151851"):
        qwen_tokenizer.decode([151851])
    with pytest.raises(InputError, match="UTF-8"):
        qwen_tokenizer.decode([378], errors="strict")


def test_vocabulary(qwen_tokenizer: TiktokenTokenizer) -> None:
    assert qwen_tokenizer.vocab_size == 151851
    assert len(qwen_tokenizer.special_tokens) == 208
    assert qwen_tokenizer.special_tokens["<|extra_204|>"] == 151850
    assert qwen_tokenizer.control_ids == frozenset(range(151643, 151851))
    assert (qwen_tokenizer.eos_token_id, qwen_tokenizer.bos_token_id) == (151643, None)
    assert (qwen_tokenizer.add_bos, qwen_tokenizer.chat_template) == (False, None)
    assert qwen_tokenizer.token_bytes(198) == b"\n"
    assert qwen_tokenizer.token_bytes(51461) == b" \xe6\xa0"


def test_golden_cases(qwen_tokenizer: TiktokenTokenizer, data_folder: Path) -> None:
    golden = json.loads((data_folder / "chat" / "tokenizer.json").read_text("utf-8"))
    assert qwen_tokenizer.vocab_size == golden["n_vocab"]
    for case in golden["cases"]:
        text = case["text"]
        assert qwen_tokenizer.encode(text) == case["ids"]
        if unicodedata.is_normalized("NFC", text):
            assert qwen_tokenizer.encode(text, allowed_special=()) == case["ids_specials_as_text"]
        else:  # recorded below the step that normalises; the chat prompts, which go through it, are in make_context
            assert qwen_tokenizer.decode(case["ids_specials_as_text"]) == text
            assert qwen_tokenizer.encode(text, allowed_special=()) == case["ids"]


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_round_trip(qwen_tokenizer: TiktokenTokenizer, text: str) -> None:
    assert qwen_tokenizer.decode(qwen_tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


@given(
    st.lists(
        st.sampled_from(["<|", "im_", "start", "|>", "<|im_end|>", "<|im_<|im_end|>", "extra_7", " ", "é"])
    )
)
@settings(max_examples=150, deadline=None)
def test_plain_text_never_holds_a_special(qwen_tokenizer: TiktokenTokenizer, pieces: list[str]) -> None:
    ids = qwen_tokenizer.encode("".join(pieces), allowed_special=())
    assert not set(ids) & set(qwen_tokenizer.special_tokens.values())
    assert qwen_tokenizer.decode(ids) == "".join(pieces)


def test_lone_surrogates_become_replacement_characters(qwen_tokenizer: TiktokenTokenizer) -> None:
    assert qwen_tokenizer.decode(qwen_tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert qwen_tokenizer.encode("\ud83d\ude00") == [141334]


LONG = 150_000


@pytest.mark.parametrize(
    "text",
    [
        " " * LONG,
        " " * LONG + "a",
        "word" + "\t " * LONG + "\nb",
        "!\n" + "\u3000" * LONG + "é",
        " " * LONG + "<|im_end|>" + " " * LONG + "\r\n",
        "\n" * 10 + " " * LONG + "1",
    ],
    ids=["blanks", "word after", "line end after", "wide blanks", "special after", "line end before"],
)
def test_long_runs_of_blanks_get_exact_ids(qwen_tokenizer: TiktokenTokenizer, text: str) -> None:
    # at this length the library still manages by itself, so it can be the judge
    library = qwen_tokenizer._encoding
    assert qwen_tokenizer.encode(text) == library.encode(text, allowed_special="all")
    assert qwen_tokenizer.encode(text, allowed_special=()) == library.encode_ordinary(text)


@pytest.mark.parametrize("text", [" " * 10**6, "x" + " " * 10**6 + "y", "a" * 10**6, "\n" * 10**6])
def test_a_million_equal_characters(qwen_tokenizer: TiktokenTokenizer, text: str) -> None:
    start = time.perf_counter()
    assert qwen_tokenizer.decode(qwen_tokenizer.encode(text)) == text
    assert time.perf_counter() - start < 20  # half a second here; minutes would mean quadratic work


def test_tiny_vocabulary(tiny: TiktokenTokenizer, tmp_path: Path) -> None:
    assert tiny.encode("abcab<|im_end|>") == [257, 256, 260]
    assert tiny.vocab_size == 258 + 208
    path = _write(tmp_path / "tiny.tiktoken", dict(tiny.ranks))
    again = TiktokenTokenizer.from_file(path)
    assert again.special_tokens == tiny.special_tokens
    assert again.encode("abcab é") == tiny.encode("abcab é")


EXTRA = b"""5LiA5Y+q54yr 151851
5Y+q54yr 151852
5piv5LiA5Y+q54yr 151853
5oiR5piv5LiA5Y+q54yr 151854
5L2g5piv5LiA5Y+q54yr 151855
5LuW5piv5LiA5Y+q54yr 151856
"""


def test_extended_vocabulary(qwen_tiktoken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = tmp_path / "qwen_extra.tiktoken"
    extra.write_bytes(EXTRA)
    tokenizer = TiktokenTokenizer.from_file(qwen_tiktoken, extra=extra)
    assert tokenizer.vocab_size == 151857
    assert tokenizer.encode("我是一只猫") == [151854]
    assert tokenizer.encode("他是一只猫") == [151856]
    assert tokenizer.encode("一只猫") == [151851]
    assert tokenizer.encode("白猫一只猫") == [99243, 100472, 151851]
    assert tokenizer.decode([151854, 151645]) == "我是一只猫<|im_end|>"
    assert not caplog.records


def test_known_extra_tokens_are_skipped(
    tiny: TiktokenTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path / "tiny.tiktoken", dict(tiny.ranks))
    _write(tmp_path / "qwen_extra.tiktoken", {b"ab": 466, b"xy": 3, b"xyz": 466, b"de": 467})
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer_files(tmp_path)
    assert [r.getMessage().split("skipped ")[1] for r in caplog.records] == [
        "b'ab' 466, the token is known",
        "b'xy' 3, its id is taken",
    ]
    assert tokenizer.encode("xyzde") == [ord("x"), ord("y"), ord("z"), 467]
    assert tokenizer.vocab_size == 468


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"YQ==", "expected base64"),
        (b"YQ== x", "expected base64"),
        (b"YQ== -1", "expected base64"),
        (b"Y*Q== 3", "expected base64"),
        (b"YQ== 3 4", "expected base64"),
        (b"\xff\xfe 3", "expected base64"),
        (b"YQ== 999", "already used"),
        (b"eHl6 5", "already used"),
    ],
)
def test_malformed_lines_name_file_and_line(
    tiny: TiktokenTokenizer, tmp_path: Path, line: bytes, what: str
) -> None:
    path = _write(tmp_path / "bad.tiktoken", dict(tiny.ranks))
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(TokenizerError, match=rf"bad\.tiktoken, line 259: .*{what}"):
        TiktokenTokenizer.from_file(path)


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot read"):
        TiktokenTokenizer.from_file(tmp_path / "none.tiktoken")
    empty = tmp_path / "empty.tiktoken"
    empty.touch()
    with pytest.raises(TokenizerError, match="is empty"):
        TiktokenTokenizer.from_file(empty)
    with pytest.raises(TokenizerError, match=r"no token for 255 of the 256 single bytes \(first: 0x00\)"):
        TiktokenTokenizer.from_file(_write(tmp_path / "few.tiktoken", {b"a": 0}))
