"""The ``.tiktoken`` vocabulary of first-generation Qwen: ranked byte pairs, then 208 specials.

Knows nothing of chat formats. The merging itself is done by the tiktoken package.
"""

from __future__ import annotations

import binascii
import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qwenkit.core.errors import InputError, TokenizerError
from qwenkit.tokenizer.base import (
    SpecialChoice,
    Tokenizer,
    replace_surrogates,
    resolve_specials,
    split_specials,
)

if TYPE_CHECKING:
    import tiktoken

_log = logging.getLogger(__name__)

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How every Qwen generation cuts text into words; needs Unicode classes and look-ahead."""

NUM_EXTRA_SPECIALS = 205
QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{i}|>" for i in range(NUM_EXTRA_SPECIALS)),
)
"""Surface forms of the specials, in the order of their ids."""

# The regex engine keeps one stack entry per character while it looks behind a run of blanks, and gives up at a
# million. Runs from this length on are cut out by hand.
_LONG_RUN = 100_000
# Unicode White_Space without line ends; Python's \s also counts U+001C..U+001F.
_BLANKS = re.compile("[\t\v\f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")


class TiktokenTokenizer(Tokenizer):
    """Byte-level BPE by rank; text is NFC-normalised, specials follow the ranks of the base file."""

    def __init__(self, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> None:
        """Builds a tokenizer from token bytes with their ids and surface forms with theirs.

        Raises:
            TokenizerError: a single byte has no token, or two tokens share an id.
        """
        import tiktoken

        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if missing:
            raise TokenizerError(
                f"the vocabulary has no token for {len(missing)} of the 256 single bytes (first: 0x{missing[0]:02x}); "
                "a byte-level vocabulary needs them all"
            )
        self._specials = dict(special_tokens)
        self._bytes = {rank: token for token, rank in ranks.items()}
        self._bytes.update({token_id: form.encode() for form, token_id in self._specials.items()})
        if len(self._bytes) != len(ranks) + len(self._specials):
            raise TokenizerError("two tokens of the vocabulary share an id; every rank must be used once")
        self._vocab_size = max(self._bytes) + 1
        self._control_ids = frozenset(self._specials.values())
        self._ranks = ranks
        self._encoding = tiktoken.Encoding(
            "qwen", pat_str=QWEN_PATTERN, mergeable_ranks=dict(ranks), special_tokens=self._specials
        )
        self._whole: tiktoken.Encoding | None = None

    @classmethod
    def from_file(cls, path: Path | str, *, extra: Path | str | None = None) -> TiktokenTokenizer:
        """Reads a ``.tiktoken`` file and, where given, ``qwen_extra.tiktoken``, whose ids follow the specials.

        Raises:
            TokenizerError: a file is missing or malformed; the text names file and line.
        """
        ranks = read_ranks(Path(path))
        start = max(ranks.values(), default=-1) + 1
        specials = {form: start + i for i, form in enumerate(QWEN_SPECIALS)}
        if extra is not None:
            _add_extra(ranks, specials, Path(extra))
        return cls(ranks, specials)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return self._vocab_size

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The 208 specials."""
        return self._specials

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids of the specials."""
        return self._control_ids

    @property
    def eos_token_id(self) -> int | None:
        """``<|endoftext|>``."""
        return self._specials.get("<|endoftext|>")

    @property
    def bos_token_id(self) -> int | None:
        """None: Qwen v1 has no start token."""
        return None

    @property
    def add_bos(self) -> bool:
        """False."""
        return False

    @property
    def chat_template(self) -> str | None:
        """None: the format of Qwen v1 is not a Jinja template."""
        return None

    @property
    def strips_first_space(self) -> bool:
        """False."""
        return False

    @property
    def ranks(self) -> Mapping[bytes, int]:
        """Token bytes to id, without the specials."""
        return self._ranks

    def encode(
        self,
        text: str,
        *,
        allowed_special: SpecialChoice = "all",
        disallowed_special: SpecialChoice = (),
    ) -> list[int]:
        """See `Tokenizer.encode`."""
        text = unicodedata.normalize("NFC", replace_surrogates(text))
        allowed = resolve_specials(text, self._specials, allowed_special, disallowed_special)
        if len(text) >= _LONG_RUN:
            return self._encode_long(text, allowed)
        return self._encoding.encode(text, allowed_special=set(allowed), disallowed_special=())

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        try:
            return self._bytes[token_id]
        except KeyError:
            raise InputError(
                f"token id {token_id} is not in the vocabulary; ids go from 0 to {self.vocab_size - 1}"
            ) from None

    def _encode_long(self, text: str, allowed: Mapping[str, int]) -> list[int]:
        ids: list[int] = []
        for piece in split_specials(text, allowed):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._encode_around_runs(piece)
        return ids

    def _encode_around_runs(self, text: str) -> list[int]:
        """Encodes text without specials, giving each long run of blanks to the merger as the one word it is."""
        ids: list[int] = []
        done = 0
        for run in _BLANKS.finditer(text):
            if run.end() - run.start() < _LONG_RUN or text[run.end() : run.end() + 1] in ("\r", "\n"):
                continue  # blanks before a line end belong to one word with it, found without the deep look-ahead
            end = (
                run.end() if run.end() == len(text) else run.end() - 1
            )  # the last blank goes with the next word
            ids += self._encoding.encode_ordinary(text[done : run.start()])
            ids += self._whole_word().encode_ordinary(text[run.start() : end])
            done = end
        return ids + self._encoding.encode_ordinary(text[done:])

    def _whole_word(self) -> tiktoken.Encoding:
        """An encoder that takes all it gets as one word."""
        if self._whole is None:
            import tiktoken

            self._whole = tiktoken.Encoding(
                "qwen-word", pat_str=r"(?s:.+)", mergeable_ranks=dict(self._ranks), special_tokens={}
            )
        return self._whole


def read_ranks(path: Path) -> dict[bytes, int]:
    """Reads ``base64(token) rank`` lines.

    Raises:
        TokenizerError: the file is missing or malformed; the text names file and line.
    """
    ranks: dict[bytes, int] = {}
    seen: set[int] = set()
    for number, token, rank in _read_lines(path):
        if token in ranks or rank in seen:
            what = f"token {token!r}" if token in ranks else f"rank {rank}"
            raise TokenizerError(f"{path}, line {number}: {what} was already used; each line needs its own")
        ranks[token] = rank
        seen.add(rank)
    if not ranks:
        raise TokenizerError(f"the vocabulary {path} is empty; expected lines of base64 token, space, rank")
    return ranks


def _read_lines(path: Path) -> Iterator[tuple[int, bytes, int]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read the vocabulary {path}: {error.strerror or error}") from None
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            yield number, *_read_line(line, f"{path}, line {number}")


def _read_line(line: bytes, where: str) -> tuple[bytes, int]:
    fields = line.split()
    try:
        encoded, rank = fields
        token = binascii.a2b_base64(encoded)
        # a2b_base64 skips characters outside its alphabet; only an exact copy of what it would write is accepted
        if not token or binascii.b2a_base64(token, newline=False) != encoded or not rank.isdigit():
            raise ValueError
        return token, int(rank)
    except ValueError:
        shown = line[:60].decode("utf-8", "replace")
        raise TokenizerError(f"{where}: expected base64 token, space, rank; got {shown!r}") from None


def _add_extra(ranks: dict[bytes, int], specials: Mapping[str, int], path: Path) -> None:
    used = set(ranks.values()) | set(specials.values())
    for number, token, rank in _read_lines(path):
        if token in ranks or rank in used:
            why = "the token is known" if token in ranks else "its id is taken"
            _log.warning("%s, line %d: skipped %r %d, %s", path, number, token, rank, why)
            continue
        ranks[token] = rank
        used.add(rank)
