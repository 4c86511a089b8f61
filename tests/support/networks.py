"""Small networks with random weights, one configuration per family, and GGUF files written from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import quants
from torch import nn

from qwenkit.config.families import FAMILIES
from qwenkit.config.model import ModelConfig, RopeConfig
from qwenkit.model.transformer import Transformer
from qwenkit.weights.save import stored_tensors

F32 = gguf.GGMLQuantizationType.F32


def family_config(family: str, **changes: Any) -> ModelConfig:
    """A configuration as the family's models have it; 256 columns everywhere, so that every block type fits."""
    own: dict[str, dict[str, Any]] = {
        "qwen": {"qkv_bias": True, "num_kv_heads": 8},
        "qwen2": {"qkv_bias": True, "tie_embeddings": True},
        "qwen3": {"qk_norm": True},
        "llama": {},
    }
    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 256,
        "num_layers": 2,
        "num_heads": 8,
        "num_kv_heads": 2,
        "head_dim": 32,
        "ffn_size": 256,
        "norm_eps": 1e-6,
        "context_length": 256,
        "rope": RopeConfig(base=10000.0, dim=32),
    }
    return ModelConfig(**sizes | own[family] | changes)


def random_network(config: ModelConfig, *, seed: int = 0) -> Transformer:
    """Every weight is random, biases too; norms around one."""
    torch.manual_seed(seed)
    model = Transformer(config)
    for name, weight in model.named_parameters():
        nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.1 if weight.ndim > 1 else 0.05)
    return model.requires_grad_(False)


def write_gguf(
    path: Path,
    model: Transformer,
    family: str,
    kind: gguf.GGMLQuantizationType = F32,
    *,
    rope_freqs: tuple[float, ...] = (),
    other_kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> None:
    """Writes a network as llama.cpp's converter does, matrices in block type ``kind``, those whose names contain a key of
    ``other_kinds`` in its block type.

    The network gets the values that were stored, so that it computes what the file says. Tensor names come from
    the gguf package's own map.
    """
    config, row = model.config, FAMILIES[family]
    writer = gguf.GGUFWriter(path, row.gguf_architecture)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_size * row.ffn_divisor)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_context_length(config.context_length)
    writer.add_rope_freq_base(config.rope.base)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[row.gguf_architecture.upper()], config.num_layers)
    for name, tensor in stored_tensors(model, row).items():
        if config.tie_embeddings and name == row.tensors["head.weight"][0]:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        values = np.ascontiguousarray(tensor.numpy())
        own = next((k for part, k in (other_kinds or {}).items() if part in name), kind)
        if tensor.ndim > 1 and own != F32:
            blocks = quants.quantize(values, own)
            tensor.copy_(torch.from_numpy(quants.dequantize(blocks, own)))  # a view of the weight
            writer.add_tensor(stored, _permuted(blocks, name, model, family), raw_dtype=own)
        else:
            writer.add_tensor(stored, _permuted(values, name, model, family))
    if rope_freqs:
        writer.add_tensor("rope_freqs.weight", np.array(rope_freqs, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _permuted(rows: np.ndarray[Any, Any], name: str, model: Transformer, family: str) -> np.ndarray[Any, Any]:
    """Rows of q and k in the order that llama.cpp wants for llama; others as they are."""
    if not FAMILIES[family].gguf_permuted or not any(p in name for p in ("q_proj", "k_proj")):
        return rows
    heads = model.config.num_heads if "q_proj" in name else model.config.num_kv_heads
    half = len(rows) // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
