"""/tokenize, /detokenize and /tokenizer_info, as they are common among servers."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.core.errors import TokenizerError
from qwenkit.server.answering import JsonResponse
from qwenkit.server.bodies import Body, read_body
from qwenkit.server.errors import ApiError, refuse
from qwenkit.server.openai.messages import read_messages, template_options, tool_specs
from qwenkit.server.openai.schema import MessageBody, PromptBody, ToolBody
from qwenkit.server.service import Service
from qwenkit.server.token_text import encode_raw, token_bytes
from qwenkit.tokenizer.base import Tokenizer


class TokenizeBody(Body):
    """POST /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[MessageBody] | None = None
    tools: list[ToolBody] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]
    skip_special_tokens: bool | None = None


async def tokenize(http: HttpRequest) -> Response:
    """Token ids of a text, or of a conversation with its template."""
    service: Service = http.app.state.service
    body = await read_body(http, TokenizeBody, service.options.max_body_bytes)
    service.adapter_of(body.model)
    tokenizer = _tokenizer(service)
    ids = await service.prepare(_ids, service, tokenizer, body)
    value: dict[str, Any] = {
        "count": len(ids),
        "max_model_len": service.backend.info.context_length,
        "tokens": ids,
    }
    if body.return_token_strs or body.with_pieces:
        pieces = [token_bytes(tokenizer, i).decode("utf-8", "replace") for i in ids]
        value["token_strs"] = pieces if body.return_token_strs else None
        if body.with_pieces:
            value["tokens"] = [{"id": i, "piece": piece} for i, piece in zip(ids, pieces, strict=True)]
    return JsonResponse(value)


def _ids(service: Service, tokenizer: Tokenizer, body: TokenizeBody) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise refuse("give either prompt or messages", "prompt", "missing_field")
    if body.prompt is not None:
        return list(encode_raw(tokenizer, body.prompt, add_special=body.add_special_tokens is not False))
    template = service.backend.template
    if template is None:
        raise refuse("the model has no chat template; send prompt instead of messages", "messages")
    if not body.messages:
        raise refuse("messages is empty; give at least one", "messages")
    prompt = PromptBody(
        messages=body.messages,
        chat_template_kwargs=body.chat_template_kwargs,
        enable_thinking=body.enable_thinking,
        add_generation_prompt=body.add_generation_prompt,
    )
    options = template_options(prompt)
    segments = template.render(
        read_messages(body.messages),
        tools=tool_specs(body.tools),
        continue_final=bool(body.continue_final_message),
        **options,
    )
    return tokenizer.encode_segments(segments)


async def detokenize(http: HttpRequest) -> Response:
    """The text of token ids."""
    service: Service = http.app.state.service
    body = await read_body(http, DetokenizeBody, service.options.max_body_bytes)
    service.adapter_of(body.model)
    tokenizer = _tokenizer(service)
    text = await service.prepare(
        lambda: tokenizer.decode(body.tokens, skip_special_tokens=bool(body.skip_special_tokens))
    )
    return JsonResponse({"prompt": text})


async def tokenizer_info(http: HttpRequest) -> Response:
    """What kind of tokenizer it is."""
    tokenizer = _tokenizer(http.app.state.service)
    forms: dict[int | None, str] = {i: form for form, i in tokenizer.special_tokens.items()}
    return JsonResponse(
        {
            "tokenizer_class": type(tokenizer).__name__,
            "vocab_size": tokenizer.vocab_size,
            "bos_token": forms.get(tokenizer.bos_token_id),
            "eos_token": forms.get(tokenizer.eos_token_id),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "add_bos_token": tokenizer.add_bos,
            "special_tokens": dict(tokenizer.special_tokens),
            "chat_template": tokenizer.chat_template,
        }
    )


def _tokenizer(service: Service) -> Tokenizer:
    tokenizer = service.backend.tokenizer
    if tokenizer is None:
        error = getattr(service.backend, "tokenizer_error", None) or TokenizerError(
            "the model has no tokenizer here"
        )
        raise ApiError(404, str(error), code="no_tokenizer")
    return tokenizer
