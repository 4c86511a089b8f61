"""Reads the parts of a checkpoint as numbers, one at a time, whatever they are stored as.

The whole model is never in memory. Knows nothing of what becomes of the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.weights.checkpoint import Checkpoint
from qwenkit.weights.files import DTYPES
from qwenkit.weights.load import check_surplus_biases, read_numbers
from qwenkit.weights.plan import Part, make_plan, stored_rows
from qwenkit.weights.quantised import gptq_version, read_from_folder


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A tensor of the model under its family's own name."""

    name: str
    """As a folder of the family calls it."""
    parameter: str
    """Of the network that it is in."""
    part: Part
    """Where it is stored in this checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size."""
        return self.part.shape


class NumberReader:
    """Reads the tensors of one checkpoint.

    Args:
        checkpoint: from open_checkpoint; stays open.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of the wrong shape.
        UnsupportedModelError: it is quantised in a way that cannot be read.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._store = checkpoint, checkpoint.store
        # Only folders keep packed matrices apart from the numbers; GGUF blocks become numbers as they are read.
        plan = make_plan(checkpoint, checkpoint.config, dtype=torch.float32, packed=False)
        check_surplus_biases(checkpoint, plan)
        self._plan = plan
        packed = [(p.module, p.form) for parameter in plan.values() for p in parameter.parts if p.form]
        gptq = [(module, form) for module, form in packed if form.layout == "gptq"]
        self._version = gptq_version(checkpoint.path, self._store, gptq, checkpoint.quant)

    def parts(self) -> Iterator[StoredPart]:
        """Every tensor of the model, in the order of the network; a tied head is not listed."""
        family, config = self._checkpoint.family, self._checkpoint.config
        for parameter, made in self._plan.items():
            names = stored_rows(family.tensors, config, parameter, made.shape[0])
            for (name, _), part in zip(names, made.parts, strict=True):
                yield StoredPart(name, parameter, part)

    def dtype(self, part: StoredPart) -> torch.dtype | None:
        """The type it is stored in; None: it is packed."""
        info = self._store.tensors.get(part.part.name)
        return DTYPES.get(info.dtype) if info is not None and part.part.form is None else None

    def read(self, part: StoredPart, dtype: torch.dtype) -> Tensor:
        """The whole tensor.

        Raises:
            CheckpointError: it cannot be read, or what it is packed in does not fit together.
        """
        form = part.part.form
        if form is not None:
            quant = self._checkpoint.quant
            weight = read_from_folder(
                self._store,
                part.part.module,
                form,
                version=self._version,
                desc_act=quant.desc_act if quant else None,
            )
            return weight.dequantise(dtype)
        out = torch.empty(part.shape, dtype=dtype)
        read_numbers(self._store, part.part, out)
        return out

    def rows(self, part: StoredPart, first: int, end: int, dtype: torch.dtype) -> Tensor:
        """Rows ``first`` to ``end``."""
        if part.part.form is not None or part.part.permuted_heads:
            return self.read(part, dtype)[first:end]
        out = torch.empty((end - first, *part.shape[1:]), dtype=dtype)
        self._store.read(part.part.name, out, first)
        return out
