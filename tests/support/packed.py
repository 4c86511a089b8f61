"""Packs the matrices of a small network in any form, and gives back the dense network that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.kernels.packed import PackedWeight, pack_codes
from qwenkit.layers.quant_linear import QuantEmbedding, QuantLinear, Stored
from qwenkit.model.transformer import Transformer


@dataclass(frozen=True)
class Form:
    """How a matrix is packed: ``levels`` is symmetric, zeros or mins; ``order``: columns in a random order."""

    bits: int = 4
    group_size: int = 32
    levels: str = "symmetric"
    order: bool = False

    def __call__(self, weight: Tensor) -> PackedWeight:
        """The nearest numbers of this form, with scales as they come."""
        weight, order = weight.detach().float(), None
        if self.order:
            order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(self.bits))
            weight = weight[:, order]
        rows, columns = weight.shape
        groups = -(-columns // self.group_size)
        padded = torch.nn.functional.pad(weight, (0, groups * self.group_size - columns))
        blocks = padded.view(rows, groups, -1)  # (N, g, G)
        low, high = blocks.amin(-1).clamp_(max=0), blocks.amax(-1).clamp_(min=0)
        top, middle = (1 << self.bits) - 1, 1 << (self.bits - 1)
        span = 2 * blocks.abs().amax(-1) if self.levels == "symmetric" else high - low
        scales = (span / top).clamp_(min=1e-3).half()
        zeros = (-low / scales).round().clamp_(0, top).byte() if self.levels == "zeros" else None
        mins = low.half() if self.levels == "mins" else None
        offset = middle * scales.float() if self.levels == "symmetric" else -low
        codes = ((blocks + offset[..., None]) / scales[..., None].float()).round_().clamp_(0, top).byte()
        return PackedWeight(
            bits=self.bits,
            group_size=self.group_size,
            shape=(rows, columns),
            codes=pack_codes(codes.view(rows, -1)[:, :columns].contiguous(), self.bits),
            scales=scales,
            zeros=zeros,
            mins=mins,
            order=None if order is None else order.int(),
        )


Store = Callable[[Tensor], Stored]
"""Makes of a dense part what is stored."""


def store_as(dtype: torch.dtype) -> Store:
    """Dense numbers of a type."""
    return lambda weight: weight.detach().to(dtype)


def pack_network(model: Transformer, stores: Sequence[Store], *, table: Store | None = None) -> Transformer:
    """Replaces every linear layer; its parts take the stores in turn. Changes and returns the network.

    Args:
        model: with its dense weights.
        stores: of q, k, v, out, gate, up, down and so on, again and again.
        table: of the embedding and the head, shared where they are tied; None: they stay as they are.
    """
    config, turn = model.config, 0
    for layer in model.layers:
        qkv = [config.q_size, config.kv_size, config.kv_size]
        half = [config.ffn_size] * 2
        for owner, name, sizes in (
            (layer.attn, "qkv", qkv),
            (layer.attn, "out", [config.hidden_size]),
            (layer.ffn, "gate_up", half),
            (layer.ffn, "down", [config.hidden_size]),
        ):
            linear = getattr(owner, name)
            parts = [stores[(turn + i) % len(stores)](w) for i, w in enumerate(linear.weight.split(sizes))]
            turn += len(sizes)
            setattr(owner, name, QuantLinear(parts, linear.bias))
    if table is not None:
        embed, head = model.embed.table, model.head.parts[0]
        assert isinstance(embed, Tensor)
        assert isinstance(head, Tensor)
        stored = table(embed)
        model.embed = QuantEmbedding(stored, model.dtype)
        model.head = QuantLinear([stored if model.config.tie_embeddings else table(head)])
    return model


def fuse(model: Transformer, stores: Sequence[Store]) -> Transformer:
    """As ``pack_network``, but qkv and gate_up are one part each."""
    for layer in model.layers:
        for owner, name in (
            (layer.attn, "qkv"),
            (layer.attn, "out"),
            (layer.ffn, "gate_up"),
            (layer.ffn, "down"),
        ):
            linear = getattr(owner, name)
            setattr(owner, name, QuantLinear([stores[0](linear.weight)], linear.bias))
    return model


def unpacked(model: Transformer) -> Transformer:
    """The dense network of the same type with the values that a packed one has."""
    dense = Transformer(model.config).to(model.dtype).requires_grad_(False)
    weights = {}
    for name, own in dense.named_parameters():
        owner, _, kind = name.rpartition(".")
        module = model.get_submodule(owner)
        if kind == "weight" and isinstance(module, QuantLinear):
            weights[name] = torch.cat([_numbers(part) for part in module.parts])
        elif kind == "weight" and isinstance(module, QuantEmbedding):
            weights[name] = _numbers(module.table)
        else:
            weights[name] = getattr(module, kind)
        own.copy_(weights[name])
    return dense


def _numbers(stored: Stored) -> Tensor:
    return stored.dequantise() if isinstance(stored, PackedWeight) else stored.float()
