"""Leaves out the oldest turns of a conversation that is too long for the context. Knows no protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from qwenkit.backends.base import Backend
from qwenkit.core.types import Message
from qwenkit.server.conversation import ChatPlan, Conversation


def drop_oldest(wanted: Conversation, backend: Backend) -> Conversation:
    """The conversation without as many of its oldest turns as must go for prompt and reply to fit the context.

    A turn is a user's message with all that follows up to the next one. The system's text and the last turn stay. For
    the reply a quarter of the context is kept free, or as much as it may take, which is half at most. Runs in another
    thread.

    Raises:
        QwenkitError: the conversation does not fit the template.
    """
    if backend.template is None or backend.tokenizer is None:
        return wanted
    context = backend.info.context_length
    reply = wanted.params.max_tokens
    room = context - min(context // 4 if reply is None else reply + 1, context // 2)
    num_system = next((i for i, m in enumerate(wanted.messages) if m.role != "system"), len(wanted.messages))
    system, rest = wanted.messages[:num_system], wanted.messages[num_system:]
    starts = [i for i, message in enumerate(rest) if i == 0 or message.role == "user"]

    def without(number: int) -> Conversation:
        return dataclasses.replace(wanted, messages=(*system, *_from(rest, starts, number)))

    low, high = 0, max(len(starts) - 1, 0)  # the fewest that must go is between
    while low < high:
        middle = (low + high) // 2
        if ChatPlan(without(middle), backend).count_tokens() <= room:
            high = middle
        else:
            low = middle + 1
    return without(low)


def _from(messages: Sequence[Message], starts: Sequence[int], number: int) -> Sequence[Message]:
    return messages[starts[number] :] if number else messages
