"""Samples as a data set of torch: rendered at the start or when needed, cut, and packed if asked for.

Batches are made of its items in `collate`. Knows nothing of models or optimisers.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from qwenkit.chat.base import ChatTemplate
from qwenkit.core.errors import InputError, TemplateError
from qwenkit.tokenizer.base import Tokenizer
from qwenkit.train.labels import LabelRules, render
from qwenkit.train.packing import pack
from qwenkit.train.pieces import IGNORED, Rendered
from qwenkit.train.reading import Reading
from qwenkit.train.report import DataReport
from qwenkit.train.samples import Sample

TooLong: TypeAlias = Literal["cut", "drop", "refuse"]
"""What happens to a sample of more tokens than allowed."""


class Preparation:
    """Makes the sequences of samples, cut to a length, and counts what became of them."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        max_length: int,
        rules: LabelRules | None = None,
        too_long: TooLong = "cut",
        skip_bad: bool = False,
    ) -> None:
        """See `TrainingData`."""
        if max_length < 2:
            raise InputError(f"max_length must be 2 or more, got {max_length}")
        if too_long not in ("cut", "drop", "refuse"):
            raise InputError(f"too_long {too_long!r} is unknown; use cut, drop or refuse")
        self._tokenizer, self._template = tokenizer, template
        self._rules = rules or LabelRules()
        self._max_length, self._too_long, self._skip_bad = max_length, too_long, skip_bad
        self.report = DataReport(max_length=max_length)

    def sequences(self, sample: Sample) -> list[Rendered]:
        """The sequences of a sample that are to be learnt; none if it is left out.

        Raises:
            InputError: the template refuses the sample, or it is too long, and such are not left out.
        """
        try:
            parts = render(sample, self._tokenizer, self._template, self._rules)
        except TemplateError as error:
            if not self._skip_bad or self._template is None:
                raise InputError(f"{sample.source}: {error}" if self._template else str(error)) from None
            self.report.refused += 1
            return []
        if self._too_long != "cut" and max(map(len, parts)) > self._max_length:
            return self._refuse(sample, max(map(len, parts)))
        kept = self._blocks(parts[0]) if sample.text is not None else [self._cut(part) for part in parts]
        with_loss = [part for part in kept if part.num_loss]
        self._count(parts, kept, with_loss)
        return with_loss

    def _refuse(self, sample: Sample, length: int) -> list[Rendered]:
        if self._too_long == "refuse":
            raise InputError(
                f"{sample.source} has {length:,} tokens, more than max_length={self._max_length:,}; "
                "raise it, or let long samples be cut or dropped"
            )
        self.report.too_long += 1
        return []

    def _cut(self, part: Rendered) -> Rendered:
        if len(part) <= self._max_length:
            return part
        cut = part.cut(0, self._max_length)
        self.report.truncated += 1
        self.report.lost_loss_tokens += part.num_loss - cut.num_loss
        return cut

    def _blocks(self, text: Rendered) -> list[Rendered]:
        """A plain text is cut into blocks, so that nothing of it is lost."""
        starts = range(0, len(text), self._max_length)
        return [text.cut(start, start + self._max_length) for start in starts]

    def _count(
        self, parts: Sequence[Rendered], kept: Sequence[Rendered], with_loss: Sequence[Rendered]
    ) -> None:
        report = self.report
        report.samples += 1
        report.parted += len(parts) > 1
        report.without_loss += len(kept) - len(with_loss)
        report.sequences += len(with_loss)
        report.tokens += sum(map(len, with_loss))
        report.loss_tokens += sum(part.num_loss for part in with_loss)
        report.longest = max([report.longest, *map(len, with_loss)])


class TrainingData(Dataset[dict[str, Tensor]]):
    """Items are rows: one sequence, or several that are packed, as ``input_ids``, ``labels`` and ``position_ids``.

    Positions start again at 0 with every sequence of a row, which is how models tell where one ends; the first label of
    every sequence but the row's first is ignored, so that none is learnt from the one before it.
    """

    def __init__(
        self,
        samples: Sequence[Sample] | Reading,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        max_length: int,
        rules: LabelRules | None = None,
        too_long: TooLong = "cut",
        packing: bool = False,
        lazy: bool = False,
        skip_bad: bool = False,
        seed: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Renders all samples, or none of them yet.

        Args:
            samples: or what reading files gave, whose counts then stand in the report.
            tokenizer: of the model.
            template: of the model; plain texts need none.
            max_length: most tokens of a row.
            rules: what carries loss.
            too_long: cut the end off samples that are longer, drop them, or refuse them. Plain texts are not cut but
                parted into rows.
            packing: put several sequences into a row.
            lazy: render a sample when it is needed first, and keep it.
            skip_bad: leave out samples that the template refuses.
            seed: of packing.
            on_progress: is told how many samples of how many are rendered.

        Raises:
            InputError: a sample is refused, or nothing is left; lazy together with packing.
        """
        if lazy and packing:
            raise InputError(
                "packing needs the length of every sample, so it cannot be lazy; choose one of them"
            )
        preparation = Preparation(
            tokenizer, template, max_length=max_length, rules=rules, too_long=too_long, skip_bad=skip_bad
        )
        self._preparation = preparation
        if isinstance(samples, Reading):
            preparation.report.skipped = samples.num_skipped
            samples = samples.samples
        preparation.report.dropped_turns = sum(sample.dropped_turns for sample in samples)
        if not samples:
            raise InputError("there are no samples to train on; give data")
        self._waiting = list(samples) if lazy else None
        self._cache: dict[int, list[Rendered]] = {}
        self._sequences = _Sequences()
        if lazy:
            preparation.report.is_complete = False
            return
        for done, sample in enumerate(samples, 1):
            for part in preparation.sequences(sample):
                self._sequences.add(part)
            if on_progress is not None and (done % 64 == 0 or done == len(samples)):
                on_progress(done, len(samples))
        self._rows = self._arrange(packing, max_length, seed)

    def _arrange(self, packing: bool, max_length: int, seed: int) -> list[list[int]] | None:
        if not len(self._sequences):
            raise InputError(
                "no sample has anything to learn from; see the docs on training data, or raise max_length"
            )
        if not packing:
            return None
        rows = pack(self._sequences.lengths, max_length, seed=seed)
        self._preparation.report.rows = len(rows)
        return rows

    @property
    def report(self) -> DataReport:
        """What became of the samples."""
        return dataclasses.replace(self._preparation.report)

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row, for batches of like lengths; a lazy set renders all samples for it."""
        if self._waiting is not None:
            return [sum(map(len, self.row(index))) for index in range(len(self))]
        lengths = self._sequences.lengths
        return lengths if self._rows is None else [sum(lengths[n] for n in row) for row in self._rows]

    def __len__(self) -> int:
        if self._waiting is not None:
            return len(self._waiting)
        return len(self._sequences) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return as_tensors(self.row(index))

    def row(self, index: int) -> list[Rendered]:
        """The sequences of a row.

        A lazy set cannot drop a sample any more: the next that has something to learn stands in for it.

        Raises:
            IndexError: there is no such row.
            InputError: a sample of a lazy set is refused, or none has anything to learn from.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        if self._waiting is None:
            return [self._sequences[n] for n in ([index] if self._rows is None else self._rows[index])]
        for step in range(len(self)):
            if found := self._rendered((index + step) % len(self)):
                return found
        raise InputError(
            "no sample has anything to learn from; see the docs on training data, or raise max_length"
        )

    def _rendered(self, index: int) -> list[Rendered]:
        if index not in self._cache:
            assert self._waiting is not None
            self._cache[index] = self._preparation.sequences(self._waiting[index])
            self._preparation.report.is_complete = len(self._cache) == len(self._waiting)
        return self._cache[index]


class _Sequences:
    """Many sequences in two flat arrays: a million of them cost their tokens and no more."""

    def __init__(self) -> None:
        self._ids, self._has_loss = array("i"), bytearray()
        self._ends = array("q", [0])
        self._sources: list[str] = []

    def add(self, part: Rendered) -> None:
        """Appends a sequence."""
        self._ids.frombytes(part.ids.tobytes())
        self._has_loss += part.has_loss.tobytes()
        self._ends.append(len(self._ids))
        self._sources.append(part.source)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        lengths: list[int] = np.diff(np.frombuffer(self._ends, np.int64)).tolist()
        return lengths

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> Rendered:
        start, stop = self._ends[index], self._ends[index + 1]
        ids = np.frombuffer(self._ids, np.int32)[start:stop]
        return Rendered(ids, np.frombuffer(self._has_loss, np.bool_)[start:stop], self._sources[index])


def as_tensors(row: Sequence[Rendered]) -> dict[str, Tensor]:
    """One row of sequences as tensors of (T)."""
    labels = [part.labels for part in row]
    for later in labels[1:]:
        later[:1] = IGNORED
    arrays = {
        "input_ids": np.concatenate([part.ids for part in row]),
        "labels": np.concatenate(labels),
        "position_ids": np.concatenate([np.arange(len(part)) for part in row]),
    }
    return {name: torch.from_numpy(values.astype(np.int64)) for name, values in arrays.items()}
