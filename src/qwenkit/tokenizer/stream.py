"""Text out of a stream of tokens: no half characters, and nothing of a stop string.

Knows nothing of models; both classes hold the little text that cannot be shown yet.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from qwenkit.core.errors import InputError
from qwenkit.tokenizer.base import Tokenizer


class StreamDecoder:
    """Decodes one token at a time; what it returns, joined, is ``tokenizer.decode`` of all tokens.

    U+FFFD appears only for bytes that no later token can complete.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._control_ids = tokenizer.control_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_next = tokenizer.strips_first_space

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes; empty in the middle of a character.

        Raises:
            InputError: an id the tokenizer does not have.
        """
        data = self._tokenizer.token_bytes(token_id)
        if token_id not in self._control_ids:
            return self._strip(self._utf8.decode(data))
        shown = "" if self._skip else data.decode()
        return self._strip(self._utf8.decode(b"", final=True) + shown)

    def flush(self) -> str:
        """What is left at the end: U+FFFD when the tokens stop inside a character."""
        return self._strip(self._utf8.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        if not self._strip_next or not text:
            return text
        self._strip_next = False
        return text.removeprefix(" ")


class StopMatcher:
    """Cuts text before the earliest stop string, also when it arrives in pieces.

    Where the beginning of one stop could still be completed before another that has already been seen, it waits:
    the answer never depends on how the text was cut. After ``flush``, ``matched`` tells whether that wait ended
    in a stop.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise InputError(f"stops={list(stops)!r}: a stop string cannot be empty; remove it")
        self._stops = tuple(dict.fromkeys(stops))
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.matched: str | None = None
        """The stop that was hit, if any."""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and True once a stop was hit; after that nothing is shown any more."""
        if self.matched is not None:
            return "", True
        if not self._stops:
            return text, False
        held = self._held + text
        found = self._find(held)
        partial = self._partial_start(held)
        if found is not None and found[0] <= partial:
            return self._stop_at(held, found), True
        self._held = held[partial:]
        return held[:partial], False

    def flush(self) -> str:
        """The text held back, once it is certain that no more comes."""
        held, self._held = self._held, ""
        found = self._find(held) if self.matched is None else None
        return self._stop_at(held, found) if found else held

    def _stop_at(self, text: str, found: tuple[int, str]) -> str:
        self._held, self.matched = "", found[1]
        return text[: found[0]]

    def _find(self, text: str) -> tuple[int, str] | None:
        hits = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(hits, default=None)

    def _partial_start(self, text: str) -> int:
        """Where the longest ending of ``text`` that begins a stop starts; its length when there is none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            tail = text[start:]
            if any(len(stop) > len(tail) and stop.startswith(tail) for stop in self._stops):
                return start
        return len(text)
