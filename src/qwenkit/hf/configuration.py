"""config.json of first-generation Qwen as a transformers configuration.

Reads every released spelling, the first release's too, and writes the released names back. Knows nothing of tensors.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig

from qwenkit.config.hf import from_hf
from qwenkit.core.errors import ConfigError, UnsupportedModelError

_DTYPE_FLAGS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class QWenConfig(PreTrainedConfig):
    """Sizes and switches of a first-generation Qwen model, under the names of the released files.

    ``intermediate_size`` is twice the width of the feed-forward layers. ``seq_length`` is the length the model was
    trained on, beyond which dynamic NTK and LogN act.
    """

    model_type: ClassVar[str] = "qwen"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        # the first release (2023-08)
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "ffn_hidden_size": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "padded_vocab_size": "vocab_size",
        "attn_pdrop": "attn_dropout_prob",
        "embd_pdrop": "emb_dropout_prob",
        # names that transformers and its companions ask for
        "head_dim": "kv_channels",
        "num_key_value_heads": "num_attention_heads",
        "rms_norm_eps": "layer_norm_epsilon",
        "attention_dropout": "attn_dropout_prob",
        "rope_theta": "rotary_emb_base",
    }

    vocab_size: int = 151936
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    intermediate_size: int = 22016
    seq_length: int = 8192
    max_position_embeddings: int = 8192
    rotary_emb_base: float | int = 10000
    rotary_pct: float | int = 1.0
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    use_flash_attn: str | bool = "auto"
    layer_norm_epsilon: float = 1e-6
    no_bias: bool = True
    scale_attn_weights: bool = True
    attn_dropout_prob: float | int = 0.0
    emb_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    bf16: bool = False
    fp16: bool = False
    fp32: bool = False
    use_cache: bool = True
    use_cache_quantization: bool = False
    use_cache_kernel: bool = False
    softmax_in_fp32: bool = False
    onnx_safe: bool | None = None
    tie_word_embeddings: bool = False
    tokenizer_class: str = "QWenTokenizer"
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration that a config.json describes, changed by ``kwargs``.

        Raises:
            ConfigError: a key is missing, of the wrong kind or contradicts another.
            UnsupportedModelError: a switch that changes the network in a way that is not supported.
        """
        # Whatever class it was saved from, its keys are those of the language model.
        _, network = from_hf({**config_dict, "architectures": None, "model_type": cls.model_type})
        if network.rope.scaling is not None or any(network.windows):
            what = "attention windows" if network.rope.scaling is None else "rope scaling"
            raise UnsupportedModelError(
                f"config.json asks for {what}, which first-generation Qwen in transformers does not have; "
                "run the model with qwenkit itself, or remove the key"
            )
        returned = super().from_dict(config_dict, **kwargs)
        config = returned[0] if isinstance(returned, tuple) else returned
        config.apply_dtype_flags(explicit=kwargs.get("dtype", kwargs.get("torch_dtype")))
        return returned

    def apply_dtype_flags(self, explicit: object = None) -> None:
        """Lets ``bf16``, ``fp16`` or ``fp32``, as the released code took them, choose the type of the weights.

        Args:
            explicit: a type the caller asked for by name, which counts more; None or "auto": none.

        Raises:
            ConfigError: more than one flag is set.
        """
        on = [name for name in _DTYPE_FLAGS if getattr(self, name)]
        if len(on) > 1:
            raise ConfigError(f"only one of bf16, fp16 and fp32 may be true, got {' and '.join(on)}")
        if on and explicit in (None, "auto"):
            self.dtype = _DTYPE_FLAGS[on[0]]

    @property
    def ffn_size(self) -> int:
        """Width of the feed-forward layers."""
        return self.intermediate_size // 2

    @property
    def projection_size(self) -> int:
        """Width of all heads together."""
        return self.kv_channels * self.num_attention_heads

    @property
    def rotary_size(self) -> int:
        """How many dimensions of a head are rotated."""
        return int(self.kv_channels * self.rotary_pct)

    def to_diff_dict(self) -> dict[str, Any]:
        """What is saved: the released keys, flags that agree with the type of the weights, no pointer to code."""
        out: dict[str, Any] = super().to_diff_dict()
        dtype = out.pop("dtype", None)
        if dtype is not None:
            out["torch_dtype"] = dtype
            for name, kind in _DTYPE_FLAGS.items():
                out[name] = bool(out.get(name)) and str(kind) == f"torch.{dtype}"
        # auto_map names Python files that are not written next to the saved model.
        out.pop("auto_map", None)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if out.get(key) is None:
                out.pop(key, None)
        return out
