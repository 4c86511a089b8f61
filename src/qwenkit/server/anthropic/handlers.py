"""POST /v1/messages and /v1/messages/count_tokens: from Anthropic's protocol to a conversation and back."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.core.types import SamplingParams
from qwenkit.server.answering import JsonResponse, stream_answer, whole_answer
from qwenkit.server.anthropic.fields import (
    check_fields,
    constraint_of,
    read_tools,
    sampling_params,
    template_options,
)
from qwenkit.server.anthropic.messages import read_messages
from qwenkit.server.anthropic.reply import MessageCollector, MessageEncoder, MessageShape
from qwenkit.server.anthropic.schema import CountTokensBody, MessagesBody
from qwenkit.server.bodies import read_body
from qwenkit.server.conversation import ChatPlan, Conversation, check_chat
from qwenkit.server.errors import refuse
from qwenkit.server.exchange import Exchange
from qwenkit.server.service import Service


async def messages(http: HttpRequest) -> Response:
    """Answers a conversation, at once or as a stream."""
    service: Service = http.app.state.service
    body = await read_body(http, MessagesBody, service.options.max_body_bytes)
    exchange = Exchange.of(http.scope)
    params = sampling_params(body)
    plan = ChatPlan(await service.prepare(_conversation, body, params, service, exchange), service.backend)
    shape = MessageShape(
        model=body.model or service.names[0],
        plan=plan,
        request_id=exchange.request_id,
        stops=frozenset(params.stop),
        max_tokens=body.max_tokens,
        hides_thoughts=body.thinking is not None and body.thinking.display == "omitted",
    )
    if body.stream:
        return await stream_answer(service, http, plan.build, partial(MessageEncoder, shape))
    return await whole_answer(service, http, plan.build, partial(MessageCollector, shape))


async def count_tokens(http: HttpRequest) -> Response:
    """How long the prompt of a conversation is."""
    service: Service = http.app.state.service
    body = await read_body(http, CountTokensBody, service.options.max_body_bytes)
    params = SamplingParams(constraint=constraint_of(body))
    wanted = await service.prepare(_conversation, body, params, service, Exchange.of(http.scope))
    plan = ChatPlan(wanted, service.backend)
    return JsonResponse({"input_tokens": await service.prepare(plan.count_tokens)})


def _conversation(
    body: CountTokensBody, params: SamplingParams, service: Service, exchange: Exchange
) -> Conversation:
    """What a body asks for; runs in another thread, since it may be long.

    Raises:
        ApiError: it cannot be honoured.
    """
    check_fields(body, exchange.ignored_fields)
    adapter, use = service.adapter_of(body.model), read_tools(body)
    check_chat(service.backend)
    found, is_continued = read_messages(body.system, body.messages, exchange.ignored_fields)
    options = template_options(body, service.backend, exchange.ignored_fields)
    if params.constraint is not None and use.tools:
        sentence = (
            "output_config.format and tools contradict each other; give one of them, or the tool_choice none"
        )
        raise refuse(sentence, "output_config.format")
    return Conversation(
        messages=found,
        params=params,
        use=use,
        template_options=options,
        continue_final=is_continued,
        adapter=adapter,
    )
