"""Checkpoints made for tests: loading without a tokenizer, and SmolLM2 in the layout of Qwen v1."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from qwenkit import SamplingParams
from qwenkit.config.families import FAMILIES
from qwenkit.model.generate import BatchGenerator
from qwenkit.model.transformer import Transformer
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.load import build_model
from qwenkit.weights.save import save_model

CPU = torch.device("cpu")


def load(
    path: Path, dtype: torch.dtype = torch.float32, *, packed: bool = True, **overrides: object
) -> Transformer:
    """The network of a folder or file, float32 on the CPU unless told otherwise."""
    checkpoint = open_checkpoint(path)
    try:
        config = dataclasses.replace(checkpoint.config, **overrides)
        return build_model(checkpoint, device=CPU, dtype=dtype, config=config, packed=packed)
    finally:
        checkpoint.store.close()


def greedy(
    model: Transformer, prompts: list[list[int]], max_tokens: int, **options: object
) -> list[list[int]]:
    """Greedy continuations, end tokens ignored."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    options = {"context_length": model.config.context_length} | options
    generator = BatchGenerator(model, prompts, [params] * len(prompts), eos_ids=(), **options)
    out: list[list[int]] = [[] for _ in prompts]
    while not generator.is_done:
        for event in generator.step():
            out[event.index].append(event.token_id)
    return out


def as_qwen1(model: Transformer, folder: Path) -> Path:
    """Saves a Llama-type model in the layout of Qwen v1: the same function in other tensors.

    Key and value heads are repeated for every query head, the bias of c_attn is zero, the head is untied.
    """
    old = model.config
    repeat = old.num_heads // old.num_kv_heads
    config = dataclasses.replace(old, num_kv_heads=old.num_heads, qkv_bias=True, tie_embeddings=False)
    with torch.device("meta"):
        new = Transformer(config)
    new.to_empty(device="cpu").to(model.dtype)
    source = dict(model.named_parameters())
    for name, weight in new.named_parameters():
        if name.endswith("qkv.weight"):
            q, k, v = source[name].split([old.q_size, old.kv_size, old.kv_size])
            heads = [
                t.view(old.num_kv_heads, old.head_dim, -1).repeat_interleave(repeat, 0).flatten(0, 1)
                for t in (k, v)
            ]
            weight.data.copy_(torch.cat([q, *heads]))
        elif name.endswith("qkv.bias"):
            nn.init.zeros_(weight)
        else:
            weight.data.copy_(source["embed.weight" if name == "head.weight" else name])
    save_model(folder, new, FAMILIES["qwen"])
    return folder
