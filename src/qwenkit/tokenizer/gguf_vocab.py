"""Builds a tokenizer from the metadata of a GGUF file.

Knows nothing of the file format itself: it takes the parsed ``tokenizer.*`` keys. How each ``tokenizer.ggml.pre``
cuts words follows llama.cpp, the reference for that key.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwenkit.core.errors import TokenizerError, did_you_mean
from qwenkit.tokenizer.bpe import QWEN_PATTERN
from qwenkit.tokenizer.hf_files import byte_level_tokenizer
from qwenkit.tokenizer.hf_json import SPACE_MARK, HfTokenizer, TokenizerInfo

if TYPE_CHECKING:
    import tokenizers

_log = logging.getLogger(__name__)

# tokenizer.ggml.token_type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)


@dataclass(frozen=True, slots=True)
class _WordRule:
    """How one ``tokenizer.ggml.pre`` cuts text into words; ``gpt2`` adds GPT-2's own pattern at the end."""

    patterns: tuple[str, ...] = ()
    gpt2: bool = True
    nfc: bool = False
    whole_words: bool = False
    """A word that is a token is taken as it is, without merging."""
    add_bos: bool = False


_GPT2 = _WordRule()
_DIGITS = _WordRule((r"\p{N}",))
_QWEN = _WordRule((QWEN_PATTERN,), gpt2=False, nfc=True)
_LLAMA3 = _WordRule(
    (QWEN_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),), gpt2=False, whole_words=True, add_bos=True
)
_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DEFAULT = _WordRule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2_PATTERN, r"\p{N}+", r"[0-9][0-9][0-9]"), gpt2=False)
_RULES: Mapping[str, _WordRule] = {
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "codeshell": _DIGITS,
    "gpt-2": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
}


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> HfTokenizer:
    """The tokenizer that the metadata of a GGUF file describes.

    Args:
        metadata: parsed keys of the file; arrays may be lists or numpy arrays.

    Raises:
        TokenizerError: keys are missing or contradictory, or a kind of vocabulary that is not supported.
    """
    vocabulary = _Vocabulary.read(metadata)
    model = metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        library, add_bos = _byte_level(vocabulary, metadata)
    elif model == "llama":
        library, add_bos = _sentence_piece(vocabulary, metadata), True
    else:
        raise TokenizerError(f"tokenizer.ggml.model={model!r} is not supported; only 'gpt2' and 'llama' are")
    vocabulary.add_specials(library)
    return HfTokenizer(library, _info(vocabulary, metadata, add_bos))


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    tokens: list[str]
    types: list[int]

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> _Vocabulary:
        tokens: list[str] = _array(metadata, "tokenizer.ggml.tokens", str)
        types = [_NORMAL] * len(tokens)
        if "tokenizer.ggml.token_type" in metadata:
            types = _array(metadata, "tokenizer.ggml.token_type", int)
        if len(types) != len(tokens):
            raise TokenizerError(
                f"GGUF metadata: {len(tokens)} tokens but {len(types)} token types; they must be as many"
            )
        for i, token in enumerate(tokens):
            if (
                token == f"[PAD{i}]"
            ):  # a row that only pads the embedding; older converters call it user-defined
                types[i] = _UNUSED
        return cls(tokens, types)

    def ids(self) -> dict[str, int]:
        """Token to id of the rows in use; where two have the same text the first is meant."""
        used = [i for i in range(len(self.tokens) - 1, -1, -1) if self.types[i] != _UNUSED]
        ids = {self.tokens[i]: i for i in used}
        if len(ids) < len(used):
            _log.warning("GGUF vocabulary: %d tokens appear more than once", len(used) - len(ids))
        return ids

    def of_type(self, *kinds: int) -> frozenset[int]:
        return frozenset(i for i, kind in enumerate(self.types) if kind in kinds)

    def add_specials(self, library: tokenizers.Tokenizer) -> None:
        from tokenizers import AddedToken

        wanted = sorted(self.of_type(_UNKNOWN, _CONTROL, _USER_DEFINED))
        library.add_tokens(
            [
                AddedToken(self.tokens[i], special=self.types[i] != _USER_DEFINED, normalized=False)
                for i in wanted
                if self.tokens[i]
            ]
        )

    @property
    def size(self) -> int:
        """One more than the highest id in use."""
        used = (i for i in range(len(self.types) - 1, -1, -1) if self.types[i] != _UNUSED)
        return next(used, -1) + 1


def _array(metadata: Mapping[str, Any], key: str, kind: Any) -> list[Any]:
    value: Any = metadata.get(key)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple) or not value:
        raise TokenizerError(f"GGUF metadata: {key} must be a non-empty array, got {type(value).__name__}")
    wrong = next((item for item in value if not isinstance(item, kind)), None)
    if wrong is not None or None in value:
        raise TokenizerError(f"GGUF metadata: {key} holds {wrong!r}, which is of the wrong kind")
    return list(value)


def _info(vocabulary: _Vocabulary, metadata: Mapping[str, Any], add_bos: bool) -> TokenizerInfo:
    def token(name: str) -> str | None:
        token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if not isinstance(token_id, int) or not 0 <= token_id < len(vocabulary.tokens):
            return None
        return vocabulary.tokens[token_id]

    prefix = "tokenizer.chat_template"
    templates = {
        key[len(prefix) + 1 :]: str(v) for key, v in metadata.items() if key.startswith(prefix + ".")
    }
    if prefix in metadata:
        templates["default"] = str(metadata[prefix])
    return TokenizerInfo(
        eos_token=token("eos"),
        bos_token=token("bos"),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)),
        chat_templates=templates,
        hidden_tokens={i: vocabulary.tokens[i] for i in vocabulary.of_type(_UNUSED)},
        vocab_size=vocabulary.size,
    )


def _byte_level(vocabulary: _Vocabulary, metadata: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, bool]:
    rule = _word_rule(metadata)
    pairs = [_pair(merge) for merge in _array(metadata, "tokenizer.ggml.merges", str)]
    model = _bpe(vocabulary, pairs, ignore_merges=rule.whole_words)
    library = byte_level_tokenizer(model, rule.patterns, nfc=rule.nfc, use_regex=rule.gpt2)
    return library, rule.add_bos


def _pair(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right) or " " in right:
        raise TokenizerError(f"GGUF metadata: merge {merge!r} must be two tokens with a space between")
    return left, right


def _word_rule(metadata: Mapping[str, Any]) -> _WordRule:
    pre = metadata.get("tokenizer.ggml.pre")
    architecture = str(metadata.get("general.architecture", ""))
    if pre in (None, "default"):
        if architecture.startswith("qwen"):
            return _QWEN
        _log.warning(
            "GGUF metadata: tokenizer.ggml.pre is %r; cutting words as llama.cpp does by default, which few models "
            "were trained with",
            pre,
        )
        return _DEFAULT
    if not isinstance(pre, str) or pre not in _RULES:
        raise TokenizerError(
            f"tokenizer.ggml.pre={pre!r} is not supported; supported are {', '.join(sorted([*_RULES, 'default']))}"
            + did_you_mean(str(pre), _RULES)
        )
    return _RULES[pre]


def _bpe(vocabulary: _Vocabulary, pairs: Sequence[tuple[str, str]], **options: Any) -> tokenizers.models.BPE:
    """The model, in which no merge makes a token that text must not become."""
    from tokenizers.models import BPE

    closed = {vocabulary.tokens[i] for i in vocabulary.of_type(_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED)}
    merges = [(left, right) for left, right in pairs if left + right not in closed]
    try:
        return BPE(vocab=vocabulary.ids(), merges=merges, **options)
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"GGUF metadata: tokens and merges do not fit together ({error})") from None


def _sentence_piece(vocabulary: _Vocabulary, metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, normalizers

    scores: list[float] = _array(metadata, "tokenizer.ggml.scores", int | float)
    if len(scores) != len(vocabulary.tokens):
        raise TokenizerError(f"GGUF metadata: {len(vocabulary.tokens)} tokens but {len(scores)} scores")
    unknown = sorted(vocabulary.of_type(_UNKNOWN))
    model = _bpe(
        vocabulary,
        _merges_from_scores(vocabulary, scores),
        unk_token=vocabulary.tokens[unknown[0]] if unknown else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    library = Tokenizer(model)
    has_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    to_mark = normalizers.Replace(" ", SPACE_MARK)
    library.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE_MARK), to_mark]) if has_prefix else to_mark
    )
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    return library


def _merges_from_scores(vocabulary: _Vocabulary, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every cut of a token into two tokens, best score of the whole first: what SentencePiece merges, in order."""
    ids = {vocabulary.tokens[i]: i for i in vocabulary.of_type(_NORMAL)}
    order = sorted(ids.items(), key=lambda item: (-scores[item[1]], item[1]))
    return [
        (token[:cut], token[cut:])
        for token, _ in order
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
