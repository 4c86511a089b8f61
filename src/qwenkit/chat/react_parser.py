"""Reads replies in the ReAct format of first-generation Qwen while they stream.

What a text before ``Action:`` or ``Final Answer:`` is for is known only once one of them comes, so it is held back
until then, or to the end. Arguments, and a final answer, go out as they come.
"""

from __future__ import annotations

import re

from qwenkit.chat.reasoning import overlap
from qwenkit.chat.reply import NewId, ReplyDelta
from qwenkit.core.types import ToolCallDelta

_ACTION, _INPUT, _ANSWER = "\nAction:", "\nAction Input:", "\nFinal Answer: "
_OBSERVATION = "\nObservation:"
_THOUGHT = "Thought: "
_MARKERS = re.compile("|".join(map(re.escape, (_INPUT, _ACTION, _ANSWER))))


class ReActParser:
    """A `ReplyParser`.

    Of a whole reply, a call counts wherever it stands, and the answer is what follows the last ``Final Answer:``,
    as in the released server, which never streams calls. Of a streamed one, all that follows the first
    ``Final Answer:`` is the answer: it has been sent when anything else might come.
    """

    def __init__(self, *, new_id: NewId, is_whole: bool) -> None:
        self._new_id, self._is_whole = new_id, is_whole
        self._held = ""
        self._seen = 0  # how much of the text held was searched for markers
        self._action: int | None = None  # where the first "Action:" is
        self._can_call = True
        self._answer: int | None = None  # where the answer starts
        self._state = "undecided"
        self._has_arguments = False

    @property
    def called(self) -> bool:
        """Whether a tool call was reported."""
        return self._state in ("arguments", "done")

    @property
    def done(self) -> bool:
        """Whether the call is over: the observation is not the model's to write."""
        return self._state == "done"

    def push(self, text: str) -> list[ReplyDelta]:
        """See `ReplyParser.push`."""
        self._held += text
        deltas = self._decide() if self._state == "undecided" else []
        if self._state == "arguments":
            return deltas + self._read_arguments()
        if self._state == "answer":
            text, self._held = self._held, ""
            return [*deltas, ReplyDelta(content=text)] if text else deltas
        if self._state == "done":
            self._held = ""
        return deltas

    def finish(self) -> list[ReplyDelta]:
        """See `ReplyParser.finish`."""
        text, self._held = self._held, ""
        if self._state == "undecided":
            content = text[self._answer or 0 :]
            return [ReplyDelta(content=content)] if content else []
        if self._state == "arguments":
            return self._arguments(text.rstrip() if self._has_arguments else text.strip())
        return []

    def _decide(self) -> list[ReplyDelta]:
        """Searches what is new for markers, up to the one that decides what the reply is."""
        while found := _MARKERS.search(self._held, self._seen):
            self._seen = found.end()
            if found.group() == _ANSWER:
                self._answer = found.end()
                if not self._is_whole:
                    self._state, self._held = "answer", self._held[found.end() :]
                    return []
            elif not self._can_call:
                continue
            elif found.group() == _INPUT:
                name = "" if self._action is None else self._name(self._action, found.start())
                if name:
                    return self._call(name, found.end())
                self._can_call = False
            elif self._action is None:
                self._action = found.start()
        # a marker may have come in part; they all start with the one line end they have
        line_end = self._held.rfind("\n", max(self._seen, len(self._held) - len(_ANSWER)))
        self._seen = len(self._held) if line_end < 0 else line_end
        return []

    def _name(self, action: int, end: int) -> str:
        return self._held[action + len(_ACTION) : end].strip()

    def _call(self, name: str, end: int) -> list[ReplyDelta]:
        before = self._held[: self._action]
        content = before.partition(_THOUGHT)[2] if _THOUGHT in before else before
        self._state, self._held = "arguments", self._held[end:]
        call = ToolCallDelta(index=0, id=self._new_id(), name=name)
        return [*([ReplyDelta(content=content)] if content else []), ReplyDelta(tool_calls=(call,))]

    def _read_arguments(self) -> list[ReplyDelta]:
        """Passes on arguments without the blanks around them, which may be the last."""
        text, marker, _ = self._held.partition(_OBSERVATION)
        if marker:
            self._state, self._held = "done", ""
            return self._arguments(text.rstrip() if self._has_arguments else text.strip())
        body = text[: len(text) - overlap(text, _OBSERVATION)].rstrip()
        self._held = text[len(body) :]
        return self._arguments(body if self._has_arguments else body.lstrip())

    def _arguments(self, text: str) -> list[ReplyDelta]:
        self._has_arguments |= bool(text)
        return [ReplyDelta(tool_calls=(ToolCallDelta(index=0, arguments=text),))] if text else []
