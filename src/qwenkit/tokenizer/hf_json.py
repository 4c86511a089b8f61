"""Tokenizers of the Hugging Face kind: a library tokenizer plus what the files say about its special tokens.

Knows nothing of chat formats. Files are read in `hf_files`, GGUF metadata in `gguf_vocab`; both end here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwenkit.core.errors import InputError, TokenizerError
from qwenkit.tokenizer.base import (
    Segment,
    SpecialChoice,
    Tokenizer,
    replace_surrogates,
    resolve_specials,
    surface_pattern,
)

if TYPE_CHECKING:
    import tokenizers

SPACE_MARK = "\u2581"
"""What SentencePiece vocabularies write for a space."""

_LONG_TEXT = 10_000
"""Characters; encoding fewer takes a few milliseconds."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerInfo:
    """What the files say besides the vocabulary."""

    eos_token: str | None = None
    bos_token: str | None = None
    add_bos: bool = False
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    """Jinja templates by name; "default" is the one for plain chat."""
    hidden_tokens: Mapping[int, str] = field(default_factory=dict)
    """Rows outside the library's vocabulary, which no text becomes and readable text leaves out (padding, unused)."""
    vocab_size: int | None = None
    """One more than the highest id that can be produced; None: as the library counts."""


class HfTokenizer(Tokenizer):
    """A BPE tokenizer of the ``tokenizers`` library."""

    def __init__(self, library: tokenizers.Tokenizer, info: TokenizerInfo) -> None:
        """Wraps a library tokenizer that holds all tokens, added ones included.

        Raises:
            TokenizerError: a model or decoder of a kind that is not supported.
        """
        if type(library.model).__name__ != "BPE":
            raise TokenizerError(
                f"tokenizer model {type(library.model).__name__!r} is not supported; only BPE is"
            )
        library.no_truncation()
        library.no_padding()
        self._library = library
        self._info = info
        self._added = library.get_added_tokens_decoder()
        self._specials = {token.content: token_id for token_id, token in self._added.items()}
        control = {token_id for token_id, token in self._added.items() if token.special}
        self._control_ids = frozenset(control) | frozenset(info.hidden_tokens)
        self._to_bytes, self._strips_first_space = _byte_rule(library)
        self._bytes: dict[int, bytes] = {}
        self._plain_pair: tuple[tokenizers.Tokenizer, tokenizers.Tokenizer] | None = None
        highest = max((library.get_vocab_size() - 1, *self._added))
        self._vocab_size = highest + 1 if info.vocab_size is None else info.vocab_size

    @property
    def library(self) -> tokenizers.Tokenizer:
        """The library's tokenizer, for saving."""
        return self._library

    @property
    def vocab_size(self) -> int:
        """One more than the highest id the tokenizer can produce."""
        return self._vocab_size

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """All added tokens, control or not."""
        return self._specials

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of the added tokens marked special, and of hidden rows."""
        return self._control_ids

    @property
    def eos_token_id(self) -> int | None:
        """The end token the files name, if any."""
        return self._id_of(self._info.eos_token)

    @property
    def bos_token_id(self) -> int | None:
        """The start token the files name, if any."""
        return self._id_of(self._info.bos_token)

    @property
    def add_bos(self) -> bool:
        """Whether a raw prompt starts with the start token."""
        return self._info.add_bos and self.bos_token_id is not None

    @property
    def chat_template(self) -> str | None:
        """The default Jinja template, if any."""
        return self._info.chat_templates.get("default")

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """All Jinja templates by name."""
        return self._info.chat_templates

    @property
    def strips_first_space(self) -> bool:
        """Whether decoding drops one space at the very start."""
        return self._strips_first_space

    def encode(
        self,
        text: str,
        *,
        allowed_special: SpecialChoice = "all",
        disallowed_special: SpecialChoice = (),
    ) -> list[int]:
        """See `Tokenizer.encode`."""
        text = replace_surrogates(text)
        allowed = resolve_specials(text, self._specials, allowed_special, disallowed_special)
        if len(allowed) == len(self._specials):
            return _ids(self._library, text)
        return self._encode_pieces(self._split(text, allowed))

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """See `Tokenizer.encode_segments`."""
        return self._encode_pieces(segments)

    def split_specials(self, text: str) -> list[Segment]:
        """See `Tokenizer.split_specials`; honours the blanks that some tokens swallow on their left or right."""
        return self._split(text, self._specials)

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._find_bytes(token_id)
        return known

    def _find_bytes(self, token_id: int) -> bytes:
        if token_id in self._info.hidden_tokens:
            return self._info.hidden_tokens[token_id].encode()
        token = self._library.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if token is None:
            raise InputError(
                f"token id {token_id} is not in the vocabulary; ids go from 0 to {self.vocab_size - 1}"
            )
        return token.encode() if token_id in self._added else self._to_bytes(token)

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self._library.token_to_id(token)

    def _encode_pieces(self, pieces: Iterable[Segment]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += _ids(self._plain()[1 if ids else 0], replace_surrogates(piece))
        return ids

    def _split(self, text: str, allowed: Mapping[str, int]) -> list[Segment]:
        if not allowed:
            return [text] if text else []
        parts = surface_pattern(frozenset(allowed)).split(text)
        for i in range(1, len(parts), 2):
            token = self._added[allowed[parts[i]]]
            if token.lstrip:
                parts[i - 1] = parts[i - 1].rstrip()
            if token.rstrip:
                parts[i + 1] = parts[i + 1].lstrip()
        return [allowed[part] if i % 2 else part for i, part in enumerate(parts) if part]

    def _plain(self) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        """Tokenizers in which no added token exists: for the start of a prompt, and for what follows."""
        if self._plain_pair is None:
            first = self._build_plain()
            state = _state(first.pre_tokenizer)
            later = first
            if b'"prepend_scheme":"first"' in state:  # only the very first word gets the space mark
                later = _without_added(first, state.replace(b'"first"', b'"never"'))
            self._plain_pair = (first, later)
        return self._plain_pair

    def _build_plain(self) -> tokenizers.Tokenizer:
        model = self._library.model
        spelled = [form for form, i in self._specials.items() if i in [t.id for t in model.tokenize(form)]]
        if spelled:
            return _rebuild_without_added(self._library)
        return _without_added(self._library, _state(self._library.pre_tokenizer))


def _ids(library: tokenizers.Tokenizer, text: str) -> list[int]:
    if len(text) < _LONG_TEXT:
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
        return ids
    # Only the form for many texts lets other threads run meanwhile.
    (encoding,) = library.encode_batch_fast([text], add_special_tokens=False)
    return list(encoding.ids)


def _state(component: Any) -> bytes:
    return b"null" if component is None else bytes(component.__getstate__())


def _without_added(library: tokenizers.Tokenizer, pre_tokenizer: bytes) -> tokenizers.Tokenizer:
    """A tokenizer that shares the model of ``library`` and has none of its added tokens."""
    import tokenizers

    plain = tokenizers.Tokenizer(library.model)
    if library.normalizer is not None:
        plain.normalizer = library.normalizer
    if library.pre_tokenizer is not None:
        copy = tokenizers.pre_tokenizers.Sequence([])
        copy.__setstate__(pre_tokenizer)
        plain.pre_tokenizer = copy
    return plain


def _rebuild_without_added(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same for a model that could spell an added token: that is taken out of the vocabulary and every merge."""
    import tokenizers

    data = json.loads(library.to_str())
    added = {token["content"] for token in data["added_tokens"]}
    model = data["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if token not in added}
    pairs = (tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"])
    model["merges"] = [list(pair) for pair in pairs if not {"".join(pair), *pair} & added]
    if model["unk_token"] in added:
        model["unk_token"] = None
    data["added_tokens"], data["post_processor"] = [], None
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def _byte_rule(library: tokenizers.Tokenizer) -> tuple[Callable[[str], bytes], bool]:
    """How the library's decoder turns a token into bytes, and whether it drops the first space."""
    state = json.loads(_state(library.decoder))
    steps = state.get("decoders", [state]) if isinstance(state, dict) else []
    kinds = {step.get("type") for step in steps}
    if kinds == {"ByteLevel"}:
        return byte_level_to_bytes, False
    if (
        steps
        and kinds <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
        and all(map(_is_piece_step, steps))
    ):
        strips = any(
            step["type"] == "Strip" or (step["type"] == "Metaspace" and step["prepend_scheme"] != "never")
            for step in steps
        )
        return (_piece_to_bytes if "ByteFallback" in kinds else _mark_to_bytes), strips
    names = ", ".join(sorted(map(str, kinds))) or "none"
    raise TokenizerError(
        f"tokenizer decoder of kind {names} is not supported; use ByteLevel, or Metaspace with or without byte fallback"
    )


def _is_piece_step(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Replace":
        return (step["pattern"], step["content"]) == ({"String": SPACE_MARK}, " ")
    if step["type"] == "Strip":
        return (step["content"], step["start"], step["stop"]) == (" ", 1, 0)
    return bool(step["type"] != "Metaspace" or step["replacement"] == SPACE_MARK)


def _piece_to_bytes(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else _mark_to_bytes(token)


def _mark_to_bytes(token: str) -> bytes:
    return token.replace(SPACE_MARK, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level vocabularies write for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return alphabet


_BYTE_OF = _byte_alphabet()


def byte_level_to_bytes(token: str) -> bytes:
    """Bytes of a token written in the byte-level alphabet; as they stand where a character is not of it."""
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:
        return token.encode()
