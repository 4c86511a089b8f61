"""One transformer block at a time: reading its weights in float32, and running it over the calibration samples.

Plain torch in float32 on the CPU, so that results do not depend on which compiled kernels there are. Knows nothing of
algorithms or of how results are stored.

Shapes: T tokens of all samples, D model width, K inputs of a linear.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import NumericsError
from qwenkit.layers.linear import Linear
from qwenkit.layers.rope import RotaryTables, logn_scale, ntk_alpha
from qwenkit.model.transformer import AttentionInput, Layer, Span
from qwenkit.weights.checkpoint import Checkpoint
from qwenkit.weights.load import read_numbers
from qwenkit.weights.plan import Part, make_plan

LINEARS = ("attn.qkv", "attn.out", "ffn.gate_up", "ffn.down")
"""The matrices of a block, in the order in which data meets them."""
BATCH_TOKENS = 4096
"""Tokens that run through a block together, or one sample where that is more."""


class BlockReader:
    """Reads single parameters and whole blocks of a checkpoint.

    Args:
        checkpoint: not quantised, or GGUF; stays open.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of the wrong shape.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._plan = make_plan(checkpoint, checkpoint.config, dtype=torch.float32, packed=False)
        self.shapes = {name: parameter.shape for name, parameter in self._plan.items()}
        """Of every parameter of the network, by its name there; a tied head is not listed."""

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One parameter, under its name in the network.

        Raises:
            NumericsError: it holds NaN or infinity, or numbers beyond ``dtype``.
        """
        out, at = torch.empty(self.shapes[name], dtype=dtype), 0
        for part in self._plan[name].parts:
            rows = out[at : at + part.shape[0]]
            read_numbers(self._checkpoint.store, part, rows)
            if not torch.isfinite(rows).all():
                raise self._not_finite(part, rows)
            at += len(rows)
        return out

    def block(self, index: int) -> Layer:
        """Block ``index`` in float32."""
        with torch.device("meta"):
            block = Layer(self._checkpoint.config, index)
        for name, _ in list(block.named_parameters()):
            set_weight(block, name, self.read(f"layers.{index}.{name}"))
        return block.eval()

    def _not_finite(self, part: Part, values: Tensor) -> NumericsError:
        where = f"{self._checkpoint.path}: tensor {part.name!r}"
        if values.isnan().any() or values.dtype == torch.float32:
            return NumericsError(f"{where} holds NaN or infinity; fetch the model again")
        return NumericsError(
            f"{where} holds numbers beyond {torch.finfo(values.dtype).max:g}, which {str(values.dtype)[6:]} cannot hold"
        )


def set_weight(module: nn.Module, name: str, weight: Tensor) -> None:
    """Puts a tensor in the place of the parameter ``name`` (dotted)."""
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, nn.Parameter(weight, requires_grad=False))


def weight_of(block: Layer, linear: str) -> Tensor:
    """The weight (N, K) of one of LINEARS; changing it changes the block."""
    return linear_of(block, linear).weight.data


def linear_of(block: Layer, linear: str) -> Linear:
    """One of LINEARS itself."""
    module = block.get_submodule(linear)
    assert isinstance(module, Linear)
    return module


def embed(reader: BlockReader, samples: Sequence[Sequence[int]], out: Tensor) -> None:
    """Fills ``out`` (T, D) with the embeddings of the samples, one after the other."""
    table = reader.read("embed.weight", torch.float32)
    at = 0
    for sample in samples:
        out[at : at + len(sample)] = F.embedding(torch.tensor(sample), table)
        at += len(sample)


def activations(tokens: int, width: int, file: Path | None) -> Tensor:
    """Room for (T, D) float32, in memory or mapped from a file that is created.

    Raises:
        OSError: the disk is full or not writable.
    """
    if file is None:
        return torch.empty(tokens, width)
    # Room is taken now: a disk that fills up under a mapped file would kill the process without a word.
    with file.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, max(tokens * width * 4, 1))
    return torch.from_file(str(file), shared=True, size=tokens * width, dtype=torch.float32).view(
        tokens, width
    )


class BlockRunner:
    """Runs blocks over samples, several samples at a time.

    Args:
        config: of the model.
        counts: tokens of each sample.
    """

    def __init__(self, config: ModelConfig, counts: Sequence[int]) -> None:
        self._config, self._counts = config, tuple(counts)
        self._tables = RotaryTables(config.rope, torch.device("cpu"))

    def first(self, tokens: int) -> BlockRunner:
        """A runner of the first samples: as many as have at most ``tokens`` together, one at least."""
        count = total = 0
        while count < len(self._counts) and (count == 0 or total + self._counts[count] <= tokens):
            total += self._counts[count]
            count += 1
        return BlockRunner(self._config, self._counts[:count])

    @property
    def num_samples(self) -> int:
        """How many there are."""
        return len(self._counts)

    @property
    def num_tokens(self) -> int:
        """Tokens of all samples."""
        return sum(self._counts)

    def advance(self, block: Layer, x: Tensor) -> None:
        """Replaces the inputs ``x`` (T, D) of a block by its outputs.

        Raises:
            NumericsError: an output is NaN or infinity.
        """
        for rows, meta in self._batches():
            out = block(x[rows], meta)
            if not torch.isfinite(out).all():
                raise NumericsError(
                    f"the outputs of layer {block.attn.layer} hold NaN or infinity on the calibration samples; "
                    "the weights are damaged, or the samples are not for this model"
                )
            x[rows] = out

    def observe(
        self, block: Layer, x: Tensor, linears: Sequence[str], take: Callable[[str, Tensor], None]
    ) -> None:
        """Shows the inputs (rows, K) of some linears, batch by batch, and computes no further than these.

        Args:
            block: whose linears.
            x: (T, D), the inputs of the block; not changed.
            linears: some of LINEARS.
            take: called with a linear's name and its inputs.
        """
        last = max(linears, key=LINEARS.index)

        def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                take(name, inputs[0])
                if name == last:
                    raise _EnoughError

            return see

        handles = [block.get_submodule(name).register_forward_pre_hook(hook(name)) for name in linears]
        try:
            for rows, meta in self._batches():
                try:
                    block(x[rows], meta)
                except _EnoughError:
                    continue
        finally:
            for handle in handles:
                handle.remove()

    def attention(self, block: Layer, x: Tensor) -> Tensor:
        """What a block's attention makes of its normed inputs, (T, D) -> (T, D)."""
        return torch.cat([block.attn(x[rows], meta) for rows, meta in self._batches()])

    def _batches(self) -> Iterator[tuple[slice, AttentionInput]]:
        at, batch = 0, list[int]()
        for count in (*self._counts, None):
            if count is None or (batch and sum(batch) + count > BATCH_TOKENS):
                yield slice(at, at + sum(batch)), self._meta(batch)
                at, batch = at + sum(batch), []
            batch += [] if count is None else [count]

    def _meta(self, counts: Sequence[int]) -> AttentionInput:
        rope, logn = self._config.rope, self._config.logn_length
        pairs = [self._tables.rows(0, n, ntk_alpha(n, rope.ntk_length)) for n in counts]
        cos, sin = (torch.cat(t) for t in zip(*pairs, strict=True))
        scale = None
        if logn is not None and max(counts) > logn:
            scale = torch.cat([logn_scale(0, n, logn, torch.device("cpu")) for n in counts])
        return AttentionInput([Span(_NoPast(), n) for n in counts], cos, sin, scale)


class _EnoughError(Exception):
    """Ends a forward pass that has shown all that was asked for."""


class _NoPast:
    """A cache of a sequence that has no past and no future."""

    length, offset, alpha = 0, 0, 1

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See KVCache.update."""
        return k.transpose(0, 1), v.transpose(0, 1)

    def advance(self, count: int) -> None:
        """See KVCache.advance."""
