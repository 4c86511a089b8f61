"""Fits a conversation into the history window, dropping the oldest turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qwenkit.chat.base import ChatTemplate
from qwenkit.core.errors import TemplateError
from qwenkit.core.types import Message, ToolSpec
from qwenkit.tokenizer.base import Tokenizer

_PROBE = (Message("user", "a"), Message("assistant", "b"))


def fit_history(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    max_window_size: int,
    *,
    tools: Sequence[ToolSpec] = (),
    **options: Any,
) -> list[Message]:
    """The messages without the oldest turns that do not fit into ``max_window_size`` tokens.

    A turn is a user message with all that follows up to the next one. Turns are kept from the newest on as long as
    the system text and the turns kept are together less than ``max_window_size``, and the first that does not fit
    ends it, as first-generation Qwen does. The system text and the last turn, which is the question, always stay,
    and the question is not counted.

    Raises:
        TemplateError: the conversation does not fit the template.
    """
    num_system = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    system, turns = list(messages[:num_system]), _turns(messages[num_system:])
    if len(turns) < 2:
        return list(messages)

    def count(part: Sequence[Message]) -> int:
        segments = template.render([*system, *part], tools=tools, add_generation_prompt=False, **options)
        return len(tokenizer.encode_segments(segments))

    used = _system_size(count, is_written_alone=bool(system) or template.default_system is not None)
    # a turn is measured with a question after it, because templates write the last turn in their own way
    after = [Message("user", "a")]
    bare = count(after)
    first_kept = len(turns) - 1
    while first_kept > 0:
        used += count([*turns[first_kept - 1], *after]) - bare
        if used >= max_window_size:
            break
        first_kept -= 1
    return system + [message for turn in turns[first_kept:] for message in turn]


def _turns(messages: Sequence[Message]) -> list[list[Message]]:
    turns: list[list[Message]] = []
    for message in messages:
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns


def _system_size(count: Callable[[Sequence[Message]], int], *, is_written_alone: bool) -> int:
    """Tokens of the system text; many templates write their own only where a conversation has turns."""
    if is_written_alone:
        try:
            return count(())
        except TemplateError:
            pass  # the template wants a turn as well
    return 2 * count(_PROBE) - count((*_PROBE, *_PROBE))
