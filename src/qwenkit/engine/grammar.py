"""Constraints on a reply (JSON, schema, regular expression, choice, grammar) as a mask over the vocabulary.

llguidance does the parsing; this gives it the model's vocabulary as bytes and turns its bit masks into logits. Knows
nothing of networks or requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from qwenkit.core.errors import InputError
from qwenkit.core.lazy import import_extra
from qwenkit.core.sampling import Constraint
from qwenkit.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WHITESPACE = r"(\n[ ]{0,16}|[ ])?"  # pretty printing is fine, endless blanks are not


class Vocabulary:
    """The bytes of every token, and grammars over them.

    Args:
        tokenizer: the model's.
        size: rows of logits; ids that the tokenizer lacks are never chosen.
        end_ids: tokens that may follow once a constraint is fulfilled.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, end_ids: Sequence[int]) -> None:
        self._tokenizer, self._size, self._end_ids = tokenizer, size, tuple(end_ids)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Bytes of each id."""
        known = min(self._tokenizer.vocab_size, self._size)
        return [self._tokenizer.token_bytes(i) for i in range(known)] + [b""] * (self._size - known)

    @cached_property
    def _ll_tokenizer(self) -> Any:
        llguidance = import_extra("llguidance", "server")
        ends = [i for i in self._end_ids if i < self._size]
        source = _TokenizerView(self._tokenizer, self.token_bytes, ends)
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(source), n_vocab=self._size, eos_token=ends or None
        )

    def matcher(self, constraint: Constraint) -> GrammarMask:
        """A fresh mask for one reply.

        Raises:
            InputError: the schema, expression or grammar is not valid.
            MissingExtraError: llguidance is not installed.
        """
        if not self._end_ids:
            raise InputError("a constraint needs an end token, and the model's files name none")
        llguidance = import_extra("llguidance", "server")
        grammar = _compiled(llguidance, constraint)
        matcher = llguidance.LLMatcher(self._ll_tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(_complaint(constraint, matcher.get_error()))
        return GrammarMask(matcher, self._size)


class _TokenizerView:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], ends: list[int]) -> None:
        self._tokenizer, self.tokens = tokenizer, tokens
        self.eos_token_id = ends[0] if ends else 0
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = sorted(i for i in tokenizer.control_ids if i < len(tokens))

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, allowed_special=())


class GrammarMask:
    """The state of one reply in its grammar; a `TokenMask`."""

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher = matcher
        self._bits: NDArray[np.uint32] = np.zeros((size + 31) // 32, dtype=np.uint32)

    def apply(self, logits: NDArray[np.float32]) -> None:
        """See TokenMask.apply."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        banned = np.unpackbits(~self._bits.view(np.uint8), count=len(logits), bitorder="little")
        np.copyto(logits, -np.inf, where=banned.view(np.bool_))

    def accept(self, token_id: int) -> None:
        """See TokenMask.accept."""
        self._matcher.consume_token(token_id)
        self._check()

    @property
    def is_done(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            why = self._matcher.get_error().strip().partition("\n")[0]  # a dump of its state follows
            raise InputError(f"the constraint cannot be followed any further: {why:.300}; make it simpler")


def _compiled(llguidance: Any, constraint: Constraint) -> str:
    matcher, kind, value = llguidance.LLMatcher, constraint.kind, constraint.value
    if kind == "choice":
        return str(matcher.grammar_from_lark("start: " + " | ".join(json.dumps(c) for c in value)))
    if kind == "regex":
        return str(matcher.grammar_from_regex(value))
    if kind == "grammar":
        return str(matcher.grammar_from_lark(value))
    schema: Any = {"type": "object"} if kind == "json_object" else value
    if isinstance(schema, Mapping):
        schema = dict(schema)
    options = {"whitespace_flexible": True, "whitespace_pattern": _WHITESPACE}
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        return str(matcher.grammar_from_json_schema(text, overrides=options))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(_complaint(constraint, str(error))) from None


def _complaint(constraint: Constraint, why: str) -> str:
    return f"the {constraint.kind} constraint is not usable: {' '.join(why.split()):.300}; change it"
