"""How a checkpoint says it is quantised (quantization_config, quantize_config.json, quant_config.json), both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from qwenkit.core.errors import ConfigError, UnsupportedModelError

GPTQ_SIDE_FILE = "quantize_config.json"
"""What AutoGPTQ and GPTQModel write beside config.json."""
AWQ_SIDE_FILE = "quant_config.json"
"""What AutoAWQ writes beside config.json."""
_BITS = {"gptq": (4, 8), "awq": (4,)}
_LAYOUTS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm", "gemv")}
# What must agree where two files describe one checkpoint: each of these changes how the words are read.
_DECISIVE = ("method", "bits", "group_size", "layout")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantConfig:
    """Method and shape of a quantised checkpoint."""

    method: str
    """gptq, awq, what GGUF calls the most frequent block type (``GGUF Q4_0``), or another method's own name"""
    bits: int | None = None
    group_size: int | None = None
    """Inputs per scale; -1: all inputs of a row."""
    layout: str | None = None
    """gptq: ``gptq`` (v1: zeros stored less one), ``gptq_v2`` or None (the config is silent). awq: ``gemm`` or ``gemv``."""
    symmetric: bool | None = None
    """gptq: every zero is 2^(bits - 1); None: not said."""
    desc_act: bool = False
    """gptq: columns were quantised in the order of their activations."""
    not_converted: tuple[str, ...] = ()
    """Parts of module names that were left as they are."""

    def __str__(self) -> str:
        parts = [self.method]
        parts += [f"{self.bits} bit"] if self.bits else []
        parts += [f"group {self.group_size}"] if self.group_size and self.group_size > 0 else []
        parts += [self.layout] if self.layout in ("gptq_v2", "gemv") else []
        parts += ["act-order"] if self.desc_act else []
        return ", ".join(parts)


def quant_config(
    model_config: Mapping[str, Any], side_file: Mapping[str, Any] | None = None
) -> QuantConfig | None:
    """The quantisation of a checkpoint, or None. Methods other than gptq and awq are named, not read.

    Args:
        model_config: the object in config.json.
        side_file: the object in quantize_config.json or quant_config.json, if there is one.

    Raises:
        ConfigError: a key is wrong, or the two files contradict each other.
        UnsupportedModelError: a kind of GPTQ or AWQ that is not supported.
    """
    inside = model_config.get("quantization_config")
    if inside is not None and not isinstance(inside, Mapping):
        raise ConfigError(
            f"config.json: quantization_config={inside!r} must be an object; correct it or take it out"
        )
    said = _Source("config.json: quantization_config", inside).read() if inside else None
    beside = _Source("the quantisation's own file", side_file).read() if side_file else None
    return _agreed(said, beside) if said and beside else said or beside


def quantisation_dict(
    quant: QuantConfig,
    *,
    damp: float = 0.01,
    static_groups: bool = False,
    true_sequential: bool = True,
    source: str | None = None,
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """What a checkpoint says of itself: quantization_config, the name of the file beside it, and that file's object.

    Args:
        quant: method gptq or awq, with bits, group size and layout.
        damp: gptq: share of the mean of the Hessian's diagonal that was added to it.
        static_groups: gptq: groups were fixed before columns were put in order.
        true_sequential: gptq: layers of a block were quantised one after the other.
        source: gptq: the model this was made of.
    """
    left_out = list(quant.not_converted)
    side: dict[str, Any]
    if quant.method == "awq":
        version = quant.layout or "gemm"
        names = {"modules_to_not_convert": left_out or None}
        side = {
            "zero_point": True,
            "q_group_size": quant.group_size,
            "w_bit": quant.bits,
            "version": version.upper(),
        }
        inside = {
            "quant_method": "awq",
            "zero_point": True,
            "group_size": quant.group_size,
            "bits": quant.bits,
        }
        return inside | {"version": version} | names, AWQ_SIDE_FILE, side | (names if left_out else {})
    side = {
        "bits": quant.bits,
        "group_size": -1 if quant.group_size is None else quant.group_size,
        "damp_percent": damp,
        "desc_act": quant.desc_act,
        "static_groups": static_groups,
        "sym": quant.symmetric is not False,
        "true_sequential": true_sequential,
        "model_name_or_path": source,
        "model_file_base_name": "model",
    }
    # A file without the key is of version 1, for every reader.
    side |= {"checkpoint_format": quant.layout} if quant.layout == "gptq_v2" else {}
    side |= {"dynamic": {f"-:.*{name}.*": {} for name in left_out}} if left_out else {}
    return side | {"quant_method": "gptq"}, GPTQ_SIDE_FILE, side


def _agreed(said: QuantConfig, beside: QuantConfig) -> QuantConfig:
    """One from two: what config.json leaves open the other file may say."""
    for name in _DECISIVE:
        one, other = getattr(said, name), getattr(beside, name)
        if one is not None and other is not None and one != other:
            raise ConfigError(
                f"config.json says {name} {one} of its quantisation, the file beside it {other}; correct one of them"
            )
    open_ = [f.name for f in fields(said) if getattr(said, f.name) is None]
    return replace(said, **{name: getattr(beside, name) for name in open_})


@dataclass(frozen=True, slots=True)
class _Source:
    """An object in one of the files, and what to call it in messages."""

    name: str
    raw: Mapping[str, Any]

    def read(self) -> QuantConfig:
        """Everything it says."""
        method = self._method()
        if method not in _BITS:
            return QuantConfig(method=method)
        awq = method == "awq"
        # The defaults are those of AutoAWQ; AutoGPTQ's own default of bits and group depends on who reads the file.
        bits, group = self._whole("bits", "w_bit"), self._whole("group_size", "q_group_size")
        if bits is None and not awq:
            raise ConfigError(f"{self.name} of a GPTQ model needs the key 'bits'; add it (4 or 8)")
        if group is not None and group != -1 and group < 1:
            raise ConfigError(
                f"{self.name}: group_size={group} must be at least 1, or -1 for all inputs of a row"
            )
        quant = QuantConfig(
            method=method,
            bits=4 if bits is None else bits,
            group_size=128 if awq and group is None else group,
            layout=self._layout(method),
            symmetric=None if awq else self._flag("sym"),
            desc_act=self._flag("desc_act") is True,
            not_converted=self._not_converted(),
        )
        if quant.bits not in _BITS[method]:
            allowed = " and ".join(map(str, _BITS[method]))
            raise self._unsupported("bits", quant.bits, f"{method} with {allowed} bits is")
        if awq and self._flag("zero_point") is False:
            raise self._unsupported("zero_point", False, "awq with zero points is")
        return quant

    def _method(self) -> str:
        method = self.raw.get("quant_method")
        if method is None:
            # Only AutoAWQ's own file spells the bits w_bit; only AWQ has a version of that kind.
            version = str(self.raw.get("version", "")).lower()
            return "awq" if "w_bit" in self.raw or version.startswith(("gemm", "gemv")) else "gptq"
        if not isinstance(method, str) or not method:
            raise ConfigError(f"{self.name}: quant_method={method!r} must be a name, such as 'gptq'")
        return method.lower()

    def _layout(self, method: str) -> str | None:
        """The one word for how numbers are laid out, under the name that method and writer have for it."""
        if self._flag("is_marlin_format"):
            raise self._unsupported("is_marlin_format", True, "gptq or gptq_v2 is")
        if self.raw.get("backend") == "llm-awq":  # its words lie differently under the same name
            raise self._unsupported("backend", "llm-awq", "'autoawq' is")
        keys = (
            ("version", "checkpoint_format", "format") if method == "awq" else ("checkpoint_format", "format")
        )
        for key in keys:
            value = self.raw.get(key)
            if value is None:
                continue
            layout = value.lower() if isinstance(value, str) else value
            if layout not in _LAYOUTS[method]:
                raise self._unsupported(key, value, f"{method} with {' or '.join(_LAYOUTS[method])} is")
            return str(layout)
        return "gemm" if method == "awq" else None

    def _not_converted(self) -> tuple[str, ...]:
        names = self.raw.get("modules_to_not_convert") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(
                f"{self.name}: modules_to_not_convert={names!r} must be a list of names, or null"
            )
        rules = self.raw.get("dynamic") or {}
        if not isinstance(rules, Mapping):
            raise ConfigError(f"{self.name}: dynamic={rules!r} must be an object, or null")
        for rule in rules:
            if not str(rule).startswith("-:"):
                raise self._unsupported(
                    "dynamic", rule, "one number of bits and one group size for all layers is"
                )
        return (*names, *(str(rule).removeprefix("-:").strip(".*^$") for rule in rules))

    def _whole(self, *keys: str) -> int | None:
        """A whole number under one of its spellings."""
        found = {key: self.raw[key] for key in keys if self.raw.get(key) is not None}
        for key, value in found.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{self.name}: {key}={value!r} must be a whole number")
        if len(set(found.values())) > 1:
            pairs = " and ".join(f"{key}={value}" for key, value in found.items())
            raise ConfigError(f"{self.name} contradicts itself: {pairs}; keep one of them")
        return next(iter(found.values()), None)

    def _flag(self, key: str) -> bool | None:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{self.name}: {key}={value!r} must be true or false")
        return value

    def _unsupported(self, key: str, value: Any, instead: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.name}: {key}={value!r} is not supported; {instead}, so use such a version of the model"
        )
