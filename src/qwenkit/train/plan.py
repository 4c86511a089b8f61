"""What a fine-tuning run will do, and what it came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwenkit.train.memory import MemoryEstimate
from qwenkit.train.report import DataReport
from qwenkit.weights.cache import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do, known before weights are loaded."""

    model: str
    method: str
    dtype: str
    devices: int
    steps: int
    sequences_per_step: int
    data: DataReport
    held_out: DataReport | None
    memory: MemoryEstimate
    free_memory: int | None
    resumes_at: int | None
    """Step of the checkpoint that the run goes on from; None: it starts."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        out = {k: v for k, v in asdict(self).items() if k not in ("data", "held_out", "memory")}
        held_out = None if self.held_out is None else self.held_out.to_dict()
        return {**out, "data": self.data.to_dict(), "held_out": held_out, "memory": self.memory.to_dict()}

    def lines(self) -> list[str]:
        """For people."""
        memory = self.memory
        share = memory.trained_parameters / memory.parameters
        start = f", going on at step {self.resumes_at}" if self.resumes_at else ""
        lines = [
            f"{self.model}: {self.method} in {self.dtype} on {self.devices} device{'s' * (self.devices > 1)}, "
            f"{memory.trained_parameters:,} of {memory.parameters:,} parameters ({share:.2%})",
            *self.data.text().splitlines(),
        ]
        if self.held_out is not None:
            lines.append(f"held out: {self.held_out.text().splitlines()[0]}")
        lines.append(f"{self.steps} steps of {self.sequences_per_step} rows{start}")
        free = "" if self.free_memory is None else f", {format_size(self.free_memory)} free"
        lines.append(
            f"memory about {format_size(memory.total)} (weights {format_size(memory.weights)}, gradients "
            f"{format_size(memory.gradients)}, optimizer {format_size(memory.optimizer)}, activations "
            f"{format_size(memory.activations)}){free}"
        )
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneResult:
    """What a run came to."""

    folder: Path
    steps: int
    first_loss: float
    loss: float
    """Mean of the last tenth of the log."""
    eval_loss: float | None
    tokens: int
    """Read in this call by all processes, padding left out."""
    seconds: float
    """Of this call."""
    peak_memory: int
    plot: Path | None
    interrupted: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plot = None if self.plot is None else str(self.plot)
        return {**asdict(self), "folder": str(self.folder), "plot": plot}
