"""Text that comes through pipes, arguments and files, and text that goes out to a pipe or a terminal."""

from __future__ import annotations

import sys
from typing import TextIO

_KEPT = "\n\t"
_CONTROLS = {c: None for c in (*range(32), 127, *range(128, 160)) if chr(c) not in _KEPT}


def without_controls(text: str) -> str:
    """``text`` without control characters, so that no reply can drive the terminal."""
    return text.translate(_CONTROLS)


def warn(sentence: str) -> None:
    """Prints a warning on stderr."""
    print(f"qwenkit: warning: {sentence}", file=sys.stderr)


def decode(data: bytes, name: str) -> str:
    """UTF-8 text of ``data``, without a byte order mark; invalid bytes are replaced, with a warning naming ``name``."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        warn(f"{name} is not valid UTF-8 (byte {error.start}); invalid bytes are replaced by U+FFFD")
        return data.decode("utf-8-sig", errors="replace")


def clean_argument(text: str) -> str:
    """A command-line argument as valid text; bytes that are not UTF-8 are replaced, with a warning."""
    if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    return decode(text.encode("utf-8", "surrogateescape"), "an argument")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether ``stream`` is open and a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def read_stdin() -> str:
    """All of stdin, or nothing when it is a terminal or closed."""
    if sys.stdin is None or is_terminal(sys.stdin):
        return ""
    return decode(sys.stdin.buffer.read(), "stdin")


def join_prompt(prompt: str, piped: str) -> str:
    """The user message: the prompt, a blank line and the piped text, or whichever of the two is there."""
    parts = [part for part in (prompt, piped.rstrip("\r\n")) if part.strip()]
    return "\n\n".join(parts)


class PlainView:
    """Writes a reply as it comes, character for character; keeps the terminal safe when there is one."""

    def __init__(self, file: TextIO, *, is_terminal: bool = False) -> None:
        self._file = file
        self._is_terminal = is_terminal
        self._last = "\n"

    def feed(self, text: str) -> None:
        """Shows more text."""
        if self._is_terminal:
            text = without_controls(text)
        if text:
            self._file.write(text)
            self._file.flush()
            self._last = text[-1]

    def finish(self) -> None:
        """Ends the last line."""
        if self._last != "\n":
            self._file.write("\n")
        self._last = "\n"
        self._file.flush()
