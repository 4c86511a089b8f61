"""The waist of the system: what every consumer (CLI, server, agents, evaluation) asks of every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from qwenkit.chat.template import ChatTemplate
from qwenkit.core.types import Delta, Request, SamplingParams
from qwenkit.tokenizer.base import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """What a backend runs, for people and programs."""

    model: str
    """Name or path as the user gave it."""
    family: str
    context_length: int
    """Most tokens of prompt and reply together."""
    vocab_size: int
    dtype: str
    device: str
    can_chat: bool
    """Whether messages can be turned into a prompt."""
    max_window_size: int
    """Tokens of system text and history kept by a chat session (the query is not counted)."""
    defaults: SamplingParams
    """Sampling as the model's generation_config asks for."""
    details: dict[str, Any] = field(default_factory=dict)
    """Parameter count, load time, kernels in use and the like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counters of an engine since it started, and its state now."""

    running: int = 0
    waiting: int = 0
    pages: int = 0
    """Pages of the key-value cache in all."""
    pages_used: int = 0
    """Pages that live sequences hold."""
    pages_cached: int = 0
    """Pages kept for later prompts with the same beginning."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""
    preemptions: int = 0
    steps: int = 0
    proposed_tokens: int = 0
    """Tokens guessed by speculative decoding."""
    accepted_tokens: int = 0
    """Guesses that were right."""


Sink: TypeAlias = Callable[[Delta | BaseException], None]
"""Gets every delta of one request, and last either a delta with a finish reason for each of its n replies, or the
error that ended the request. Called from another thread; it must not block or raise."""


class Job(Protocol):
    """A request under way."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its prompt; 0 where only a remote server knows."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of its prompt that were in the prefix cache, as far as it is known."""

    def abort(self) -> None:
        """Ends it now and frees what it holds; no delta comes any more. Harmless when it is over."""


class Backend(Protocol):
    """Streams answers to requests and scores token ids."""

    @property
    def info(self) -> BackendInfo:
        """What runs here."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, or None when it is elsewhere or missing."""

    @property
    def template(self) -> ChatTemplate | None:
        """How messages become a prompt, or None when that happens elsewhere or is not known."""

    def submit(self, request: Request, sink: Sink) -> Job:
        """Starts one request and returns at once; safe to call from any thread. ``Delta.index`` is 0.

        Raises:
            InputError: the request cannot be honoured (PromptTooLongError among them).
            QueueFullError: too many requests wait already.
        """

    def stream(self, requests: Sequence[Request]) -> Iterator[Delta]:
        """Answers all requests together, in whatever order tokens come; closing the iterator aborts them.

        Raises:
            InputError: before the first delta, when any request cannot be honoured.
            NumericsError: logits hold NaN.
        """

    def logprobs(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each sequence the log-probability of every token but the first, given those before it."""

    def embed(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each sequence the mean over its tokens of the network's last hidden states, of length 1 (L2 norm)."""

    def stats(self) -> EngineStats:
        """What the engine is doing."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that requests can choose."""

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Loads a PEFT adapter folder under a name.

        Raises:
            InputError: the name is taken.
            QwenkitError: the folder cannot be read or does not fit the model.
        """

    def unload_adapter(self, name: str) -> None:
        """Forgets an adapter; requests that use it run to their end.

        Raises:
            InputError: there is none of that name.
        """

    def close(self) -> None:
        """Frees memory; the backend cannot be used afterwards."""
