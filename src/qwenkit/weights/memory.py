"""How much memory a model takes: its weights as they are held, the key-value cache in whole pages, room to compute.

Computed from shapes and headers alone, except ``held_bytes``, which looks at a loaded network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from qwenkit.cache.paged import PAGE_SIZE, page_bytes
from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import InputError
from qwenkit.layers.quant_linear import QuantEmbedding, QuantLinear
from qwenkit.model.transformer import Transformer
from qwenkit.weights.checkpoint import Checkpoint, open_checkpoint
from qwenkit.weights.load import HEADS
from qwenkit.weights.plan import make_plan
from qwenkit.weights.sources import fetch

KV_CACHES = ("auto", "int8")
BATCHES = (1, 4, 16, 32, 64, 100)
LENGTHS = (512, 1024, 2048, 4096, 8192)
STEP_TOKENS = 512
"""Most tokens the engine computes at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes that some sequences of one length take, computed together."""

    dtype: str
    kv_cache: str
    """auto: in ``dtype``; or int8"""
    batch: int
    length: int
    """Tokens of each sequence, prompt and reply together."""
    weights_bytes: int
    kv_bytes: int
    workspace_bytes: int
    """At most: activations of one step, its logits, rotary tables."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.workspace_bytes

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "total_bytes": self.total_bytes}


def memory_table(
    config: ModelConfig,
    weights_bytes: int,
    *,
    dtype: torch.dtype,
    kv_caches: Sequence[str] = KV_CACHES,
    batches: Sequence[int] = BATCHES,
    lengths: Sequence[int] = LENGTHS,
) -> list[MemoryUse]:
    """Memory for every combination of cache, batch and length, in that order.

    Args:
        config: sizes of the model.
        weights_bytes: see the function of this name, and ``held_bytes``.
        dtype: of activations and of a cache that is not int8.
        kv_caches: auto, int8 or both.
        batches: sequences computed together.
        lengths: tokens of each sequence.

    Raises:
        InputError: a number below 1, or an unknown kind of cache.
    """
    for name, values in (("batch", batches), ("length", lengths)):
        if wrong := [v for v in values if v < 1]:
            raise InputError(f"{name}={wrong[0]} is not possible; use whole numbers from 1 up")
    if unknown := [k for k in kv_caches if k not in KV_CACHES]:
        raise InputError(f"kv_cache={unknown[0]!r} is not known; use {' or '.join(KV_CACHES)}")
    return [
        MemoryUse(
            dtype=str(dtype).removeprefix("torch."),
            kv_cache=kind,
            batch=batch,
            length=length,
            weights_bytes=weights_bytes,
            kv_bytes=kv_bytes(config, dtype, kind == "int8", batch=batch, length=length),
            workspace_bytes=workspace_bytes(config, batch=batch, length=length),
        )
        for kind in kv_caches
        for batch in batches
        for length in lengths
    ]


def read_memory(
    model: str,
    *,
    dtype: torch.dtype,
    head: str = "auto",
    kv_caches: Sequence[str] = KV_CACHES,
    batches: Sequence[int] = BATCHES,
    lengths: Sequence[int] | None = None,
) -> list[MemoryUse]:
    """``memory_table`` of a model, from its headers alone; fetched first if needed.

    Args:
        model: folder, .gguf file, built-in name or hub id.
        dtype: see memory_table.
        head: see weights_bytes.
        kv_caches: see memory_table.
        batches: likewise.
        lengths: likewise; None: those of LENGTHS that the model's context holds.

    Raises:
        QwenkitError: it cannot be found, its headers do not hold, or a value is not possible.
    """
    checkpoint = open_checkpoint(fetch(model))
    context = checkpoint.config.context_length
    try:
        return memory_table(
            checkpoint.config,
            weights_bytes(checkpoint, dtype, head=head),
            dtype=dtype,
            kv_caches=kv_caches,
            batches=batches,
            lengths=lengths or [n for n in LENGTHS if n <= context] or [context],
        )
    finally:
        checkpoint.store.close()


def kv_bytes(config: ModelConfig, dtype: torch.dtype, int8: bool, *, batch: int, length: int) -> int:
    """Bytes of the cache of ``batch`` sequences of ``length`` tokens: each has whole pages."""
    return batch * -(-length // PAGE_SIZE) * page_bytes(config, dtype, int8)


def workspace_bytes(config: ModelConfig, *, batch: int, length: int) -> int:
    """Most bytes of one step beside weights and cache.

    Its tokens are a piece of a prompt or one token per sequence. Each has float32 activations between two linears; each
    sequence has a row of logits; cos and sin of every position are kept, up to twice as many as there are.
    """
    tokens = min(max(min(batch * length, STEP_TOKENS), batch), batch * length)
    widths = 2 * config.hidden_size + 2 * config.q_size + 2 * config.kv_size + config.ffn_size
    tables = 2 * max(2 * length, 256) * config.rope.dim
    return 4 * (tokens * widths + batch * config.vocab_size + tables)


def weights_bytes(checkpoint: Checkpoint, dtype: torch.dtype, *, head: str = "auto") -> int:
    """Bytes of the weights as ``build_model`` will hold them, from the headers alone.

    Args:
        checkpoint: from open_checkpoint.
        dtype: of what is not kept packed.
        head: auto (as the checkpoint has it) or int8.

    Raises:
        QwenkitError: the checkpoint is not whole, cannot be run, or its head cannot be int8.
    """
    return sum(planned_bytes(checkpoint, dtype, head).values())


def planned_bytes(checkpoint: Checkpoint, dtype: torch.dtype, head: str) -> dict[str, int]:
    """Bytes of each weight by its name in the network; arguments and errors as of ``weights_bytes``."""
    if head not in HEADS:
        raise InputError(f"head={head!r} is not known; use {' or '.join(HEADS)}")
    plan = make_plan(checkpoint, checkpoint.config, dtype=dtype, head=head)
    return {name: parameter.nbytes(dtype) for name, parameter in plan.items()}


def held_bytes(model: Transformer) -> int:
    """Bytes of the weights of a loaded network; a table that two layers share counts once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(model)}.values())


def _tensors(model: Transformer) -> Iterator[Tensor]:
    yield from model.parameters()
    for module in model.modules():
        stored = module.parts if isinstance(module, QuantLinear) else ()
        if isinstance(module, QuantEmbedding):
            stored = (module.table,)
        for part in stored:
            if not isinstance(part, Tensor):
                named = (part.codes, part.scales, part.zeros, part.mins, part.order)
                yield from (t for t in named if t is not None)
            else:
                yield part
