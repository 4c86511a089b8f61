"""Which parts of a conversation written by a model's own template carry loss. Knows nothing of tokens.

A reply is what the template adds between the prompt the model would see (the turns before, with the assistant's turn
opened) and the conversation up to the reply. Both are rendered, and must be how the whole starts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, TypeAlias

from qwenkit.chat.base import ChatTemplate
from qwenkit.core.errors import TemplateError
from qwenkit.core.types import Message, ToolSpec
from qwenkit.tokenizer.base import Segment
from qwenkit.train.pieces import Piece

Position: TypeAlias = tuple[int, int]
"""A place in a list of segments: which segment, and how many of its characters come before; 0 for an id."""


def template_pieces(
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    *,
    only_last: bool,
    structure_loss: bool,
    control_ids: Collection[int],
    end_id: int | None,
    options: Mapping[str, Any],
) -> list[list[Piece]]:
    """The sequences of a sample: one, unless the template rewrites turns that others follow.

    A template may write an earlier turn in another way than it was when the model wrote it (Qwen3 drops thoughts).
    Such turns get a sequence of their own, which ends with them, so that every reply is learnt once, and just as the
    model would see and write it.

    Args:
        template: of the model.
        messages: of the sample.
        tools: of the sample.
        only_last: only the last turn of the assistant carries loss.
        structure_loss: special tokens, and line ends between them, carry loss as well.
        control_ids: the special tokens that no text contains.
        end_id: what ends a reply where the template writes no end after the last one.
        options: variables of the template.

    Raises:
        TemplateError: the template refuses the conversation, or writes replies in another way than it asks for them.
    """

    @cache
    def rendered(num: int, is_prompt: bool) -> list[Segment]:
        return template.render(messages[:num], tools=tools, add_generation_prompt=is_prompt, **options)

    replies = [n for n, message in enumerate(messages) if message.role == "assistant"]
    wanted = replies[-1:] if only_last else replies
    sequences: list[list[Piece]] = []
    stop = len(messages)
    while wanted:
        whole = rendered(stop, False)
        found: dict[int, tuple[Position, Position]] = {}
        for n in wanted:
            start, end = end_of_prefix(rendered(n, True), whole), end_of_prefix(rendered(n + 1, False), whole)
            if start is not None and end is not None:
                found[n] = (start, end)
        if found:
            sequences.append(_labelled(whole, list(found.values()), structure_loss, control_ids, end_id))
        elif stop == wanted[-1] + 1:
            raise TemplateError(
                f"the chat template writes message {stop}, a reply, in another way than it opens one, "
                "so that what is learnt cannot be told from what is given; use another template"
            )
        wanted = [n for n in wanted if n not in found]
        stop = wanted[-1] + 1 if wanted else 0
    return sequences[::-1]


def end_of_prefix(part: Sequence[Segment], whole: Sequence[Segment]) -> Position | None:
    """Where ``part`` ends in ``whole``, if that starts with it."""
    if len(part) > len(whole):
        return None
    if not part:
        return (0, 0)
    k = len(part) - 1
    if list(part[:k]) != list(whole[:k]):
        return None
    last, there = part[k], whole[k]
    if last == there:
        return (k + 1, 0)
    if isinstance(last, str) and isinstance(there, str) and there.startswith(last):
        return (k, len(last))
    return None


def _labelled(
    whole: Sequence[Segment],
    replies: Sequence[tuple[Position, Position]],
    structure_loss: bool,
    control_ids: Collection[int],
    end_id: int | None,
) -> list[Piece]:
    cuts: dict[int, set[int]] = {}
    learnt: list[tuple[Position, Position]] = []
    for start, end in replies:
        end = _end_of_reply(start, end, whole, control_ids)
        learnt.append((start, end))
        for k, at in (start, end):
            cuts.setdefault(k, set()).add(at)
    pieces = []
    for k, segment in enumerate(whole):
        is_structure = structure_loss and (
            segment in control_ids if isinstance(segment, int) else segment.isspace()
        )
        for at, part in _parts(segment, cuts.get(k, set())):
            has_loss = any(start <= (k, at) < end for start, end in learnt)
            pieces.append(Piece(part, has_loss or is_structure))
    is_open = learnt[-1][1] == (len(whole), 0) and not (
        isinstance(whole[-1], int) and whole[-1] in control_ids
    )
    if is_open and end_id is not None:
        pieces.append(Piece(end_id, True))
    return pieces


def _parts(segment: Segment, cuts: Collection[int]) -> list[tuple[int, Segment]]:
    """A segment cut at places, each part with its place."""
    if isinstance(segment, int):
        return [(0, segment)]
    places = [0, *sorted(at for at in cuts if 0 < at < len(segment)), len(segment)]
    return [(a, segment[a:b]) for a, b in pairwise(places)]


def _end_of_reply(
    start: Position, end: Position, whole: Sequence[Segment], control_ids: Collection[int]
) -> Position:
    """Where loss ends: after the reply's end token, without the line end that templates write behind it.

    Some templates write the end token only when another message follows.
    """

    def is_control(k: int) -> bool:
        return 0 <= k < len(whole) and isinstance(whole[k], int) and whole[k] in control_ids

    k, at = end
    last = k if at else k - 1  # the segment that the reply ends in
    tail = whole[last]
    if isinstance(tail, int):
        return end
    if (tail[:at] if at else tail).isspace() and is_control(last - 1) and start < (last, 0):
        return (last, 0)
    return (k + 1, 0) if not at and is_control(k) else end
