"""Parts the thought of a reasoning model from its answer, at once or while it streams.

Qwen3 writes ``<think>``, its thought, ``</think>`` and then the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenkit.core.types import Message
from qwenkit.tokenizer.base import Segment, Tokenizer

OPEN_TAG = "<think>"
CLOSE_TAG = "</think>"


def split_reasoning(text: str) -> tuple[str, str | None]:
    """Answer and thought of a whole reply.

    All up to the **last** ``</think>`` is thought, without tags and the line ends around it. A reply without
    ``</think>`` is all answer, as in the published example, even if it starts with ``<think>``.

    Returns:
        The answer, and the thought or None when there is no ``</think>``.
    """
    before, tag, after = text.rpartition(CLOSE_TAG)
    if not tag:
        return text.strip("\n"), None
    thought = before.replace(OPEN_TAG, "").replace(CLOSE_TAG, "").strip("\n")
    return after.strip("\n"), thought


def opens_thought(prompt: Sequence[Segment], tokenizer: Tokenizer) -> bool:
    """Whether a prompt ends inside a thought, so that the reply goes on with it without a tag of its own.

    Some templates open it themselves, and a reply that is continued may have been cut off in it.
    """
    turn: list[str] = []
    for segment in reversed(prompt):
        if segment in tokenizer.control_ids:
            break
        turn.append(tokenizer.token_bytes(segment).decode() if isinstance(segment, int) else segment)
    else:
        return "".join(reversed(turn)).rstrip().endswith(OPEN_TAG)
    text = "".join(reversed(turn)).partition("\n")[2]  # without the role
    return text.lstrip().startswith(OPEN_TAG) and CLOSE_TAG not in text


def unfinished_thought(message: Message) -> str | None:
    """The thought of a reply that was cut off inside it; None if it was not."""
    text = message.content.lstrip()
    if text.startswith(OPEN_TAG) and CLOSE_TAG not in text:
        return text.removeprefix(OPEN_TAG).lstrip("\n")
    return message.reasoning if message.reasoning and not text else None


class ReasoningSplitter:
    """The same for a reply that arrives in pieces, where the end is not known.

    Text that starts with ``<think>`` (blanks before it apart) is thought until the **first** ``</think>``; anything
    else is answer. A reply cut off inside its thought is therefore all thought here, but all answer in
    `split_reasoning`. Line ends after either tag, and those before ``</think>``, are dropped; joined pieces never
    depend on how the reply was cut.
    """

    def __init__(self, *, starts_in_thought: bool = False) -> None:
        """Starts a reply; ``starts_in_thought`` is for prompts that themselves end with ``<think>``."""
        self._held = ""
        self._state = "thought_start" if starts_in_thought else "start"

    def push(self, text: str) -> tuple[str, str]:
        """What is new of the answer and of the thought."""
        self._held += text
        content, thought = "", ""
        before = None
        while before != (self._state, self._held):
            before = (self._state, self._held)
            more_content, more_thought = self._step()
            content += more_content
            thought += more_thought
        return content, thought

    def flush(self) -> tuple[str, str]:
        """What was held back, once no more comes: the start of a tag that never ended, or line ends."""
        held, self._held = self._held, ""
        if self._state in ("thought_start", "thought"):
            return "", held.rstrip("\n")
        if self._state == "content_start":
            return "", ""
        return held, ""

    def _step(self) -> tuple[str, str]:
        if self._state == "start":
            self._leave_start()
        elif self._state in ("thought_start", "content_start"):
            self._held = self._held.lstrip("\n")
            if self._held:
                self._state = self._state.removesuffix("_start")
        elif self._state == "thought":
            return "", self._take_thought()
        elif self._state == "content":
            content, self._held = self._held, ""
            return content, ""
        return "", ""

    def _leave_start(self) -> None:
        """Decides, as soon as it is certain, whether the reply starts with a thought."""
        text = self._held.lstrip()
        if text.startswith(OPEN_TAG):
            self._held, self._state = text[len(OPEN_TAG) :], "thought_start"
        elif not OPEN_TAG.startswith(text):
            self._state = "content"

    def _take_thought(self) -> str:
        thought, tag, rest = self._held.partition(CLOSE_TAG)
        if tag:
            self._held, self._state = rest, "content_start"
            return thought.rstrip("\n")
        safe = len(self._held) - overlap(self._held, CLOSE_TAG)
        safe = len(self._held[:safe].rstrip("\n"))  # line ends may be the last before the tag
        thought, self._held = self._held[:safe], self._held[safe:]
        return thought


def overlap(text: str, tag: str) -> int:
    """Length of the longest ending of ``text`` that begins ``tag``."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if tag.startswith(text[-n:])), 0)
