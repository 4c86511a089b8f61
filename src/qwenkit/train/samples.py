"""One training sample, and what every sample must hold whichever format it came in. Knows nothing of files or tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from qwenkit.chat.tools import results_in_order
from qwenkit.core.errors import InputError, TemplateError
from qwenkit.core.types import Message, ToolSpec


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation to learn from, or a plain text."""

    messages: tuple[Message, ...]
    """Empty for a plain text."""
    tools: tuple[ToolSpec, ...] = ()
    source: str = ""
    """Where it stands, such as ``chats.jsonl:17`` or ``chats.json, sample 12``."""
    text: str | None = None
    """A plain text for a base model, learnt whole."""
    dropped_turns: int = 0
    """Turns of the assistant before the first of the user, which were left out."""


def conversation(
    messages: Sequence[Message],
    tools: Sequence[ToolSpec] = (),
    *,
    source: str = "",
    system: str | None = None,
) -> Sample:
    """A sample of messages, after checking that something can be learnt from them.

    Turns of the assistant before the first of the user are dropped, as the Qwen release does.

    Args:
        messages: oldest first.
        tools: functions that the assistant may call.
        source: where the sample stands.
        system: a system text that the sample brings besides its messages.

    Raises:
        InputError: no turn, none of the assistant, a system message in the middle or two of them, a tool result
            without its call.
    """
    if not messages:
        raise InputError("the conversation is empty; it needs a turn of the user and one of the assistant")
    has_own = messages[0].role == "system"
    if has_own and system is not None:
        raise InputError("the sample has a system message and the key 'system'; keep one of them")
    first = [messages[0]] if has_own else [] if system is None else [Message("system", system)]
    turns = list(messages[1:] if has_own else messages)
    late = next((n for n, turn in enumerate(turns, 1 + has_own) if turn.role == "system"), None)
    if late is not None:
        raise InputError(f"turn {late} is a system message; only the first may be one")
    try:
        turns = results_in_order(turns)
    except TemplateError as error:
        raise InputError(str(error)) from None
    start = next((n for n, turn in enumerate(turns) if turn.role == "user"), len(turns))
    kept = turns[start:]
    if not any(turn.role == "assistant" for turn in kept):
        raise InputError(
            "no turn of the assistant answers one of the user, so there is nothing to learn; remove the sample"
        )
    return Sample((*first, *kept), tuple(tools), source, None, start)


def has_calls(messages: Sequence[Message]) -> bool:
    """Whether a conversation holds calls of tools or their results."""
    return any(m.tool_calls or m.role in ("tool", "function") for m in messages)


def hold_out(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Parts samples into those to learn from and those to measure on, both in the order they came.

    Args:
        samples: two or more.
        share: of samples to measure on, above 0 and below 1; at least one is held out and one is kept.
        seed: which ones.

    Raises:
        InputError: fewer than two samples, or an impossible share.
    """
    if not 0 < share < 1:
        raise InputError(f"the share of samples to hold out must lie between 0 and 1, got {share}")
    if len(samples) < 2:
        raise InputError(f"{len(samples)} sample cannot be parted into two sets; give more data")
    count = min(max(1, round(len(samples) * share)), len(samples) - 1)
    held = set(random.Random(seed).sample(range(len(samples)), count))
    kept = [sample for n, sample in enumerate(samples) if n not in held]
    return kept, [samples[n] for n in sorted(held)]
