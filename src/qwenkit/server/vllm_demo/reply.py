"""Continued texts as vLLM's demo server shows them: each time the whole texts, prompts included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwenkit.core.types import Delta
from qwenkit.server.errors import ApiError
from qwenkit.server.generation import Generation
from qwenkit.server.sse import to_json
from qwenkit.server.token_text import finite


def error_body(error: ApiError, request_id: str) -> bytes:
    """The body of an error; the id of the request is in a header already."""
    return to_json({"detail": error.message})


class _Texts:
    """All continuations of a prompt, which each of them begins with."""

    def __init__(self, prompt: str, generation: Generation) -> None:
        count = generation.requests[0].params.n
        self._pieces: list[list[str]] = [[prompt] for _ in range(count)]
        self._scores = [0.0] * count

    def push(self, deltas: Sequence[tuple[int, Delta]]) -> None:
        """Takes what is new."""
        for _, delta in deltas:
            self._pieces[delta.sample].append(delta.text)
            self._scores[delta.sample] += sum(finite(p.logprob) for p in delta.logprobs)

    def value(self, count: int) -> dict[str, Any]:
        """So many of the texts: the likeliest where there are more."""
        order = range(len(self._pieces))
        best = order if count == len(order) else sorted(order, key=lambda n: -self._scores[n])[:count]
        return {"text": ["".join(self._pieces[n]) for n in best]}


class DemoCollector:
    """A whole answer.

    Args:
        prompt: what texts begin with.
        count: how many to show.
        generation: makes them.
    """

    def __init__(self, prompt: str, count: int, generation: Generation) -> None:
        self._count, self._texts = count, _Texts(prompt, generation)

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> None:
        """See Collector."""
        self._texts.push(deltas)

    def value(self) -> dict[str, Any]:
        """See Collector."""
        return self._texts.value(self._count)


class DemoEncoder:
    """A stream: the texts so far, again and again.

    Args:
        prompt: what texts begin with.
        delimiter: ends each of its values.
        generation: makes the texts.
    """

    def __init__(self, prompt: str, delimiter: bytes, generation: Generation) -> None:
        self._delimiter, self._texts = delimiter, _Texts(prompt, generation)
        self._count = generation.requests[0].params.n

    def opening(self) -> bytes:
        """See Encoder."""
        return b""

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> bytes:
        """See Encoder."""
        self._texts.push(deltas)
        return to_json(self._texts.value(self._count)) + self._delimiter

    def closing(self) -> bytes:
        """See Encoder."""
        return b""

    def failure(self, error: ApiError) -> bytes:
        """See Encoder."""
        return error_body(error, "") + self._delimiter
