"""The plain generation loop: read each prompt, then one token for every live sequence a step.

It is the oracle for faster engines, so it prefers obvious to clever. Prompts are read one at a time, in chunks, and
then decoded together; a sequence's numbers therefore hardly depend on its neighbours. Knows token ids only.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qwenkit.cache.dense import DenseCache
from qwenkit.core.errors import InputError, NumericsError
from qwenkit.core.types import FinishReason, SamplingParams
from qwenkit.layers.quant_linear import QuantEmbedding, QuantLinear
from qwenkit.layers.rope import ntk_alpha
from qwenkit.model.sampling import Sampler
from qwenkit.model.transformer import Span, Transformer


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One new token of one sequence."""

    index: int
    """Which prompt."""
    token_id: int
    finish_reason: FinishReason | None
    is_stop: bool = False
    """The token itself is an end token, not part of the text."""


@dataclass(slots=True)
class _Sequence:
    index: int
    prompt: list[int]
    params: SamplingParams
    sampler: Sampler
    limit: int
    cache: DenseCache | None = None
    output: list[int] = field(default_factory=list)


def new_cache(model: Transformer, length: int, *, capacity: int | None = None) -> DenseCache:
    """A cache for a prompt of ``length`` tokens: the NTK factor is fixed here."""
    return DenseCache(
        model.config,
        dtype=model.dtype,
        device=model.device,
        capacity=length if capacity is None else capacity,
        alpha=ntk_alpha(length, model.config.rope.ntk_length),
    )


@torch.inference_mode()
def prefill(model: Transformer, token_ids: Sequence[int], cache: DenseCache, *, chunk: int) -> Tensor:
    """Reads a prompt into ``cache`` in pieces of ``chunk`` tokens; returns the last position's logits, (1, V)."""
    ids = torch.tensor(token_ids, dtype=torch.int64, device=model.device)
    logits: Tensor | None = None
    for at in range(0, len(ids), chunk):
        piece = ids[at : at + chunk]
        last = at + chunk >= len(ids)
        rows = torch.arange(len(piece) - 1 if last else 0, len(piece) if last else 0, device=model.device)
        logits = model(piece, [Span(cache, len(piece))], rows)
    if logits is None:
        raise InputError("an empty prompt cannot be continued; give at least one token")
    return logits


@torch.inference_mode()
def all_logits(model: Transformer, token_ids: Sequence[int], *, chunk: int | None = None) -> Tensor:
    """Logits after every token of one sequence, (T, V) float32, read in pieces of ``chunk`` tokens (None: one)."""
    if not token_ids:
        return torch.empty(0, model.config.vocab_size)
    ids = torch.tensor(token_ids, dtype=torch.int64, device=model.device)
    cache = new_cache(model, len(ids))
    step = chunk or len(ids)
    pieces = (ids[at : at + step] for at in range(0, len(ids), step))
    return torch.cat([model(piece, [Span(cache, len(piece))]).float() for piece in pieces])


@torch.inference_mode()
def token_logprobs(model: Transformer, token_ids: Sequence[int], *, chunk: int) -> Tensor:
    """Log-probability of every token but the first, given those before it, (T - 1,) float32."""
    ids = torch.tensor(token_ids, dtype=torch.int64, device=model.device)
    cache = new_cache(model, len(ids))
    parts = []
    for at in range(0, len(ids) - 1, chunk):
        piece, targets = ids[at : at + chunk], ids[at + 1 : at + chunk + 1]
        # The last token of all is read only as a target, but belongs to the sequence that fixes the NTK factor.
        logits = model(piece[: len(targets)], [Span(cache, len(targets))]).float()
        parts.append(logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=-1))
    scores = torch.cat(parts) if parts else torch.empty(0)
    if not bool(scores.isfinite().all()):
        raise NumericsError(explain_nonfinite(model, token_ids))
    return scores.cpu()


def _maximum(logits: Tensor) -> tuple[list[int], list[float]]:
    """Index and value of each row's maximum, NaN counting as the largest."""
    if logits.device.type != "cpu":
        best = logits.float().max(dim=-1)
        return best.indices.tolist(), best.values.tolist()
    # numpy stays on one core: waking torch's threads for this would take cores from the next decode step.
    rows = logits.float().numpy()
    ids = rows.argmax(axis=-1)
    return ids.tolist(), rows[range(len(rows)), ids].tolist()


class BatchGenerator:
    """Generates for many prompts; finished sequences make room for waiting ones.

    Args:
        model: the network.
        prompts: token ids of each prompt, not empty.
        params: of each prompt, resolved against the model's defaults; ``max_tokens`` None means up to the context.
        eos_ids: the model's own end tokens.
        context_length: most tokens of prompt and output together.
        max_batch_size: sequences decoded at once.
        prefill_chunk: tokens of a prompt read at once.
        vocab_size: ids from here on are padding of the embedding and never chosen; None: there are none.
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        eos_ids: Sequence[int],
        context_length: int,
        max_batch_size: int = 16,
        prefill_chunk: int = 512,
        vocab_size: int | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._model, self._eos = model, frozenset(eos_ids)
        self._max_batch_size, self._prefill_chunk = max_batch_size, prefill_chunk
        self._waiting = deque(
            _Sequence(
                i,
                list(ids),
                p,
                Sampler(p, ids),
                min(p.max_tokens or context_length, context_length - len(ids)),
            )
            for i, (ids, p) in enumerate(zip(prompts, params, strict=True))
        )
        self._live: list[_Sequence] = []

    @property
    def is_done(self) -> bool:
        """True when no sequence is left."""
        return not self._live and not self._waiting

    def stop(self, index: int) -> None:
        """Takes a sequence out, live or waiting, and frees its cache."""
        self._live = [s for s in self._live if s.index != index]
        self._waiting = deque(s for s in self._waiting if s.index != index)

    @torch.inference_mode()
    def step(self) -> list[TokenEvent]:
        """One token for a newly read prompt, or one for every live sequence.

        Raises:
            NumericsError: logits hold NaN or infinity.
        """
        if self._waiting and len(self._live) < self._max_batch_size:
            sequence = self._waiting.popleft()
            room = len(sequence.prompt) + min(sequence.limit, 512)
            sequence.cache = new_cache(self._model, len(sequence.prompt), capacity=room)
            logits = prefill(self._model, sequence.prompt, sequence.cache, chunk=self._prefill_chunk)
            self._live.append(sequence)
            return self._choose([sequence], logits)
        if not self._live:
            return []
        ids = [s.output[-1] for s in self._live]
        caches = [s.cache for s in self._live if s.cache is not None]
        return self._choose(self._live, self._decode(ids, caches))

    def _decode(self, ids: list[int], caches: list[DenseCache]) -> Tensor:
        spans = [Span(cache, 1) for cache in caches]
        logits: Tensor = self._model(torch.tensor(ids, device=self._model.device), spans)
        return logits

    def _choose(self, sequences: list[_Sequence], logits: Tensor) -> list[TokenEvent]:
        logits = logits[:, : self._vocab_size]
        likeliest, highest = _maximum(logits)
        for sequence, value in zip(sequences, highest, strict=True):
            if not math.isfinite(value):  # NaN wins every comparison, so one look at the maximum finds it
                raise NumericsError(explain_nonfinite(self._model, sequence.prompt + sequence.output))
        events = []
        for row, sequence in enumerate(sequences):
            plain = sequence.sampler.is_plain_argmax
            token = likeliest[row] if plain else sequence.sampler.pick(logits[row].float())
            sequence.output.append(token)
            events.append(self._event(sequence, token))
        done = {e.index for e in events if e.finish_reason}
        self._live = [s for s in self._live if s.index not in done]
        return events

    def _event(self, sequence: _Sequence, token: int) -> TokenEvent:
        params = sequence.params
        is_stop = token in params.stop_token_ids or (token in self._eos and not params.ignore_eos)
        ended = is_stop or self._tail_matches(sequence)
        reason: FinishReason | None = "stop" if ended else None
        if reason is None and len(sequence.output) >= sequence.limit:
            reason = "length"
        return TokenEvent(sequence.index, token, reason, is_stop)

    @staticmethod
    def _tail_matches(sequence: _Sequence) -> bool:
        """Whether prompt and output together end with a stop sequence, as the released code compares them."""
        for stop in sequence.params.stop_token_sequences:
            tail = sequence.output[-len(stop) :]
            missing = len(stop) - len(tail)
            if missing:
                tail = sequence.prompt[-missing:] + tail
            if tail == list(stop):
                return True
        return False


@torch.inference_mode()
def explain_nonfinite(model: Transformer, token_ids: Sequence[int]) -> str:
    """Runs the tokens again and says where NaN or infinity first appears and what to do about it."""
    found: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if name and not list(module.children()):

            def look(_m: object, _i: object, out: Tensor, name: str = name) -> None:
                if not found and not bool(out.isfinite().all()):
                    found.append(name)

            handles.append(module.register_forward_hook(look))
    try:
        # In chunks and for the last position alone: the logits of a long text would not fit memory.
        prefill(model, token_ids, new_cache(model, len(token_ids)), chunk=512)
    finally:
        for handle in handles:
            handle.remove()
    place = f"first in {found[0]}" if found else "in the logits"
    half = model.dtype == torch.float16
    cure = "try dtype bfloat16 or float32" if half else "try dtype float32"
    damaged = _nonfinite_weight(model.get_submodule(found[0]), found[0]) if found else None
    if damaged:
        place += f": the weight {damaged} itself holds such values"
        cure = cure if half else "fetch the checkpoint again"
    return f"the model's numbers became NaN or infinite in {str(model.dtype)[6:]}, {place}; {cure}"


def _nonfinite_weight(module: nn.Module, name: str) -> str | None:
    """The weight of a layer that holds NaN or infinity; of packed ones the scales tell."""
    weights: list[tuple[str, Tensor]] = [(f"{name}.{own}", w) for own, w in module.named_parameters()]
    stored = (module.table,) if isinstance(module, QuantEmbedding) else ()
    for part in module.parts if isinstance(module, QuantLinear) else stored:
        tensors = (part,) if isinstance(part, Tensor) else (part.scales, part.mins)
        weights += [(f"{name}.weight", tensor) for tensor in tensors if tensor is not None]
    return next((own for own, weight in weights if not bool(weight.isfinite().all())), None)
