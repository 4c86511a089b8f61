"""The table of endpoints: path, method, what answers, and the body it reads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from qwenkit.server import openai_models, system_api, tokens_api
from qwenkit.server.bodies import Body
from qwenkit.server.openai_chat import chat_completions
from qwenkit.server.openai_completions import completions
from qwenkit.server.openai_embeddings import embeddings
from qwenkit.server.openai_schema import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    LoadAdapterBody,
    UnloadAdapterBody,
)

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of the server."""

    path: str
    handler: Handler
    body: type[Body] | None = None
    """What a POST reads; None: it is a GET."""
    media_types: tuple[str, ...] = ("application/json",)

    @property
    def method(self) -> str:
        """GET or POST."""
        return "GET" if self.body is None else "POST"


_STREAMED = ("application/json", "text/event-stream")
ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("/v1/chat/completions", chat_completions, ChatBody, _STREAMED),
    Endpoint("/v1/completions", completions, CompletionBody, _STREAMED),
    Endpoint("/v1/embeddings", embeddings, EmbeddingBody),
    Endpoint("/v1/models", openai_models.list_models),
    Endpoint("/v1/models/{model:path}", openai_models.show_model),
    Endpoint("/v1/load_lora_adapter", openai_models.load_adapter, LoadAdapterBody),
    Endpoint("/v1/unload_lora_adapter", openai_models.unload_adapter, UnloadAdapterBody),
    Endpoint("/tokenize", tokens_api.tokenize, tokens_api.TokenizeBody),
    Endpoint("/detokenize", tokens_api.detokenize, tokens_api.DetokenizeBody),
    Endpoint("/tokenizer_info", tokens_api.tokenizer_info),
    Endpoint("/health", system_api.health),
    Endpoint("/version", system_api.version),
    Endpoint("/metrics", system_api.metrics, None, ("text/plain",)),
)
