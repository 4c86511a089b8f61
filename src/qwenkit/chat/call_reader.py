"""Reads one JSON object ``{"name": ..., "arguments": ...}`` as its text arrives, and passes the arguments on.

Reads no further than it must and forgives what it can; knows nothing of what stands around the object.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from qwenkit.chat.reply import NewId
from qwenkit.core.types import ToolCallDelta
from qwenkit.tokenizer.base import replace_surrogates

_BLANKS = " \t\r\n"
_ARGUMENT_KEYS = ("arguments", "parameters")
_STRUCTURE = re.compile(r'["{}\[\]<]')
_STRING_END = re.compile(r'["\\]')
_SCALAR_END = re.compile(r"[,}\]\s<]")


class CallReader:
    """One call; it counts as one as soon as its name is known and its arguments have begun."""

    def __init__(self, index: int, new_id: NewId) -> None:
        self._index, self._new_id = index, new_id
        self.is_over = False
        """Whether the object ended, or turned out not to be a call."""
        self.is_reported = False
        """Whether the call was reported; if not, `raw` is plain text."""
        self.raw = ""
        """The text read, until the call is reported."""
        self.rest = ""
        """Text after the object, or from where it broke."""
        self._state = "open"
        self._key = ""
        self._value = _Value("{")
        self._role: Literal["key", "name", "arguments", "other"] = "other"  # of the value being read
        self._is_streamed = False  # the value goes out as it comes
        self._collected: list[str] = []
        self._name: str | None = None
        self._arguments: str | None = None  # known, and not yet passed on
        self._has_arguments = False
        self._out: list[ToolCallDelta] = []

    def push(self, text: str) -> list[ToolCallDelta]:
        """What is new; after the object, look at ``rest``."""
        self.rest += text
        if not self.is_reported:
            self.raw += text
        before = None
        while not self.is_over and self.rest and before != (self._state, len(self.rest)):
            before = (self._state, len(self.rest))
            if self._state != "inside":
                self.rest = self.rest.lstrip(_BLANKS)
            if self.rest:
                getattr(self, f"_read_{self._state}")()
        if self.is_over and not self.is_reported:
            self.raw = self.raw[: len(self.raw) - len(self.rest)]
        out, self._out = self._out, []
        return out

    def finish(self) -> list[ToolCallDelta]:
        """What is certain once no more comes: a call cut off inside its arguments is still one."""
        if not self.is_over and self._state == "inside" and self._role == "arguments":
            self._end_arguments("".join(self._collected))
        self._report()
        out, self._out = self._out, []
        return out

    def _take(self, num_chars: int) -> str:
        taken, self.rest = self.rest[:num_chars], self.rest[num_chars:]
        return taken

    def _read_open(self) -> None:
        if self.rest[0] not in "{[":
            self.is_over = True
        elif self._take(1) == "{":
            self._state = "key"

    def _read_key(self) -> None:
        if self.rest[0] == "}":
            self._end_object()
        elif self.rest[0] == '"':
            self._begin("key")
        else:
            self.is_over = True

    def _read_colon(self) -> None:
        if self.rest[0] == ":":
            self._take(1)
            self._state = "value"
        else:
            self.is_over = True

    def _read_value(self) -> None:
        if self.rest[0] in ",:}]<":
            self.is_over = True
        elif self._key == "name" and self._name is None:
            self._begin("name")
        elif self._key in _ARGUMENT_KEYS and not self._has_arguments:
            self._has_arguments = True
            self._begin("arguments")
        else:
            self._begin("other")

    def _read_comma(self) -> None:
        if self.rest[0] == "}":
            self._end_object()
        elif self.rest[0] == ",":
            self._take(1)
            self._state = "key"
        else:
            self.is_over = True

    def _begin(self, role: Literal["key", "name", "arguments", "other"]) -> None:
        self._state, self._role = "inside", role
        self._is_streamed = role == "arguments" and self.rest[0] in "{["
        self._value = _Value(self.rest[0])
        self._collected = []

    def _read_inside(self) -> None:
        piece = self._take(self._value.measure(self.rest))
        if self._is_streamed:
            self._arguments = (self._arguments or "") + piece
            self._report()
        else:
            self._collected.append(piece)
        if self._value.is_over:
            self._end_value("".join(self._collected))
        elif self.rest:
            self.is_over = True  # broken off by something that is no JSON

    def _end_value(self, text: str) -> None:
        self._state = "colon" if self._role == "key" else "comma"
        if self._role == "key":
            self._key = _string(text) or ""
        elif self._role == "name":
            self._name = _string(text)
            self.is_over = not self._name  # a call without a name is none
        elif self._role == "arguments":
            self._end_arguments(text)
        self._report()

    def _end_arguments(self, text: str) -> None:
        """Takes arguments that were not passed on piece by piece."""
        if self._is_streamed:
            return
        if text.startswith('"'):
            text = _string(text) or _cut_string(text)
        self._arguments = "{}" if text in ("", '"', '""', "null") else text

    def _end_object(self) -> None:
        self._take(1)
        self.is_over = True
        if self._name and self._arguments is None and not self.is_reported:
            self._arguments = "{}"
        self._report()

    def _report(self) -> None:
        if not self._name or self._arguments is None:
            return
        if not self.is_reported:
            self._out.append(ToolCallDelta(index=self._index, id=self._new_id(), name=self._name))
            self.is_reported, self.raw = True, ""
        if self._arguments:
            self._out.append(ToolCallDelta(index=self._index, arguments=self._arguments))
        self._arguments = ""


class _Value:
    """Finds the end of one JSON value in text that arrives in pieces."""

    def __init__(self, first: str) -> None:
        self._is_scalar = first not in '"{['
        self._depth = 0
        self._in_string, self._is_escaped = False, False
        self.is_over = False

    def measure(self, text: str) -> int:
        """How many characters of ``text`` belong to the value."""
        if self._is_scalar:
            end = _SCALAR_END.search(text)
            self.is_over = end is not None
            return len(text) if end is None else end.start()
        position = 0
        while position < len(text) and not self.is_over:
            position = self._skip_string(text, position) if self._in_string else self._skip(text, position)
            if position < len(text) and text[position] == "<" and not self._in_string and not self.is_over:
                break
        return position

    def _skip(self, text: str, position: int) -> int:
        found = _STRUCTURE.search(text, position)
        if found is None:
            return len(text)
        if found.group() == "<":
            return found.start()
        if found.group() == '"':
            self._in_string = True
        else:
            self._depth += 1 if found.group() in "{[" else -1
            self.is_over = self._depth <= 0
        return found.end()

    def _skip_string(self, text: str, position: int) -> int:
        if self._is_escaped:
            self._is_escaped = False
            return position + 1
        found = _STRING_END.search(text, position)
        if found is None:
            return len(text)
        if found.group() == "\\":
            self._is_escaped = True
        else:
            self._in_string = False
            self.is_over = self._depth == 0
        return found.end()


def _string(text: str) -> str | None:
    """The text a JSON string stands for; None if it is not one."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return replace_surrogates(value) if isinstance(value, str) else None


def _cut_string(text: str) -> str:
    """The text of a JSON string that was cut off."""
    for end in range(len(text), max(len(text) - 6, 0), -1):  # an escape has at most 6 characters
        value = _string(text[:end] + '"')
        if value is not None:
            return value
    return text
