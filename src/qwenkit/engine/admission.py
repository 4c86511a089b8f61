"""What becomes of a request before it may wait: checked against the model, and turned into the state of its replies.

Runs in the thread of whoever asks, so that slow grammars hold up nobody else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwenkit.core.errors import InputError, PromptTooLongError
from qwenkit.core.sampling import SamplingParams
from qwenkit.engine.grammar import GrammarMask, Vocabulary
from qwenkit.engine.reply import Reply
from qwenkit.engine.text import TextStream
from qwenkit.layers.lora import Adapter
from qwenkit.layers.rope import ntk_alpha
from qwenkit.model.sampling import BadWords, Sampler, TokenMask
from qwenkit.tokenizer.base import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModel:
    """What the engine has to know of a model."""

    tokenizer: Tokenizer | None
    vocab_size: int
    """Ids that may be chosen; rows of the embedding beyond are padding."""
    context_length: int
    end_ids: tuple[int, ...]
    """The model's own end tokens."""
    ntk_length: int | None
    """Prompts beyond this many tokens get an NTK factor."""
    explain: Callable[[Sequence[int]], str]
    """Says why logits of these tokens are not finite."""
    tells_generated: bool = False
    """What is stored for a token depends on whether it is of a prompt or was chosen by the model."""


class Admission:
    """Checks requests and prepares their replies.

    Args:
        model: what to know of the model.
        room: tokens the key-value cache holds.
    """

    def __init__(self, model: EngineModel, room: int) -> None:
        self._model, self._room = model, room
        self._vocabulary = (
            Vocabulary(model.tokenizer, model.vocab_size, model.end_ids) if model.tokenizer else None
        )

    def limit(self, tokens: Sequence[int], params: SamplingParams) -> int:
        """Most tokens the reply may have.

        Raises:
            InputError: an empty prompt.
            PromptTooLongError: it leaves no room for a reply.
        """
        context, room = self._model.context_length, self._room
        if not tokens:
            raise InputError("an empty prompt cannot be continued; give at least one token")
        scored = params.max_tokens == 0
        if len(tokens) > context or (len(tokens) == context and not scored):
            raise PromptTooLongError(
                f"the prompt has {len(tokens)} tokens, the context holds {context} including the reply; shorten it, or raise max_context if the model allows"
            )
        if len(tokens) >= room:
            raise PromptTooLongError(
                f"the prompt has {len(tokens)} tokens, the key-value cache holds {room}; shorten it, or give the cache more memory"
            )
        wanted = context if params.max_tokens is None else params.max_tokens
        return min(wanted, context - len(tokens), room - len(tokens))

    def replies(
        self, tokens: Sequence[int], params: SamplingParams, adapter: Adapter | None, index: int
    ) -> list[Reply]:
        """The state of each of the request's n replies.

        Raises:
            InputError: the settings do not fit the model or each other.
        """
        self._check_ids(params)
        return [self._reply(tokens, params, adapter, index, sample) for sample in range(params.n)]

    def _reply(
        self, tokens: Sequence[int], params: SamplingParams, adapter: Adapter | None, index: int, sample: int
    ) -> Reply:
        if sample:
            params = dataclasses.replace(params, prompt_logprobs=None)  # the first reply brings them
        ends: frozenset[int] = frozenset(() if params.ignore_eos else self._model.end_ids)
        grammar: GrammarMask | None = None
        masks: list[TokenMask] = []
        if params.bad_words:
            masks.append(self._bad_words(params))
        if params.constraint is not None:
            grammar = self._with_tokenizer("a constraint").matcher(params.constraint)
            masks.append(grammar)
        return Reply(
            index=index,
            sample=sample,
            params=params,
            sampler=Sampler(
                params, tokens, end_ids=ends | set(params.stop_token_ids), masks=masks, sample=sample
            ),
            text=TextStream(self._model.tokenizer, params),
            grammar=grammar,
            end_ids=ends,
            alpha=ntk_alpha(len(tokens), self._model.ntk_length),
            adapter=adapter,
        )

    def _bad_words(self, params: SamplingParams) -> TokenMask:
        return BadWords(params.bad_words, self._with_tokenizer("bad_words").token_bytes)

    def _with_tokenizer(self, what: str) -> Vocabulary:
        if self._vocabulary is None:
            raise InputError(f"{what} needs a tokenizer, which the model lacks; leave it out")
        return self._vocabulary

    def _check_ids(self, params: SamplingParams) -> None:
        size = self._model.vocab_size
        for name in ("logit_bias", "allowed_token_ids"):
            bad = next((i for i in getattr(params, name) or () if not 0 <= i < size), None)
            if bad is not None:
                raise InputError(f"{name} names token {bad}; use ids from 0 to {size - 1}")
        if params.constraint is not None and params.ignore_eos:
            raise InputError(
                "ignore_eos and a constraint exclude each other: the constraint says where the reply ends; leave one out"
            )
        if params.stop and self._vocabulary is None:
            raise InputError("stop strings need a tokenizer, which the model lacks; use stop_token_ids")
