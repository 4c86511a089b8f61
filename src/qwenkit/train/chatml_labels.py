"""Which parts of a ChatML conversation carry loss, as the Qwen release trains. Knows nothing of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qwenkit.chat.chatml import ChatMLTemplate
from qwenkit.chat.react import write_as_react
from qwenkit.core.errors import TemplateError
from qwenkit.core.types import Message, ToolSpec
from qwenkit.train.pieces import Piece
from qwenkit.train.samples import has_calls

_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Noncharacters: Unicode keeps them for use inside a program."""
_SEGMENTS_OF_A_MESSAGE = 6
"""Start, role, line end, content, end, and the line end that the last message lacks in a prompt."""


def chatml_pieces(
    template: ChatMLTemplate,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    *,
    only_last: bool,
    structure_loss: bool,
    observation_loss: bool,
) -> list[list[Piece]]:
    """The sequences of a sample: one, or where tools are described before the question, one for each question.

    Args:
        template: of the model.
        messages: of the sample.
        tools: of the sample.
        only_last: only the last turn of the assistant carries loss.
        structure_loss: start, end and line end of every message carry loss; else only the end of a learnt reply.
        observation_loss: results of tools, which stand inside the assistant's turns, carry loss.

    Raises:
        TemplateError: the conversation does not fit the format.
    """
    if not tools and not has_calls(messages):
        return [_labelled(template, messages, {}, only_last=only_last, structure_loss=structure_loss)]
    ends = _ends_of_answers(messages)
    if not tools or only_last:
        ends = ends[-1:]
    return [
        _with_tools(
            template, messages[:end], tools, only_last or len(ends) > 1, structure_loss, observation_loss
        )
        for end in ends
    ]


def _ends_of_answers(messages: Sequence[Message]) -> list[int]:
    """After which messages an answer to a question is over: before the next question, or at the last reply."""
    last = max(n for n, message in enumerate(messages, 1) if message.role == "assistant")
    roles = [message.role for message in messages]
    later = [n for n in range(1, last) if roles[n] == "user" and roles[n - 1] not in ("system", "user")]
    return [*later, last]


def _with_tools(
    template: ChatMLTemplate,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    only_last: bool,
    structure_loss: bool,
    observation_loss: bool,
) -> list[Piece]:
    mark = _unused_mark(messages)
    written = write_as_react([_marked(m, mark) for m in messages], tools, for_reply=False)
    turns, silent = [], {}
    for turn in written.turns:
        text, spans = _unmarked(turn.content, mark)
        turns.append(replace(turn, content=text))
        if spans and not observation_loss:
            silent[len(turns) - 1 - len(written.turns)] = spans
    if written.system is not None:
        turns = [Message("system", written.system), *turns]
    return _labelled(template, turns, silent, only_last=only_last, structure_loss=structure_loss)


def _unused_mark(messages: Sequence[Message]) -> str:
    for mark in _MARKS:
        if not any(mark in m.content or any(mark in c.arguments for c in m.tool_calls) for m in messages):
            return mark
    raise TemplateError("the conversation uses every noncharacter from U+FDD0 to U+FDEF; remove them")


def _marked(message: Message, mark: str) -> Message:
    """A tool's result between two marks, as bare as it is written into the turn."""
    if message.role not in ("tool", "function"):
        return message
    return replace(message, content=mark + message.content.lstrip("\n").rstrip() + mark)


def _unmarked(text: str, mark: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text without marks, and where results stand in it with the blank before each.

    The words "Observation:" stay outside: the model writes them itself, and is stopped by them.
    """
    parts = text.split(mark)
    plain = "".join(parts).rstrip()
    spans, at = [], 0
    for n, part in enumerate(parts):
        if n % 2:
            spans.append((at - 1, min(at + len(part), len(plain))))
        at += len(part)
    return plain, tuple(span for span in spans if span[0] < span[1])


def _labelled(
    template: ChatMLTemplate,
    messages: Sequence[Message],
    silent: dict[int, tuple[tuple[int, int], ...]],
    *,
    only_last: bool,
    structure_loss: bool,
) -> list[Piece]:
    """The pieces of plain turns; ``silent`` names turns counted from the end."""
    segments = [*template.render(messages, add_generation_prompt=False), "\n"]
    starts = range(0, len(segments), _SEGMENTS_OF_A_MESSAGE)
    roles = [segments[at + 1] for at in starts]
    last = max(n for n, role in enumerate(roles) if role == "assistant")
    pieces = []
    for n, at in enumerate(starts):
        start, role, line_end, content, end, separator = segments[at : at + _SEGMENTS_OF_A_MESSAGE]
        is_learnt = role == "assistant" and (n == last or not only_last)
        structure = structure_loss and (is_learnt or not only_last)
        pieces += [
            Piece(start, structure),
            Piece(role, False),
            Piece(line_end, False),
            Piece(content, is_learnt, silent.get(n - len(roles), ())),
            Piece(end, structure or is_learnt),
            Piece(separator, structure),
        ]
    return pieces
