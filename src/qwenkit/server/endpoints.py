"""The table of protocols with their endpoints."""

from __future__ import annotations

from qwenkit.core.errors import InputError, did_you_mean
from qwenkit.server import openai_models, system_api, tokens_api
from qwenkit.server.openai_chat import chat_completions
from qwenkit.server.openai_completions import completions
from qwenkit.server.openai_embeddings import embeddings
from qwenkit.server.openai_schema import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    ErrorBody,
    LoadAdapterBody,
    UnloadAdapterBody,
)
from qwenkit.server.openai_shapes import error_body
from qwenkit.server.protocol import STREAMED, Endpoint, Protocol

SYSTEM = Protocol(
    name="system",
    endpoints=(
        Endpoint("/tokenize", tokens_api.tokenize, tokens_api.TokenizeBody),
        Endpoint("/detokenize", tokens_api.detokenize, tokens_api.DetokenizeBody),
        Endpoint("/tokenizer_info", tokens_api.tokenizer_info),
        Endpoint("/health", system_api.health),
        Endpoint("/version", system_api.version),
        Endpoint("/metrics", system_api.metrics, None, ("text/plain",)),
    ),
    render_error=error_body,
    error_model=ErrorBody,
)
"""There whatever protocols are chosen; words errors where no other protocol does."""
OPENAI = Protocol(
    name="openai",
    endpoints=(
        Endpoint("/v1/chat/completions", chat_completions, ChatBody, STREAMED),
        Endpoint("/v1/completions", completions, CompletionBody, STREAMED),
        Endpoint("/v1/embeddings", embeddings, EmbeddingBody),
        Endpoint("/v1/models", openai_models.list_models),
        Endpoint("/v1/models/{model:path}", openai_models.show_model),
        Endpoint("/v1/load_lora_adapter", openai_models.load_adapter, LoadAdapterBody),
        Endpoint("/v1/unload_lora_adapter", openai_models.unload_adapter, UnloadAdapterBody),
    ),
    render_error=error_body,
    error_model=ErrorBody,
)
PROTOCOLS: tuple[Protocol, ...] = (OPENAI,)
"""Those that can be chosen; all are on unless some are named."""


def chosen(names: tuple[str, ...]) -> tuple[Protocol, ...]:
    """The protocols of a server, and the endpoints that every server has.

    Args:
        names: of protocols; none means all.

    Raises:
        InputError: there is none of that name.
    """
    known = {protocol.name: protocol for protocol in PROTOCOLS}
    for name in names:
        if name not in known:
            raise InputError(
                f"protocol {name!r} is unknown; use some of {', '.join(known)}{did_you_mean(name, known)}"
            )
    return (*(p for p in PROTOCOLS if not names or p.name in names), SYSTEM)
