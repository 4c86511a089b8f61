"""Turns a quantised model back into plain weights: a complete folder of the same family. Knows no command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from qwenkit.core.errors import InputError, NumericsError, did_you_mean
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.load import build_model
from qwenkit.weights.save import save_model
from qwenkit.weights.sources import fetch
from qwenkit.weights.tokenizer import tokenizer_of
from qwenkit.weights.write import checked_target

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def dequantize_model(
    model: str | Path,
    out: Path,
    *,
    dtype: str = "float16",
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes a copy of a quantised model in plain numbers; in float32 they are exactly what the codes stand for.

    The whole model is in memory in that type.

    Args:
        model: folder, .gguf file, built-in name or hub id.
        out: must not exist yet, or be empty.
        dtype: float32, bfloat16 or float16.
        on_progress: called with (bytes read, bytes in all) of the model in memory.

    Returns:
        Bytes of the weights.

    Raises:
        InputError: the folder is not empty, the type unknown, or the model is not quantised.
        NumericsError: a weight that the type cannot hold.
        QwenkitError: the model cannot be read or the folder not written.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; use {', '.join(DTYPES)}{did_you_mean(dtype, DTYPES)}")
    out = checked_target(out)
    checkpoint = open_checkpoint(fetch(str(model)))
    try:
        if checkpoint.quant is None:
            raise InputError(f"{checkpoint.path} is not quantised; use it as it is")
        tokenizer = tokenizer_of(checkpoint.path, checkpoint.metadata or None)
        network = build_model(
            checkpoint,
            device=torch.device("cpu"),
            dtype=DTYPES[dtype],
            packed=False,
            on_progress=on_progress,
        )
        for name, weight in network.named_parameters():
            if not torch.isfinite(weight).all():
                raise NumericsError(
                    f"{checkpoint.path}: {name} holds NaN, infinity or numbers that {dtype} cannot hold; try --dtype float32"
                )
        save_model(out, network, checkpoint.family, generation=checkpoint.generation, tokenizer=tokenizer)
    finally:
        checkpoint.store.close()
    return sum(weight.nbytes for weight in network.parameters())
