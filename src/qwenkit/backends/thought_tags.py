"""Thought that a server gives apart, written into the text again, as a model in this process writes it."""

from __future__ import annotations

from qwenkit.chat.reasoning import CLOSE_TAG, OPEN_TAG


class ThoughtTags:
    """Puts the thought of one reply between tags before its text."""

    def __init__(self) -> None:
        self._is_open = False

    def join(self, text: str, thought: str) -> str:
        """What is new, as one text."""
        opening = ""
        if thought and not self._is_open:
            opening, self._is_open = f"{OPEN_TAG}\n", True
        return opening + thought + (self.close() if text else "") + text

    def close(self) -> str:
        """What ends a thought that is open; nothing otherwise."""
        if not self._is_open:
            return ""
        self._is_open = False
        return f"\n{CLOSE_TAG}\n\n"
