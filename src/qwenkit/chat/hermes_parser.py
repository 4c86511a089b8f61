"""Reads replies with calls in ``<tool_call>`` tags while they stream.

The arguments go out as they come, in the model's own words; what turns out to be no call becomes content. Small
models' slips are forgiven: keys in another order, missing brackets and closing tags, several objects in one tag.
"""

from __future__ import annotations

import re

from qwenkit.chat.call_reader import CallReader
from qwenkit.chat.reasoning import overlap
from qwenkit.chat.reply import NewId, ReplyDelta
from qwenkit.core.types import ToolCallDelta

OPEN_TAG = "<tool_call>"
CLOSE_TAG = "</tool_call>"

_AFTER_CALL = " \t\r\n,]}"
"""What may stand between a call and its closing tag: commas and brackets of a list, and one bracket too many."""


class HermesParser:
    """A `ReplyParser`.

    Blanks around calls are dropped. Content after a call starts a new line. Whatever the text, nothing depends on
    how it was cut.
    """

    def __init__(self, *, parallel: bool, new_id: NewId) -> None:
        self._parallel, self._new_id = parallel, new_id
        self._held = ""
        self._state = "text"
        self._reader: CallReader | None = None
        self._opening = ""  # what stood before the object being read, to be given back if it is no call
        self._close_due = False  # a call was read whose closing tag has not come yet
        self._num_calls = 0
        self._blanks = ""  # the end of the content so far, until it is known whether more follows
        self._has_content, self._follows_call = False, False
        self._deltas: list[ReplyDelta] = []

    @property
    def called(self) -> bool:
        """Whether a tool call was reported."""
        return self._num_calls > 0

    @property
    def done(self) -> bool:
        """Whether one call was to be reported and has been."""
        return self._state == "done"

    def push(self, text: str) -> list[ReplyDelta]:
        """See `ReplyParser.push`."""
        self._held += text
        before = None
        while before != (self._state, len(self._held)):
            before = (self._state, len(self._held))
            getattr(self, f"_read_{self._state}")()
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish(self) -> list[ReplyDelta]:
        """See `ReplyParser.finish`."""
        if self._reader is not None:
            self._report(self._reader.finish())
            if not self._reader.is_reported:
                self._say(self._opening + self._reader.raw)
        elif self._state == "text":
            self._say(self._held)
        if not self.called and self._blanks:
            self._deltas.append(ReplyDelta(content=self._blanks))
        deltas, self._deltas = self._deltas, []
        return deltas

    def _read_text(self) -> None:
        tags = [OPEN_TAG, CLOSE_TAG] if self._close_due else [OPEN_TAG]
        found = re.search("|".join(tags), self._held)
        if found is None:
            safe = len(self._held) - max(overlap(self._held, tag) for tag in tags)
            self._say(self._held[:safe])
            self._held = self._held[safe:]
            return
        self._say(self._held[: found.start()])
        self._held = self._held[found.end() :]
        self._close_due = False
        if found.group() == OPEN_TAG:
            self._open(OPEN_TAG)

    def _open(self, opening: str) -> None:
        self._state, self._opening = "call", opening
        self._reader = CallReader(self._num_calls, self._new_id)

    def _read_call(self) -> None:
        reader = self._reader
        if reader is None or not self._held:
            return
        text, self._held = self._held, ""
        self._report(reader.push(text))
        if not reader.is_over:
            return
        self._held, self._reader = reader.rest, None
        if reader.is_reported:
            self._state = "after" if self._parallel else "done"
            self._close_due = True
        else:
            self._state = "text"
            self._say(self._opening + reader.raw)

    def _read_after(self) -> None:
        self._held = self._held.lstrip(_AFTER_CALL)
        if not self._held:
            return
        if self._held[0] == "{":
            self._open("")
        elif not any(tag.startswith(self._held) for tag in (OPEN_TAG, CLOSE_TAG)):
            self._state = "text"  # finds the tag, if it is one

    def _read_done(self) -> None:
        self._held = ""

    def _report(self, parts: list[ToolCallDelta]) -> None:
        for part in parts:
            if part.id is not None:
                self._num_calls += 1
                self._blanks, self._follows_call = "", True
            self._deltas.append(ReplyDelta(tool_calls=(part,)))

    def _say(self, text: str) -> None:
        text = self._blanks + text
        body = text.rstrip()
        self._blanks = text[len(body) :]
        if not body:
            return
        if self._follows_call:
            body = ("\n" if self._has_content else "") + body.lstrip()
        self._has_content, self._follows_call = True, False
        self._deltas.append(ReplyDelta(content=body))
