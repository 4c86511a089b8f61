"""Picks the next token from logits, in the order of transformers' generate.

Repetition penalty, temperature, top-k, top-p, min-p; then one draw from the request's own generator, so that what a
request gets never depends on what else is in the batch.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import torch
from torch import Tensor

from qwenkit.core.types import SamplingParams

_NUCLEUS_FIRST = 1024


class Sampler:
    """Sampling state of one request.

    Args:
        params: with every field but ``max_tokens`` and ``seed`` set; fields left None count as off.
        prompt: ids the repetition penalty sees from the start.
    """

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        self.params = params
        self._generator: torch.Generator | None = None
        penalty = params.repetition_penalty
        self._seen: set[int] | None = set(prompt) if penalty not in (None, 1.0) else None

    @property
    def is_plain_argmax(self) -> bool:
        """True when the most likely token of the untouched logits is the answer."""
        return self.params.is_greedy and self._seen is None

    def pick(self, logits: Tensor) -> int:
        """The next token id.

        Args:
            logits: (V,) float32, finite somewhere; not changed.
        """
        if self._seen:
            logits = self._penalised(logits)
        token = int(logits.argmax()) if self.params.is_greedy else self._draw(logits)
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Counts a token that was chosen elsewhere as seen."""
        if self._seen is not None:
            self._seen.add(token)

    def _penalised(self, logits: Tensor) -> Tensor:
        assert self._seen is not None
        penalty = self.params.repetition_penalty or 1.0
        ids = torch.tensor(sorted(self._seen), device=logits.device)
        values = logits[ids]
        return logits.index_copy(0, ids, torch.where(values > 0, values / penalty, values * penalty))

    def _draw(self, logits: Tensor) -> int:
        params = self.params
        temperature = 1.0 if params.temperature is None else params.temperature
        values, ids = self._candidates(logits.cpu() / temperature)
        probs = torch.softmax(values, dim=-1)  # (C,) falling
        if params.top_p is not None and params.top_p < 1:
            # Kept: those before which less than top_p has gathered, so always the first.
            probs = probs[: int((probs.cumsum(-1) - probs < params.top_p).sum().clamp(min=1))]
        if params.min_p:
            probs = probs[probs >= params.min_p * probs[0]]
        drawn = torch.multinomial(probs, 1, generator=self._rng())
        return int(ids[drawn])

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and ids from the most likely on, as many as top-k or top-p can need."""
        top_k, top_p = self.params.top_k or 0, self.params.top_p
        if 0 < top_k < len(logits):
            return logits.topk(top_k)
        if top_p is not None and top_p < 1 and len(logits) > _NUCLEUS_FIRST:
            # Sorting 150,000 logits costs milliseconds; the nucleus nearly always lies among the first thousand.
            values, ids = logits.topk(_NUCLEUS_FIRST)
            inside = torch.exp(values - torch.logsumexp(logits, dim=-1))
            if float(inside.sum() - inside[-1]) >= top_p:
                keep = int((inside.cumsum(-1) - inside < top_p).sum())
                return values[:keep], ids[:keep]
        return logits.sort(descending=True)

    def _rng(self) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator()
            seed = self.params.seed
            self._generator.manual_seed(secrets.randbits(63) if seed is None else seed)
        return self._generator
