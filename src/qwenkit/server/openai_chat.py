"""POST /v1/chat/completions: from the OpenAI chat format to the engine's request and back."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.chat.parser import ReplyParser, reply_parser
from qwenkit.chat.reasoning import opens_thought
from qwenkit.chat.template import ChatTemplate
from qwenkit.core.types import Request, SamplingParams
from qwenkit.server.answering import stream_answer, whole_answer
from qwenkit.server.bodies import read_body
from qwenkit.server.errors import refuse
from qwenkit.server.exchange import Exchange
from qwenkit.server.openai_chat_reply import ChatCollector, ChatEncoder, ChatShape
from qwenkit.server.openai_fields import check_logprobs, check_refused, constraint_of, either, sampling_params
from qwenkit.server.openai_messages import ToolUse, read_messages, read_tools, template_options
from qwenkit.server.openai_schema import ChatBody
from qwenkit.server.openai_shapes import fingerprint
from qwenkit.server.service import Service

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


async def chat_completions(http: HttpRequest) -> Response:
    """Answers a conversation, at once or as a stream."""
    service: Service = http.app.state.service
    body = await read_body(http, ChatBody, service.options.max_body_bytes)
    plan = ChatPlan(body, service, Exchange.of(http.scope))
    shape = plan.shape()
    if body.stream:
        return await stream_answer(service, http, plan.build, partial(ChatEncoder, shape))
    return await whole_answer(service, http, plan.build, partial(ChatCollector, shape))


class ChatPlan:
    """What one body asks for.

    Args:
        body: the request.
        service: shared state of the server.
        exchange: where fields without effect are noted.

    Raises:
        ApiError: it cannot be honoured.
    """

    def __init__(self, body: ChatBody, service: Service, exchange: Exchange) -> None:
        check_refused(body)
        self._body, self._backend = body, service.backend
        self._model = body.model or service.names[0]
        self._adapter = service.adapter_of(body.model)
        self._messages = read_messages(body.messages)
        self._template = service.backend.template
        self._tool_use = read_tools(body)
        self._options = template_options(body) | self._effort(exchange)
        self._check_chat()
        self._constraint = constraint_of(body)
        if self._constraint is not None and self._tool_use.tools:
            sentence = (
                "a form for the answer and tools contradict each other; give one of them, or tool_choice=none"
            )
            raise refuse(sentence, "response_format" if body.response_format else "tools")
        self._params = self._sampling()
        self._has_reasoning = self._template is not None and self._template.writes_thoughts
        self._starts_in_thought = False

    def _check_chat(self) -> None:
        info, body = self._backend.info, self._body
        if not info.can_chat:
            error = getattr(self._backend, "template_error", None)  # why, where there should be one
            sentence = f"{info.model} has no chat template, so it is a base model; use /v1/completions"
            raise refuse(str(error or sentence), "messages", "no_chat_template")
        if body.continue_final_message and body.add_generation_prompt:
            sentence = (
                "continue_final_message and add_generation_prompt contradict each other; give one of them"
            )
            raise refuse(sentence, "continue_final_message")

    def _effort(self, exchange: Exchange) -> dict[str, Any]:
        """How hard the model should think, as far as its template can tell it."""
        effort = self._body.reasoning_effort
        if effort is None:
            return {}
        if effort not in _EFFORTS:
            sentence = f"reasoning_effort={effort!r:.40} is unknown; use one of {', '.join(_EFFORTS)}"
            raise refuse(sentence, "reasoning_effort", "invalid_value")
        source = getattr(self._backend.tokenizer, "chat_template", None) or ""
        if "reasoning_effort" in source:
            return {"reasoning_effort": effort}
        if "enable_thinking" in source:
            return {} if self._body.enable_thinking is not None else {"enable_thinking": effort != "none"}
        exchange.ignored_fields.append("reasoning_effort")
        return {}

    def _sampling(self) -> SamplingParams:
        body = self._body
        if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
            sentence = "max_tokens and max_completion_tokens contradict each other; give only one of them"
            raise refuse(sentence, "max_completion_tokens")
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        limit = getattr(body, name)
        if limit is not None and limit < 1:
            raise refuse(
                f"{name}={limit} is not possible; use a whole number from 1 up", name, "invalid_value"
            )
        if body.top_logprobs is not None and not body.logprobs:
            raise refuse("top_logprobs needs logprobs=true; leave it out, or set both", "top_logprobs")
        top = check_logprobs("top_logprobs", body.top_logprobs)
        return sampling_params(
            body,
            max_tokens=limit,
            logprobs=either(top, 0) if body.logprobs else None,
            prompt_logprobs=check_logprobs("prompt_logprobs", body.prompt_logprobs),
            constraint=self._constraint,
            vocab_size=self._backend.info.vocab_size,
        )

    def build(self) -> list[Request]:
        """The request for the engine; renders a template where replies may be thoughts.

        Raises:
            QwenkitError: the conversation does not fit the template.
        """
        if self._has_reasoning:
            self._starts_in_thought = self._opens_thought()
        use, params = self._tool_use, self._params
        if use.tools and self._template is not None:
            params = _with_tools(params, self._template, use, starts_in_thought=self._starts_in_thought)
        request = Request(
            prompt=self._messages,
            params=params,
            tools=use.tools,
            template_options=self._options,
            continue_final=either(self._body.continue_final_message, False),
            adapter=self._adapter,
        )
        return [request]

    def _opens_thought(self) -> bool:
        template, tokenizer = self._template, self._backend.tokenizer
        if template is None or tokenizer is None:
            return False
        is_continued = either(self._body.continue_final_message, False)
        segments = template.render(
            self._messages, tools=self._tool_use.tools, continue_final=is_continued, **self._options
        )
        return opens_thought(segments, tokenizer)

    def shape(self) -> ChatShape:
        """How the answer has to look."""
        options = self._body.stream_options
        return ChatShape(
            model=self._model,
            created=int(time.time()),
            fingerprint=fingerprint(self._backend.info),
            tokenizer=self._backend.tokenizer,
            new_parser=self._new_parser,
            is_legacy=self._tool_use.is_legacy,
            has_logprobs=either(self._body.logprobs, False),
            has_calls=bool(self._tool_use.tools),
            has_reasoning=self._has_reasoning,
            include_usage=options is not None and either(options.include_usage, False),
        )

    def _new_parser(self) -> ReplyParser:
        return reply_parser(
            self._template,
            tools=self._tool_use.tools,
            reasoning=self._has_reasoning,
            starts_in_thought=self._starts_in_thought,
            parallel=self._tool_use.parallel,
        )


def _with_tools(
    params: SamplingParams, template: ChatTemplate, use: ToolUse, *, starts_in_thought: bool
) -> SamplingParams:
    """Sampling that stops where the format of calls wants it, and writes a call where one is required."""
    constraint = template.tool_format.constraint(
        use.tools, use.choice, parallel=use.parallel, starts_in_thought=starts_in_thought
    )
    stop = tuple(dict.fromkeys(params.stop + template.tool_format.stop))
    return dataclasses.replace(params, stop=stop, constraint=constraint)
