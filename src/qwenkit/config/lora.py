"""Reads adapter_config.json of a PEFT LoRA folder: which modules it changes, with what rank and scale.

Whatever would change the numbers and is not supported is refused. Knows nothing of tensors or families; modules are
dotted names as transformers has them.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from qwenkit.core.errors import ConfigError, UnsupportedModelError

_N = TypeVar("_N", int, float)
_log = logging.getLogger("qwenkit")
# Values that leave the meaning of the tensors alone; the other initialisations change the base weights as well.
_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
_VARIANTS = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "biases of LoRA weights",
    "fan_in_fan_out": "transposed weights",
    "alora_invocation_tokens": "activated LoRA",
    "target_parameters": "LoRA on bare parameters",
    "layer_replication": "layer replication",
    "arrow_config": "Arrow routing",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
    "enable_lora": "LoRA on parts of a fused weight",
}
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",  # the tied tensors are stored, so they need not be made here
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "velora_config",
}
_READ = {
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "trainable_token_indices",
    "use_rslora",
}
_MAX_REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Which modules an adapter changes, and how."""

    rank: int
    alpha: float
    use_rslora: bool = False
    """The scale is alpha / sqrt(rank) (arXiv:2312.03732) instead of alpha / rank."""
    target_modules: str | tuple[str, ...] = ()
    """A regular expression, or names that modules end with."""
    exclude_modules: str | tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Regular expression for a module's last names to its rank, in place of ``rank``."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers: frozenset[int] | None = None
    """Only modules in these layers; None: in all."""
    layers_pattern: tuple[str, ...] = ()
    """Names of the list of layers; empty: any."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are stored in full."""
    token_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Module to the token ids whose rows are stored; "" stands for the input embedding."""
    base_model: str | None = None
    """What the adapter was trained on, by its own account."""

    def targets(self, module: str, *, is_head: bool = False) -> bool:
        """Whether the module has LoRA weights."""
        if self.saves(module) or (self.exclude_modules and _named(self.exclude_modules, module)):
            return False
        if self.target_modules == "all-linear":
            return not is_head and bool(re.search(r"\.\d+\.", module))
        if isinstance(self.target_modules, str) or module in self.target_modules:
            return _named(self.target_modules, module)
        return _named(self.target_modules, module) and self._is_in_layers(module)

    def saves(self, module: str) -> bool:
        """Whether the module is stored in full."""
        return _named(self.modules_to_save, module)

    def rank_of(self, module: str) -> int:
        """Rank of the module's LoRA weights."""
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What b (a x) is multiplied with."""
        return self._scale(_by_pattern(self.alpha_pattern, module, self.alpha), self.rank_of(module))

    @property
    def default_scale(self) -> float:
        """The same for modules that no pattern names."""
        return self._scale(self.alpha, self.rank)

    def _scale(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def _is_in_layers(self, module: str) -> bool:
        if self.layers is None:
            return True
        lists = self.layers_pattern or (r"[^.]*",)
        found = (re.match(rf"(?:.*?\.)?(?:{name})\.(\d+)\.", module) for name in lists)
        match = next((m for m in found if m), None)
        return match is not None and int(match[match.lastindex or 1]) in self.layers


def _named(names: str | tuple[str, ...], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith("." + name) for name in names)


def _by_pattern(patterns: Mapping[str, _N], module: str, default: _N) -> _N:
    return next((value for key, value in patterns.items() if _compiled(key).match(module)), default)


@lru_cache(maxsize=4096)  # re keeps 512; adapters with a rank for every module have more
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")


def from_peft(raw: Mapping[str, Any]) -> LoraConfig:
    """The LoRA configuration that an adapter_config.json object describes.

    Raises:
        ConfigError: a key is missing or of the wrong kind.
        UnsupportedModelError: another kind of adapter than LoRA, or a variant that is not supported.
    """
    _refuse_unsupported(raw)
    tokens = raw.get("trainable_token_indices") or {}
    if not isinstance(tokens, Mapping):
        tokens = {"": tokens}
    layers = raw.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    base = raw.get("base_model_name_or_path")
    target = raw.get("target_modules") or ()
    return LoraConfig(
        rank=_whole("r", raw.get("r"), 1),
        alpha=_positive("lora_alpha", raw.get("lora_alpha")),
        use_rslora=_flag("use_rslora", raw.get("use_rslora")),
        target_modules=target if target == "all-linear" else _names_or_pattern("target_modules", target),
        exclude_modules=_names_or_pattern("exclude_modules", raw.get("exclude_modules") or ()),
        rank_pattern={k: _whole("rank_pattern", v, 1) for k, v in _patterns(raw, "rank_pattern")},
        alpha_pattern={k: _positive("alpha_pattern", v) for k, v in _patterns(raw, "alpha_pattern")},
        layers=frozenset(_whole("layers_to_transform", i, 0) for i in _list("layers_to_transform", layers))
        if layers
        else None,
        layers_pattern=_layers_pattern(raw.get("layers_pattern") or ()),
        modules_to_save=_names("modules_to_save", raw.get("modules_to_save") or ()),
        token_rows={
            str(name): tuple(
                _whole("trainable_token_indices", i, 0) for i in _list("trainable_token_indices", ids)
            )
            for name, ids in tokens.items()
        },
        base_model=base if isinstance(base, str) and base else None,
    )


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    if "peft_type" not in raw:
        raise ConfigError(
            "adapter_config.json has no peft_type; give a folder that PEFT saved a LoRA adapter to"
        )
    if raw["peft_type"] != "LORA":
        raise UnsupportedModelError(
            f"adapter_config.json: peft_type={raw['peft_type']!r:.200} is not supported; only 'LORA' is"
        )
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        raise UnsupportedModelError(
            f"adapter_config.json: task_type={raw['task_type']!r:.200} is not supported; only 'CAUSAL_LM' is"
        )
    for key, variant in _VARIANTS.items():
        if raw.get(key):
            raise UnsupportedModelError(
                f"adapter_config.json: {key}={raw[key]!r:.200}: {variant} cannot be used here; merge it into the model with PEFT's merge_and_unload"
            )
    if raw.get("bias", "none") != "none":
        raise UnsupportedModelError(
            f"adapter_config.json: bias={raw['bias']!r:.200}: trained biases cannot be used here; merge it into the model with PEFT's merge_and_unload"
        )
    if raw.get("init_lora_weights") not in _INITIALISATIONS:
        raise UnsupportedModelError(
            f"adapter_config.json: init_lora_weights={raw['init_lora_weights']!r:.200} changes the base model too; "
            "save the adapter with path_initial_model_for_weight_conversion, or merge it into the model with PEFT's merge_and_unload"
        )
    for key in sorted(set(raw) - _READ - _WITHOUT_EFFECT - set(_VARIANTS)):
        if raw[key]:
            _log.warning("adapter_config.json: unknown key %r=%r has no effect", key, raw[key])


def _whole(key: str, value: Any, low: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 2**31:
        raise ConfigError(f"adapter_config.json: {key}={value!r:.200} must be a whole number from {low} up")
    return value


def _positive(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 2**31:
        raise ConfigError(f"adapter_config.json: {key}={value!r:.200} must be a number above 0")
    return float(value)


def _flag(key: str, value: Any) -> bool:
    if value not in (None, True, False):
        raise ConfigError(f"adapter_config.json: {key}={value!r:.200} must be true or false")
    return bool(value)


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"adapter_config.json: {key}={value!r:.200} must be a list")
    return value


def _names(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or any(not isinstance(name, str) or not name for name in value):
        raise ConfigError(f"adapter_config.json: {key}={value!r:.200} must be a list of names")
    return tuple(value)


def _names_or_pattern(key: str, value: Any) -> str | tuple[str, ...]:
    return _check_pattern(key, value) if isinstance(value, str) else _names(key, value)


def _patterns(raw: Mapping[str, Any], key: str) -> Iterable[tuple[str, Any]]:
    value = raw.get(key) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"adapter_config.json: {key}={value!r:.200} must be an object")
    return ((_check_pattern(key, name), number) for name, number in value.items())


def _layers_pattern(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else _names("layers_pattern", value)
    return tuple(_check_pattern("layers_pattern", name) for name in names)


def _check_pattern(key: str, pattern: str) -> str:
    """Refuses expressions that are invalid, or that could take for ever: nested and very many repetitions."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"adapter_config.json: {key}={pattern!r:.200} is no regular expression ({error})"
        ) from None
    if re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > _MAX_REPEATS:
        raise ConfigError(
            f"adapter_config.json: {key}={pattern!r:.200} repeats a group, or repeats more than {_MAX_REPEATS} times; "
            "list the names instead"
        )
    return pattern
