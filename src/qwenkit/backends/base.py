"""The waist of the system: what every consumer (CLI, server, agents, evaluation) asks of every engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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


class Backend(Protocol):
    """Streams answers to a batch of requests and scores token ids."""

    @property
    def info(self) -> BackendInfo:
        """What runs here."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, or None when it is elsewhere or missing."""

    @property
    def template(self) -> ChatTemplate | None:
        """How messages become a prompt, or None when that happens elsewhere or is not known."""

    def stream(self, requests: Sequence[Request]) -> Iterator[Delta]:
        """Answers all requests together, in whatever order tokens come; closing the iterator aborts them.

        Raises:
            InputError: before the first delta, when any request cannot be honoured.
            NumericsError: logits hold NaN.
        """

    def logprobs(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each sequence the log-probability of every token but the first, given those before it."""

    def close(self) -> None:
        """Frees memory; the backend cannot be used afterwards."""
