"""Pieces of a training sequence, each with or without loss, and the tokens they become. Knows nothing of templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwenkit.tokenizer.base import Segment, Tokenizer

IGNORED = -100
"""The label of a token without loss."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token id, or text that is encoded by itself with no special recognised."""

    segment: Segment
    has_loss: bool
    silent: tuple[tuple[int, int], ...] = ()
    """Stretches of characters of a text with loss that carry none."""


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """One training sequence."""

    ids: NDArray[np.int32]
    has_loss: NDArray[np.bool_]
    """Whether each token is learnt, which it is from those before it; so the first never is, whatever stands here."""
    source: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> NDArray[np.int32]:
        """The id of each token with loss, -100 for the others; not yet shifted."""
        return np.where(self.has_loss, self.ids, np.int32(IGNORED)).astype(np.int32)

    @property
    def num_loss(self) -> int:
        """Tokens that are learnt."""
        return int(self.has_loss[1:].sum())

    def cut(self, start: int, stop: int) -> Rendered:
        """The tokens from ``start`` to before ``stop``."""
        return Rendered(self.ids[start:stop], self.has_loss[start:stop], self.source)


def encode_pieces(tokenizer: Tokenizer, pieces: Sequence[Piece], source: str = "") -> Rendered:
    """The tokens of pieces; text is never joined across them, so labels start and end where texts do."""
    ids: list[int] = []
    has_loss: list[bool] = []
    for piece in pieces:
        if isinstance(piece.segment, int):
            new, marks = [piece.segment], [piece.has_loss]
        else:
            # A token before the text says that the text does not start the sequence, which some vocabularies care about.
            new = tokenizer.encode_segments([*ids[-1:], piece.segment])[len(ids[-1:]) :]
            marks = _marks(tokenizer, piece, new)
        ids += new
        has_loss += marks
    return Rendered(np.array(ids, np.int32), np.array(has_loss, np.bool_), source)


def _marks(tokenizer: Tokenizer, piece: Piece, ids: Sequence[int]) -> list[bool]:
    """Loss of each token; a token that is silent in part is silent."""
    if not piece.has_loss or not piece.silent:
        return [piece.has_loss] * len(ids)
    text = str(piece.segment)
    spans = [tuple(_num_bytes(tokenizer, text[:at]) for at in span) for span in piece.silent]
    marks, at = [], 0
    for token_id in ids:
        end = at + len(tokenizer.token_bytes(token_id))
        marks.append(not any(at < stop and start < end for start, stop in spans))
        at = end
    return marks


def _num_bytes(tokenizer: Tokenizer, text: str) -> int:
    """Bytes of a text as the tokenizer sees it, which may normalise it first."""
    return sum(len(tokenizer.token_bytes(i)) for i in tokenizer.encode(text, allowed_special=()))
