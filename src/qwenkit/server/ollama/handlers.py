"""POST /api/chat and /api/generate: from Ollama's protocol to a conversation or a raw prompt, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.backends.base import Backend
from qwenkit.chat.parser import ReplyParser, reply_parser
from qwenkit.core.types import Message, Request, SamplingParams
from qwenkit.server.answering import JsonResponse, stream_answer, whole_answer
from qwenkit.server.bodies import read_body
from qwenkit.server.conversation import ChatPlan, Conversation, check_chat
from qwenkit.server.errors import refuse
from qwenkit.server.exchange import Exchange
from qwenkit.server.ollama.fields import check_body, find_model, sampling_params, thinking_options
from qwenkit.server.ollama.messages import read_messages, read_tools
from qwenkit.server.ollama.reply import OllamaCollector, OllamaEncoder, OllamaShape
from qwenkit.server.ollama.schema import OllamaChatBody, OllamaGenerateBody, OllamaRequestBody
from qwenkit.server.replies import ReplyPlan
from qwenkit.server.service import Service
from qwenkit.server.sse import LINES
from qwenkit.server.token_text import encode_raw
from qwenkit.server.truncation import drop_oldest


class _FittingPlan(ChatPlan):
    """A conversation whose oldest turns go where it is too long for the context."""

    def build(self) -> list[Request]:
        """See ChatPlan."""
        backend = self._backend
        can_count = None not in (backend.tokenizer, self._template)
        if can_count and self.count_tokens() >= backend.info.context_length:
            self._conversation = drop_oldest(self._conversation, backend)
        return super().build()


class _ContinuedPlan(ChatPlan):
    """A conversation that goes on after token ids, which an earlier answer told.

    Args:
        conversation: what is wanted.
        backend: answers it.
        context: the ids; may be empty.

    Raises:
        ApiError: the model holds no conversations, or does not have those ids.
    """

    def __init__(self, conversation: Conversation, backend: Backend, context: Sequence[int]) -> None:
        super().__init__(conversation, backend)
        _check_ids(context, backend.info.vocab_size)
        self._context = tuple(context)

    def build(self) -> list[Request]:
        """See ChatPlan; the prompt is token ids."""
        (request,) = super().build()
        template, tokenizer, segments = self._template, self._backend.tokenizer, self._segments()
        if template is None or tokenizer is None or segments is None:
            raise refuse("the model runs elsewhere; use /api/chat", "prompt", "no_tokenizer")
        ids = (*self._context, *tokenizer.encode_segments(segments))
        params = dataclasses.replace(request.params, stop_token_sequences=template.stop_token_sequences)
        return [dataclasses.replace(request, prompt=ids, params=params)]


class _RawPlan:
    """A prompt without a template, whose reply is nothing but text."""

    has_calls = has_reasoning = False

    def __init__(self, build: Callable[[], list[Request]]) -> None:
        self.build = build

    @staticmethod
    def new_parser() -> ReplyParser:
        """See ReplyPlan."""
        return reply_parser(None)


async def chat(http: HttpRequest) -> Response:
    """Answers a conversation, as lines of JSON unless told otherwise."""
    service, exchange = _state(http)
    body = await read_body(http, OllamaChatBody, service.options.max_body_bytes, any_type=True)
    adapter = find_model(service, body.model)
    check_body(body, exchange)
    check_chat(service.backend)
    use, params = read_tools(body.tools), sampling_params(body, service, exchange)
    if params.constraint is not None and use.tools:
        raise refuse("format and tools contradict each other; give one of them", "format")
    messages = read_messages(body.messages or ())
    conversation = Conversation(
        messages=messages,
        params=params,
        use=use,
        template_options=thinking_options(body.think, service),
        continue_final=bool(messages and messages[-1].role == "assistant" and not messages[-1].tool_calls),
        adapter=adapter,
    )
    plan = (ChatPlan if body.truncate is False else _FittingPlan)(conversation, service.backend)
    shape = _shape(body, service, exchange, plan)
    if not messages:
        return JsonResponse(shape.nothing(_idle_reason(body)))
    return await _answer(http, body, plan.build, shape)


async def generate(http: HttpRequest) -> Response:
    """Answers one prompt, as lines of JSON unless told otherwise."""
    service, exchange = _state(http)
    body = await read_body(http, OllamaGenerateBody, service.options.max_body_bytes, any_type=True)
    adapter = find_model(service, body.model)
    check_body(body, exchange)
    params = sampling_params(body, service, exchange)
    is_raw = body.raw or not service.backend.info.can_chat
    if is_raw:
        raw = _raw_plan(body, service, params, adapter)
        shape = _shape(body, service, exchange, raw)
        build = raw.build
    else:
        plan = _turn(body, service, params, adapter)
        shape = dataclasses.replace(_shape(body, service, exchange, plan), has_context=True)
        build = plan.build
    if not body.prompt:
        return JsonResponse(shape.nothing(_idle_reason(body)))
    return await _answer(http, body, build, shape)


def _state(http: HttpRequest) -> tuple[Service, Exchange]:
    return http.app.state.service, Exchange.of(http.scope)


async def _answer(
    http: HttpRequest, body: OllamaRequestBody, build: Callable[[], list[Request]], shape: OllamaShape
) -> Response:
    service, _ = _state(http)
    if body.stream is False:
        return await whole_answer(service, http, build, partial(OllamaCollector, shape))
    return await stream_answer(service, http, build, partial(OllamaEncoder, shape), LINES)


def _shape(body: OllamaRequestBody, service: Service, exchange: Exchange, plan: ReplyPlan) -> OllamaShape:
    return OllamaShape(
        model=body.model,
        plan=plan,
        tokenizer=service.backend.tokenizer,
        exchange=exchange,
        is_chat=isinstance(body, OllamaChatBody),
        has_logprobs=bool(body.logprobs),
    )


def _idle_reason(body: OllamaRequestBody) -> str:
    """What an empty request asks for; the model is there before and after it."""
    return "unload" if body.keep_alive in (0, "0", "0s", "0m") else "load"


def _turn(
    body: OllamaGenerateBody, service: Service, params: SamplingParams, adapter: str | None
) -> _ContinuedPlan:
    system = [Message("system", body.system)] if body.system else []
    conversation = Conversation(
        messages=(*system, Message("user", body.prompt or "")),
        params=params,
        template_options=thinking_options(body.think, service),
        adapter=adapter,
    )
    return _ContinuedPlan(conversation, service.backend, body.context or ())


def _raw_plan(
    body: OllamaGenerateBody, service: Service, params: SamplingParams, adapter: str | None
) -> _RawPlan:
    """The prompt as it is.

    Raises:
        ApiError: something is given that only a template has a place for.
    """
    for name in ("system", "context", "think"):
        if getattr(body, name):
            sentence = (
                f"{name} needs a chat template, and without one the prompt is all there is; leave it out"
            )
            raise refuse(sentence, name, "unsupported_field")

    def build() -> list[Request]:
        ids = tuple(encode_raw(service.backend.tokenizer, body.prompt or ""))
        return [Request(prompt=ids, params=params, adapter=adapter)]

    return _RawPlan(build)


def _check_ids(ids: Sequence[int], vocab_size: int) -> None:
    if any(not 0 <= i < vocab_size for i in ids):
        sentence = f"context holds a token id outside 0 to {vocab_size - 1}; use the one of an earlier answer"
        raise refuse(sentence, "context", "invalid_value")
