"""Writes a model as a complete Hugging Face folder that loads here, in transformers and elsewhere."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from qwenkit.config.families import Family
from qwenkit.config.generation import GenerationConfig
from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import InputError, SourceError
from qwenkit.model.transformer import Transformer
from qwenkit.tokenizer.base import Tokenizer
from qwenkit.tokenizer.save import save_tokenizer
from qwenkit.weights.plan import stored_rows
from qwenkit.weights.write import Entry, checked_target, write_json, write_weights

_SHARD_BYTES = 5 * 10**9


def save_model(
    folder: Path,
    model: Transformer,
    family: Family,
    *,
    generation: GenerationConfig | None = None,
    tokenizer: Tokenizer | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes weights, config.json, generation_config.json, tokenizer and template.

    Everything is written to a temporary folder beside the target and moved there at the end.

    Args:
        folder: must not exist yet, or be empty.
        model: the network; saved in its dtype.
        family: whose names and keys the files use.
        generation: default sampling and end tokens.
        tokenizer: None leaves the tokenizer files out.
        shard_bytes: most bytes per weight file.

    Raises:
        InputError: the folder exists and is not empty.
        SourceError: the disk is full or not writable; nothing stays behind.
    """
    checked_target(folder)
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        stored = stored_tensors(model, family).items()
        write_weights(temporary, [Entry.of(name, tensor) for name, tensor in stored], shard_bytes)
        write_json(
            temporary / "config.json", to_hf(model.config, family, str(model.dtype).removeprefix("torch."))
        )
        write_json(temporary / "generation_config.json", generation_dict(generation or GenerationConfig()))
        if tokenizer is not None:
            save_tokenizer(temporary, tokenizer)
        temporary.chmod(0o755)
        os.replace(temporary, folder)  # an empty target is replaced
    except OSError as error:
        raise SourceError(
            f"{folder} cannot be written: {error.strerror or error}; nothing was kept"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def stored_tensors(model: Transformer, family: Family) -> dict[str, Tensor]:
    """The network's weights under the family's own names, fused ones split.

    Raises:
        InputError: some are packed.
    """
    if model.is_packed:
        raise InputError(
            "the model's weights are packed and cannot be saved as numbers; load it with packed=False"
        )
    config, out = model.config, {}
    for name, weight in model.named_parameters():
        for part, rows in stored_rows(family.tensors, config, name, len(weight)):
            out[part] = weight.data[rows].cpu()
    return out


def to_hf(config: ModelConfig, family: Family, dtype: str) -> dict[str, Any]:
    """The config.json object of a configuration.

    Raises:
        InputError: it has a feature the family's config.json cannot express.
    """
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "ffn_size": config.ffn_size * family.ffn_divisor,
        "norm_eps": config.norm_eps,
        "context_length": config.context_length,
        "rope_base": config.rope.base,
        "rotary_pct": config.rope.dim / config.head_dim,
        "train_length": config.rope.ntk_length or config.logn_length or config.context_length,
        "dynamic_ntk": config.rope.ntk_length is not None,
        "logn": config.logn_length is not None,
        "tie_embeddings": config.tie_embeddings,
    }
    lost = {
        "grouped key heads": config.num_kv_heads != config.num_heads and "num_kv_heads" not in family.keys,
        "dynamic NTK or LogN": bool(config.rope.ntk_length or config.logn_length)
        and "dynamic_ntk" not in family.keys,
        "tied embeddings": config.tie_embeddings and not family.may_tie,
        "rope frequency factors": bool(config.rope.freq_factors),
        "query and key norm": config.qk_norm != family.qk_norm,
        "qkv bias": family.qkv_bias is not None and config.qkv_bias != family.qkv_bias,
        "partial rotation": config.rope.dim != config.head_dim and "rotary_pct" not in family.keys,
    }
    for feature, is_lost in lost.items():
        if is_lost:
            raise InputError(
                f"config.json of a {family.name} model cannot express {feature}; choose another family"
            )
    raw: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.model_type}
    # The last spelling is the oldest, the first the current one; the vocabulary of Qwen v1 is the exception.
    raw |= {
        ("vocab_size" if field == "vocab_size" else keys[0]): values[field]
        for field, keys in family.keys.items()
    }
    if family.qkv_bias is None:
        raw |= {"attention_bias": config.qkv_bias}
    if family.ffn_divisor == 1:
        raw |= {"hidden_act": "silu", "mlp_bias": config.mlp_bias}
    if config.rope.scaling:
        raw["rope_scaling"] = _scaling_dict(config)
    if config.windows:
        raw["attention_windows"] = list(config.windows)
    return raw | {"torch_dtype": dtype, "use_cache": True}


def _scaling_dict(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope.scaling
    assert scaling is not None
    out: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return out
    out["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        return out | {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    out |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
    return out if scaling.attention_factor is None else out | {"attention_factor": scaling.attention_factor}


def generation_dict(generation: GenerationConfig) -> dict[str, Any]:
    """The generation_config.json object of default sampling."""
    defaults = generation.defaults
    out: dict[str, Any] = {"do_sample": bool(defaults.temperature)}
    if defaults.temperature:
        out |= {"temperature": defaults.temperature, "top_k": defaults.top_k, "top_p": defaults.top_p}
    if defaults.repetition_penalty not in (None, 1.0):
        out["repetition_penalty"] = defaults.repetition_penalty
    if defaults.max_tokens is not None:
        out["max_new_tokens"] = defaults.max_tokens
    if generation.eos_ids:
        eos = list(generation.eos_ids)
        out["eos_token_id"] = eos[0] if len(eos) == 1 else eos
    if generation.chat_format:
        out["chat_format"] = generation.chat_format
    if generation.max_window_size:
        out["max_window_size"] = generation.max_window_size
    if defaults.stop_token_sequences:
        out["stop_words_ids"] = [list(s) for s in defaults.stop_token_sequences]
    return out
