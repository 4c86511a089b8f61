"""DashScope's text generation and text embedding: from its format to a conversation and back."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.server.answering import JsonResponse, stream_answer, whole_answer
from qwenkit.server.bodies import read_body, refuse_fields
from qwenkit.server.conversation import ChatPlan, Conversation, check_chat
from qwenkit.server.dashscope.fields import (
    REFUSED,
    REFUSED_INPUT,
    check_search,
    sampling_params,
    thinking_options,
)
from qwenkit.server.dashscope.messages import is_partial, read_input, read_tools
from qwenkit.server.dashscope.reply import DashScopeCollector, DashScopeEncoder, DashScopeShape
from qwenkit.server.dashscope.schema import (
    DashScopeBody,
    DashScopeEmbeddingBody,
    DashScopeEmbeddingParameters,
    DashScopeParameters,
)
from qwenkit.server.embedding import embed_prompts
from qwenkit.server.errors import ApiError, refuse
from qwenkit.server.exchange import Exchange
from qwenkit.server.service import Service

_STREAM = "X-DashScope-SSE"
REFUSED_HEADERS = {
    "X-DashScope-Async": (
        "disable",
        "tasks in the background are not offered here; ask and wait for the answer",
    ),
    "X-DashScope-Plugin": ("{}", "there are no plugins here; offer tools instead"),
    "X-DashScope-DataInspection": ("disable", "texts are not inspected here; leave the header out"),
    "X-DashScope-EncryptionKey": ("", "bodies are not decrypted here; send plain JSON over https"),
}
"""Headers that would change the answer and are not offered: a harmless value, and what to say to others."""
MAX_TEXTS = 2048


async def generation(http: HttpRequest) -> Response:
    """Answers messages or a prompt, at once or as a stream."""
    service: Service = http.app.state.service
    exchange = Exchange.of(http.scope)
    _check_headers(http)
    body = await read_body(http, DashScopeBody, service.options.max_body_bytes)
    parameters = body.parameters or DashScopeParameters()
    is_stream = _wants_stream(http, parameters)
    if parameters.incremental_output and not is_stream:
        exchange.ignored_fields.append("parameters.incremental_output")
    plan = ChatPlan(_conversation(body, parameters, service, exchange), service.backend)
    shape = DashScopeShape(
        request_id=exchange.request_id,
        plan=plan,
        tokenizer=service.backend.tokenizer,
        is_message=_is_message(parameters, plan),
        is_incremental=bool(parameters.incremental_output),
        has_logprobs=bool(parameters.logprobs),
    )
    if is_stream:
        return await stream_answer(service, http, plan.build, partial(DashScopeEncoder, shape))
    return await whole_answer(service, http, plan.build, partial(DashScopeCollector, shape))


def _check_headers(http: HttpRequest) -> None:
    for name, (harmless, sentence) in REFUSED_HEADERS.items():
        value = http.headers.get(name)
        if value is not None and value.strip().lower() not in ("", harmless):
            raise ApiError(403, f"{name}: {sentence}", param=name, code="unsupported_field")


def _wants_stream(http: HttpRequest, parameters: DashScopeParameters) -> bool:
    """What the parameter says; without it the service's own header, and without that the accepted type."""
    if parameters.stream is not None:
        return parameters.stream
    header = http.headers.get(_STREAM)
    if header is None:
        return "text/event-stream" in http.headers.get("accept", "").lower()
    if header.strip().lower() not in ("enable", "disable"):
        raise refuse(f"{_STREAM}={header!r:.40} is unknown; use enable or disable", _STREAM)
    return header.strip().lower() == "enable"


def _conversation(
    body: DashScopeBody, parameters: DashScopeParameters, service: Service, exchange: Exchange
) -> Conversation:
    """What a body asks for.

    Raises:
        ApiError: it cannot be honoured.
    """
    refuse_fields(body.input, REFUSED_INPUT, "input.")
    refuse_fields(parameters, REFUSED, "parameters.")
    check_search(parameters, exchange)
    adapter = service.adapter_of(body.model)
    messages, use = read_input(body.input), read_tools(parameters)
    check_chat(service.backend, "input.messages" if body.input.messages else "input.prompt")
    params = sampling_params(parameters, service.backend)
    if params.constraint is not None and use.tools:
        sentence = (
            "a form for the answer and tools contradict each other; give one of them, or tool_choice=none"
        )
        raise refuse(sentence, "parameters.response_format", "invalid_value")
    return Conversation(
        messages=messages,
        params=params,
        use=use,
        template_options=thinking_options(parameters, service.backend, exchange),
        continue_final=is_partial(body.input),
        adapter=adapter,
    )


def _is_message(parameters: DashScopeParameters, plan: ChatPlan) -> bool:
    """What was asked for; else a text, unless it has no place for what may come."""
    wanted = parameters.result_format
    needs = {
        "tools": plan.has_calls,
        "n": (parameters.n or 1) > 1,
        "logprobs": bool(parameters.logprobs),
    }
    if wanted is None:
        return plan.has_reasoning or any(needs.values())
    if wanted not in ("text", "message"):
        sentence = f"parameters.result_format={wanted!r:.80} is unknown; use text or message"
        raise refuse(sentence, "parameters.result_format", "invalid_value")
    for name, is_needed in needs.items():
        if wanted == "text" and is_needed:
            sentence = f"parameters.{name} needs result_format=message; set it, or leave {name} out"
            raise refuse(sentence, "parameters.result_format", "invalid_value")
    return wanted == "message"


async def embedding(http: HttpRequest) -> Response:
    """Vectors of texts."""
    service: Service = http.app.state.service
    exchange = Exchange.of(http.scope)
    _check_headers(http)
    body = await read_body(http, DashScopeEmbeddingBody, service.options.max_body_bytes)
    parameters = body.parameters or DashScopeEmbeddingParameters()
    _check_embedding(body.input.texts, parameters)
    if parameters.text_type is not None:
        exchange.ignored_fields.append("parameters.text_type")  # the model knows no difference
    found = await embed_prompts(service, http, body.model, body.input.texts, "input.texts")
    vectors = [{"text_index": n, "embedding": vector} for n, vector in enumerate(found.vectors)]
    return JsonResponse(
        {
            "output": {"embeddings": vectors},
            "usage": {"total_tokens": found.tokens},
            "request_id": exchange.request_id,
        }
    )


def _check_embedding(texts: list[str], parameters: DashScopeEmbeddingParameters) -> None:
    if len(texts) > MAX_TEXTS or not all(texts):
        sentence = f"input.texts must hold 1 to {MAX_TEXTS} texts, none of them empty"
        raise refuse(sentence, "input.texts", "invalid_value")
    refused = {
        "dimension": (None, "vectors of this model cannot be cut; leave it out"),
        "output_type": ("dense", "only dense vectors are made; leave it out"),
        "instruct": (None, "write instructions into the texts"),
    }
    for name, (harmless, sentence) in refused.items():
        if getattr(parameters, name) not in (None, harmless):
            raise refuse(f"parameters.{name}: {sentence}", f"parameters.{name}", "unsupported_field")
    if parameters.text_type not in (None, "query", "document"):
        sentence = f"parameters.text_type={parameters.text_type!r:.40} is unknown; use query or document"
        raise refuse(sentence, "parameters.text_type", "invalid_value")
