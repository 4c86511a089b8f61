"""The model families, as rows: which config keys mean what, and what the checkpoint calls each tensor.

This is the only place that knows family names. A new family of the same network is one more row
(docs/adding-a-model.md). Sources: the released config files and transformers' Qwen2, Qwen3 and Llama models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from qwenkit.core.errors import UnsupportedModelError, did_you_mean

# Our parameter name -> checkpoint tensors stacked along rows to make it. {i} is the layer.
TensorMap = Mapping[str, tuple[str, ...]]

_HF_TENSORS: TensorMap = {
    "embed.weight": ("model.embed_tokens.weight",),
    "layers.{i}.attn_norm.weight": ("model.layers.{i}.input_layernorm.weight",),
    "layers.{i}.attn.qkv.weight": tuple(f"model.layers.{{i}}.self_attn.{p}_proj.weight" for p in "qkv"),
    "layers.{i}.attn.qkv.bias": tuple(f"model.layers.{{i}}.self_attn.{p}_proj.bias" for p in "qkv"),
    "layers.{i}.attn.q_norm.weight": ("model.layers.{i}.self_attn.q_norm.weight",),
    "layers.{i}.attn.k_norm.weight": ("model.layers.{i}.self_attn.k_norm.weight",),
    "layers.{i}.attn.out.weight": ("model.layers.{i}.self_attn.o_proj.weight",),
    "layers.{i}.attn.out.bias": ("model.layers.{i}.self_attn.o_proj.bias",),
    "layers.{i}.ffn_norm.weight": ("model.layers.{i}.post_attention_layernorm.weight",),
    "layers.{i}.ffn.gate_up.weight": (
        "model.layers.{i}.mlp.gate_proj.weight",
        "model.layers.{i}.mlp.up_proj.weight",
    ),
    "layers.{i}.ffn.gate_up.bias": (
        "model.layers.{i}.mlp.gate_proj.bias",
        "model.layers.{i}.mlp.up_proj.bias",
    ),
    "layers.{i}.ffn.down.weight": ("model.layers.{i}.mlp.down_proj.weight",),
    "layers.{i}.ffn.down.bias": ("model.layers.{i}.mlp.down_proj.bias",),
    "norm.weight": ("model.norm.weight",),
    "head.weight": ("lm_head.weight",),
}

# w2 carries the silu, so it is the gate (spec of the released modelling code).
_QWEN1_TENSORS: TensorMap = {
    "embed.weight": ("transformer.wte.weight",),
    "layers.{i}.attn_norm.weight": ("transformer.h.{i}.ln_1.weight",),
    "layers.{i}.attn.qkv.weight": ("transformer.h.{i}.attn.c_attn.weight",),
    "layers.{i}.attn.qkv.bias": ("transformer.h.{i}.attn.c_attn.bias",),
    "layers.{i}.attn.out.weight": ("transformer.h.{i}.attn.c_proj.weight",),
    "layers.{i}.ffn_norm.weight": ("transformer.h.{i}.ln_2.weight",),
    "layers.{i}.ffn.gate_up.weight": ("transformer.h.{i}.mlp.w2.weight", "transformer.h.{i}.mlp.w1.weight"),
    "layers.{i}.ffn.down.weight": ("transformer.h.{i}.mlp.c_proj.weight",),
    "norm.weight": ("transformer.ln_f.weight",),
    "head.weight": ("lm_head.weight",),
}


def _gguf_tensors(qkv: tuple[str, ...]) -> TensorMap:
    blk = "blk.{i}."
    return {
        "embed.weight": ("token_embd.weight",),
        "layers.{i}.attn_norm.weight": (blk + "attn_norm.weight",),
        "layers.{i}.attn.qkv.weight": tuple(f"{blk}{p}.weight" for p in qkv),
        "layers.{i}.attn.qkv.bias": tuple(f"{blk}{p}.bias" for p in qkv),
        "layers.{i}.attn.q_norm.weight": (blk + "attn_q_norm.weight",),
        "layers.{i}.attn.k_norm.weight": (blk + "attn_k_norm.weight",),
        "layers.{i}.attn.out.weight": (blk + "attn_output.weight",),
        "layers.{i}.attn.out.bias": (blk + "attn_output.bias",),
        "layers.{i}.ffn_norm.weight": (blk + "ffn_norm.weight",),
        "layers.{i}.ffn.gate_up.weight": (blk + "ffn_gate.weight", blk + "ffn_up.weight"),
        "layers.{i}.ffn.gate_up.bias": (blk + "ffn_gate.bias", blk + "ffn_up.bias"),
        "layers.{i}.ffn.down.weight": (blk + "ffn_down.weight",),
        "layers.{i}.ffn.down.bias": (blk + "ffn_down.bias",),
        "norm.weight": ("output_norm.weight",),
        "head.weight": ("output.weight",),
    }


_GGUF_SPLIT = _gguf_tensors(("attn_q", "attn_k", "attn_v"))
_GGUF_FUSED = _gguf_tensors(("attn_qkv",))

# ModelConfig field (or an intermediate value of config/hf.py) -> accepted config.json keys, in order.
_HF_KEYS: Mapping[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size",),
    "num_layers": ("num_hidden_layers",),
    "num_heads": ("num_attention_heads",),
    "num_kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "ffn_size": ("intermediate_size",),
    "norm_eps": ("rms_norm_eps",),
    "context_length": ("max_position_embeddings",),
    "rope_base": ("rope_theta",),
    "tie_embeddings": ("tie_word_embeddings",),
}
# Second spellings are those of the first release (2023-08).
_QWEN1_KEYS: Mapping[str, tuple[str, ...]] = {
    "vocab_size": ("padded_vocab_size", "vocab_size"),
    "hidden_size": ("hidden_size", "n_embd"),
    "num_layers": ("num_hidden_layers", "n_layer"),
    "num_heads": ("num_attention_heads", "n_head"),
    "head_dim": ("kv_channels",),
    "ffn_size": ("intermediate_size", "ffn_hidden_size"),
    "norm_eps": ("layer_norm_epsilon",),
    "context_length": ("max_position_embeddings", "n_positions"),
    "rope_base": ("rotary_emb_base", "rope_theta"),
    "rotary_pct": ("rotary_pct",),
    "train_length": ("seq_length",),
    "dynamic_ntk": ("use_dynamic_ntk",),
    "logn": ("use_logn_attn",),
    "tie_embeddings": ("tie_word_embeddings",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one family writes down the network that all of them share."""

    name: str
    architecture: str
    """The name in config.json's ``architectures``."""
    model_type: str
    gguf_architecture: str
    keys: Mapping[str, tuple[str, ...]]
    defaults: Mapping[str, Any]
    """Values of the same fields when config.json has none of the keys."""
    required: tuple[str, ...] = ("vocab_size", "hidden_size", "num_layers", "num_heads", "ffn_size")
    tensors: TensorMap
    gguf_tensors: TensorMap
    ffn_divisor: int = 1
    """The stored feed-forward width is this many times the real one."""
    qkv_bias: bool | None = None
    """None: as attention_bias in config.json says."""
    qk_norm: bool = False
    may_tie: bool = True
    """A missing output head means that the embedding serves as one."""
    gguf_permuted: bool = False
    """GGUF stores q and k rows in the order of interleaved rotation."""
    gguf_train_lengths: Mapping[int, int] = field(default_factory=dict)
    """Hidden size -> training length with dynamic NTK and LogN, of the released shapes (GGUF does not store it)."""
    chat_format: str | None = None
    """A fixed chat format; None: the checkpoint's template decides."""
    vocab_file: str = "tokenizer.json"
    ignored: tuple[str, ...] = field(default=(r".*rotary_emb\.inv_freq", r"rope_freqs\.weight"))
    """Patterns of stored tensors that are buffers, computed afresh."""


_ROWS = (
    Family(
        name="qwen",
        architecture="QWenLMHeadModel",
        model_type="qwen",
        gguf_architecture="qwen",
        keys=_QWEN1_KEYS,
        required=("hidden_size", "num_layers", "num_heads", "ffn_size", "train_length"),
        defaults={
            "vocab_size": 151936,
            "head_dim": 128,
            "norm_eps": 1e-6,
            "context_length": 8192,
            "rope_base": 10000.0,
            "rotary_pct": 1.0,
            "dynamic_ntk": True,
            "logn": True,
            "tie_embeddings": False,
        },
        tensors=_QWEN1_TENSORS,
        gguf_tensors=_GGUF_FUSED,
        ffn_divisor=2,
        qkv_bias=True,
        may_tie=False,
        gguf_train_lengths={2048: 8192, 4096: 8192, 5120: 2048},
        chat_format="chatml",
        vocab_file="qwen.tiktoken",
        ignored=(r".*rotary_emb\.inv_freq", r".*attn\.masked_bias", r".*attn\.bias", r".*attn\.logn_tensor"),
    ),
    Family(
        name="qwen2",
        architecture="Qwen2ForCausalLM",
        model_type="qwen2",
        gguf_architecture="qwen2",
        keys=_HF_KEYS,
        defaults={"norm_eps": 1e-6, "context_length": 32768, "rope_base": 10000.0, "tie_embeddings": False},
        tensors=_HF_TENSORS,
        gguf_tensors=_GGUF_SPLIT,
        qkv_bias=True,
    ),
    Family(
        name="qwen3",
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        gguf_architecture="qwen3",
        keys=_HF_KEYS,
        defaults={
            "head_dim": 128,
            "norm_eps": 1e-6,
            "context_length": 32768,
            "rope_base": 10000.0,
            "tie_embeddings": False,
        },
        tensors=_HF_TENSORS,
        gguf_tensors=_GGUF_SPLIT,
        qk_norm=True,
    ),
    Family(
        name="llama",
        architecture="LlamaForCausalLM",
        model_type="llama",
        gguf_architecture="llama",
        keys=_HF_KEYS,
        defaults={"norm_eps": 1e-6, "context_length": 2048, "rope_base": 10000.0, "tie_embeddings": False},
        tensors=_HF_TENSORS,
        gguf_tensors=_GGUF_SPLIT,
        gguf_permuted=True,
    ),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({row.name: row for row in _ROWS})


def family_of(architecture: str | None, model_type: str | None) -> Family:
    """The row for what config.json says.

    Raises:
        UnsupportedModelError: no row has that architecture; the text names those that exist.
    """
    for row in _ROWS:
        if architecture == row.architecture or (architecture is None and model_type == row.model_type):
            return row
    got = architecture or model_type or "nothing"
    known = [row.architecture for row in _ROWS]
    raise UnsupportedModelError(
        f"architecture {got!r} is not supported; qwenkit runs {', '.join(known)}{did_you_mean(got, known)}"
    )


def family_of_gguf(architecture: str | None) -> Family:
    """The row for a GGUF file's ``general.architecture``.

    Raises:
        UnsupportedModelError: no row has that architecture.
    """
    for row in _ROWS:
        if architecture == row.gguf_architecture:
            return row
    known = [row.gguf_architecture for row in _ROWS]
    raise UnsupportedModelError(
        f"GGUF architecture {architecture!r} is not supported; qwenkit runs {', '.join(known)}"
    )
