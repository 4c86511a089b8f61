"""The commands of the chat session: from a typed line to a change of the chat and a text to show.

Knows nothing of terminals.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from qwenkit.cli import settings
from qwenkit.cli.texts import Texts
from qwenkit.core.errors import InputError, QwenkitError, did_you_mean
from qwenkit.core.types import SamplingParams

if TYPE_CHECKING:
    from qwenkit.llm import Chat

Action: TypeAlias = Literal["none", "exit", "clear_screen", "regenerate"]

ALIASES: dict[str, tuple[str, ...]] = {
    "help": ("h",),
    "exit": ("quit", "q"),
    "clear": ("cl",),
    "clear-his": ("clh",),
    "history": ("his",),
    "seed": (),
    "conf": (),
    "reset-conf": (),
    "system": (),
    "undo": (),
    "regen": (),
    "save": (),
    "load": (),
    "tokens": (),
}
_ARGUMENTS = {"seed": "[N]", "conf": "[KEY=VALUE …]", "system": "[TEXT]", "save": "FILE", "load": "FILE"}
_CANONICAL = {alias: name for name, aliases in ALIASES.items() for alias in (name, *aliases)}
_COMMAND = re.compile(r"[/:：](?P<name>[A-Za-z][^\s!]*)(?P<force>!?)(?:\s+(?P<argument>.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Command:
    """A line that asks for a command."""

    name: str
    """As typed, without its prefix."""
    argument: str = ""
    is_forced: bool = False
    """Typed with an exclamation mark."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to show, and what the session has to do besides."""

    text: str = ""
    action: Action = "none"
    is_error: bool = False


def parse_line(line: str) -> Command | str:
    """A command, or the message to send (empty: nothing was typed).

    ``//word`` and ``::word`` send ``/word`` and ``:word``; a prefix without a letter behind it is no command.
    """
    if re.match(r"(//|::)[A-Za-z]", line):
        return line[1:].strip()
    if match := _COMMAND.fullmatch(line.rstrip()):
        return Command(match["name"], match["argument"] or "", bool(match["force"]))
    return strip_quotes(line.strip())


def strip_quotes(text: str) -> str:
    '''Text without the triple quotes around it, as in """several lines""".'''
    if not text.startswith('"""'):
        return text
    return text[3:].removesuffix('"""').strip("\n")


def is_unfinished(text: str) -> bool:
    """True when triple quotes are open, so that Enter starts a new line."""
    return text.lstrip().startswith('"""') and text.count('"""') < 2


class Commands:
    """Carries out commands on a chat.

    Args:
        chat: the conversation.
        defaults: sampling as the model asks for, to show where nothing is set.
        texts: the language to answer in.
        context_length: tokens that fit the model.
    """

    def __init__(self, chat: Chat, defaults: SamplingParams, texts: Texts, context_length: int) -> None:
        self._chat = chat
        self._defaults = defaults
        self._texts = texts
        self._context_length = context_length
        self._params_at_start = chat.params
        self._handlers: dict[str, Callable[[Command], Outcome]] = {
            "conf": self._conf,
            "seed": self._seed,
            "system": self._system,
            "save": self._save,
            "load": self._load,
        }
        self._bare_handlers: dict[str, Callable[[], Outcome]] = {
            "help": lambda: Outcome(help_text(texts)),
            "exit": lambda: Outcome(texts.bye, "exit"),
            "clear": lambda: Outcome(action="clear_screen"),
            "clear-his": self._clear_history,
            "history": lambda: Outcome(self._history()),
            "reset-conf": self._reset_conf,
            "undo": self._undo,
            "regen": lambda: Outcome(action="regenerate"),
            "tokens": self._tokens,
        }

    def run(self, command: Command) -> Outcome:
        """Carries out one command; what goes wrong is told, not raised."""
        name = _CANONICAL.get(command.name.lower())
        if name is None or (command.is_forced and name != "save"):
            return self._unknown(command)
        try:
            if name in self._handlers:
                return self._handlers[name](command)
            if command.argument:
                text = self._texts.no_argument.format(name=name, argument=command.argument)
                return Outcome(text, is_error=True)
            return self._bare_handlers[name]()
        except QwenkitError as error:
            return Outcome(str(error), is_error=True)
        except (RuntimeError, ValueError) as error:  # '~nobody/file', or a NUL in a path
            return Outcome(f"{command.argument[:80]}: {error}", is_error=True)
        except OSError as error:
            return Outcome(f"{error.filename or command.argument}: {error.strerror or error}", is_error=True)

    def _unknown(self, command: Command) -> Outcome:
        typed = command.name + "!" * command.is_forced
        near = did_you_mean(command.name.lower(), _CANONICAL) or "."
        return Outcome(
            f"{self._texts.unknown_command.format(name=typed)}{near} {self._texts.send_literally}",
            is_error=True,
        )

    def _history(self) -> str:
        names = {"user": self._texts.you, "assistant": self._texts.assistant, "system": self._texts.system}
        turns = [f"{names.get(m.role, m.role)}: {m.content}" for m in self._chat.messages]
        if self._chat.system:
            turns.insert(0, f"{self._texts.system}: {self._chat.system}")
        return "\n\n".join(turns) or self._texts.history_empty

    def _clear_history(self) -> Outcome:
        self._chat.clear()
        return Outcome(self._texts.history_cleared)

    def _seed(self, command: Command) -> Outcome:
        if not command.argument:
            seed = self._chat.params.seed
            return Outcome(self._texts.seed_none if seed is None else self._texts.seed_is.format(seed=seed))
        try:
            seed = settings.parse("seed", command.argument)
            self._chat.params = dataclasses.replace(self._chat.params, seed=seed)
        except (ValueError, InputError):
            return Outcome(self._texts.seed_usage.format(argument=command.argument), is_error=True)
        return Outcome(self._texts.seed_none if seed is None else self._texts.seed_set.format(seed=seed))

    def _conf(self, command: Command) -> Outcome:
        if not command.argument:
            return Outcome(settings.show(self._chat.params, self._defaults, self._texts))
        self._chat.params, changes = settings.change(self._chat.params, command.argument, self._texts)
        return Outcome(self._texts.conf_set.format(changes=", ".join(changes)))

    def _reset_conf(self) -> Outcome:
        self._chat.params = self._params_at_start
        return Outcome(self._texts.conf_reset)

    def _system(self, command: Command) -> Outcome:
        if not command.argument:
            return Outcome(self._chat.system or self._texts.system_none)
        self._chat.system = "" if command.argument == '""' else strip_quotes(command.argument.strip())
        return Outcome(self._texts.system_set)

    def _undo(self) -> Outcome:
        message = self._chat.undo()
        if message is None:
            return Outcome(self._texts.nothing_to_undo, is_error=True)
        return Outcome(self._texts.undone.format(text=_shorten(message.content)))

    def _tokens(self) -> Outcome:
        backend = self._chat.llm.backend
        if backend.tokenizer is None and backend.template is None:
            limit = self._texts.context.format(n=self._context_length) if self._context_length else ""
            return Outcome(self._texts.tokens_unknown + (f" ({limit})" if limit else ""))
        used = self._chat.count_tokens()
        return Outcome(self._texts.tokens.format(used=used, limit=self._context_length))

    def _file(self, command: Command) -> Path:
        if not command.argument:
            raise InputError(self._texts.file_usage.format(name=command.name))
        return Path(command.argument).expanduser()

    def _save(self, command: Command) -> Outcome:
        path = self._file(command)
        if path.exists() and not command.is_forced:
            raise InputError(self._texts.exists.format(path=path))
        self._chat.save(path)
        return Outcome(self._texts.saved.format(count=len(self._chat.messages), path=path))

    def _load(self, command: Command) -> Outcome:
        path = self._file(command)
        self._chat.load(path)
        return Outcome(self._texts.loaded.format(count=len(self._chat.messages), path=path))


def help_text(texts: Texts) -> str:
    """The commands, one a line, and the keys."""
    heads = {
        name: f"/{', /'.join((name, *aliases))} {_ARGUMENTS.get(name, '')}".rstrip()
        for name, aliases in ALIASES.items()
    }
    width = max(map(len, heads.values())) + 2
    rows = [f"  {head:<{width}}{texts.help[name]}" for name, head in heads.items()]
    return "\n".join([texts.commands, *rows, "", texts.keys])


def _shorten(text: str, limit: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
