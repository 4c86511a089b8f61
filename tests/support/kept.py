"""Networks built with weights kept for the next start, and compared byte by byte."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwenkit.layers.quant_linear import QuantEmbedding, QuantLinear
from qwenkit.model.transformer import Transformer
from qwenkit.weights import packed_file
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.load import build_model
from tests.support.models import CPU


def settled(path: Path) -> Path:
    """Files that were last written a while ago."""
    for file in [path, *path.glob("*")]:
        os.utime(file, ns=(10**18, 10**18))
    return path


def built(path: Path, *, cached: bool = True, **options: Any) -> Transformer:
    """A network in panels, its head rounded so that most of a tiny model is packed."""
    checkpoint = open_checkpoint(path)
    try:
        settings = {"dtype": torch.bfloat16, "panels": True, "head": "int8"} | options
        return build_model(checkpoint, device=CPU, cached=cached, **settings)
    finally:
        checkpoint.store.close()


def held(network: Transformer) -> dict[str, Tensor]:
    """Every tensor of a network by name, packed ones included."""
    found = dict(network.named_parameters())
    for name, module in network.named_modules():
        parts = module.parts if isinstance(module, QuantLinear) else ()
        for i, part in enumerate((module.table,) if isinstance(module, QuantEmbedding) else parts):
            named = (
                {"": part}
                if isinstance(part, Tensor)
                else {k: getattr(part, k) for k in packed_file._TENSORS}
            )
            found |= {f"{name}.{i}.{type(part).__name__}.{k}": t for k, t in named.items() if t is not None}
    return found


def assert_same(network: Transformer, other: Transformer) -> None:
    """The same tensors, bit by bit."""
    a, b = held(network), held(other)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor.contiguous().view(torch.uint8), b[name].contiguous().view(torch.uint8)), (
            name
        )
