"""Leaving out the oldest turns: as few as possible, never the system's text or the last turn."""

from __future__ import annotations

import pytest

from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.core.types import Message, SamplingParams
from qwenkit.server.conversation import ChatPlan, Conversation
from qwenkit.server.truncation import drop_oldest
from tests.support.http import scripted


def conversation(num_turns: int, *, length: int = 100, max_tokens: int | None = None) -> Conversation:
    turns = [Message(role, f"{n}{'x' * length}") for n in range(num_turns) for role in ("user", "assistant")]
    messages = (Message("system", "Be brief."), *turns[:-1])
    return Conversation(messages=messages, params=SamplingParams(max_tokens=max_tokens))


@pytest.mark.parametrize("num_turns", [1, 2, 5, 6, 7, 12, 40])
@pytest.mark.parametrize("max_tokens", [None, 1, 500, 5000])
def test_as_few_as_possible(num_turns: int, max_tokens: int | None) -> None:
    backend = scripted()
    wanted = conversation(num_turns, max_tokens=max_tokens)
    room = 2048 - min(512 if max_tokens is None else max_tokens + 1, 1024)
    cut = drop_oldest(wanted, backend)
    assert cut.messages[0] == wanted.messages[0]
    rest = cut.messages[1:]
    assert rest == wanted.messages[len(wanted.messages) - len(rest) :]
    assert rest[0].role == "user"
    assert ChatPlan(cut, backend).count_tokens() <= room
    if len(rest) < len(wanted.messages) - 1:
        longer = Conversation(messages=wanted.messages[-len(rest) - 2 :], params=wanted.params)
        assert ChatPlan(longer, backend).count_tokens() + len("system\nBe brief.\n") + 2 > room


def test_the_last_turn_stays_whatever_its_length() -> None:
    wanted = conversation(3, length=5000)
    assert drop_oldest(wanted, scripted()).messages == (wanted.messages[0], wanted.messages[-1])


def test_nothing_is_left_out_where_nothing_can_be_counted() -> None:
    wanted = conversation(40)
    assert drop_oldest(wanted, ScriptedBackend(["x"])) is wanted
