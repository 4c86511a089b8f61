"""Whether what is to be measured fits the model's context and the free memory, told from headers before any loading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qwenkit.bench.speed import Case
from qwenkit.cache.paged import PAGE_SIZE, page_bytes
from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import InputError
from qwenkit.kernels.cpu import available_memory
from qwenkit.weights.cache import format_size
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.memory import weights_bytes, workspace_bytes
from qwenkit.weights.traffic import step_weight_bytes

_SPARE_PAGES = 2
"""For each sequence: pages that one gives back must not be needed by another at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a model takes and what there is."""

    config: ModelConfig
    """With the context that is asked for."""
    weights_bytes: int
    unread_weight_bytes: int
    """What of the weights is not read for a token: an embedding that is not the output head as well."""
    page_bytes: int
    free_bytes: int | None
    """None: it cannot be told."""
    device: str

    @property
    def cache_bytes_per_token(self) -> float:
        """Of the key-value cache."""
        return self.page_bytes / PAGE_SIZE

    def cache_bytes(self, cases: Sequence[Case]) -> int:
        """A cache in which each of these cases has all its sequences at once."""
        return max(self._pages(case) for case in cases) * self.page_bytes

    @staticmethod
    def _pages(case: Case) -> int:
        return case.batch * (-(-case.length // PAGE_SIZE) + _SPARE_PAGES)

    def needed_bytes(self, case: Case) -> int:
        """Weights, cache and a step's numbers."""
        workspace = workspace_bytes(self.config, batch=case.batch, length=case.length)
        return self.weights_bytes + self._pages(case) * self.page_bytes + workspace

    def check(self, cases: Sequence[Case]) -> None:
        """Makes sure that all cases can run.

        Raises:
            InputError: one cannot; it says what could.
        """
        for case in cases:
            self._check_context(case)
        for case in cases:
            self._check_memory(case)

    def _check_context(self, case: Case) -> None:
        context = self.config.context_length
        if case.length <= context:
            return
        if case.kind == "generate":
            fits = f"{context - case.prompt_tokens} generated tokens fit"
        elif case.output_tokens >= context:
            fits = f"fewer than {context} output tokens are possible"
        else:
            fits = f"{context - case.output_tokens} fit"
        raise InputError(
            f"{_described(replace(case, batch=1))} make {case.length} tokens, the context holds {context}: "
            f"{fits}, or give max_context={case.length} if the model allows"
        )

    def _check_memory(self, case: Case) -> None:
        if self.free_bytes is None or self.needed_bytes(case) <= self.free_bytes:
            return
        needed, free = self.needed_bytes(case), self.free_bytes
        raise InputError(
            f"{_described(case)} need {format_size(needed)} ({format_size(self.weights_bytes)} of weights), {format_size(free)} are free "
            f"on {self.device}: {self._what_fits(case, free)}"
        )

    def _what_fits(self, case: Case, free: int) -> str:
        """Ways to make a case smaller."""
        batch, prompt, output = case.batch, case.prompt_tokens, case.output_tokens

        def fits(case: Case) -> bool:
            return self.needed_bytes(case) <= free

        ways = []
        if found := _largest(batch - 1, lambda n: fits(replace(case, batch=n))):
            ways.append(f"a batch of {found} fits")
        if found := _largest(prompt - 1, lambda n: fits(replace(case, prompt_tokens=n))):
            ways.append(f"{found} tokens of context fit")
        if case.kind == "generate" and (
            found := _largest(output - 1, lambda n: fits(replace(case, output_tokens=n)))
        ):
            ways.append(f"{found} generated tokens fit")
        return ", or ".join(ways) or "not even one token fits; use a smaller or a quantised model"


def read_room(
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    head: str = "auto",
    kv_cache: str = "auto",
    max_context: int | None = None,
) -> Room:
    """What a model takes, from its headers.

    Args:
        path: as ``fetch`` found it.
        device: where it will run.
        dtype: its type there.
        head: auto or int8.
        kv_cache: auto or int8.
        max_context: tokens of context to allow; None: as the model says.

    Raises:
        QwenkitError: the headers do not hold, or an option is not possible.
    """
    if kv_cache not in ("auto", "int8"):
        raise InputError(f"kv_cache={kv_cache!r} is not known; use auto or int8")
    if max_context is not None and max_context < 1:
        raise InputError(f"max_context={max_context} is not possible; use a whole number from 1 up")
    checkpoint = open_checkpoint(path)
    try:
        config, held = checkpoint.config, weights_bytes(checkpoint, dtype, head=head)
        if max_context is not None:
            config = replace(config, context_length=max_context)
        return Room(
            config=config,
            weights_bytes=held,
            unread_weight_bytes=held - step_weight_bytes(checkpoint, dtype, head=head),
            page_bytes=page_bytes(config, dtype, kv_cache == "int8"),
            free_bytes=_free(device),
            device=str(device),
        )
    finally:
        checkpoint.store.close()


def _free(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory() or None


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to ``most`` that fits, where smaller ones fit if larger ones do; 0: none."""
    low, high = 0, max(most, 0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _described(case: Case) -> str:
    if case.kind == "prefill":
        return f"a prompt of {case.prompt_tokens} and its first token"
    if case.kind == "generate":
        return f"{case.prompt_tokens} token of context and {case.output_tokens} generated ones"
    many = f"{case.batch} x " if case.batch > 1 else ""
    return f"{many}{case.prompt_tokens} tokens of context and {case.output_tokens} of output"
