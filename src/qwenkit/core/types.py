"""The words every layer shares: messages, sampling parameters, requests and what comes back.

Knows nothing of models, tokenizers or torch; importing it costs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from qwenkit.core.errors import InputError, did_you_mean

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
class SamplingParams:
    """How to pick tokens and when to stop. ``None`` means: as the model's generation_config says."""

    max_tokens: int | None = None
    """Most tokens to generate; None: up to the end of the context."""
    temperature: float | None = None
    """0 picks the most likely token; higher is more random."""
    top_k: int | None = None
    """Sample among the k most likely tokens; 0 turns it off."""
    top_p: float | None = None
    """Sample among the smallest set whose probability reaches top_p."""
    min_p: float | None = None
    """Drop tokens less likely than min_p times the most likely one."""
    repetition_penalty: float | None = None
    """Divide positive, multiply negative logits of tokens already seen; 1 turns it off."""
    seed: int | None = None
    """Makes sampling repeatable, whatever else runs in the batch."""
    stop: tuple[str, ...] = ()
    """Texts that end the reply; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the reply, besides the model's own."""
    stop_token_sequences: tuple[tuple[int, ...], ...] = ()
    """Runs of token ids that end the reply when they are its tail (stop_words_ids of Qwen v1)."""
    ignore_eos: bool = False
    """Go on after the model's end tokens; explicit stops still count."""

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        stop: Any = self.stop
        set_(self, "stop", (stop,) if isinstance(stop, str) else _items("stop", stop))
        set_(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        sequences = _items("stop_token_sequences", self.stop_token_sequences)
        set_(self, "stop_token_sequences", tuple(_token_ids("stop_token_sequences", s) for s in sequences))
        if any(not isinstance(s, str) or not s for s in self.stop):
            raise InputError(f"stop={self.stop!r}: every stop string must be non-empty text")
        if any(not s for s in self.stop_token_sequences):
            raise InputError("stop_token_sequences holds an empty sequence; remove it")
        _check_whole("max_tokens", self.max_tokens, 1)
        _check_whole("top_k", self.top_k, 0)
        _check_whole("seed", self.seed, 0, 2**63 - 1)
        _check_range("temperature", self.temperature, 0.0, 100.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)

    def over(self, defaults: SamplingParams) -> SamplingParams:
        """These settings, with ``defaults`` where a field is None; stops of both apply."""
        values: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            mine, theirs = getattr(self, item.name), getattr(defaults, item.name)
            if isinstance(mine, tuple):
                values[item.name] = tuple(dict.fromkeys(mine + theirs))
            else:
                values[item.name] = theirs if mine is None else mine
        return SamplingParams(**values)

    @property
    def is_greedy(self) -> bool:
        """True when the most likely token is always taken."""
        return self.temperature == 0 or self.top_k == 1


def _items(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InputError(f"{name}={value!r} is not possible; use a list")
    return tuple(value)


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    ids = _items(name, value)
    bad = next((i for i in ids if isinstance(i, bool) or not isinstance(i, int)), None)
    if bad is not None:
        raise InputError(f"{name} holds {bad!r}; use token ids, which are whole numbers")
    return ids


def _check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    if value is None:
        return
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or value < low
        or (high is not None and value > high)
    ):
        allowed = f"a whole number from {low}" + (f" to {high}" if high is not None else " up")
        raise InputError(f"{name}={value!r} is not possible; use {allowed}")


def _check_range(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # NaN fails the comparison, as does infinity.
    if not number or not low <= value <= high or (open_low and value == low):  # type: ignore[operator]
        bound = f"above {low:g} and at most {high:g}" if open_low else f"from {low:g} to {high:g}"
        raise InputError(f"{name}={value!r} is not possible; use a number {bound}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt (messages, or token ids for raw completion) and how to answer it."""

    prompt: tuple[Message, ...] | tuple[int, ...]
    params: SamplingParams = SamplingParams()
    tools: tuple[ToolSpec, ...] = ()
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Extra variables for the chat template, e.g. enable_thinking=False of Qwen3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What is new in one request of a batch: text, the tokens behind it, and at the end why it ended."""

    index: int
    """Which request of the batch."""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    """Set on the last delta."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The whole answer to one request."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage


def collect(deltas: Sequence[Delta]) -> Completion:
    """Joins the deltas of one request.

    Raises:
        InputError: the deltas end without a finish reason.
    """
    last = deltas[-1] if deltas else None
    if last is None or last.finish_reason is None or last.usage is None:
        raise InputError("the reply was cut off before its end")
    return Completion(
        text="".join(d.text for d in deltas),
        token_ids=tuple(i for d in deltas for i in d.token_ids),
        finish_reason=last.finish_reason,
        usage=last.usage,
    )
