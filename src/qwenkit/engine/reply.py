"""What belongs to one reply besides its place in the schedule: how tokens are picked, what they say, when they end.

Knows nothing of batches, pages or threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from qwenkit.core.sampling import SamplingParams
from qwenkit.core.types import Delta, FinishReason, TokenLogprob, Usage
from qwenkit.engine.grammar import GrammarMask
from qwenkit.engine.text import TextStream
from qwenkit.layers.lora import Adapter
from qwenkit.model.sampling import Sampler, log_probability


@dataclass(slots=True, kw_only=True)
class Reply:
    """State of one of a request's n replies."""

    index: int
    """Which request of its batch; passed through to the deltas."""
    sample: int
    params: SamplingParams
    sampler: Sampler
    text: TextStream
    grammar: GrammarMask | None
    end_ids: frozenset[int]
    """The model's own end tokens, where they count."""
    alpha: int
    """NTK factor, from the length of the prompt."""
    adapter: Adapter | None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Filled while the prompt is read, where asked for."""
    finish_reason: FinishReason | None = None
    token_count: int = field(default=0)

    def pick(
        self, logits: Tensor, likeliest: int, tokens: Sequence[int], *, limit: int, cached: int
    ) -> Delta:
        """Chooses the next token and says what is new.

        Args:
            logits: (V,) float32 of this reply alone.
            likeliest: their argmax.
            tokens: prompt and reply before this token.
            limit: most tokens of the reply.
            cached: tokens of the prompt that were in the prefix cache.

        Raises:
            InputError: the request's own restrictions leave no token.
        """
        if self.sampler.is_plain_argmax:
            token = likeliest
            self.sampler.record(token)
        else:
            token = self.sampler.pick(logits)
        self.token_count += 1
        wanted = self.params.logprobs
        logprobs = () if wanted is None else (log_probability(logits, token, wanted),)
        named = token in self.params.stop_token_ids
        is_end = self.token_count >= self.params.min_tokens and (named or token in self.end_ids)
        text = self.text.push(token, is_end=is_end)
        stop: str | int | None = self.text.stop or (token if named and is_end else None)
        self._set_reason(is_end or self.text.stop is not None or self._tail_matches(tokens, token), limit)
        if self.finish_reason and self.text.stop is None:
            text += self.text.finish()
            if self.text.stop is not None:
                self.finish_reason, stop = "stop", self.text.stop
        return Delta(
            index=self.index,
            sample=self.sample,
            text=text,
            token_ids=(token,),
            finish_reason=self.finish_reason,
            usage=self._usage(tokens, cached) if self.finish_reason else None,
            logprobs=logprobs,
            prompt_logprobs=self._take_prompt_logprobs(),
            stop=stop if self.finish_reason else None,
        )

    def score_only(self, tokens: Sequence[int], *, cached: int) -> Delta:
        """The one delta of a reply of no tokens."""
        self.finish_reason = "length"
        return Delta(
            index=self.index,
            sample=self.sample,
            finish_reason="length",
            usage=self._usage(tokens, cached),
            prompt_logprobs=self._take_prompt_logprobs(),
        )

    def _usage(self, tokens: Sequence[int], cached: int) -> Usage:
        prompt = len(tokens) - max(self.token_count - 1, 0)
        return Usage(prompt_tokens=prompt, completion_tokens=self.token_count, cached_tokens=cached)

    def _take_prompt_logprobs(self) -> tuple[TokenLogprob | None, ...] | None:
        if self.prompt_logprobs is None or self.token_count > 1:
            return None
        return tuple(self.prompt_logprobs)

    def _set_reason(self, ended: bool, limit: int) -> None:
        if ended or (self.grammar is not None and self.grammar.is_done):
            self.finish_reason = "stop"
        elif self.token_count >= limit:
            self.finish_reason = "length"

    def _tail_matches(self, tokens: Sequence[int], token: int) -> bool:
        """Whether prompt and reply together end with a stop sequence, as the released code compares them."""
        if self.token_count < self.params.min_tokens:
            return False
        for stop in self.params.stop_token_sequences:
            if stop[-1] == token and list(stop[:-1]) == list(tokens[len(tokens) - len(stop) + 1 :]):
                return True
        return False
