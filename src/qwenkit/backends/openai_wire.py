"""Between our requests and deltas and the JSON of the OpenAI API; knows nothing of connections.

| ours | chat and text completions |
|---|---|
| n, max_tokens, temperature, top_p, frequency_penalty, presence_penalty, seed, stop, logit_bias | the same |
| max_tokens | max_completion_tokens, where a server says that it wants this name |
| logprobs=N | chat: logprobs=true, top_logprobs=N; text: logprobs=N |
| top_k, min_p, repetition_penalty, min_tokens, stop_token_ids, bad_words, allowed_token_ids, ignore_eos | the same; |
| | not of the API itself, but of qwenkit, vLLM and, in part, llama.cpp; so only sent when set |
| include_stop, skip_special_tokens | include_stop_str_in_output, skip_special_tokens; likewise |
| constraint json_object, json_schema | response_format |
| constraint regex, choice, grammar | structured_outputs, as of vLLM |
| template_options, continue_final | chat_template_kwargs, continue_final_message with add_generation_prompt=false |
| adapter | the name of the model |
| stop_token_sequences, prompt_logprobs, max_tokens=0 | cannot be said: refused |
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from qwenkit.backends.thought_tags import ThoughtTags
from qwenkit.core.errors import InputError, RemoteError
from qwenkit.core.types import (
    Constraint,
    Delta,
    FinishReason,
    Message,
    Request,
    SamplingParams,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

UNKNOWN_TOKEN = -1
"""Id of a token of which the server says only the text."""
_PLAIN = ("max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed")
_EXTENDED = ("top_k", "min_p", "repetition_penalty")
_REASONS: dict[str, FinishReason] = {"length": "length", "abort": "abort"}
_TOKEN_ID = "token_id:"  # how vLLM writes a token where the API wants its text


def encode(request: Request, model: str) -> tuple[str, dict[str, Any]]:
    """The path below /v1 and the body that ask for a request, streaming.

    Raises:
        InputError: it holds something that the API has no words for.
    """
    if not request.prompt:
        raise InputError("an empty prompt cannot be continued; give at least one token")
    body: dict[str, Any] = {"model": request.adapter or model, "stream": True}
    body["stream_options"] = {"include_usage": True}
    messages = [m for m in request.prompt if isinstance(m, Message)]
    if not messages:
        if request.tools or request.template_options or request.continue_final:
            raise InputError("tools and template options need messages, not token ids")
        body["prompt"] = list(request.prompt)
        return "completions", {**body, **_sampling(request.params, is_chat=False)}
    body["messages"] = [m.to_dict() for m in messages]
    if request.tools:
        body["tools"] = [t.to_dict() for t in request.tools]
    if request.template_options:
        body["chat_template_kwargs"] = dict(request.template_options)
    if request.continue_final:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return "chat/completions", {**body, **_sampling(request.params, is_chat=True)}


def _sampling(params: SamplingParams, *, is_chat: bool) -> dict[str, Any]:
    _refuse_unsayable(params)
    body = {name: value for name in (*_PLAIN, *_EXTENDED) if (value := getattr(params, name)) is not None}
    lists = {
        "stop": params.stop,
        "stop_token_ids": params.stop_token_ids,
        "bad_words": params.bad_words,
        "allowed_token_ids": params.allowed_token_ids or (),
    }
    body |= {name: list(value) for name, value in lists.items() if value}
    if params.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    switches = {
        "n": (params.n, 1),
        "min_tokens": (params.min_tokens, 0),
        "ignore_eos": (params.ignore_eos, False),
        "include_stop_str_in_output": (params.include_stop, False),
        "skip_special_tokens": (params.skip_special_tokens, True),
    }
    body |= {name: value for name, (value, usual) in switches.items() if value != usual}
    if params.logprobs is not None:
        body |= (
            {"logprobs": True, "top_logprobs": params.logprobs} if is_chat else {"logprobs": params.logprobs}
        )
    return body | _constraint(params)


def _refuse_unsayable(params: SamplingParams) -> None:
    if params.stop_token_sequences:
        raise InputError(
            "stop_token_sequences cannot be sent to a server; use stop with the text they stand for"
        )
    if params.prompt_logprobs is not None:
        raise InputError("prompt_logprobs cannot be sent to a server; ask logprobs() of the backend for them")
    if params.max_tokens == 0:
        raise InputError("max_tokens=0 cannot be sent to a server; use 1, or ask logprobs() of the backend")


def _constraint(params: SamplingParams) -> dict[str, Any]:
    constraint = params.constraint
    if constraint is None:
        return {}
    form = json_form(constraint)
    if form is not None:
        return {"response_format": form}
    value = list(constraint.value) if constraint.kind == "choice" else constraint.value
    return {"structured_outputs": {constraint.kind: value}}


def json_form(constraint: Constraint) -> dict[str, Any] | None:
    """What ``response_format`` says of a constraint; None where it has no words for it."""
    if constraint.kind == "json_object":
        return {"type": "json_object"}
    if constraint.kind != "json_schema":
        return None
    schema = json.loads(constraint.value) if isinstance(constraint.value, str) else constraint.value
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": True}}


class ReplyReader:
    """Turns the events of one streamed answer into deltas.

    A reply's last delta comes once its token counts are known, which is at the end of the stream.

    Args:
        num_samples: replies that were asked for.
        inline_reasoning: thought comes as text between <think> tags, as a model here writes it.
    """

    def __init__(self, *, num_samples: int = 1, inline_reasoning: bool = False) -> None:
        self._samples = [_Sample(i, inline_reasoning=inline_reasoning) for i in range(num_samples)]
        self._usage: Mapping[str, Any] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every reply has said why it ended."""
        return all(s.reason is not None for s in self._samples)

    def push(self, event: Mapping[str, Any]) -> Iterator[Delta]:
        """What is new with one event.

        Raises:
            RemoteError: it has another shape than the API says.
        """
        try:
            self._usage = event.get("usage") or self._usage
            for choice in event.get("choices") or ():
                delta = self._samples[choice.get("index") or 0].push(choice)
                if delta is not None:
                    yield delta
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise RemoteError(
                f"an event of the server is not as the OpenAI API says ({type(error).__name__}: {error}): {event!r:.200}"
            ) from None

    def finish(self) -> Iterator[Delta]:
        """The last delta of every reply.

        Raises:
            RemoteError: a reply has not ended.
        """
        if not self.is_complete:
            raise RemoteError("the server ended its answer without a finish_reason; see the server's log")
        for sample in self._samples:
            yield Delta(
                index=0,
                sample=sample.index,
                text=sample.tags.close(),
                finish_reason=sample.reason,
                stop=sample.stop,
                usage=self._usage_of(sample),
            )

    def _usage_of(self, sample: _Sample) -> Usage:
        """As the server counts; where it does not, or counts several replies as one, the pieces that came."""
        usage = self._usage or {}
        details = usage.get("prompt_tokens_details") or {}
        generated = usage.get("completion_tokens") if len(self._samples) == 1 else None
        return Usage(
            prompt_tokens=usage.get("prompt_tokens") or 0,
            completion_tokens=sample.count if generated is None else generated,
            cached_tokens=details.get("cached_tokens") or 0,
        )


class _Sample:
    """One of the replies of an answer."""

    def __init__(self, index: int, *, inline_reasoning: bool) -> None:
        self.index = index
        self.count = 0
        self.reason: FinishReason | None = None
        self.stop: str | int | None = None
        self.tags = ThoughtTags()
        self._inline = inline_reasoning

    def push(self, choice: Mapping[str, Any]) -> Delta | None:
        is_chat = "delta" in choice
        new = choice.get("delta") or {} if is_chat else choice
        text = (new.get("content") or new.get("refusal") if is_chat else new.get("text")) or ""
        reasoning = new.get("reasoning_content") or new.get("reasoning") or ""
        calls = tuple(_tool_calls(new))
        logprobs = read_logprobs(choice.get("logprobs"))
        tokens = choice.get("token_ids") or [p.token_id for p in logprobs if p.token_id != UNKNOWN_TOKEN]
        if reason := choice.get("finish_reason"):
            # tool_calls, function_call and content_filter are kinds of stop here.
            self.reason = _REASONS.get(reason, "stop")
            self.stop = choice.get("stop_reason")
        if not (text or reasoning or calls or logprobs or tokens):
            return None
        self.count += len(tokens) or len(logprobs) or 1
        if self._inline:
            text, reasoning = self.tags.join(text, reasoning), ""
        return Delta(
            index=0,
            sample=self.index,
            text=text,
            reasoning=reasoning,
            tool_calls=calls,
            token_ids=tuple(tokens),
            logprobs=logprobs,
        )


def _tool_calls(new: Mapping[str, Any]) -> Iterator[ToolCallDelta]:
    for at, call in enumerate(new.get("tool_calls") or ()):
        function = call.get("function") or {}
        index = call.get("index")
        yield ToolCallDelta(
            index=at if index is None else index,
            id=call.get("id") or None,
            name=function.get("name") or None,
            arguments=function.get("arguments") or "",
        )
    if legacy := new.get("function_call"):
        yield ToolCallDelta(index=0, name=legacy.get("name"), arguments=legacy.get("arguments") or "")


def read_logprobs(given: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    """Of either kind of completion; a token known by its text alone has the id UNKNOWN_TOKEN."""
    if not given:
        return ()
    if "content" in given:
        return tuple(
            TokenLogprob(
                _token_id(p),
                p["logprob"],
                tuple((_token_id(t), t["logprob"]) for t in p.get("top_logprobs") or ()),
            )
            for p in given["content"] or ()
        )
    tokens, values = given.get("tokens") or (), given.get("token_logprobs") or ()
    tops = given.get("top_logprobs") or [None] * len(values)
    return tuple(
        TokenLogprob(_token_id(token), value, tuple((_token_id(t), p) for t, p in (top or {}).items()))
        for token, value, top in zip(tokens, values, tops, strict=False)
    )


def _token_id(token: Any) -> int:
    if isinstance(token, Mapping):
        known = token.get("token_id", token.get("id"))
        if isinstance(known, int):
            return known
        token = token.get("token")
    number = token.removeprefix(_TOKEN_ID) if isinstance(token, str) and token.startswith(_TOKEN_ID) else ""
    return int(number) if number.isdigit() else UNKNOWN_TOKEN
