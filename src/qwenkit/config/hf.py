"""Reads config.json of every supported family into a ModelConfig. Executes nothing, ignores nothing it would need."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwenkit.config.families import Family, family_of
from qwenkit.config.model import ModelConfig, RopeConfig, RopeScaling
from qwenkit.core.errors import ConfigError, UnsupportedModelError

_log = logging.getLogger("qwenkit")
_MAX_JSON_BYTES = 64 * 2**20
_SCALING_KEYS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_length",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "attention_factor": "attention_factor",
    "truncate": "truncate",
}
# Switches that change the network; any other value than these would silently give wrong numbers.
_FIXED = {
    "hidden_act": ("silu", "swish"),
    "scale_attn_weights": (True,),
    "no_bias": (True,),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1, 1.0),
    "use_mrope": (None, False),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (None,)),
    **dict.fromkeys(
        ("attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"), (None, 1.0)
    ),
}


def read_json(path: Path, *, what: str = "file") -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        ConfigError: it is missing, too large, not JSON or not an object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ConfigError(
                f"{path} is larger than {_MAX_JSON_BYTES >> 20} MiB, so it is no {what}; check the folder"
            )
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path.parent} has no {path.name}; give a model folder that holds one") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise ConfigError(f"{path} is not valid JSON ({error}); fetch the file again") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}, not a JSON object; fetch the file again")
    return data


def from_hf(raw: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """The family and configuration that a config.json object describes.

    Raises:
        ConfigError: a key is missing, of the wrong kind or contradicts another.
        UnsupportedModelError: an architecture or a feature qwenkit does not run.
    """
    architectures = raw.get("architectures") or [None]
    if (
        not isinstance(architectures, list)
        or not isinstance(architectures[0], str | None)
        or not isinstance(raw.get("model_type"), str | None)
    ):
        raise ConfigError(
            f"config.json: architectures={architectures!r} must be a list of names and model_type a name"
        )
    family = family_of(architectures[0], raw.get("model_type"))
    for key, allowed in _FIXED.items():
        if raw.get(key, allowed[0]) not in allowed:
            raise UnsupportedModelError(
                f"config.json: {key}={raw[key]!r} is not supported; only {allowed[0]!r} is"
            )
    if raw.get("use_cache_quantization") is True:
        _log.warning(
            "use_cache_quantization is not supported yet; keys and values are kept in full precision"
        )
    values = {name: _lookup(raw, family, name) for name in family.keys}
    config = _build(raw, family, values)
    return family, config


def _lookup(raw: Mapping[str, Any], family: Family, name: str) -> Any:
    """The value of a field under any of its spellings, else the family's default, else None."""
    found = {key: raw[key] for key in family.keys[name] if raw.get(key) is not None}
    # Early Qwen files give the padded and the plain vocabulary size side by side; the padded one counts.
    if name != "vocab_size" and len(set(map(str, found.values()))) > 1:
        pairs = " and ".join(f"{k}={v!r}" for k, v in found.items())
        raise ConfigError(f"config.json contradicts itself: {pairs}; keep one of them")
    if found:
        return next(iter(found.values()))
    if name in family.required:
        raise ConfigError(
            f"config.json of a {family.name} model needs the key {family.keys[name][0]!r}; add it"
        )
    return family.defaults.get(name)


def _whole(name: str, value: Any) -> int:
    if not _is_number(value) or value % 1:
        raise ConfigError(f"config.json: {name}={value!r} must be a whole number")
    return int(value)


def _number(name: str, value: Any) -> float:
    if not _is_number(value):
        raise ConfigError(f"config.json: {name}={value!r} must be a number")
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if value not in (None, True, False):
        raise ConfigError(f"config.json: {name}={value!r} must be true or false")
    return bool(value)


def _is_number(value: Any) -> bool:
    """Not true and false; neither NaN nor infinity, which Python's JSON knows."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def _build(raw: Mapping[str, Any], family: Family, values: Mapping[str, Any]) -> ModelConfig:
    sizes = {n: _whole(n, values[n]) for n in ("vocab_size", "hidden_size", "num_layers", "num_heads")}
    num_heads = max(sizes["num_heads"], 1)
    head_dim = values.get("head_dim")
    if head_dim is None and sizes["hidden_size"] % num_heads:
        raise ConfigError(
            f"config.json: hidden_size={sizes['hidden_size']} is not a multiple of num_attention_heads={num_heads} "
            "and there is no head_dim; mend one of them"
        )
    head_dim = sizes["hidden_size"] // num_heads if head_dim is None else _whole("head_dim", head_dim)
    kv_heads = values.get("num_kv_heads")
    ffn_size = _whole("intermediate size", values["ffn_size"])
    if ffn_size % family.ffn_divisor:
        raise ConfigError(
            f"config.json: intermediate_size={ffn_size} must be a multiple of {family.ffn_divisor}"
        )
    attention_bias = _flag("attention_bias", raw.get("attention_bias"))
    train_length = values.get("train_length")
    train_length = None if train_length is None else _whole("seq_length", train_length)
    rope = _rope(raw, values, head_dim, train_length)
    return ModelConfig(
        **sizes,
        num_kv_heads=num_heads if kv_heads is None else _whole("num_key_value_heads", kv_heads),
        head_dim=head_dim,
        ffn_size=ffn_size // family.ffn_divisor,
        norm_eps=_number("norm epsilon", values["norm_eps"]),
        context_length=_context_length(values, rope, train_length),
        rope=rope,
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        out_bias=attention_bias and family.qkv_bias is None,
        mlp_bias=_flag("mlp_bias", raw.get("mlp_bias")),
        qk_norm=family.qk_norm,
        tie_embeddings=_flag("tie_word_embeddings", values["tie_embeddings"]),
        logn_length=train_length if _flag("use_logn_attn", values.get("logn")) else None,
        windows=_windows(raw, sizes["num_layers"]),
        dtype=_dtype(raw),
    )


def _context_length(values: Mapping[str, Any], rope: RopeConfig, train_length: int | None) -> int:
    length = max(_whole("max_position_embeddings", values["context_length"]), train_length or 0)
    scaling = rope.scaling
    if scaling and scaling.kind == "yarn" and scaling.original_length:
        length = max(length, int(scaling.factor * scaling.original_length))
    return length


def _rope(
    raw: Mapping[str, Any], values: Mapping[str, Any], head_dim: int, train_length: int | None
) -> RopeConfig:
    """Rotary settings from rope_theta and rope_scaling, or from rope_parameters of newer writers."""
    new, old = raw.get("rope_parameters"), raw.get("rope_scaling")
    if new and old and new != old:
        raise ConfigError(
            f"config.json contradicts itself: rope_parameters={new!r} and rope_scaling={old!r}; keep one of them"
        )
    settings = new or old or {}
    if not isinstance(settings, Mapping):
        raise ConfigError(f"config.json: rope_scaling={settings!r} must be an object or null")
    settings = dict(settings)
    base = settings.pop("rope_theta", None) or values["rope_base"]
    dim = head_dim * _number("rotary_pct", values.get("rotary_pct", 1.0))
    return RopeConfig(
        base=_number("rope_theta", base),
        dim=int(dim),
        scaling=_scaling(settings, _whole("max_position_embeddings", values["context_length"])),
        ntk_length=train_length if _flag("use_dynamic_ntk", values.get("dynamic_ntk")) else None,
    )


def _scaling(settings: dict[str, Any], context_length: int) -> RopeScaling | None:
    kinds = [settings.pop(key) for key in ("rope_type", "type") if key in settings] or ["default"]
    kind = kinds[0]
    if kinds[-1] != kind:
        raise ConfigError(f"config.json: rope scaling says both {kind!r} and {kinds[-1]!r}; keep one")
    settings.pop("finetuned", None)
    if settings.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("config.json: partial_rotary_factor other than 1 is not supported")
    if kind in (None, "default"):
        _refuse_without_kind(settings)
        return None
    if kind not in ("linear", "yarn", "llama3"):
        raise UnsupportedModelError(
            f"config.json: rope scaling {kind!r} is not supported; qwenkit knows default, linear, yarn and llama3"
        )
    for key, value in settings.items():
        if key not in _SCALING_KEYS:
            raise UnsupportedModelError(
                f"config.json: rope scaling key {key!r}={value!r} is not supported; remove it"
            )
    if settings.get("factor") is None:
        raise ConfigError(f"config.json: rope scaling {kind!r} needs the key 'factor'; add it")
    fields: dict[str, Any] = {
        _SCALING_KEYS[k]: _scaling_value(k, v) for k, v in settings.items() if v is not None
    }
    if kind != "linear":
        fields.setdefault("original_length", context_length)
    return RopeScaling(kind=kind, **fields)


def _refuse_without_kind(settings: Mapping[str, Any]) -> None:
    """A factor without a kind, or one object per layer type: dropping it would give wrong numbers."""
    for key, value in settings.items():
        if value is not None and (key == "factor" or isinstance(value, Mapping)):
            raise UnsupportedModelError(
                f"config.json: rope scaling of no kind with {key!r}={value!r} is not supported; add 'rope_type' or remove it"
            )


def _scaling_value(key: str, value: Any) -> float | bool:
    if key == "truncate":
        return bool(value)
    return _whole(key, value) if key.startswith("original") else _number(key, value)


def _windows(raw: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    """Per-layer windows: our own key, else layer_types, else Qwen2's sliding rule."""
    if raw.get("attention_windows") is not None:
        windows = raw["attention_windows"]
        if not isinstance(windows, list) or any(
            isinstance(w, bool) or not isinstance(w, int | None) for w in windows
        ):
            raise ConfigError(
                f"config.json: attention_windows={windows!r} must be a list of whole numbers or null"
            )
        return tuple(windows)
    types = raw.get("layer_types")
    if types is not None:
        _check_layer_types(types, num_layers)
    if raw.get("use_sliding_window") is False:
        return ()
    if raw.get("sliding_window") is None:
        if types is not None and "sliding_attention" in types:
            raise ConfigError(
                "config.json: layer_types has sliding_attention, so sliding_window is needed; add it"
            )
        return ()
    width = _whole("sliding_window", raw["sliding_window"])
    if types is None:
        if not _flag("use_sliding_window", raw.get("use_sliding_window")):
            return ()
        first = _whole("max_window_layers", raw.get("max_window_layers", 28))
        types = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    if "sliding_attention" not in types:
        return ()
    return tuple(width if t == "sliding_attention" else None for t in types)


def _check_layer_types(types: Any, num_layers: int) -> None:
    if not isinstance(types, list) or len(types) != num_layers:
        raise ConfigError(f"config.json: layer_types={types!r} must be a list of {num_layers} names")
    unknown = [t for t in types if t not in ("sliding_attention", "full_attention")]
    if unknown:
        raise UnsupportedModelError(f"config.json: layer type {unknown[0]!r} is not supported")


def _dtype(raw: Mapping[str, Any]) -> str:
    flags = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    on = [name for key, name in flags.items() if raw.get(key) is True]
    if len(on) > 1:
        raise ConfigError(f"config.json: only one of bf16, fp16 and fp32 may be true, got {' and '.join(on)}")
    stored = raw.get("torch_dtype") or raw.get("dtype") or (on[0] if on else "bfloat16")
    return str(stored).removeprefix("torch.")
