"""The interactive chat: read a line, carry out a command or stream a reply, until the user leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from qwenkit.cli.commands import Command, Commands, parse_line
from qwenkit.cli.interrupts import stoppable, without_echo
from qwenkit.cli.meter import Meter
from qwenkit.cli.texts import Texts
from qwenkit.core.errors import QwenkitError
from qwenkit.core.types import Delta

if TYPE_CHECKING:
    from qwenkit.cli.terminal import Screen
    from qwenkit.llm import Chat


class View(Protocol):
    """Shows one reply as it comes."""

    def feed(self, text: str) -> None:
        """Shows more text."""

    def finish(self) -> None:
        """Completes what is shown."""


class Reader(Protocol):
    """Where lines come from."""

    def read(self) -> str:
        """The next line; EOFError or KeyboardInterrupt to leave."""


@contextlib.contextmanager
def closing(deltas: Iterator[Delta]) -> Iterator[None]:
    """Closes a stream of deltas, which aborts it, whatever happens inside."""
    try:
        yield
    finally:
        close = getattr(deltas, "close", None)
        if close is not None:
            close()


def stream_reply(deltas: Iterator[Delta], view: View, meter: Meter) -> bool:
    """Shows a reply until it ends or Ctrl-C stops it.

    Args:
        deltas: the reply; closed in any case.
        view: shows it.
        meter: sees every delta.

    Returns:
        True when the reply was stopped.
    """
    with closing(deltas), stoppable() as stop, without_echo():
        try:
            for delta in deltas:
                stop.is_gentle = True
                meter.see(delta)
                view.feed(delta.text)
                if stop.is_asked:
                    break
        except KeyboardInterrupt:
            return True
        finally:
            view.finish()
    return stop.is_asked


class Session:
    """One conversation at a terminal.

    Args:
        chat: the conversation.
        commands: carries out ``/commands``.
        reader: where lines come from.
        screen: where everything is shown.
        texts: the language.
        has_stats: whether to show token counts and speed after each reply.
    """

    def __init__(
        self,
        chat: Chat,
        commands: Commands,
        reader: Reader,
        screen: Screen,
        texts: Texts,
        *,
        has_stats: bool = False,
    ) -> None:
        self._chat = chat
        self._commands = commands
        self._reader = reader
        self._screen = screen
        self._texts = texts
        self._has_stats = has_stats

    def run(self) -> None:
        """Goes on until the user leaves."""
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            while self._turn(parse_line(self._reader.read())):
                pass

    def _turn(self, typed: Command | str) -> bool:
        """Handles one line; False to leave."""
        if isinstance(typed, str):
            if typed:
                self._reply(lambda: self._chat.stream(typed))
            return True
        outcome = self._commands.run(typed)
        if outcome.is_error:
            self._screen.error(outcome.text)
        else:
            self._screen.say(outcome.text)
        if outcome.action == "clear_screen":
            self._screen.clear()
        elif outcome.action == "regenerate":
            self._reply(self._chat.regenerate)
        return outcome.action != "exit"

    def _reply(self, start: Callable[[], Iterator[Delta]]) -> None:
        meter = Meter()
        try:
            was_stopped = stream_reply(start(), self._screen.open_view(), meter)
        except QwenkitError as error:
            self._screen.error(str(error))
            return
        if was_stopped:
            self._screen.note(self._texts.stopped)
        elif meter.finish_reason == "length":
            self._screen.note(self._texts.cut)
        if self._has_stats:
            self._screen.note(meter.line(self._texts.stats))
        self._screen.blank()
