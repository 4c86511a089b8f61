"""How far a quantised model is from its original: perplexity, KL divergence, agreement of the likeliest token.

Reads one text through both models at once, some positions at a time, so that the logits of a long window never lie in
memory together. Knows nothing of how a model was quantised or of how the numbers are shown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from qwenkit.backends.options import resolve_device, resolve_dtype
from qwenkit.cache.paged import PAGE_SIZE, PagedCache, PagePool
from qwenkit.core.errors import InputError, NumericsError
from qwenkit.kernels.cpu import available_memory
from qwenkit.layers.rope import ntk_alpha
from qwenkit.model.generate import explain_nonfinite
from qwenkit.model.step import make_forward
from qwenkit.model.transformer import Span, Transformer
from qwenkit.weights.checkpoint import Checkpoint, open_checkpoint
from qwenkit.weights.load import build_model, with_head
from qwenkit.weights.memory import held_bytes, weights_bytes
from qwenkit.weights.sources import fetch
from qwenkit.weights.tokenizer import tokenizer_of

WINDOW = 2048
"""Tokens per window when nothing else is said; what ``qwenkit perplexity`` uses too."""
INT8_CACHE, INT8_HEAD = "int8 cache", "int8 head"
"""Names of what a quantised model is measured with besides itself."""

_LOGITS = 2**24  # numbers of one model at once: 64 MiB
_MOST_ROWS = 512

OnProgress: TypeAlias = Callable[[int, int, float], None]
"""Called with (tokens done, tokens in all, perplexity of the quantised model so far) after each window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a model predicts a text, and how near its predictions are to the original's."""

    perplexity: float
    mean_kl: float
    """Mean over positions of KL(original || model), in nats."""
    top1_agreement: float
    """Share of positions at which both find the same token likeliest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of a model's weights."""

    stored: int
    """In its files."""
    held: int
    """In memory, once loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A quantised model beside its original on one text."""

    tokens: int
    """Positions compared: every token but the first of each window."""
    window: int
    dtype: str
    """Type in which both computed."""
    original_perplexity: float
    perplexity: float
    mean_kl: float
    """As in Score, like the next."""
    top1_agreement: float
    original_size: Sizes
    size: Sizes
    variants: Mapping[str, Score]
    """The quantised model run with INT8_CACHE or INT8_HEAD, where that was asked for."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A network that is held against the original, and how it is run."""

    model: Transformer
    int8_cache: bool = False


def compare(
    original: str | Path,
    quantised: str | Path,
    text: str,
    *,
    window: int | None = None,
    kv_cache: str = "auto",
    head: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Holds a quantised model against its original.

    Windows, scored tokens and numbers are those of ``LLM.perplexity``. Both models are in memory at once, and at most about 0.5 GiB beside them.

    Args:
        original: folder, .gguf file, built-in name or hub id.
        quantised: likewise; same vocabulary.
        text: at least two tokens; special tokens in it count as text.
        window: tokens per window; None: WINDOW, or the context length if that is shorter.
        kv_cache: int8 also measures the quantised model with an int8 cache.
        head: int8 also measures the quantised model with an int8 output head.
        dtype: as for running a model; both get the same.
        device: likewise.
        on_progress: see OnProgress.

    Raises:
        InputError: the two do not belong together, the text is too short, or memory does not suffice for both.
        QwenkitError: a model cannot be found or loaded.
    """
    _check_choices(kv_cache=kv_cache, head=head)
    started = time.perf_counter()
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    with ExitStack() as stack:
        first, second = (_open(stack, name) for name in (original, quantised))
        ids, vocab_size = _encode(first, second, text)
        window = _window(window, first, second)
        _check_memory(first, second, head, kind, place)
        models = [build_model(checkpoint, device=place, dtype=kind) for checkpoint in (first, second)]
        if head == "int8":
            models.append(with_head(models[1], second, head))
    contestants = {"": Contestant(models[1])}
    if kv_cache == "int8":
        contestants[INT8_CACHE] = Contestant(models[1], int8_cache=True)
    if head == "int8":
        contestants[INT8_HEAD] = Contestant(models[2])
    perplexity, scores, count = compare_networks(
        models[0], contestants, ids, window=window, vocab_size=vocab_size, on_progress=on_progress
    )
    plain = scores.pop("")
    return Comparison(
        tokens=count,
        window=window,
        dtype=str(kind).removeprefix("torch."),
        original_perplexity=perplexity,
        perplexity=plain.perplexity,
        mean_kl=plain.mean_kl,
        top1_agreement=plain.top1_agreement,
        original_size=_sizes(first, models[0]),
        size=_sizes(second, models[1]),
        variants=scores,
        seconds=time.perf_counter() - started,
    )


def compare_networks(
    original: Transformer,
    contestants: Mapping[str, Contestant],
    token_ids: Sequence[int],
    *,
    window: int,
    vocab_size: int | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[float, dict[str, Score], int]:
    """Holds networks against an original on token ids.

    Args:
        original: the measure.
        contestants: by name; progress is told of the first.
        token_ids: at least two.
        window: tokens per window, from 2 up.
        vocab_size: ids from here on are padding of the embedding and count for nothing; None: there are none.
        on_progress: see OnProgress.

    Returns:
        Perplexity of the original, the score of each contestant, and the number of positions.

    Raises:
        InputError: too few tokens, or an impossible window.
        NumericsError: logits hold NaN or infinity.
    """
    if len(token_ids) < 2:
        raise InputError(f"a comparison needs at least 2 tokens of text, got {len(token_ids)}")
    if window < 2:
        raise InputError(f"window={window} is not possible; use a whole number from 2 up")
    measure = _Reader(Contestant(original), window, vocab_size)
    readers = {name: _Reader(c, window, vocab_size) for name, c in contestants.items()}
    rows = max(min(_LOGITS // measure.vocab_size // PAGE_SIZE * PAGE_SIZE, _MOST_ROWS), PAGE_SIZE)
    for at in range(0, len(token_ids) - 1, window):
        ids = list(token_ids[at : at + window])
        for reader in (measure, *readers.values()):
            reader.begin(ids)
        for first in range(0, len(ids) - 1, rows):
            end = min(first + rows, len(ids) - 1)
            truth = measure.read(first, end)
            for reader in readers.values():
                reader.tally(truth, reader.read(first, end))
        if on_progress:
            shown = next(iter(readers.values()), measure)
            on_progress(min(at + window, len(token_ids)), len(token_ids), shown.perplexity)
    return measure.perplexity, {name: r.score for name, r in readers.items()}, measure.count


class _Reader:
    """One network on its way through a text, and the sums so far."""

    def __init__(self, contestant: Contestant, window: int, vocab_size: int | None) -> None:
        self._model = model = contestant.model
        config = model.config
        self.vocab_size = min(vocab_size or config.vocab_size, config.vocab_size)
        self._pages = list(range(-(-window // PAGE_SIZE)))
        self._pool = PagePool(
            config,
            num_pages=len(self._pages),
            dtype=model.dtype,
            device=model.device,
            int8=contestant.int8_cache,
        )
        self._forward = make_forward(model, self._pool)
        self._ids: list[int] = []
        self.count = 0
        self._loss, self._kl, self._agreed = 0.0, 0.0, 0

    def begin(self, ids: list[int]) -> None:
        """Starts a new window."""
        # The last token is only ever a target, but belongs to the sequence that fixes the NTK factor.
        alpha = ntk_alpha(len(ids), self._model.config.rope.ntk_length)
        self._ids, self._cache = ids, PagedCache(self._pool, self._pages, alpha=alpha)

    @torch.inference_mode()
    def read(self, first: int, end: int) -> Tensor:
        """Log-probabilities behind these positions of the window, (end - first, V) float32."""
        piece = self._ids[first:end]
        logits = self._forward(piece, [Span(self._cache, len(piece))], range(len(piece)))
        logits = logits[:, : self.vocab_size]
        if not bool(logits.isfinite().all()):
            raise NumericsError(explain_nonfinite(self._model, self._ids))
        # torch's log_softmax adds less exactly than its logsumexp, which perplexities are computed with elsewhere.
        scores = logits.sub_(logits.logsumexp(dim=-1, keepdim=True))
        targets = torch.tensor(self._ids[first + 1 : end + 1], device=scores.device)
        self._loss -= float(scores.gather(1, targets[:, None]).sum(dtype=torch.float64))
        self.count += len(piece)
        return scores

    @torch.inference_mode()
    def tally(self, truth: Tensor, own: Tensor) -> None:
        """Adds how far log-probabilities are from the original's, both (n, V)."""
        terms = (truth - own).mul_(truth.exp())
        self._kl += float(terms.sum(dtype=torch.float64))
        self._agreed += int((truth.argmax(dim=-1) == own.argmax(dim=-1)).sum())

    @property
    def perplexity(self) -> float:
        """Of what was read so far."""
        return math.exp(self._loss / max(self.count, 1))

    @property
    def score(self) -> Score:
        """Of what was read so far."""
        # Rounding may leave a sum of almost nothing just below zero.
        return Score(
            perplexity=self.perplexity,
            mean_kl=max(self._kl / self.count, 0.0),
            top1_agreement=self._agreed / self.count,
        )


def _check_choices(**choices: str) -> None:
    for name, value in choices.items():
        if value not in ("auto", "int8"):
            raise InputError(f"{name}={value!r} is not known; use auto or int8")


def _window(asked: int | None, *checkpoints: Checkpoint) -> int:
    context = min(c.config.context_length for c in checkpoints)
    window = min(WINDOW, context) if asked is None else asked
    if not 2 <= window <= context:
        raise InputError(f"window={window} is not possible; use 2 to {context}, the models' context")
    return window


def _encode(original: Checkpoint, quantised: Checkpoint, text: str) -> tuple[list[int], int]:
    """The text as token ids, and how many tokens there are; both models must agree on them."""
    vocabularies = [c.config.vocab_size for c in (original, quantised)]
    tokenizers = [tokenizer_of(c.path, c.metadata) for c in (original, quantised)]
    ids, other = (t.encode(text, allowed_special=()) for t in tokenizers)
    if vocabularies[0] != vocabularies[1] or list(ids) != list(other):
        raise InputError(
            f"{quantised.path} has another vocabulary than {original.path}; give the model it was made from"
        )
    return list(ids), min(tokenizers[0].vocab_size, vocabularies[0])


def _open(stack: ExitStack, name: str | Path) -> Checkpoint:
    checkpoint = open_checkpoint(fetch(str(name)))
    stack.callback(checkpoint.store.close)
    return checkpoint


def _check_memory(
    original: Checkpoint, quantised: Checkpoint, head: str, dtype: torch.dtype, device: torch.device
) -> None:
    """Refuses before anything is loaded: running out of memory later would end the process without a word."""
    needed = sum(weights_bytes(checkpoint, dtype, head="auto") for checkpoint in (original, quantised))
    if head == "int8":
        config = quantised.config
        needed += 2 * config.vocab_size * config.hidden_size  # at most: codes and scales
        weights_bytes(quantised, dtype, head=head)  # raises where the head cannot be rounded
    free = available_memory()
    if device.type == "cpu" and free and needed > free:
        raise InputError(
            f"comparing needs {needed / 2**30:.1f} GiB for the models, of which {free / 2**30:.1f} GiB are free; free memory, or compare on a larger machine"
        )


def _sizes(checkpoint: Checkpoint, model: Transformer) -> Sizes:
    stored = sum(info.nbytes for info in checkpoint.store.tensors.values())
    return Sizes(stored=stored, held=held_bytes(model))
