"""Picks the next token from logits, in the order of transformers' generate.

Penalties, biases and masks, then temperature, top-k, top-p, min-p; then one draw from the request's own generator, so that what a
request gets never depends on what else is in the batch. Written in numpy: it stays on one core, while torch would wake
threads that then compete with the next decode step.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from torch import Tensor

from qwenkit.core.errors import InputError
from qwenkit.core.types import SamplingParams, TokenLogprob

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


_COLDEST = 1e-6


class TokenMask(Protocol):
    """What restricts a reply token by token, a grammar for example."""

    def apply(self, logits: Array) -> None:
        """Sets the logits of tokens that may not come next to -inf, in place."""

    def accept(self, token_id: int) -> None:
        """The token was chosen."""


class Sampler:
    """Sampling state of one reply.

    Args:
        params: fields left None count as off.
        prompt: ids the repetition penalty sees from the start.
        end_ids: tokens that end the reply, not chosen before ``params.min_tokens``.
        masks: what else restricts the reply, such as `BadWords` or a grammar.
        sample: which of the request's replies this is; each draws its own numbers from the seed.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Iterable[int],
        *,
        end_ids: Iterable[int] = (),
        masks: Sequence[TokenMask] = (),
        sample: int = 0,
    ) -> None:
        self.params, self._masks, self._sample = params, masks, sample
        self._random: np.random.Generator | None = None
        penalty = params.repetition_penalty
        self._seen: set[int] | None = set(prompt) if penalty not in (None, 1.0) else None
        self._counts: dict[int, int] | None = (
            {} if params.frequency_penalty or params.presence_penalty else None
        )
        self._bias = _pairs(params.logit_bias)
        allowed = params.allowed_token_ids
        self._allowed = None if allowed is None else np.array(sorted(set(allowed)), dtype=np.int64)
        self._end_ids = np.array(sorted(end_ids), dtype=np.int64) if params.min_tokens else None
        self._length = 0

    @property
    def is_plain_argmax(self) -> bool:
        """True when the most likely token of the untouched logits is the answer."""
        return self.params.is_greedy and not self._changes_logits

    @property
    def _changes_logits(self) -> bool:
        parts = (self._seen, self._counts, self._bias, self._allowed, self._end_ids)
        return bool(self._masks) or any(part is not None for part in parts)

    def pick(self, logits: Tensor) -> int:
        """The next token id.

        Args:
            logits: (V,) float32, finite somewhere; not changed.

        Raises:
            InputError: the request's own restrictions leave no token.
        """
        values: Array = logits.cpu().numpy()
        if self._changes_logits:
            values = self._processed(values.copy())
        token = int(values.argmax()) if self.params.is_greedy else self._draw(values)
        self.record(token)
        return token

    def record(self, token: int) -> None:
        """Counts a token as chosen, whoever chose it."""
        self._length += 1
        if self._seen is not None:
            self._seen.add(token)
        if self._counts is not None:
            self._counts[token] = self._counts.get(token, 0) + 1
        for mask in self._masks:
            mask.accept(token)

    def _processed(self, out: Array) -> Array:
        """Applies penalties, biases and masks in place; the order is that of transformers' processors."""
        penalty = self.params.repetition_penalty or 1.0
        if self._seen:
            ids = _inside(self._seen, len(out))
            out[ids] = np.where(out[ids] > 0, out[ids] / penalty, out[ids] * penalty)
        if self._counts:
            ids = np.fromiter(self._counts, dtype=np.int64)
            counts = np.fromiter(self._counts.values(), dtype=np.float32)
            out[ids] -= (self.params.frequency_penalty or 0.0) * counts + (
                self.params.presence_penalty or 0.0
            )
        if self._bias is not None:
            out[self._bias[0]] += self._bias[1]
        if self._end_ids is not None and self._length < self.params.min_tokens:
            out[self._end_ids[self._end_ids < len(out)]] = -np.inf
        if self._allowed is not None:
            kept = out[self._allowed]
            out[:] = -np.inf
            out[self._allowed] = kept
        for mask in self._masks:
            mask.apply(out)
        if out.max() == -np.inf:
            raise InputError(
                "no token is left to choose: allowed_token_ids, bad_words, min_tokens and the constraint exclude "
                "each other; relax one of them"
            )
        return out

    def _draw(self, logits: Array) -> int:
        ids, probs = candidates(logits, self.params)
        if self._random is None:
            seed = self.params.seed
            entropy = secrets.randbits(63) if seed is None else seed
            self._random = np.random.default_rng([entropy, self._sample] if self._sample else entropy)
        cumulative = probs.cumsum()
        at = int(cumulative.searchsorted(self._random.random() * cumulative[-1], side="right"))
        return int(ids[min(at, len(ids) - 1)])


def _inside(ids: Iterable[int], size: int) -> Array:
    found = np.fromiter(ids, dtype=np.int64)
    return found[found < size]  # a prompt may hold ids of the padding, which are not offered


def _pairs(bias: Mapping[int, float]) -> tuple[Array, Array] | None:
    if not bias:
        return None
    return np.fromiter(bias, dtype=np.int64), np.fromiter(bias.values(), dtype=np.float32)


class BadWords:
    """Masks tokens that would complete one of the forbidden texts, however the text is cut into tokens.

    Args:
        words: texts the reply must not contain.
        vocabulary: the bytes of every token.
    """

    def __init__(self, words: Sequence[str], vocabulary: Sequence[bytes]) -> None:
        self._words = [word.encode() for word in words]
        self._vocabulary = vocabulary
        self._tail = b""
        self._keep = max(map(len, self._words)) - 1
        self._holding = np.array(
            [i for i, token in enumerate(vocabulary) if any(word in token for word in self._words)],
            dtype=np.int64,
        )

    def apply(self, logits: Array) -> None:
        """See TokenMask.apply."""
        logits[self._holding[self._holding < len(logits)]] = -np.inf
        for word in self._words:
            for size in range(1, len(word)):
                if self._tail.endswith(word[:size]):
                    logits[self._starting_with(word[size:], len(logits))] = -np.inf

    def _starting_with(self, rest: bytes, size: int) -> list[int]:
        return [i for i, token in enumerate(self._vocabulary[:size]) if token.startswith(rest)]

    def accept(self, token_id: int) -> None:
        """See TokenMask.accept."""
        self._tail = (self._tail + self._vocabulary[token_id])[-self._keep :] if self._keep else b""


def log_probability(logits: Tensor, token_id: int, top: int) -> TokenLogprob:
    """What a token's log-probability is, and which were the likeliest.

    Args:
        logits: (V,) float32, the model's own.
        token_id: the token asked about.
        top: how many of the likeliest to name.
    """
    values: Array = logits.cpu().numpy()
    highest = values.max()
    norm = highest + np.log(np.exp(values - highest).sum(dtype=np.float64))
    best: tuple[tuple[int, float], ...] = ()
    if top:
        ids = np.argpartition(-values, min(top, len(values) - 1))[:top]
        ids = ids[np.lexsort((ids, -values[ids]))]
        best = tuple((int(i), float(values[i] - norm)) for i in ids)
    return TokenLogprob(token_id, float(values[token_id] - norm), best)


def candidates(logits: Array, params: SamplingParams) -> tuple[Array, Array]:
    """The tokens that temperature, top-k, top-p and min-p leave, with their probabilities.

    With top-k or top-p the most likely comes first; without them nothing is sorted.

    Args:
        logits: (V,) float32.
        params: temperature above 0.

    Returns:
        ids (C,) and probabilities (C,) float64 that add up to 1.
    """
    temperature = 1.0 if params.temperature is None else params.temperature
    # Below the smallest step a float32 division would overflow; there the choice is greedy anyway.
    weights = np.exp(
        (logits - logits.max()) / np.float32(max(temperature, _COLDEST))
    )  # (V,), the largest is 1
    top_k, top_p = params.top_k or 0, 1.0 if params.top_p is None else params.top_p
    if not 0 < top_k < len(weights) and top_p == 1:
        return _above(weights, params.min_p or 0.0)
    ids: Array | None = None
    if 0 < top_k < len(weights):
        ids = np.sort(np.argpartition(weights, -top_k)[-top_k:])
    elif top_p < 1:
        ids = _nucleus_superset(weights, top_p)
    kept = weights if ids is None else weights[ids]
    order = np.argsort(-kept, kind="stable")
    kept = kept[order].astype(np.float64)
    ids = order if ids is None else ids[order]
    # Without top-k the nucleus is a share of everything, of which only the likely part was sorted.
    whole = kept.sum() if 0 < top_k < len(weights) else weights.sum(dtype=np.float64)
    if top_p < 1:
        before = kept.cumsum() - kept
        keep = max(int((before < top_p * whole).sum()), 1)
        ids, kept = ids[:keep], kept[:keep]
    if params.min_p:
        keep = max(int((kept >= params.min_p * kept[0]).sum()), 1)
        ids, kept = ids[:keep], kept[:keep]
    return ids, kept / kept.sum()


def _above(weights: Array, share: float) -> tuple[Array, Array]:
    """All tokens of at least this share of the largest weight, by id: sorting them would cost more than all the rest."""
    ids = np.flatnonzero(weights >= max(share, float(np.finfo(np.float32).tiny)))
    kept = weights[ids].astype(np.float64)
    return ids, kept / kept.sum()


def _nucleus_superset(weights: Array, top_p: float) -> Array | None:
    """Ids of all tokens above some weight that together reach ``top_p``; None when that takes nearly all.

    Sorting 150,000 weights takes milliseconds, and the nucleus nearly always lies among a few hundred.
    """
    needed = top_p * weights.sum(dtype=np.float64)
    for threshold in (1e-2, 1e-4, 1e-6):
        ids = np.flatnonzero(weights > threshold)
        if weights[ids].sum(dtype=np.float64) >= needed:
            return ids
    return None
