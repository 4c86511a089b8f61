"""Backends without a model: fixed replies, or the prompt said back. They let every consumer be tested in milliseconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from qwenkit.backends.base import BackendInfo
from qwenkit.core.types import Delta, FinishReason, Message, Request, SamplingParams, Usage


class ScriptedBackend:
    """Answers request after request with the next text of a script, a few characters a delta.

    Args:
        replies: texts in order; the last one repeats.
        chunk: characters a delta.
    """

    def __init__(self, replies: Sequence[str], *, chunk: int = 3) -> None:
        self._replies = list(replies)
        self._chunk = chunk
        self.requests: list[Request] = []
        """Every request seen, for assertions."""

    @property
    def info(self) -> BackendInfo:
        """A made-up model with a 2,048-token context."""
        return BackendInfo(
            model="scripted",
            family="scripted",
            context_length=2048,
            vocab_size=256,
            dtype="none",
            device="none",
            can_chat=True,
            max_window_size=1024,
            defaults=SamplingParams(temperature=0.0, max_tokens=512),
        )

    @property
    def tokenizer(self) -> None:
        """There is none."""

    @property
    def template(self) -> None:
        """There is none."""

    def stream(self, requests: Sequence[Request]) -> Iterator[Delta]:
        """Yields the scripted replies, request by request; max_tokens counts characters, stop strings are honoured."""
        for index, request in enumerate(requests):
            reply = self._reply(request)
            self.requests.append(request)
            cuts = [at for s in request.params.stop if (at := reply.find(s)) >= 0]
            text = reply[: min(cuts, default=len(reply))]
            limit = request.params.max_tokens
            reason: FinishReason = "stop" if limit is None or len(text) <= limit else "length"
            text = text[:limit]
            for at in range(0, len(text), self._chunk):
                piece = text[at : at + self._chunk]
                yield Delta(index=index, text=piece, token_ids=tuple(piece.encode()))
            usage = Usage(prompt_tokens=len(request.prompt), completion_tokens=len(text))
            yield Delta(index=index, finish_reason=reason, usage=usage)

    def _reply(self, request: Request) -> str:
        return self._replies[min(len(self.requests), len(self._replies) - 1)]

    def logprobs(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Every token is equally likely among 256."""
        return [[-5.545177444479562] * max(len(ids) - 1, 0) for ids in token_ids]

    def close(self) -> None:
        """Nothing to free."""


class EchoBackend(ScriptedBackend):
    """Says the last message, or the token ids, back."""

    def __init__(self, *, chunk: int = 3) -> None:
        super().__init__([""], chunk=chunk)

    @property
    def info(self) -> BackendInfo:
        """As the scripted backend, named echo."""
        return dataclasses.replace(super().info, model="echo", family="echo")

    def _reply(self, request: Request) -> str:
        last = request.prompt[-1] if request.prompt else ""
        return last.content if isinstance(last, Message) else " ".join(map(str, request.prompt))
