"""Fetching and loading a model, with a progress bar or a spinner on stderr when that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
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


def open_llm(options: ModelOptions, *, max_batch_size: int | None = None, texts: Texts = EN) -> LLM:
    """Fetches and loads the model that the options name."""
    fetch(options.model)
    with spinner(texts.loading.format(model=options.model)):
        from qwenkit.llm import LLM

        limits = {} if max_batch_size is None else {"max_batch_size": max_batch_size}
        return LLM(
            options.model,
            device=options.device,
            dtype=options.dtype,
            max_context=options.max_context,
            num_threads=options.threads,
            **limits,
        )


@contextlib.contextmanager
def spinner(text: str) -> Iterator[None]:
    """Shows that something takes a while, on stderr when that is a terminal."""
    if not is_terminal(sys.stderr):
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield
