"""Small first-generation Qwen models for transformers, with random weights, and Qwen2 models that compute the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from qwenkit.hf import QWenConfig, QWenLMHeadModel

SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "kv_channels": 16,
    "intermediate_size": 144,
    "seq_length": 16,
    "max_position_embeddings": 256,
}
PLAIN = {"use_dynamic_ntk": False, "use_logn_attn": False}


def random_model(seed: int = 0, **changes: Any) -> QWenLMHeadModel:
    """Every weight is random, biases and norms too; in evaluation mode."""
    torch.manual_seed(seed)
    model = QWenLMHeadModel(QWenConfig(**SIZES | changes))
    for name, weight in model.named_parameters():
        mean = 1.0 if "ln_" in name else 0.0
        nn.init.normal_(weight, mean=mean, std=0.4 if "wte" in name else 0.15)
    return model.eval()


def token_ids(*shape: int, seed: int = 1) -> Tensor:
    """Random token ids."""
    return torch.randint(0, SIZES["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def as_qwen2(model: QWenLMHeadModel) -> Qwen2ForCausalLM:
    """The same function as transformers' own Qwen2, without dynamic NTK and LogN."""
    old = model.config
    config = Qwen2Config(
        vocab_size=old.vocab_size,
        hidden_size=old.hidden_size,
        intermediate_size=old.ffn_size,
        num_hidden_layers=old.num_hidden_layers,
        num_attention_heads=old.num_attention_heads,
        num_key_value_heads=old.num_attention_heads,
        rms_norm_eps=old.layer_norm_epsilon,
        max_position_embeddings=old.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": float(old.rotary_emb_base)},
        tie_word_embeddings=False,
        attn_implementation=old._attn_implementation,
    )
    new = Qwen2ForCausalLM(config).to(model.dtype)
    new.load_state_dict(qwen2_names(dict(model.state_dict())), strict=True)
    return new.eval()


def qwen2_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights, or their gradients, under the names of Qwen2."""
    endings = {
        "ln_1.weight": "input_layernorm.weight",
        "ln_2.weight": "post_attention_layernorm.weight",
        "attn.c_proj.weight": "self_attn.o_proj.weight",
        "mlp.w1.weight": "mlp.up_proj.weight",
        "mlp.w2.weight": "mlp.gate_proj.weight",
        "mlp.c_proj.weight": "mlp.down_proj.weight",
    }
    out = {
        "model.embed_tokens.weight": tensors["transformer.wte.weight"],
        "model.norm.weight": tensors["transformer.ln_f.weight"],
        "lm_head.weight": tensors["lm_head.weight"],
    }
    for name, tensor in tensors.items():
        if not name.startswith("transformer.h."):
            continue
        layer, ending = name.removeprefix("transformer.h.").split(".", 1)
        prefix = f"model.layers.{layer}."
        if ending.startswith("attn.c_attn."):
            kind = ending.rsplit(".", 1)[1]
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{prefix}self_attn.{letter}_proj.{kind}"] = part
        else:
            out[prefix + endings[ending]] = tensor
    return out
