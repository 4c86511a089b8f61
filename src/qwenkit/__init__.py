"""qwenkit: run, chat with and build on Qwen language models. Importing it loads no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qwenkit._version import __version__

if TYPE_CHECKING:
    from qwenkit.core.errors import QwenkitError
    from qwenkit.core.types import Completion, Delta, Message, SamplingParams, ToolCall, ToolSpec
    from qwenkit.llm import LLM, Chat, load_tokenizer

_HOME = {
    "LLM": "qwenkit.llm",
    "Chat": "qwenkit.llm",
    "Completion": "qwenkit.core.types",
    "Delta": "qwenkit.core.types",
    "Message": "qwenkit.core.types",
    "QwenkitError": "qwenkit.core.errors",
    "SamplingParams": "qwenkit.core.types",
    "ToolCall": "qwenkit.core.types",
    "ToolSpec": "qwenkit.core.types",
    "load_tokenizer": "qwenkit.llm",
}

__all__ = [
    "LLM",
    "Chat",
    "Completion",
    "Delta",
    "Message",
    "QwenkitError",
    "SamplingParams",
    "ToolCall",
    "ToolSpec",
    "__version__",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    """Loads a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'qwenkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
