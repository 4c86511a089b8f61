"""Continued texts as text-generation-inference shows them: whole with details, or an event per token."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwenkit.core.types import Delta, TokenLogprob
from qwenkit.server.errors import ApiError
from qwenkit.server.generation import Generation
from qwenkit.server.tgi.shapes import error_event, tgi_event
from qwenkit.server.token_text import finite, token_bytes
from qwenkit.tokenizer.base import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TgiShape:
    """How an answer has to look."""

    tokenizer: Tokenizer | None
    prefix: str
    """What generated texts begin with: nothing, or the prompt."""
    has_details: bool
    has_top_tokens: bool
    seeds: tuple[int | None, ...]
    """One per continuation."""
    in_list: bool = False
    """Whether the answer is the only item of a list."""


class _TokenTexts:
    """The text that each token of one continuation adds."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset() if tokenizer is None else tokenizer.control_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def token(self, logprob: TokenLogprob) -> dict[str, Any]:
        """A token that was chosen."""
        data, special = token_bytes(self._tokenizer, logprob.token_id), logprob.token_id in self._special
        text = data.decode("utf-8", "replace") if special else self._decoder.decode(data)
        return _token(logprob.token_id, text, logprob.logprob, special=special)

    def rest(self) -> str:
        """What is left of a character that was never completed; at the end."""
        return self._decoder.decode(b"", final=True)

    def likeliest(self, logprob: TokenLogprob) -> list[dict[str, Any]]:
        """Tokens that were likely in its place, each by itself."""
        return [self._alone(i, value) for i, value in logprob.top]

    def _alone(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = token_bytes(self._tokenizer, token_id).decode("utf-8", "replace")
        return _token(token_id, text, logprob, special=token_id in self._special)


def _token(token_id: int, text: str, logprob: float, *, special: bool) -> dict[str, Any]:
    return {"id": token_id, "text": text, "logprob": finite(logprob), "special": special}


class _Sequence:
    """One continuation under way."""

    def __init__(self, shape: TgiShape, seed: int | None) -> None:
        self._shape, self.seed = shape, seed
        self._texts = _TokenTexts(shape.tokenizer)
        self._pieces: list[str] = []
        self._scores: list[float] = []
        self.tokens: list[dict[str, Any]] = []
        self.top_tokens: list[list[dict[str, Any]]] = []
        self.prefill: Sequence[TokenLogprob | None] = ()
        self.finish_reason: str | None = None
        self.num_prompt = self.num_generated = 0

    @property
    def text(self) -> str:
        """All of it so far."""
        return self._shape.prefix + "".join(self._pieces)

    @property
    def score(self) -> float:
        """Mean log-probability of its tokens."""
        return sum(self._scores) / len(self._scores) if self._scores else float("-inf")

    def push(self, delta: Delta) -> None:
        """Takes what is new."""
        self._pieces.append(delta.text)
        for logprob in delta.logprobs:
            self._scores.append(finite(logprob.logprob))
            self.tokens.append(self._texts.token(logprob))
            if self._shape.has_top_tokens:
                self.top_tokens.append(self._texts.likeliest(logprob))
        self.prefill = delta.prompt_logprobs or self.prefill
        if delta.usage is not None:
            self.num_prompt, self.num_generated = delta.usage.prompt_tokens, delta.usage.completion_tokens
        if delta.finish_reason is not None:
            ended = "stop_sequence" if isinstance(delta.stop, str) else "eos_token"
            self.finish_reason = "length" if delta.finish_reason == "length" else ended
            if self.tokens:
                self.tokens[-1]["text"] += self._texts.rest()

    def details(self, ids: Sequence[int]) -> dict[str, Any]:
        """All there is to tell, given the ids of the prompt."""
        value = {
            "finish_reason": self.finish_reason,
            "generated_tokens": self.num_generated,
            "seed": self.seed,
            "prefill": [self._prefill(*pair) for pair in zip(ids, self.prefill, strict=False)],
            "tokens": self.tokens,
        }
        return value | ({"top_tokens": self.top_tokens} if self._shape.has_top_tokens else {})

    def _prefill(self, token_id: int, logprob: TokenLogprob | None) -> dict[str, Any]:
        text = token_bytes(self._shape.tokenizer, token_id).decode("utf-8", "replace")
        return {
            "id": token_id,
            "text": text,
            "logprob": None if logprob is None else finite(logprob.logprob),
        }


class TgiCollector:
    """A whole answer: the continuation whose tokens are likeliest on average."""

    def __init__(self, shape: TgiShape, generation: Generation) -> None:
        self._shape, self._generation = shape, generation
        self._all = [_Sequence(shape, seed) for seed in shape.seeds]

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> None:
        """See Collector."""
        for index, delta in deltas:
            self._all[index].push(delta)

    def value(self) -> Any:
        """See Collector."""
        best = max(self._all, key=lambda each: each.score) if len(self._all) > 1 else self._all[0]
        value: dict[str, Any] = {"generated_text": best.text}
        if self._shape.has_details:
            ids = [i for i in self._generation.requests[0].prompt if isinstance(i, int)]
            value["details"] = best.details(ids)
            if len(self._all) > 1:
                value["details"]["best_of_sequences"] = [
                    {"generated_text": each.text, **each.details(ids)}
                    for each in self._all
                    if each is not best
                ]
        return [value] if self._shape.in_list else value


class TgiEncoder:
    """A continuation as a stream: an event per token, of which the last holds the whole text."""

    def __init__(self, shape: TgiShape, generation: Generation) -> None:
        self._shape = shape
        self._sequence = _Sequence(shape, shape.seeds[0])
        self._sent = 0

    def opening(self) -> bytes:
        """See Encoder."""
        return b""

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> bytes:
        """See Encoder."""
        sequence = self._sequence
        for _, delta in deltas:
            sequence.push(delta)
        if sequence.finish_reason is not None and self._sent == len(sequence.tokens):
            tokenizer = self._shape.tokenizer
            end = None if tokenizer is None else tokenizer.eos_token_id
            # The last event has a token, also where the model ended without one.
            sequence.tokens.append(_token(end or 0, "", 0.0, special=True))
            sequence.top_tokens.append([])
        first, self._sent = self._sent, len(sequence.tokens)
        return b"".join([tgi_event(self._event(at)) for at in range(first, self._sent)])

    def closing(self) -> bytes:
        """See Encoder."""
        return b""

    def failure(self, error: ApiError) -> bytes:
        """See Encoder."""
        return error_event(error)

    def _event(self, at: int) -> dict[str, Any]:
        sequence, is_last = self._sequence, False
        if sequence.finish_reason is not None:
            is_last = at == len(sequence.tokens) - 1
        details = None
        if is_last and self._shape.has_details:
            details = {
                "finish_reason": sequence.finish_reason,
                "generated_tokens": sequence.num_generated,
                "seed": sequence.seed,
                "input_length": sequence.num_prompt,
            }
        value: dict[str, Any] = {"index": at + 1, "token": sequence.tokens[at]}
        if self._shape.has_top_tokens:
            value["top_tokens"] = sequence.top_tokens[at]
        return value | {"generated_text": sequence.text if is_last else None, "details": details}
