"""The table of protocols with their endpoints."""

from __future__ import annotations

from qwenkit.core.errors import InputError, did_you_mean
from qwenkit.server import generate_api, models_api, system_api, tokens_api
from qwenkit.server.anthropic import handlers as anthropic
from qwenkit.server.anthropic import shapes as anthropic_shapes
from qwenkit.server.anthropic.schema import AnthropicErrorBody, CountTokensBody, MessagesBody
from qwenkit.server.dashscope import handlers as dashscope
from qwenkit.server.dashscope import reply as dashscope_reply
from qwenkit.server.dashscope.schema import DashScopeBody, DashScopeEmbeddingBody, DashScopeError
from qwenkit.server.ollama import handlers as ollama
from qwenkit.server.ollama import models as ollama_models
from qwenkit.server.ollama import reply as ollama_reply
from qwenkit.server.ollama.schema import (
    OllamaChangeBody,
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaEmbeddingsBody,
    OllamaErrorBody,
    OllamaGenerateBody,
    OllamaShowBody,
)
from qwenkit.server.openai import models as openai_models
from qwenkit.server.openai.chat import chat_completions
from qwenkit.server.openai.completions import completions
from qwenkit.server.openai.embeddings import embeddings
from qwenkit.server.openai.schema import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    ErrorBody,
    LoadAdapterBody,
    UnloadAdapterBody,
)
from qwenkit.server.openai.shapes import error_body
from qwenkit.server.protocol import LINES_OR_JSON, STREAMED, Endpoint, Protocol
from qwenkit.server.responses import handlers as responses
from qwenkit.server.responses import stored as responses_stored
from qwenkit.server.responses.schema import InputTokensBody, ResponsesBody
from qwenkit.server.tgi import handlers as tgi
from qwenkit.server.tgi import shapes as tgi_shapes
from qwenkit.server.tgi.schema import TgiBody, TgiErrorBody
from qwenkit.server.vllm_demo import reply as vllm_demo_reply
from qwenkit.server.vllm_demo.schema import DemoBody, DemoErrorBody

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
        Endpoint("/v1/models", models_api.list_models),
        Endpoint("/v1/models/{model:path}", models_api.show_model),
        Endpoint("/v1/load_lora_adapter", openai_models.load_adapter, LoadAdapterBody),
        Endpoint("/v1/unload_lora_adapter", openai_models.unload_adapter, UnloadAdapterBody),
    ),
    render_error=error_body,
    error_model=ErrorBody,
)
ANTHROPIC = Protocol(
    name="anthropic",
    endpoints=(
        Endpoint("/v1/messages", anthropic.messages, MessagesBody, STREAMED),
        Endpoint("/v1/messages/count_tokens", anthropic.count_tokens, CountTokensBody),
        Endpoint("/v1/models", models_api.list_models),
        Endpoint("/v1/models/{model:path}", models_api.show_model),
    ),
    render_error=anthropic_shapes.error_body,
    error_model=AnthropicErrorBody,
    prefixes=("/v1/messages",),
)
DASHSCOPE = Protocol(
    name="dashscope",
    endpoints=(
        Endpoint(
            "/api/v1/services/aigc/text-generation/generation", dashscope.generation, DashScopeBody, STREAMED
        ),
        Endpoint(
            "/api/v1/services/embeddings/text-embedding/text-embedding",
            dashscope.embedding,
            DashScopeEmbeddingBody,
        ),
    ),
    render_error=dashscope_reply.error_body,
    error_model=DashScopeError,
    prefixes=("/api/v1/",),
)
TGI = Protocol(
    name=generate_api.TGI,
    endpoints=(
        Endpoint("/generate", generate_api.generate, TgiBody, STREAMED),
        Endpoint("/generate_stream", tgi.generate_stream, TgiBody, STREAMED),
        Endpoint("/", tgi.compat_generate, TgiBody, STREAMED),
        Endpoint("/", system_api.health),
        Endpoint("/info", tgi.info),
    ),
    render_error=tgi_shapes.error_body,
    error_model=TgiErrorBody,
    errors=tgi_shapes.ERRORS,
    model_names=("tgi", "dummy", ""),
)
VLLM_DEMO = Protocol(
    name=generate_api.VLLM_DEMO,
    endpoints=(
        Endpoint("/generate", generate_api.generate, DemoBody, (*LINES_OR_JSON, "application/octet-stream")),
    ),
    render_error=vllm_demo_reply.error_body,
    error_model=DemoErrorBody,
)
OLLAMA = Protocol(
    name="ollama",
    endpoints=(
        Endpoint("/api/chat", ollama.chat, OllamaChatBody, LINES_OR_JSON),
        Endpoint("/api/generate", ollama.generate, OllamaGenerateBody, LINES_OR_JSON),
        Endpoint("/api/embed", ollama_models.embed, OllamaEmbedBody),
        Endpoint("/api/embeddings", ollama_models.embeddings, OllamaEmbeddingsBody),
        Endpoint("/api/show", ollama_models.show, OllamaShowBody),
        *(Endpoint("/api/tags", ollama_models.tags, verb=verb) for verb in ("GET", "HEAD")),
        *(Endpoint("/api/version", ollama_models.version, verb=verb) for verb in ("GET", "HEAD")),
        Endpoint("/api/ps", ollama_models.ps),
        *(
            Endpoint(f"/api/{name}", ollama_models.change, OllamaChangeBody)
            for name in ("pull", "push", "create", "copy")
        ),
        Endpoint("/api/delete", ollama_models.change, OllamaChangeBody, verb="DELETE"),
        *(Endpoint("/", ollama_models.running, None, ("text/plain",), verb) for verb in ("GET", "HEAD")),
    ),
    render_error=ollama_reply.error_body,
    error_model=OllamaErrorBody,
    prefixes=("/api/",),
)
RESPONSES = Protocol(
    name="responses",
    endpoints=(
        Endpoint("/v1/responses", responses.create, ResponsesBody, STREAMED),
        Endpoint("/v1/responses/input_tokens", responses.input_tokens, InputTokensBody),
        Endpoint("/v1/responses/{id}", responses_stored.retrieve, media_types=STREAMED),
        Endpoint("/v1/responses/{id}", responses_stored.delete, verb="DELETE"),
        Endpoint("/v1/responses/{id}/cancel", responses_stored.cancel, verb="POST"),
        Endpoint("/v1/responses/{id}/input_items", responses_stored.input_items),
    ),
    render_error=error_body,
    error_model=ErrorBody,
    prefixes=("/v1/responses",),
)
PROTOCOLS: tuple[Protocol, ...] = (OPENAI, RESPONSES, ANTHROPIC, DASHSCOPE, TGI, VLLM_DEMO, OLLAMA)
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
