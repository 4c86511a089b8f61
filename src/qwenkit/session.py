"""A conversation with memory: history, trimming to the model's window, undo, saving."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenkit.core.errors import InputError
from qwenkit.core.types import Completion, Delta, Message, SamplingParams, collect

if TYPE_CHECKING:
    from qwenkit.llm import LLM

_FORMAT = "qwenkit-chat-1"


class Chat:
    """A conversation with one model.

    Args:
        llm: the model.
        system: system prompt; None: the chat format's own default.
        params: sampling of every turn; what is None comes from the model's generation_config.
        max_window_size: tokens of system prompt and history sent with each turn, the oldest exchanges left out;
            the new message is not counted. None: as the model's generation_config says.
        **template_options: variables of the chat template, e.g. ``enable_thinking=False``.

    Attributes:
        messages: the turns so far, without the system prompt. Nothing is removed from it by trimming.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        system: str | None = None,
        params: SamplingParams | None = None,
        max_window_size: int | None = None,
        **template_options: Any,
    ) -> None:
        if not llm.info.can_chat:
            # Asking for a prompt raises the backend's own, precise error.
            llm.stream_chat("hi", SamplingParams(max_tokens=1))
        if max_window_size is not None and max_window_size < 1:
            raise InputError(
                f"max_window_size={max_window_size} is not possible; use a whole number from 1 up"
            )
        self.llm, self.system = llm, system
        self.params = params or SamplingParams()
        self.max_window_size = max_window_size or llm.info.max_window_size
        self.template_options = template_options
        self.messages: list[Message] = []

    def send(self, text: str) -> Completion:
        """Answers ``text`` and remembers both turns."""
        return collect(list(self.stream(text)))

    def stream(self, text: str) -> Iterator[Delta]:
        """As ``send``, yielding text as it comes. Closing the iterator early keeps what was said so far.

        Raises:
            InputError: the message is too long for the context; nothing is remembered then.
        """
        return self._answer(Message("user", text), self.messages)

    def _answer(self, query: Message, past: list[Message]) -> Iterator[Delta]:
        deltas = self.llm.stream_chat(self._prompt(past, query), self.params, **self.template_options)
        return self._record(query, past, deltas)

    def _record(self, query: Message, past: list[Message], deltas: Iterator[Delta]) -> Iterator[Delta]:
        before = self.messages
        self.messages = [*past, query]
        parts: list[str] = []
        finished = False
        try:
            for delta in deltas:
                parts.append(delta.text)
                finished = delta.finish_reason is not None
                yield delta
        finally:
            if isinstance(deltas, Generator):
                deltas.close()
            # Stopped before a word was said: as if nothing had been asked.
            self.messages = (
                [*self.messages, self._reply("".join(parts))] if finished or any(parts) else before
            )

    @staticmethod
    def _reply(text: str) -> Message:
        from qwenkit.chat.reasoning import split_reasoning

        content, reasoning = split_reasoning(text)
        return Message("assistant", content.strip(), reasoning=reasoning or None)

    def regenerate(self) -> Iterator[Delta]:
        """Answers the last user message again, in place of the answer it got.

        The old answer stays until the new one has begun.

        Raises:
            InputError: there is none yet.
        """
        at = self._last_query()
        if at is None:
            raise InputError("there is no reply to generate again; say something first")
        return self._answer(self.messages[at], self.messages[:at])

    def undo(self) -> Message | None:
        """Forgets the last exchange; returns its user message, or None when there is none."""
        at = self._last_query()
        if at is None:
            return None
        query = self.messages[at]
        self.messages = self.messages[:at]
        return query

    def _last_query(self) -> int | None:
        return next((i for i in reversed(range(len(self.messages))) if self.messages[i].role == "user"), None)

    def clear(self) -> None:
        """Forgets every turn; the system prompt stays."""
        self.messages = []

    def count_tokens(self) -> int:
        """Tokens of system prompt and history that the next turn would send, without its own text."""
        template, tokenizer = self.llm.backend.template, self.llm.backend.tokenizer
        if template is None or tokenizer is None:
            return sum(len(m.content) for m in self._with_system(self.messages)) // 4
        if not self.messages and self.system is None:
            return 0
        kept = self._trimmed([*self.messages, Message("user", "")], self.max_window_size)[:-1]
        segments = template.render(kept, add_generation_prompt=False, **self.template_options) if kept else []
        return len(tokenizer.encode_segments(segments))

    def _with_system(self, messages: list[Message]) -> list[Message]:
        return messages if self.system is None else [Message("system", self.system), *messages]

    def _trimmed(self, messages: list[Message], window: int) -> list[Message]:
        from qwenkit.chat.history import fit_history

        template, tokenizer = self.llm.backend.template, self.llm.backend.tokenizer
        messages = self._with_system(messages)
        if template is None or tokenizer is None:
            return messages
        return fit_history(template, tokenizer, messages, window, **self.template_options)

    def _prompt(self, past: list[Message], query: Message) -> list[Message]:
        """System, as much history as the window and the context hold, and the query."""
        template, tokenizer = self.llm.backend.template, self.llm.backend.tokenizer
        messages = self._trimmed([*past, query], self.max_window_size)
        if template is None or tokenizer is None:
            return messages
        # The window does not count the query, so a long one can still burst the context: history gives way first.
        context = self.llm.info.context_length
        room = context - min(self.params.max_tokens or 256, context // 4)
        turns = messages[self.system is not None :]
        starts = [i for i, m in enumerate(turns) if m.role == "user"] or [0]
        dropped, enough = 0, len(starts) - 1
        while dropped < enough:
            middle = (dropped + enough) // 2
            messages = self._with_system(turns[starts[middle] if middle else 0 :])
            length = len(tokenizer.encode_segments(template.render(messages, **self.template_options)))
            dropped, enough = (dropped, middle) if length <= room else (middle + 1, enough)
        return self._with_system(turns[starts[dropped] if dropped else 0 :])

    def save(self, path: str | Path) -> None:
        """Writes system prompt and turns as JSON, under a temporary name first.

        Raises:
            InputError: the file cannot be written.
        """
        path = _expanded(path)
        data = {"format": _FORMAT, "model": self.llm.info.model, "system": self.system}
        text = json.dumps(
            {**data, "messages": [m.to_dict() for m in self.messages]}, ensure_ascii=False, indent=1
        )
        temporary = None
        try:
            # Half of a surrogate pair is no text; it is written as '?', which is how the tokenizers read it.
            with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False) as file:
                temporary = Path(file.name)
                file.write(text.encode("utf-8", errors="replace") + b"\n")
            os.replace(temporary, path)
        except (OSError, ValueError) as error:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            raise InputError(
                f"{path} cannot be written: {getattr(error, 'strerror', None) or error}"
            ) from None

    def load(self, path: str | Path) -> None:
        """Replaces system prompt and turns by those of a saved file.

        Raises:
            InputError: it cannot be read or is not a saved conversation; the conversation stays as it was.
        """
        path = _expanded(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a saved conversation ({error})") from None
        known = (
            isinstance(data, dict)
            and data.get("format") == _FORMAT
            and isinstance(data.get("messages"), list)
        )
        if not known or not isinstance(data.get("system"), str | None):
            raise InputError(f"{path} is not a conversation saved by qwenkit (no format {_FORMAT!r} in it)")
        messages = [Message.from_dict(m) for m in data["messages"]]
        self.messages, self.system = messages, data["system"]


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no home directory of that user; write the path in full") from None
