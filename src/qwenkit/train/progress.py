"""What people and programs see of a run: one line that is kept up to date, lines of JSON, and the curve at the end."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from qwenkit.core.drawing import new_figure
from qwenkit.quantize.progress import peak_memory
from qwenkit.train.options import FinetuneOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is, after some step."""

    step: int
    steps: int
    epoch: float
    loss: float | None
    """Of the steps since the last line."""
    eval_loss: float | None
    """Of the newest evaluation, on the line of its step only."""
    learning_rate: float | None
    grad_norm: float | None
    tokens_per_second: float | None
    """Of this run, padding left out."""
    remaining: float | None
    """Seconds still to go, as it looks."""
    memory: int
    """Most bytes this process has held (on a GPU: of its memory)."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without what is not known."""
        return {k: v for k, v in asdict(self).items() if v is not None}


OnProgress = Callable[[Progress], None]


class Meter(TrainerCallback):
    """Listens to a Trainer.

    Args:
        log: file that gets a line of JSON for every line of the log; None: none.
        listener: told the same.
        stop: asked after every step whether to save and stop.
    """

    def __init__(self, log: Path | None, listener: OnProgress | None, stop: Callable[[], bool]) -> None:
        self._log, self._listener, self._stop = log, listener, stop
        self.tokens = 0
        """Read in this run by this process, padding left out."""
        self.was_stopped = False
        self._started = time.perf_counter()
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts."""
        self._started, self._first_step = time.perf_counter(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Stops when asked to, with a checkpoint."""
        if self._stop() and not control.should_training_stop:
            self.was_stopped = True
            control.should_save = control.should_training_stop = True
        return control

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any
    ) -> None:
        """Hands on what the Trainer logs."""
        if not logs or ("loss" not in logs and "eval_loss" not in logs) or not state.is_world_process_zero:
            return
        seconds = time.perf_counter() - self._started
        done = state.global_step - self._first_step
        progress = Progress(
            step=state.global_step,
            steps=state.max_steps,
            epoch=round(state.epoch or 0.0, 4),
            loss=logs.get("loss"),
            eval_loss=logs.get("eval_loss"),
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            tokens_per_second=round(self.tokens * args.world_size / seconds, 1)
            if seconds and self.tokens
            else None,
            remaining=round(seconds / done * (state.max_steps - state.global_step), 1) if done else None,
            memory=device_memory(),
        )
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **progress.to_dict()}) + "\n")
        if self._listener is not None:
            self._listener(progress)


def other_listeners(options: FinetuneOptions, board: Path | None) -> list[TrainerCallback]:
    """What else follows a run: early stopping, and TensorBoard in the folder ``board`` (None: not in this process)."""
    found: list[TrainerCallback] = []
    if options.patience is not None:
        found.append(EarlyStoppingCallback(options.patience))
    if board is not None and "tensorboard" in options.loggers:
        from torch.utils.tensorboard import SummaryWriter

        found.append(TensorBoardCallback(SummaryWriter(str(board))))
    return found


def device_memory() -> int:
    """Most bytes held so far: of the GPU's memory where there is one in use, else of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return peak_memory()


def draw_loss(lines: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draws loss (with its running mean), held-out loss and learning rate over steps.

    Raises:
        MissingExtraError: matplotlib is not there.
    """
    figure = new_figure("train")
    figure.suptitle(title, fontsize=11)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    losses = [
        (line["step"], line["loss"]) for line in lines if "loss" in line and math.isfinite(line["loss"])
    ]
    held_out = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    if losses:
        steps, values = zip(*losses, strict=True)
        above.plot(steps, values, color="#4c72b0", alpha=0.35, linewidth=1, label="loss")
        above.plot(steps, _smooth(values), color="#4c72b0", linewidth=1.8, label="running mean")
    if held_out:
        above.plot(*zip(*held_out, strict=True), "o-", color="#c44e52", markersize=4, label="held-out loss")
    rates = [(line["step"], line["learning_rate"]) for line in lines if "learning_rate" in line]
    if rates:
        below.plot(*zip(*rates, strict=True), color="#8c8c8c", linewidth=1.4)
    above.set_ylabel("loss")
    below.set_ylabel("learning rate")
    below.set_xlabel("step")
    if losses or held_out:
        above.legend(frameon=False)
    for axes in (above, below):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Exponential mean over about a twentieth of the curve."""
    share = max(0.05, min(1.0, 20 / max(1, len(values))))
    mean, out = values[0], []
    for value in values:
        mean += share * (value - mean)
        out.append(mean)
    return out
