"""Ends generation at runs of token ids, and hands generated tokens from one thread to another. Knows nothing of models."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer


class StopAtSequences(StoppingCriteria):
    """Ends each row whose newest ids, the prompt's included, are one of the given runs."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self._sequences = [torch.tensor(list(s), dtype=torch.int64) for s in sequences if len(s)]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(B, length) -> (B,), True for rows that end."""
        ended = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for sequence in self._sequences:
            if len(sequence) <= input_ids.shape[1]:
                tail = input_ids[:, -len(sequence) :]
                ended |= (tail == sequence.to(tail.device)).all(dim=-1)
        return ended


class TokenQueue(BaseStreamer, StoppingCriteria):
    """New tokens of one sequence, put in by `generate` and taken out by iterating in another thread."""

    def __init__(self) -> None:
        self._tokens: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._is_prompt, self._is_cancelled = True, False

    def put(self, value: Tensor) -> None:
        """Takes the prompt first, which is passed over, and then new tokens."""
        if self._is_prompt:
            self._is_prompt = False
            return
        for token_id in value.flatten().tolist():
            self._tokens.put(token_id)

    def end(self) -> None:
        """No more tokens come."""
        self._tokens.put(None)

    def fail(self, error: BaseException) -> None:
        """No more tokens come, because of ``error``, which iterating raises."""
        self._tokens.put(error)

    def cancel(self) -> None:
        """Makes `generate`, which has this among its stopping criteria, end after the next token."""
        self._is_cancelled = True

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(B, length) -> (B,), True for all rows once cancelled."""
        return torch.full((input_ids.shape[0],), self._is_cancelled, device=input_ids.device)

    def __iter__(self) -> Iterator[int]:
        while (item := self._tokens.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
