"""Small models, data and runs for tests of fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwenkit.train.options import FinetuneOptions
from qwenkit.train.plan import FinetuneResult
from qwenkit.train.run import Run
from tests.support.tiny_models import write_model

ANSWERS = ("red", "green", "blue", "grey", "black", "white", "pink", "teal")


def write_conversations(path: Path, count: int = 24) -> Path:
    """Conversations in the form of the Qwen release; every number has a colour."""
    samples = [
        {
            "id": str(i),
            "conversations": [
                {"from": "user", "value": f"Colour {i}?"},
                {"from": "assistant", "value": ANSWERS[i % 8] * (1 + i % 3)},
            ],
        }
        for i in range(count)
    ]
    path.write_text(json.dumps(samples), "utf-8")
    return path


def options(folder: Path, family: str = "llama", **changes: Any) -> FinetuneOptions:
    """A short run on a tiny model; files are made where they are missing."""
    model = folder / f"model-{family}"
    if "model" not in changes and not model.exists():
        write_model(model, family)
    data = folder / "data.json"
    if not data.exists():
        write_conversations(data)
    given: dict[str, Any] = {
        "model": str(model),
        "data": (str(data),),
        "out": str(folder / "out"),
        "dtype": "float32",
        "max_length": 128,
        "batch_size": 2,
        "accumulate": 2,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "threads": 1,
    }
    if "patience" not in changes:
        given["save_every"] = 2
    if changes.get("method") != "full" and "lora_adapter" not in changes:
        given["lora_r"] = 4
    return FinetuneOptions(**(given | changes))


def run(chosen: FinetuneOptions, *, stop_after: int | None = None, draws: bool = False) -> FinetuneResult:
    """Trains; ``stop_after`` asks to stop behind that step, as Ctrl-C does. A curve takes longer than a short run."""
    each = Run(chosen)
    if not draws:
        each._draw = lambda history: None  # type: ignore[method-assign]
    each.prepare()

    def watch(progress: Any) -> None:
        if stop_after is not None and progress.step >= stop_after:
            each.stop()

    return each.train(on_progress=watch)


def losses(folder: Path) -> list[float]:
    """Those of the log."""
    lines = (folder / "log.jsonl").read_text("utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]
