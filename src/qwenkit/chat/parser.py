"""Takes replies apart into content, thought and tool calls, at once or while they stream.

Which format calls have is the template's to say; thoughts come first and are split off before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenkit.chat.base import ChatTemplate
from qwenkit.chat.reasoning import ReasoningSplitter
from qwenkit.chat.reply import NewId, ReplyDelta, ReplyParser, collect_reply, new_call_id
from qwenkit.core.types import Message, ToolSpec

__all__ = ["ReplyDelta", "ReplyParser", "collect_reply", "new_call_id", "parse_reply", "reply_parser"]


def reply_parser(
    template: ChatTemplate | None,
    *,
    tools: Sequence[ToolSpec] = (),
    reasoning: bool = False,
    starts_in_thought: bool = False,
    parallel: bool = True,
    new_id: NewId = new_call_id,
) -> ReplyParser:
    """A parser for a reply that streams.

    Args:
        template: how the model writes; None (a remote server that parses itself) knows no calls.
        tools: the tools offered; without any, no text is read as a call.
        reasoning: split off a thought in ``<think>`` tags.
        starts_in_thought: the prompt ended inside the thought (see `reasoning.opens_thought`); implies ``reasoning``.
        parallel: report all calls; else the reply ends with its first call and what follows is dropped.
        new_id: makes the ids of calls.
    """
    return _parser(template, tools, reasoning, starts_in_thought, parallel, new_id, is_whole=False)


def parse_reply(
    text: str,
    template: ChatTemplate | None,
    *,
    tools: Sequence[ToolSpec] = (),
    reasoning: bool = False,
    starts_in_thought: bool = False,
    parallel: bool = True,
    new_id: NewId = new_call_id,
) -> Message:
    """The message that a whole reply stands for; arguments as for `reply_parser`."""
    parser = _parser(template, tools, reasoning, starts_in_thought, parallel, new_id, is_whole=True)
    return collect_reply([*parser.push(text), *parser.finish()])


def _parser(
    template: ChatTemplate | None,
    tools: Sequence[ToolSpec],
    reasoning: bool,
    starts_in_thought: bool,
    parallel: bool,
    new_id: NewId,
    *,
    is_whole: bool,
) -> ReplyParser:
    parser: ReplyParser = _PlainParser()
    if template is not None and tools:
        parser = template.tool_format.parser(parallel=parallel, new_id=new_id, is_whole=is_whole)
    if reasoning or starts_in_thought:
        return _ReasoningParser(parser, ReasoningSplitter(starts_in_thought=starts_in_thought))
    return parser


class _PlainParser:
    """All is content."""

    called = False
    done = False

    def push(self, text: str) -> list[ReplyDelta]:
        return [ReplyDelta(content=text)] if text else []

    def finish(self) -> list[ReplyDelta]:
        return []


class _ReasoningParser:
    """Splits off the thought and hands the answer on."""

    def __init__(self, answer: ReplyParser, splitter: ReasoningSplitter) -> None:
        self._answer, self._splitter = answer, splitter

    @property
    def called(self) -> bool:
        return self._answer.called

    @property
    def done(self) -> bool:
        return self._answer.done

    def push(self, text: str) -> list[ReplyDelta]:
        return self._report(*self._splitter.push(text))

    def finish(self) -> list[ReplyDelta]:
        return [*self._report(*self._splitter.flush()), *self._answer.finish()]

    def _report(self, content: str, thought: str) -> list[ReplyDelta]:
        deltas = [ReplyDelta(reasoning=thought)] if thought else []
        return [*deltas, *self._answer.push(content)] if content else deltas
