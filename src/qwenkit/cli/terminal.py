"""What the chat session shows: replies, notes and errors, on a terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from qwenkit.cli.markdown import MarkdownView
from qwenkit.cli.pipes import PlainView, is_terminal, without_controls
from qwenkit.cli.session import View


def reply_view(console: Console) -> View:
    """Markdown on a terminal that can move its cursor, else plain text."""
    terminal = is_terminal(sys.stdout)
    if terminal and not console.is_dumb_terminal:
        return MarkdownView(console)
    return PlainView(sys.stdout, is_terminal=terminal)


class Screen:
    """The terminal of a chat session."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, text: str) -> None:
        """Shows a text about the session."""
        self._print(text, "dim")

    def say(self, text: str) -> None:
        """Shows the answer to a command."""
        self._print(text, "")

    def error(self, text: str) -> None:
        """Shows what went wrong."""
        self._print(text, "red")

    def _print(self, text: str, style: str) -> None:
        if text:
            self._console.print(Text(without_controls(text), style), soft_wrap=True)

    def blank(self) -> None:
        """An empty line."""
        self._console.print()

    def clear(self) -> None:
        """Empties the screen."""
        self._console.clear()

    def open_view(self) -> View:
        """A view for one reply."""
        return reply_view(self._console)
