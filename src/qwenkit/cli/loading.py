"""Fetching and loading a model, with a progress bar or a spinner on stderr when that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qwenkit.cli.options import ModelOptions
from qwenkit.cli.pipes import is_terminal
from qwenkit.cli.texts import EN, Texts

if TYPE_CHECKING:
    from qwenkit.llm import LLM


def fetch(model: str, *, force: bool = False) -> Path:
    """Downloads the model if it is not there yet; a progress bar appears only when something is downloaded."""
    from qwenkit.weights import sources

    if not is_terminal(sys.stderr):
        return sources.fetch(model, force=force)
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task(model, total=None)

    def show(done: int, total: int | None) -> None:
        progress.start()
        progress.update(task, completed=done, total=total)

    try:
        return sources.fetch(model, on_progress=show, force=force)
    finally:
        progress.stop()


def open_llm(options: ModelOptions, *, max_batch_size: int = 16, texts: Texts = EN) -> LLM:
    """Fetches and loads the model that the options name."""
    fetch(options.model)
    with spinner(texts.loading.format(model=options.model)) as on_progress:
        from qwenkit.llm import LLM

        return LLM(
            options.model,
            device=options.device,
            dtype=options.dtype,
            max_context=options.max_context,
            max_batch_size=max_batch_size,
            num_threads=options.threads,
            on_progress=on_progress,
        )


@contextlib.contextmanager
def spinner(text: str) -> Iterator[Callable[[int, int], None]]:
    """Shows that something takes a while, on stderr when that is a terminal; yields how to say how far it is."""
    if not is_terminal(sys.stderr):
        yield lambda done, total: None
        return
    from rich.console import Console

    with Console(stderr=True).status(text) as status:
        yield lambda done, total: status.update(f"{text} {done / max(total, 1):.0%}")
