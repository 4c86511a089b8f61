"""Reads the tokenizer files of a Hugging Face model folder.

Files: tokenizer.json, or vocab.json with merges.txt; tokenizer_config.json, special_tokens_map.json,
added_tokens.json; chat_template.jinja or chat_template.json. None of them is required but the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenkit.core.errors import TokenizerError
from qwenkit.tokenizer.bpe import QWEN_PATTERN
from qwenkit.tokenizer.hf_json import HfTokenizer, TokenizerInfo

if TYPE_CHECKING:
    import tokenizers


def read_hf_tokenizer(folder: Path | str) -> HfTokenizer:
    """The tokenizer of a model folder.

    Raises:
        TokenizerError: files are missing, malformed or of a kind that is not supported.
    """
    folder = Path(folder)
    config = _read_object(folder / "tokenizer_config.json")
    config = {**_read_object(folder / "special_tokens_map.json"), **config}
    json_path = folder / "tokenizer.json"
    library = _from_json(json_path) if json_path.exists() else _from_vocab_and_merges(folder, config)
    _add_tokens(library, _added_tokens(folder, config), folder)
    info = TokenizerInfo(
        eos_token=_content(config.get("eos_token")),
        bos_token=_content(config.get("bos_token")),
        add_bos=_adds_bos(library, config),
        chat_templates=_chat_templates(folder, config),
    )
    return HfTokenizer(library, info)


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"cannot read {path}: {error}") from None
    if not isinstance(data, dict):
        raise TokenizerError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data


def _from_json(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:  # the library raises bare Exception, and PanicException beside it
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"cannot read {path}: {error}") from None


def _from_vocab_and_merges(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers.models import BPE

    kind = str(config.get("tokenizer_class", "Qwen2Tokenizer")).removesuffix("Fast")
    if kind not in ("Qwen2Tokenizer", "GPT2Tokenizer"):
        raise TokenizerError(
            f"{folder}: vocab.json and merges.txt of a {kind!r} are not supported without tokenizer.json; "
            "only those of Qwen2Tokenizer and GPT2Tokenizer are"
        )
    vocab_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    try:
        vocab, merges = BPE.read_file(str(vocab_path), str(merges_path))
        model = BPE(vocab=vocab, merges=merges)
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"cannot read {vocab_path} and {merges_path}: {error}") from None
    if kind == "GPT2Tokenizer":
        return byte_level_tokenizer(model, (), use_regex=True)
    return byte_level_tokenizer(model, (QWEN_PATTERN,), nfc=True)


def byte_level_tokenizer(
    model: tokenizers.models.BPE, patterns: tuple[str, ...], *, nfc: bool = False, use_regex: bool = False
) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer that cuts words by each pattern in turn (``use_regex``: then as GPT-2 does)."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    library = Tokenizer(model)
    if nfc:
        library.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    library.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])
    library.decoder = decoders.ByteLevel()
    return library


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, tokenizers.AddedToken]:
    """Tokens that the files beside the vocabulary add, by id."""
    from tokenizers import AddedToken

    found: dict[int, AddedToken] = {}
    try:
        for content, token_id in _read_object(folder / "added_tokens.json").items():
            found[int(token_id)] = AddedToken(
                content, special=content in _named_specials(config), normalized=False
            )
        for token_id, entry in config.get("added_tokens_decoder", {}).items():
            flags = {
                k: bool(entry.get(k)) for k in ("lstrip", "rstrip", "single_word", "normalized", "special")
            }
            found[int(token_id)] = AddedToken(entry["content"], **flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"{folder}: the list of added tokens is malformed ({error!r})") from None
    return found


def _named_specials(config: Mapping[str, Any]) -> set[str | None]:
    names = [
        _content(value)
        for key, value in config.items()
        if key.endswith("_token") and not isinstance(value, bool)
    ]
    more = config.get("additional_special_tokens") or []
    return {*names, *map(_content, more)}


def _add_tokens(
    library: tokenizers.Tokenizer, tokens: Mapping[int, tokenizers.AddedToken], folder: Path
) -> None:
    known = library.get_added_tokens_decoder()
    for token_id, token in sorted(tokens.items()):
        if token_id in known and known[token_id].content == token.content:
            continue
        library.add_tokens([token])  # the library numbers them itself
        got = library.token_to_id(token.content)
        if got != token_id:
            raise TokenizerError(
                f"{folder}: the added token {token.content!r} should have id {token_id} but the vocabulary gives it {got}"
            )
    named = [token for token in tokens.values() if token.special]
    library.add_special_tokens(named)


def _adds_bos(library: tokenizers.Tokenizer, config: Mapping[str, Any]) -> bool:
    told = config.get("add_bos_token")
    if told is not None:
        return bool(told)
    bos = _content(config.get("bos_token"))
    return bos is not None and library.encode("").ids[:1] == [library.token_to_id(bos)]


def _content(token: object) -> str | None:
    """A special token's text; the files write it plain or as an object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name; a file of their own wins over tokenizer_config.json."""
    templates: dict[str, str] = {}
    for source in (
        config.get("chat_template"),
        _read_object(folder / "chat_template.json").get("chat_template"),
    ):
        if isinstance(source, str):
            templates["default"] = source
        elif isinstance(source, list):
            templates.update(
                {
                    str(t["name"]): str(t["template"])
                    for t in source
                    if isinstance(t, Mapping) and {"name", "template"} <= t.keys()
                }
            )
    files = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for path in files:
        if path.exists():
            name = "default" if path.name == "chat_template.jinja" else path.stem
            templates[name] = _read_template(path)
    return templates


def _read_template(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"cannot read {path}: {error}") from None
