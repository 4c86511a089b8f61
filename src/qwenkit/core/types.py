"""The words every layer shares: messages, sampling parameters, requests and what comes back.

Knows nothing of models, tokenizers or torch; importing it costs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from qwenkit.core.errors import InputError, did_you_mean
from qwenkit.core.sampling import Constraint as Constraint
from qwenkit.core.sampling import SamplingParams as SamplingParams

Role: TypeAlias = Literal["system", "user", "assistant", "tool", "function"]
FinishReason: TypeAlias = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A function the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """JSON schema of the arguments."""

    def to_dict(self) -> dict[str, Any]:
        """The OpenAI tool object."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call the model made; ``arguments`` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """What is new in one call while a reply streams: id and name come once, arguments in pieces after them."""

    index: int
    """Which call of the reply."""
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, in the roles of the OpenAI chat format."""

    role: Role
    content: str = ""
    _: dataclasses.KW_ONLY
    name: str | None = None
    reasoning: str | None = None
    """Thought text of a reasoning model, without its tags."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise InputError(f"message role {self.role!r} is unknown; use one of {', '.join(get_args(Role))}")
        if not isinstance(self.content, str):
            raise InputError(f"message content must be text, got {type(self.content).__name__}")

    def to_dict(self) -> dict[str, Any]:
        """The OpenAI message object, without empty fields."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.name:
            out["name"] = self.name
        if self.reasoning:
            out["reasoning_content"] = self.reasoning
        if self.tool_calls:
            out["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in self.tool_calls
            ]
        if self.tool_call_id:
            out["tool_call_id"] = self.tool_call_id
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        """Reads an OpenAI message object.

        Raises:
            InputError: a key is missing, unknown or of the wrong kind.
        """
        known = {"role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id"}
        if not isinstance(data, Mapping) or "role" not in data:
            raise InputError(f"a message needs the keys 'role' and 'content', got {data!r}")
        for key in data:
            if key not in known:
                raise InputError(f"message key {key!r} is unknown{did_you_mean(key, known)}")
        calls = []
        if not isinstance(data.get("tool_calls"), Sequence | None):
            raise InputError(f"message key 'tool_calls' must be a list, got {data['tool_calls']!r}")
        for call in data.get("tool_calls") or ():
            try:
                function = call["function"]
                calls.append(
                    ToolCall(id=call.get("id", ""), name=function["name"], arguments=function["arguments"])
                )
            except (KeyError, TypeError, AttributeError):
                raise InputError(f"tool call {call!r} needs function.name and function.arguments") from None
        content = data.get("content")
        return cls(
            data["role"],
            "" if content is None else content,
            name=data.get("name"),
            reasoning=data.get("reasoning_content"),
            tool_calls=tuple(calls),
            tool_call_id=data.get("tool_call_id"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt (messages, or token ids for raw completion) and how to answer it."""

    prompt: tuple[Message, ...] | tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    tools: tuple[ToolSpec, ...] = ()
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Extra variables for the chat template, e.g. enable_thinking=False of Qwen3."""
    continue_final: bool = False
    """The last message is the assistant's and is to be continued, not answered."""
    adapter: str | None = None
    """Name of the loaded LoRA adapter to answer with; None: the model itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = field(default=0, compare=False)
    """Tokens of the prompt that were found in the prefix cache; the same answer may have cost more or less."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability (natural logarithm, of the model's own distribution before any setting) of one token."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """Likeliest tokens with their log-probabilities, the likeliest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What is new in one request of a batch: text, the tokens behind it, and at the end why it ended."""

    index: int
    """Which request of the batch."""
    sample: int = 0
    """Which of the request's n replies."""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    """Set on the last delta of each reply, counting that reply alone."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per token of ``token_ids``, where asked for."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """One per token of the prompt, None for the first; on the first delta of a request, where asked for."""
    stop: str | int | None = None
    """The stop string or token id that ended the reply, if the request named it."""
    reasoning: str = ""
    """New thought text; only from a remote server that parses replies itself."""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    """New pieces of tool calls; only from a remote server that parses replies itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The whole answer to one request."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    stop: str | int | None = None
    reasoning: str = ""
    """Thought text; only from a remote server that parses replies itself."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls of tools; only from a remote server that parses replies itself."""
    others: tuple[Completion, ...] = ()
    """The second and later replies of a request with n above 1."""


def collect(deltas: Sequence[Delta]) -> Completion:
    """Joins the deltas of one request.

    Raises:
        InputError: the deltas end without a finish reason.
    """
    samples: dict[int, list[Delta]] = {}
    for delta in deltas:
        samples.setdefault(delta.sample, []).append(delta)
    replies = [_collect_sample(samples[sample]) for sample in sorted(samples)]
    if not replies:
        raise InputError("the reply was cut off before its end")
    return dataclasses.replace(replies[0], others=tuple(replies[1:])) if replies[1:] else replies[0]


def _collect_sample(deltas: Sequence[Delta]) -> Completion:
    last = deltas[-1]
    if last.finish_reason is None or last.usage is None:
        raise InputError("the reply was cut off before its end")
    return Completion(
        text="".join(d.text for d in deltas),
        token_ids=tuple(i for d in deltas for i in d.token_ids),
        finish_reason=last.finish_reason,
        usage=last.usage,
        logprobs=tuple(p for d in deltas for p in d.logprobs),
        prompt_logprobs=next((d.prompt_logprobs for d in deltas if d.prompt_logprobs is not None), None),
        stop=last.stop,
        reasoning="".join(d.reasoning for d in deltas),
        tool_calls=join_calls(piece for d in deltas for piece in d.tool_calls),
    )


def join_calls(pieces: Iterable[ToolCallDelta]) -> tuple[ToolCall, ...]:
    """The whole calls that pieces of them make."""
    calls: dict[int, list[ToolCallDelta]] = {}
    for piece in pieces:
        calls.setdefault(piece.index, []).append(piece)
    return tuple(
        ToolCall(
            id=next((p.id for p in of if p.id), ""),
            name=next((p.name for p in of if p.name), ""),
            arguments="".join(p.arguments for p in of),
        )
        for _, of in sorted(calls.items())
    )
