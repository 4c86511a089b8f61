"""Reads calibration text: fine-tuning JSON, chat JSONL or plain text, to samples of token ids.

Knows nothing of models or algorithms.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenkit.chat.base import ChatTemplate
from qwenkit.core.errors import InputError, TemplateError
from qwenkit.core.types import Message
from qwenkit.tokenizer.base import Tokenizer

# Keys of a turn (who, what) and the roles it may have, by the key that holds a sample's turns.
_TURNS = {
    "conversations": ("from", "value", ("user", "assistant")),
    "messages": ("role", "content", ("system", "user", "assistant", "tool")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Samples drawn from a file."""

    samples: tuple[tuple[int, ...], ...]
    """Token ids; none is empty."""
    source: str
    """Name of the file."""
    digest: str
    """SHA-256 of the file."""
    notes: tuple[str, ...] = ()
    """What the user should know."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all samples."""
        return sum(map(len, self.samples))


def read_calibration(
    path: Path,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    num_samples: int,
    length: int,
    seed: int,
) -> Calibration:
    """Draws samples from a file.

    A ``.json`` file is a list of ``{"conversations": [{"from", "value"}]}`` or ``{"messages": [{"role", "content"}]}``,
    a ``.jsonl`` file has one of these a line; each conversation is written as the model's template has it and cut to
    ``length`` tokens. Any other file is plain text, cut into blocks of exactly ``length`` tokens.

    Args:
        path: the file.
        tokenizer: the model's.
        template: the model's; only conversations need it.
        num_samples: how many to draw; fewer when the file has fewer.
        length: most tokens of a sample.
        seed: which ones.

    Raises:
        InputError: the file is unreadable, empty, malformed or too short.
        TemplateError: a conversation does not fit the template.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"calibration file {path} cannot be read: {error.strerror or error}; give a text or chat file"
        ) from None
    if not data.strip():
        raise InputError(f"calibration file {path} is empty; give one with text or conversations")
    text = _decoded(data, path)
    draw = random.Random(seed)
    if path.suffix.lower() in (".json", ".jsonl"):
        conversations = [
            _messages(sample, f"{path}, sample {n}") for n, sample in enumerate(_parsed(text, path))
        ]
        chosen = draw.sample(conversations, min(num_samples, len(conversations)))
        samples = _rendered(chosen, tokenizer, template, length, path)
        available = len(conversations)
    else:
        blocks = _blocks(tokenizer.encode(text, allowed_special=()), length, path)
        samples = draw.sample(blocks, min(num_samples, len(blocks)))
        available = len(blocks)
    notes: tuple[str, ...] = ()
    if available < num_samples:
        notes = (
            f"{path.name} has {available} samples, fewer than the {num_samples} asked for; all are used",
        )
    return Calibration(
        samples=tuple(samples), source=path.name, digest=hashlib.sha256(data).hexdigest(), notes=notes
    )


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"calibration file {path} is not UTF-8 (byte {error.start}); convert it, or give another file"
        ) from None


def _blocks(ids: Sequence[int], length: int, path: Path) -> list[tuple[int, ...]]:
    """Whole blocks, one after the other; what is left at the end is dropped."""
    if len(ids) < length:
        raise InputError(
            f"calibration file {path} has {len(ids)} tokens, fewer than one sample of {length}; "
            "give a longer text or a smaller --length"
        )
    return [tuple(ids[at : at + length]) for at in range(0, len(ids) - length + 1, length)]


def _parsed(text: str, path: Path) -> list[Any]:
    try:
        if path.suffix.lower() == ".jsonl":
            parsed = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"calibration file {path} is not valid JSON ({error}); mend it") from None
    if not isinstance(parsed, list) or not parsed:
        raise InputError(f"calibration file {path} holds no list of conversations; see docs/quantisation.md")
    return parsed


def _messages(sample: Any, where: str) -> list[Message]:
    """The turns of one sample. Turns before the first of the user are dropped, as in fine-tuning."""
    key = next((k for k in _TURNS if isinstance(sample, dict) and k in sample), None)
    if key is None or not isinstance(sample[key], list):
        raise InputError(f"{where}: no conversation; each needs a list named 'conversations' or 'messages'")
    who, what, roles = _TURNS[key]
    messages: list[Message] = []
    for turn in sample[key]:
        role, content = (turn.get(who), turn.get(what)) if isinstance(turn, dict) else (None, None)
        if role not in roles or not isinstance(content, str):
            raise InputError(
                f"{where}: a turn needs {who!r} to be one of {', '.join(roles)} and {what!r} to be text, got {str(turn)[:80]}"
            )
        messages.append(Message(role, content))
    start = next((i for i, m in enumerate(messages) if m.role in ("system", "user")), len(messages))
    if start == len(messages):
        raise InputError(f"{where}: the conversation has no turn of the user; remove the sample")
    return messages[start:]


def _rendered(
    conversations: Sequence[Sequence[Message]],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    length: int,
    path: Path,
) -> list[tuple[int, ...]]:
    if template is None:
        raise TemplateError(
            f"the model has no chat template to write the conversations of {path} with; give a plain text file"
        )
    rendered = (template.render(c, add_generation_prompt=False) for c in conversations)
    samples = [tuple(tokenizer.encode_segments(segments)[:length]) for segments in rendered]
    return [sample for sample in samples if sample]
