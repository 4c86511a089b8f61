"""What became of the samples on their way to batches, in numbers. Knows nothing of how it is done."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class DataReport:
    """Counts over a data set; of a lazy one, over what has been rendered so far."""

    samples: int = 0
    """Samples that were read and taken."""
    skipped: int = 0
    """Broken samples that were left out when reading."""
    refused: int = 0
    """Samples that the chat template refused and that were left out."""
    dropped_turns: int = 0
    """Turns of the assistant before the first of the user, which were left out."""
    sequences: int = 0
    """Sequences to train on."""
    parted: int = 0
    """Samples that became several sequences."""
    truncated: int = 0
    """Sequences cut at the longest length allowed."""
    lost_loss_tokens: int = 0
    """Tokens with loss that this cut away."""
    too_long: int = 0
    """Samples that were left out because they are too long."""
    without_loss: int = 0
    """Sequences that were left out because nothing in them carries loss."""
    tokens: int = 0
    loss_tokens: int = 0
    longest: int = 0
    """Tokens of the longest sequence after cutting."""
    max_length: int = 0
    rows: int | None = None
    """Rows of packed sequences; None: not packed."""
    is_complete: bool = True
    """Every sample has been rendered."""

    @property
    def fill(self) -> float | None:
        """The share of places in packed rows that hold tokens."""
        return None if not self.rows else self.tokens / (self.rows * self.max_length)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "fill": self.fill}

    def text(self) -> str:
        """For people: one line of counts, and one for each thing that was changed or left out."""
        share = f" ({self.loss_tokens / self.tokens:.0%})" if self.tokens else ""
        lines = [
            f"{_count(self.samples, 'sample')}, {_count(self.sequences, 'sequence')}, {_count(self.tokens, 'token')}, "
            f"{self.loss_tokens:,} with loss{share}, longest {self.longest:,}"
        ]
        if not self.is_complete:
            lines[0] += "; the others are rendered when they are needed"
        if self.rows:
            lines.append(
                f"packed into {_count(self.rows, 'row')} of {self.max_length:,} tokens, {self.fill:.1%} full"
            )
        return "\n".join([*lines, *self._changes()])

    def _changes(self) -> list[str]:
        notes = (
            (self.skipped, "broken sample", "left out"),
            (self.refused, "sample", "left out: the chat template refuses"),
            (self.dropped_turns, "turn", "of the assistant before the first of the user left out"),
            (
                self.parted,
                "sample",
                "became several sequences: the template writes earlier turns in another way",
            ),
            (
                self.truncated,
                "sequence",
                f"cut at {self.max_length:,} tokens, losing {self.lost_loss_tokens:,} with loss",
            ),
            (self.too_long, "sample", f"left out: longer than {self.max_length:,} tokens"),
            (self.without_loss, "sequence", "left out: nothing in it carries loss"),
        )
        return [f"{_count(number, what)} {rest}" for number, what, rest in notes if number]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
