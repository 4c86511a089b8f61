"""First-generation Qwen for transformers: importing this registers it with the Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from qwenkit.hf.configuration import QWenConfig
from qwenkit.hf.modeling import QWenLMHeadModel, QWenModel, QWenPreTrainedModel
from qwenkit.hf.quantizer_choice import register_quantizer
from qwenkit.hf.tokenization import QWenTokenizer

__all__ = ["QWenConfig", "QWenLMHeadModel", "QWenModel", "QWenPreTrainedModel", "QWenTokenizer", "register"]


class _TokenizerKey(QWenConfig):
    """Stands in for `QWenConfig` where the tokenizer is registered.

    The tokenizer is then found by its name alone, which transformers prefers to Python files of a model folder even
    where these are trusted. Registered for the configuration itself, it would lose to them.
    """


def register() -> None:
    """Makes the Auto classes of transformers know first-generation Qwen; doing it again changes nothing."""
    AutoConfig.register(QWenConfig.model_type, QWenConfig, exist_ok=True)
    AutoModel.register(QWenConfig, QWenModel, exist_ok=True)
    AutoModelForCausalLM.register(QWenConfig, QWenLMHeadModel, exist_ok=True)
    AutoTokenizer.register(_TokenizerKey, QWenTokenizer, exist_ok=True)
    register_quantizer()


register()
