"""Makes quantised checkpoints: algorithms as pure functions, and the walk over a model that feeds them.

Offline work; knows nothing of the engine. The names here load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenkit.quantize.dequantize import dequantize_model
    from qwenkit.quantize.recipe import Recipe
    from qwenkit.quantize.run import QuantizeResult, quantize_model

_HOME = {
    "QuantizeResult": "qwenkit.quantize.run",
    "Recipe": "qwenkit.quantize.recipe",
    "dequantize_model": "qwenkit.quantize.dequantize",
    "quantize_model": "qwenkit.quantize.run",
}

__all__ = ["QuantizeResult", "Recipe", "dequantize_model", "quantize_model"]


def __getattr__(name: str) -> Any:
    """Loads a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'qwenkit.quantize' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
