"""The one place to import chat templates from, and the choice of the right one for a model."""

from __future__ import annotations

from qwenkit.chat.base import ChatTemplate
from qwenkit.chat.chatml import DEFAULT_SYSTEM, ChatMLTemplate
from qwenkit.chat.history import fit_history
from qwenkit.chat.jinja import JinjaTemplate
from qwenkit.tokenizer.base import Tokenizer

__all__ = [
    "DEFAULT_SYSTEM",
    "ChatMLTemplate",
    "ChatTemplate",
    "JinjaTemplate",
    "choose_template",
    "fit_history",
]


def choose_template(family_chat: str | None, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template for a model: its family's own format, else the tokenizer's, else ChatML where it has the tokens.

    Returns:
        None when nothing says how this model wants a conversation written.

    Raises:
        TemplateError: the tokenizer's template is malformed, or the family's format needs tokens it lacks.
    """
    if family_chat == "chatml":
        return ChatMLTemplate(tokenizer)
    if tokenizer.chat_template is not None:
        named = getattr(tokenizer, "chat_templates", {})
        return JinjaTemplate(tokenizer.chat_template, tokenizer, tool_source=named.get("tool_use"))
    if {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.special_tokens):
        return ChatMLTemplate(tokenizer)
    return None
