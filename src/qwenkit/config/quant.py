"""Reads how a checkpoint says it is quantised (quantization_config, quantize_config.json, quant_config.json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantConfig:
    """Method and shape of a quantised checkpoint."""

    method: str
    """gptq, awq, or what GGUF calls the most frequent block type (``GGUF Q4_0``)"""
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
        return ", ".join(parts)


def quant_config(
    model_config: Mapping[str, Any], side_file: Mapping[str, Any] | None = None
) -> QuantConfig | None:
    """The quantisation of a checkpoint, or None.

    Args:
        model_config: the object in config.json.
        side_file: the object in quantize_config.json or quant_config.json, if there is one.
    """
    raw = model_config.get("quantization_config") or side_file
    if not isinstance(raw, Mapping):
        return None
    # AutoAWQ's own side file spells the keys w_bit and q_group_size; only AWQ has a "version" of that kind.
    awq = "w_bit" in raw or str(raw.get("version", "")).lower() in ("gemm", "gemv")
    method = raw.get("quant_method") or ("awq" if awq else "gptq")
    bits, group = raw.get("bits", raw.get("w_bit")), raw.get("group_size", raw.get("q_group_size"))
    return QuantConfig(
        method=str(method),
        bits=bits if isinstance(bits, int) else None,
        group_size=group if isinstance(group, int) else None,
    )
