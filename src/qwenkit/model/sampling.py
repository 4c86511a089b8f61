"""Picks the next token from logits, in the order of transformers' generate.

Penalties, biases and masks, then temperature, top-k, top-p, min-p; then one draw from the request's own generator, so that what a
request gets never depends on what else is in the batch. Written in numpy: it stays on one core, while torch would wake
threads that then compete with the next decode step. A vocabulary has 150,000 tokens, so what needs few of them looks
for these first and leaves the rest alone: nothing is sorted, copied or made a probability that cannot be chosen.
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
_GROUPS = 2048  # the largest of so many groups of numbers bound the largest of all
_BLOCK = 512  # numbers summed together where a draw is first placed roughly
_MARGIN = 1e-9  # of a sum in another order than the exact one, many times its error


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
        self._seen = _Seen(prompt) if penalty not in (None, 1.0) else None
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
        if self._seen is not None:
            ids = self._seen.ids(len(out))
            seen = out[ids]
            out[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
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
        if self._random is None:
            seed = self.params.seed
            entropy = secrets.randbits(63) if seed is None else seed
            self._random = np.random.default_rng([entropy, self._sample] if self._sample else entropy)
        return choose(logits, self.params, self._random.random())


class _Seen:
    """The different tokens of prompt and reply, as an array that grows."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self._known = set(prompt)
        self._ids: Array = np.fromiter(self._known, dtype=np.int64)
        self._count = len(self._ids)

    def add(self, token: int) -> None:
        if token in self._known:
            return
        self._known.add(token)
        if self._count == len(self._ids):
            self._ids = np.resize(self._ids, 2 * self._count + 64)
        self._ids[self._count] = token
        self._count += 1

    def ids(self, size: int) -> Array:
        """Those below ``size``: a prompt may hold ids of the padding, which are not offered."""
        found = self._ids[: self._count]
        return found[found < size]


def choose(logits: Array, params: SamplingParams, at: float) -> int:
    """The token whose share of the probability ``at`` falls in, 0 <= at < 1, adding one candidate after the other.

    Adding 150,000 numbers in a row takes a millisecond. Sums of blocks tell the place in a part of that, in another
    order and so with other rounding; where that could matter, everything is added in a row after all.
    """
    if params.top_k or params.min_p or params.top_p not in (None, 1.0):
        found = None
    else:
        found = _roughly(_weights(logits, params), at)
    if found is not None:
        return found
    ids, probs = candidates(logits, params)
    cumulative = probs.cumsum()
    return int(ids[min(int(cumulative.searchsorted(at * cumulative[-1], side="right")), len(ids) - 1)])


def _roughly(weights: Array, at: float) -> int | None:
    """The index whose share of the sum ``at`` falls in; None when that is too close to a bound between two."""
    whole = len(weights) // _BLOCK * _BLOCK
    sums = weights[:whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64)
    bounds = np.append(sums, weights[whole:].sum(dtype=np.float64)).cumsum()
    total = bounds[-1]
    target = at * total
    block = min(int(bounds.searchsorted(target, side="right")), len(bounds) - 1)
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    if block:
        inside += bounds[block - 1]
    index = int(inside.searchsorted(target, side="right"))
    low = inside[index - 1] if index else (bounds[block - 1] if block else -total)
    if index == len(inside) or min(target - low, inside[index] - target) < _MARGIN * total:
        return None
    return block * _BLOCK + index


def largest(values: Array, count: int) -> Array:
    """Indices of the ``count`` largest numbers, ascending; of equal ones, those that come first.

    Where most numbers are -inf, because masks allow little, there may be fewer.
    """
    if count > _GROUPS // 2 or len(values) < 4 * _GROUPS:
        few = np.arange(len(values))
    else:
        whole = len(values) // _GROUPS * _GROUPS
        highest = values[:whole].reshape(-1, _GROUPS).max(axis=0)
        # So many groups hold a number of at least this, so it is no larger than the last one wanted.
        bound = np.partition(highest, _GROUPS - count)[_GROUPS - count]
        few = np.flatnonzero(values >= bound if bound > -np.inf else values > -np.inf)
    kept = values[few]
    if len(few) > 4 * count:
        few = few[kept >= np.partition(kept, len(kept) - count)[len(kept) - count]]
        kept = values[few]
    return np.sort(few[np.argsort(-kept, kind="stable")[:count]])


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
        ids = largest(values, min(top, len(values)))
        ids = ids[np.argsort(-values[ids], kind="stable")]
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
    top_k, top_p = params.top_k or 0, 1.0 if params.top_p is None else params.top_p
    if 0 < top_k < len(logits):
        ids = largest(logits, top_k)
        kept = _weights(logits[ids], params)
        return _cut(ids, kept, None, params, top_p)
    weights = _weights(logits, params)
    if top_p == 1:
        return _above(weights, params.min_p or 0.0)
    # The nucleus is a share of everything, of which only the likely part is sorted.
    whole = weights.sum(dtype=np.float64)
    ids = _nucleus_superset(weights, top_p * whole)
    return _cut(ids, weights[ids], whole, params, top_p)


def _weights(logits: Array, params: SamplingParams) -> Array:
    """exp of the logits over the temperature, the largest being 1."""
    temperature = 1.0 if params.temperature is None else params.temperature
    out: Array = logits - logits.max()
    # Below the smallest step a float32 division would overflow; there the choice is greedy anyway.
    out /= np.float32(max(temperature, _COLDEST))
    return np.exp(out, out=out)


def _cut(
    ids: Array, weights: Array, whole: float | None, params: SamplingParams, top_p: float
) -> tuple[Array, Array]:
    """What top-p and min-p leave of these tokens, the most likely first; ``whole``: None is the sum of these."""
    order = np.argsort(-weights, kind="stable")
    ids, kept = ids[order], weights[order].astype(np.float64)
    if top_p < 1:
        before = kept.cumsum() - kept
        keep = max(int((before < top_p * (kept.sum() if whole is None else whole)).sum()), 1)
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


def _nucleus_superset(weights: Array, needed: float) -> Array:
    """Ids of all tokens above some weight that together reach ``needed``.

    Sorting 150,000 weights takes milliseconds, and the nucleus nearly always lies among a few hundred.
    """
    for threshold in (1e-2, 1e-4, 1e-6):
        ids = np.flatnonzero(weights > threshold)
        if weights[ids].sum(dtype=np.float64) >= needed:
            return ids
    return np.arange(len(weights))
