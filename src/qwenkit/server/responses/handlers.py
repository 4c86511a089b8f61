"""POST /v1/responses and /v1/responses/input_tokens: from the Responses protocol to a conversation and back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.core.types import SamplingParams
from qwenkit.server.answering import JsonResponse, stream_answer, whole_answer
from qwenkit.server.bodies import read_body, refuse_fields
from qwenkit.server.conversation import ChatPlan, Conversation, check_chat
from qwenkit.server.errors import refuse
from qwenkit.server.exchange import Exchange
from qwenkit.server.openai.fields import effort_options
from qwenkit.server.responses.background import Follower, Run
from qwenkit.server.responses.fields import (
    ENCRYPTED,
    REFUSED,
    check_fields,
    constraint_of,
    read_tools,
    sampling_params,
    unused,
)
from qwenkit.server.responses.items import Item, new_id, read_items, size_of
from qwenkit.server.responses.messages import to_messages
from qwenkit.server.responses.reply import ResponseCollector, ResponseEncoder, ResponseShape
from qwenkit.server.responses.schema import InputTokensBody, ResponsesBody
from qwenkit.server.responses.stored import Kept, context_of, item_finder, keep
from qwenkit.server.sampling import either
from qwenkit.server.service import Service
from qwenkit.server.sse import EventStream
from qwenkit.server.truncation import drop_oldest


async def create(http: HttpRequest) -> Response:
    """Answers a conversation at once, as a stream, or in the background."""
    service: Service = http.app.state.service
    body = await read_body(http, ResponsesBody, service.options.max_body_bytes)
    exchange = Exchange.of(http.scope)
    refuse_fields(body, REFUSED)
    check_fields(body)
    exchange.ignored_fields += unused(body)
    keeps = _keeps(body, service)
    params = sampling_params(body)
    asked = await _read(body, params, service, exchange)
    plan = ChatPlan(asked.conversation, service.backend)
    shape = ResponseShape(
        head=_head(body, service, params, keeps=keeps),
        plan=plan,
        tokenizer=service.backend.tokenizer,
        has_logprobs=params.logprobs is not None,
        seals_thoughts=ENCRYPTED in (body.include or ()),
    )
    if body.background:
        return await _in_background(http, shape, asked, is_streamed=bool(body.stream))

    def finish(response: dict[str, Any]) -> None:
        if keeps:
            keep(service, exchange.key, Kept(response, asked.items, asked.size))

    if body.stream:
        return await stream_answer(service, http, plan.build, partial(ResponseEncoder, shape, finish))
    return await whole_answer(service, http, plan.build, partial(ResponseCollector, shape, finish))


async def input_tokens(http: HttpRequest) -> Response:
    """How long the prompt of a conversation is."""
    service: Service = http.app.state.service
    body = await read_body(http, InputTokensBody, service.options.max_body_bytes)
    exchange = Exchange.of(http.scope)
    refuse_fields(body, REFUSED)
    exchange.ignored_fields += unused(body)
    asked = await _read(body, SamplingParams(constraint=constraint_of(body)), service, exchange)
    tokens = await service.prepare(ChatPlan(asked.conversation, service.backend).count_tokens)
    return JsonResponse({"object": "response.input_tokens", "input_tokens": tokens})


async def _in_background(
    http: HttpRequest, shape: ResponseShape, asked: _Asked, *, is_streamed: bool
) -> Response:
    service: Service = http.app.state.service
    owner = Exchange.of(http.scope).key
    generation = await service.generate(shape.plan.build, Exchange.of(http.scope))

    def finish() -> None:
        if service.stored.get(run.response["id"], owner) is kept:  # nobody deleted it meanwhile
            keep(service, owner, kept)

    run = Run(service, shape, generation, finish)
    kept = Kept(run.response, asked.items, asked.size, run)
    keep(service, owner, kept)
    if not is_streamed:
        return JsonResponse(run.response)
    follower = Follower(run, 0)
    return EventStream(follower, follower, (), service.watch(http.receive))


def _keeps(body: ResponsesBody, service: Service) -> bool:
    """Whether the response is kept for later.

    Raises:
        ApiError: it cannot be, and has to.
    """
    is_on = service.stored.is_on
    if body.store and not is_on:
        sentence = "this server keeps no responses; leave store out, or start it with --store-responses"
        raise refuse(sentence, "store", "unsupported_field")
    keeps = is_on and either(body.store, True)
    if body.background and not keeps:
        raise refuse(
            "background=true needs store=true, on a server that keeps responses; leave background out",
            "background",
        )
    return keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a body asks for."""

    items: list[Item]
    """The whole conversation."""
    size: int
    """Bytes of the items."""
    conversation: Conversation


async def _read(
    body: InputTokensBody, params: SamplingParams, service: Service, exchange: Exchange
) -> _Asked:
    """What a body asks for.

    Raises:
        ApiError: it cannot be honoured.
    """
    # The store belongs to the event loop; the rest may be long.
    earlier = context_of(service, exchange.key, body.previous_response_id)
    find = item_finder(service, exchange.key)

    def read() -> _Asked:
        items = [*earlier, *read_items(body.input, find)]
        if not items:
            raise refuse("input is missing; give a text or items", "input", "missing_field")
        conversation = _conversation(body, items, params, service, exchange.ignored_fields)
        return _Asked(items=items, size=size_of(items), conversation=conversation)

    return await service.prepare(read)


def _conversation(
    body: InputTokensBody, items: list[Item], params: SamplingParams, service: Service, ignored: list[str]
) -> Conversation:
    """The items with all that the body says about answering them.

    Raises:
        ApiError: it cannot be honoured.
    """
    adapter, use, backend = service.adapter_of(body.model), read_tools(body), service.backend
    check_chat(backend, "input")
    if params.constraint is not None and use.tools:
        sentence = (
            "a form for the answer and tools contradict each other; give one of them, or tool_choice none"
        )
        raise refuse(sentence, "text.format")
    effort = body.reasoning.effort if body.reasoning is not None else None
    wanted = Conversation(
        messages=to_messages(body.instructions, items),
        params=params,
        use=use,
        template_options=effort_options(effort, "reasoning.effort", backend, ignored),
        adapter=adapter,
    )
    return drop_oldest(wanted, backend) if body.truncation == "auto" else wanted


def _head(body: ResponsesBody, service: Service, params: SamplingParams, *, keeps: bool) -> dict[str, Any]:
    """The response before anything was said; all that the request wanted is in it."""
    defaults = service.backend.info.defaults
    form = body.text.format if body.text is not None else None
    choice = "auto" if body.tool_choice is None else body.tool_choice
    reasoning = body.reasoning
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "queued" if body.background else "in_progress",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": body.model or service.names[0],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning is not None else None,
            "summary": None,
        },
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": keeps,
        "temperature": either(params.temperature, either(defaults.temperature, 1.0)),
        "text": {
            "format": {"type": "text"} if form is None else _given(form),
            "verbosity": either(body.text.verbosity if body.text is not None else None, "medium"),
        },
        "tool_choice": choice if isinstance(choice, str) else _given(choice),
        "tools": [{"parameters": None, "strict": None, **_given(tool)} for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": either(params.top_p, either(defaults.top_p, 1.0)),
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }


def _given(part: Any) -> Any:
    """A part of the request, as it came."""
    return part.model_dump(by_alias=True, exclude_none=True)
