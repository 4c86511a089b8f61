"""Picks the next token from logits, in the order of transformers' generate.

Repetition penalty, temperature, top-k, top-p, min-p; then one draw from the request's own generator, so that what a
request gets never depends on what else is in the batch. Written in numpy: it stays on one core, while torch would wake
threads that then compete with the next decode step.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from qwenkit.core.types import SamplingParams

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


_COLDEST = 1e-6


class Sampler:
    """Sampling state of one request.

    Args:
        params: fields left None count as off.
        prompt: ids the repetition penalty sees from the start.
    """

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        self.params = params
        self._random: np.random.Generator | None = None
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
        values: Array = logits.cpu().numpy()
        if self._seen:
            values = self._penalised(values)
        token = int(values.argmax()) if self.params.is_greedy else self._draw(values)
        if self._seen is not None:
            self._seen.add(token)
        return token

    def _penalised(self, logits: Array) -> Array:
        penalty = self.params.repetition_penalty or 1.0
        ids = np.fromiter(self._seen or (), dtype=np.int64)
        ids = ids[ids < len(logits)]  # a prompt may hold ids of the padding, which are not offered
        out = logits.copy()
        out[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
        return out

    def _draw(self, logits: Array) -> int:
        ids, probs = candidates(logits, self.params)
        if self._random is None:
            seed = self.params.seed
            self._random = np.random.default_rng(secrets.randbits(63) if seed is None else seed)
        cumulative = probs.cumsum()
        at = int(cumulative.searchsorted(self._random.random() * cumulative[-1], side="right"))
        return int(ids[min(at, len(ids) - 1)])


def candidates(logits: Array, params: SamplingParams) -> tuple[Array, Array]:
    """The tokens that temperature, top-k, top-p and min-p leave, the most likely first, with their probabilities.

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
