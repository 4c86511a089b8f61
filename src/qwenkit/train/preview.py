"""Shows a training sequence with the part that carries loss marked, for terminals with colour and without."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Literal, TypeAlias

from qwenkit.tokenizer.base import Tokenizer
from qwenkit.train.pieces import Rendered

if TYPE_CHECKING:
    from rich.text import Text

OPEN, CLOSE = "⟦", "⟧"
"""What stands around text with loss where there is no colour."""
LINE_END = "↵"

_STYLES = {
    ("text", False): "dim",
    ("text", True): "green",
    ("special", False): "dim cyan",
    ("special", True): "bold green",
}

_Kind: TypeAlias = Literal["text", "special"]


def preview(sequence: Rendered, tokenizer: Tokenizer) -> Text:
    """The sequence in colour: green carries loss, what is dim carries none; special tokens stand out."""
    from rich.text import Text

    shown = Text()
    shown.append(summary(sequence) + "\n", style="bold")
    for text, kind, has_loss in _runs(sequence, tokenizer):
        shown.append(text, style=_STYLES[kind, has_loss])
    return shown


def preview_plain(sequence: Rendered, tokenizer: Tokenizer) -> str:
    """The same without colour: text with loss stands between ``⟦`` and ``⟧``."""
    runs = groupby(_runs(sequence, tokenizer), key=lambda run: run[2])
    parts = ("".join(text for text, _, _ in run) if not loss else _bracketed(run) for loss, run in runs)
    return f"{summary(sequence)}\n{''.join(parts)}"


def summary(sequence: Rendered) -> str:
    """Where the sequence comes from, and how many tokens it has and learns."""
    where = f"{sequence.source}: " if sequence.source else ""
    return f"{where}{len(sequence)} tokens, {sequence.num_loss} with loss"


def _bracketed(run: Iterator[tuple[str, _Kind, bool]]) -> str:
    text = "".join(text for text, _, _ in run)
    return f"{OPEN}{text.rstrip(chr(10))}{CLOSE}" + "\n" * (len(text) - len(text.rstrip("\n")))


def _runs(sequence: Rendered, tokenizer: Tokenizer) -> Iterator[tuple[str, _Kind, bool]]:
    """Stretches of tokens of one kind, so that characters of several tokens come out whole."""
    control_ids = tokenizer.control_ids

    def key(token: tuple[int, bool]) -> tuple[bool, bool]:
        return token[0] in control_ids, token[1]

    # the first token is never learnt, because nothing comes before it
    has_loss = [False, *sequence.has_loss[1:].tolist()]
    for (is_special, loss), run in groupby(zip(sequence.ids.tolist(), has_loss, strict=True), key=key):
        text = b"".join(tokenizer.token_bytes(token_id) for token_id, _ in run).decode("utf-8", "replace")
        yield _visible(text), "special" if is_special else "text", loss


def _visible(text: str) -> str:
    """Line ends are shown and kept, other characters that do not print are escaped, so that none reaches the terminal."""
    return "".join(c if c.isprintable() else f"{LINE_END}\n" if c == "\n" else repr(c)[1:-1] for c in text)
