"""POST /v1/chat/completions: from the OpenAI chat format to a conversation and back."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.backends.base import Backend
from qwenkit.core.types import SamplingParams
from qwenkit.server.answering import stream_answer, whole_answer
from qwenkit.server.bodies import read_body
from qwenkit.server.conversation import ChatPlan, Conversation, check_chat
from qwenkit.server.errors import refuse
from qwenkit.server.exchange import Exchange
from qwenkit.server.openai.chat_reply import ChatCollector, ChatEncoder, ChatShape
from qwenkit.server.openai.fields import check_refused, constraint_of, effort_options, sampling_params
from qwenkit.server.openai.messages import is_legacy, read_messages, read_tools, template_options
from qwenkit.server.openai.schema import ChatBody
from qwenkit.server.openai.shapes import fingerprint
from qwenkit.server.sampling import check_limit, check_logprobs, either
from qwenkit.server.service import Service


async def chat_completions(http: HttpRequest) -> Response:
    """Answers a conversation, at once or as a stream."""
    service: Service = http.app.state.service
    body = await read_body(http, ChatBody, service.options.max_body_bytes)
    plan = ChatPlan(_conversation(body, service, Exchange.of(http.scope)), service.backend)
    shape = _shape(body, service, plan)
    if body.stream:
        return await stream_answer(service, http, plan.build, partial(ChatEncoder, shape))
    return await whole_answer(service, http, plan.build, partial(ChatCollector, shape))


def _conversation(body: ChatBody, service: Service, exchange: Exchange) -> Conversation:
    """What a body asks for.

    Raises:
        ApiError: it cannot be honoured.
    """
    check_refused(body)
    adapter, messages, use = service.adapter_of(body.model), read_messages(body.messages), read_tools(body)
    options = template_options(body) | _effort(body, service.backend, exchange)
    check_chat(service.backend)
    if body.continue_final_message and body.add_generation_prompt:
        sentence = "continue_final_message and add_generation_prompt contradict each other; give one of them"
        raise refuse(sentence, "continue_final_message")
    params = _sampling(body, service.backend)
    if params.constraint is not None and use.tools:
        sentence = (
            "a form for the answer and tools contradict each other; give one of them, or tool_choice=none"
        )
        raise refuse(sentence, "response_format" if body.response_format else "tools")
    return Conversation(
        messages=messages,
        params=params,
        use=use,
        template_options=options,
        continue_final=either(body.continue_final_message, False),
        adapter=adapter,
    )


def _effort(body: ChatBody, backend: Backend, exchange: Exchange) -> dict[str, Any]:
    """How hard the model should think, unless a field of ours says more clearly whether."""
    options = effort_options(body.reasoning_effort, "reasoning_effort", backend, exchange.ignored_fields)
    return {} if "enable_thinking" in options and body.enable_thinking is not None else options


def _sampling(body: ChatBody, backend: Backend) -> SamplingParams:
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        sentence = "max_tokens and max_completion_tokens contradict each other; give only one of them"
        raise refuse(sentence, "max_completion_tokens")
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    limit = check_limit(name, getattr(body, name))
    if body.top_logprobs is not None and not body.logprobs:
        raise refuse("top_logprobs needs logprobs=true; leave it out, or set both", "top_logprobs")
    top = check_logprobs("top_logprobs", body.top_logprobs)
    return sampling_params(
        body,
        max_tokens=limit,
        logprobs=either(top, 0) if body.logprobs else None,
        prompt_logprobs=check_logprobs("prompt_logprobs", body.prompt_logprobs),
        constraint=constraint_of(body),
        vocab_size=backend.info.vocab_size,
    )


def _shape(body: ChatBody, service: Service, plan: ChatPlan) -> ChatShape:
    """How the answer has to look."""
    options = body.stream_options
    return ChatShape(
        model=body.model or service.names[0],
        created=int(time.time()),
        fingerprint=fingerprint(service.backend.info),
        tokenizer=service.backend.tokenizer,
        plan=plan,
        is_legacy=is_legacy(body) and plan.has_calls,
        has_logprobs=either(body.logprobs, False),
        include_usage=options is not None and either(options.include_usage, False),
    )
