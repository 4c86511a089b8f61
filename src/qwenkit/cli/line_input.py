"""The line people type at: history across runs, several lines, completion of commands."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from qwenkit.cli.commands import ALIASES, is_unfinished
from qwenkit.cli.pipes import warn
from qwenkit.cli.texts import Texts

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

_PREFIXES = ("/", ":")


def open_history(folder: Path) -> History:
    """History kept in ``folder``, readable by its owner only; kept in memory, with a warning, when that fails."""
    path = folder / "chat_history"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError as error:
        warn(f"the history is not kept, {path}: {error.strerror}")
        return InMemoryHistory()
    return FileHistory(path)


class CommandCompleter(Completer):
    """Completes the names of commands, and the files of save and load."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Completions for the text before the cursor."""
        text = document.text_before_cursor
        if not text.startswith(_PREFIXES) or "\n" in text:
            return
        name, blank, argument = text[1:].partition(" ")
        if blank and name.removesuffix("!") in ("save", "load"):
            yield from self._files.get_completions(Document(argument), complete_event)
        elif not blank:
            for command in ALIASES:
                if command.startswith(name.lower()):
                    yield Completion(command, -len(name), display_meta=self._texts.help[command])


def _bindings() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_unfinished(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    return keys


class LineInput:
    """Reads what people type.

    Args:
        texts: language of the completion menu.
        history: where earlier lines come from.
    """

    def __init__(
        self, texts: Texts, history: History, *, input: Input | None = None, output: Output | None = None
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=history,
            multiline=True,
            completer=CommandCompleter(texts),
            complete_while_typing=True,
            key_bindings=_bindings(),
            reserve_space_for_menu=6,
            prompt_continuation="  ",
            input=input,
            output=output,
        )

    def read(self) -> str:
        """One message or command.

        Raises:
            EOFError: Ctrl-D on the empty line.
            KeyboardInterrupt: Ctrl-C on the empty line.
        """
        return self._session.prompt(FormattedText([("bold ansigreen", "> ")]))
