"""Between our requests and deltas and the JSON of DashScope's text generation; knows nothing of connections.

| ours | parameters of a request |
|---|---|
| n, max_tokens, temperature, top_p, repetition_penalty, presence_penalty, seed | the same |
| top_k | the same up to 100; 0 as 101, which turns it off there |
| stop | the same, as texts |
| stop_token_ids, stop_token_sequences | stop, as lists of ids |
| logprobs=N | logprobs=true, top_logprobs=N |
| constraint json_object, json_schema | response_format |
| template options enable_thinking, thinking_budget | the same |
| continue_final | partial=true at the last message |
| adapter | the name of the model |
| all else, and a prompt of token ids | cannot be said: refused |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwenkit.backends.openai_wire import json_form, read_logprobs
from qwenkit.backends.thought_tags import ThoughtTags
from qwenkit.core.errors import InputError, RemoteError
from qwenkit.core.types import (
    Delta,
    FinishReason,
    Message,
    Request,
    SamplingParams,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

PATH = "services/aigc/text-generation/generation"
"""Below that of the API."""
_PLAIN = ("max_tokens", "temperature", "top_p", "repetition_penalty", "presence_penalty", "seed")
_OPTIONS = ("enable_thinking", "thinking_budget")
_LAST_TOP_K = 100
_UNSAYABLE: dict[str, tuple[object, ...]] = {
    "min_tokens": (0,),
    "min_p": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": ({},),
    "bad_words": ((),),
    "allowed_token_ids": (None,),
    "ignore_eos": (False,),
    "include_stop": (False,),
    "skip_special_tokens": (True,),
    "prompt_logprobs": (None,),
}
"""Settings that DashScope has no words for, with the values that say nothing."""


def encode(request: Request, model: str) -> dict[str, Any]:
    """The body that asks for a request, streaming.

    Raises:
        InputError: it holds something that DashScope has no words for.
    """
    if not request.prompt:
        raise InputError("an empty prompt cannot be answered; give at least one message")
    messages = [m.to_dict() for m in request.prompt if isinstance(m, Message)]
    if not messages:
        raise InputError("DashScope answers messages, not token ids; chat with the model instead")
    if request.continue_final:
        messages[-1]["partial"] = True
    parameters: dict[str, Any] = {"result_format": "message", "incremental_output": True}
    parameters |= _sampling(request.params)
    if request.tools:
        parameters["tools"] = [tool.to_dict() for tool in request.tools]
    for name, value in request.template_options.items():
        if name not in _OPTIONS:
            raise InputError(
                f"the template option {name} cannot be sent to DashScope, only {' and '.join(_OPTIONS)}; leave it out"
            )
        parameters[name] = value
    return {
        "model": request.adapter or model,
        "input": {"messages": messages},
        "parameters": parameters,
    }


def _sampling(params: SamplingParams) -> dict[str, Any]:
    for name, silent in _UNSAYABLE.items():
        value = getattr(params, name)
        if value not in silent:
            raise InputError(f"{name}={value!r:.80} cannot be sent to DashScope; leave it out")
    if params.max_tokens == 0:
        raise InputError("max_tokens=0 cannot be sent to DashScope; use 1")
    body = {name: value for name in _PLAIN if (value := getattr(params, name)) is not None}
    if params.n != 1:
        body["n"] = params.n
    if params.top_k is not None:
        if params.top_k > _LAST_TOP_K:
            raise InputError(
                f"top_k={params.top_k} cannot be sent to DashScope, where more than {_LAST_TOP_K} means all; "
                f"use 0 for all, or at most {_LAST_TOP_K}"
            )
        body["top_k"] = params.top_k or _LAST_TOP_K + 1
    if params.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": params.logprobs}
    return body | _stop(params) | _constraint(params)


def _stop(params: SamplingParams) -> dict[str, Any]:
    runs = [[i] for i in params.stop_token_ids] + [list(run) for run in params.stop_token_sequences]
    if runs and params.stop:
        raise InputError("stop and token ids that end a reply cannot be sent to DashScope together; use stop")
    stops: list[Any] = runs or list(params.stop)
    return {"stop": stops} if stops else {}


def _constraint(params: SamplingParams) -> dict[str, Any]:
    constraint = params.constraint
    if constraint is None:
        return {}
    form = json_form(constraint)
    if form is None:
        raise InputError(f"a {constraint.kind} constraint cannot be sent to DashScope; use a JSON schema")
    return {"response_format": form}


class ReplyReader:
    """Turns the events of one streamed answer into deltas.

    A reply's last delta comes once its token counts are known, which is at the end of the stream.

    Args:
        num_samples: replies that were asked for.
        inline_reasoning: thought comes as text between <think> tags, as a model here writes it.
    """

    def __init__(self, *, num_samples: int = 1, inline_reasoning: bool = False) -> None:
        self._samples = [_Sample(i, inline_reasoning=inline_reasoning) for i in range(num_samples)]

    @property
    def is_complete(self) -> bool:
        """Whether every reply has said why it ended."""
        return all(s.reason is not None for s in self._samples)

    def push(self, event: Mapping[str, Any]) -> Iterator[Delta]:
        """What is new with one event.

        Raises:
            RemoteError: it has another shape than DashScope's.
        """
        try:
            output = event["output"]
            choices = output.get("choices") or _text_choices(output)
            for choice in choices or ([{}] if len(self._samples) == 1 else []):
                sample = self._samples[choice.get("index") or 0]
                sample.usage = event.get("usage") or sample.usage
                yield from sample.push(choice)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise RemoteError(
                f"an event of the server is not as DashScope says ({type(error).__name__}: {error}): {event!r:.200}"
            ) from None

    def finish(self) -> Iterator[Delta]:
        """The last delta of every reply.

        Raises:
            RemoteError: a reply has not ended.
        """
        if not self.is_complete:
            raise RemoteError("the server ended its answer without a finish_reason; ask again")
        for sample in self._samples:
            yield sample.last()


def _text_choices(output: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The older form of an answer, which some models still give, in the newer one."""
    if output.get("text") is None and output.get("finish_reason") is None:
        return []
    message = {"content": output.get("text"), "reasoning_content": output.get("reasoning_content")}
    return [{"message": message, "finish_reason": output.get("finish_reason")}]


class _Sample:
    """One of the replies of an answer."""

    def __init__(self, index: int, *, inline_reasoning: bool) -> None:
        self.index = index
        self.reason: FinishReason | None = None
        self.usage: Mapping[str, Any] = {}
        self._news = _News()
        self._tags = ThoughtTags() if inline_reasoning else None
        self._named: set[int] = set()
        self._count = 0

    def push(self, choice: Mapping[str, Any]) -> Iterator[Delta]:
        if not choice:
            return
        reason = choice.get("finish_reason")
        if reason not in (None, "", "null"):
            self.reason = "length" if reason == "length" else "stop"
        for piece in self._news.push(_piece_of(choice), is_last=self.reason is not None):
            delta = self._delta(piece)
            if delta is not None:
                yield delta

    def _delta(self, piece: _Piece) -> Delta | None:
        text, reasoning = piece.texts["content"], piece.texts["reasoning_content"]
        calls = tuple(self._calls(piece))
        if not (text or reasoning or calls or piece.logprobs):
            return None
        self._count += 1
        if self._tags is not None:
            text, reasoning = self._tags.join(text, reasoning), ""
        return Delta(
            index=0,
            sample=self.index,
            text=text,
            reasoning=reasoning,
            tool_calls=calls,
            logprobs=piece.logprobs,
        )

    def _calls(self, piece: _Piece) -> Iterator[ToolCallDelta]:
        """Names and ids come once, however often the server says them."""
        for index, (call_id, name) in piece.names.items():
            if index not in self._named:
                self._named.add(index)
                yield ToolCallDelta(index=index, id=call_id, name=name)
        for key, arguments in piece.texts.items():
            if key.startswith(_CALL) and arguments:
                yield ToolCallDelta(index=int(key.removeprefix(_CALL)), arguments=arguments)

    def last(self) -> Delta:
        """The end of the reply; as many tokens as the server counts, or else as many as pieces came."""
        details = self.usage.get("prompt_tokens_details") or {}
        generated = self.usage.get("output_tokens")
        return Delta(
            index=0,
            sample=self.index,
            text=self._tags.close() if self._tags is not None else "",
            finish_reason=self.reason,
            usage=Usage(
                prompt_tokens=self.usage.get("input_tokens") or 0,
                completion_tokens=self._count if generated is None else generated,
                cached_tokens=details.get("cached_tokens") or 0,
            ),
        )


_CALL = "call "


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one event says of a reply."""

    texts: dict[str, str]
    """What grows while a reply is made: thought, text and the arguments of each call."""
    names: dict[int, tuple[str | None, str]]
    """Id and name of each call."""
    logprobs: tuple[TokenLogprob, ...]

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing that could be said again."""
        return not (self.logprobs or any(self.texts.values()))

    def begins_with(self, other: _Piece) -> bool:
        """Whether it may be the other one and what came after it."""
        return self.logprobs[: len(other.logprobs)] == other.logprobs and all(
            self.texts.get(key, "").startswith(text) for key, text in other.texts.items()
        )


def _piece_of(choice: Mapping[str, Any]) -> _Piece:
    message = choice.get("message") or {}
    content = message.get("content") or ""
    if isinstance(content, list):  # parts, as of models that see
        content = "".join(part.get("text") or "" for part in content)
    texts = {"reasoning_content": message.get("reasoning_content") or "", "content": content}
    names: dict[int, tuple[str | None, str]] = {}
    for at, call in enumerate(message.get("tool_calls") or ()):
        index = at if call.get("index") is None else int(call["index"])
        function = call.get("function") or {}
        if function.get("name"):
            names[index] = (call.get("id") or None, function["name"])
        key = f"{_CALL}{index}"
        texts[key] = texts.get(key, "") + (function.get("arguments") or "")
    return _Piece(texts, names, read_logprobs(choice.get("logprobs")))


class _News:
    """What is new in a reply whose events hold either what is new or, as of some models, all so far.

    Which it is shows with the second event that says something, but not surely: text may begin as it began before.
    Such events wait for those that follow.
    """

    _ENOUGH = 3
    """Events that repeat what was before them and add to it; text that is new hardly ever does so by chance."""

    def __init__(self) -> None:
        self._repeats: bool | None = None
        """Whether every event holds all so far; None: not known yet."""
        self._before = _Piece({}, {}, ())
        self._said: dict[str, str] = {}
        self._num_logprobs = 0
        self._waiting: list[_Piece] = []
        self._num_grown = 0

    def push(self, piece: _Piece, *, is_last: bool) -> Iterator[_Piece]:
        """What can be told now; several pieces where some have waited."""
        if self._repeats is None and self._before.is_empty:
            yield self._tell(piece)
        else:
            self._waiting.append(piece)
            if self._repeats is None:
                self._judge(piece, is_last=is_last)
        self._before = piece
        if self._repeats is not None:
            waiting, self._waiting = self._waiting, []
            yield from map(self._tell, waiting)

    def _judge(self, piece: _Piece, *, is_last: bool) -> None:
        if not piece.begins_with(self._before):
            self._repeats = False
            return
        self._num_grown += piece != self._before
        if is_last or self._num_grown >= self._ENOUGH:
            self._repeats = True

    def _tell(self, piece: _Piece) -> _Piece:
        """A piece without what was said before."""
        if self._repeats is False:
            return piece
        texts = {key: text[len(self._said.get(key, "")) :] for key, text in piece.texts.items()}
        logprobs = piece.logprobs[self._num_logprobs :]
        self._said |= piece.texts
        self._num_logprobs += len(logprobs)
        return _Piece(texts, piece.names, logprobs)
