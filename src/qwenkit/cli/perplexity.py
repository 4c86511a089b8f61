"""``qwenkit perplexity``: how well a model predicts a text."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from qwenkit.cli import loading, pipes
from qwenkit.cli.options import JsonFlag, ModelOptions, spread
from qwenkit.core.errors import InputError

_EXIT_INTERRUPTED = 130

OnProgress: TypeAlias = Callable[[int, int, float], None]


class _Reached:
    """The last numbers reported, so that Ctrl-C need not lose them."""

    def __init__(self, show: OnProgress) -> None:
        self._show = show
        self.done = 0
        self.total = 0
        self.perplexity = float("nan")

    def __call__(self, done: int, total: int, perplexity: float) -> None:
        """Takes note and shows."""
        self.done, self.total, self.perplexity = done, total, perplexity
        self._show(done, total, perplexity)


@spread
def perplexity(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Text in UTF-8; - is stdin.")],
    *,
    model: ModelOptions,
    window: Annotated[
        int | None, typer.Option("--window", metavar="N", help="Tokens scored at a time.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure the perplexity of a text. Ctrl-C prints what was reached so far."""
    text = pipes.read_stdin() if str(file) == "-" else pipes.decode(file.read_bytes(), str(file))
    if not text.strip():
        raise InputError(f"{file} holds no text")
    if window is not None and window < 2:
        raise InputError(f"window={window} is not possible; use a whole number from 2 up")
    llm = loading.open_llm(model)
    window = llm.score_window if window is None else window
    start = time.perf_counter()
    was_stopped = False
    with _progress(llm.info.device) as show:
        reached = _Reached(show)
        try:
            reached.perplexity = llm.perplexity(text, window=window, on_progress=reached)
        except KeyboardInterrupt:
            was_stopped = True
    llm.close()
    if was_stopped and not reached.done:
        raise typer.Exit(_EXIT_INTERRUPTED)
    _print(reached, window, time.perf_counter() - start, as_json=as_json, was_stopped=was_stopped)
    if was_stopped:
        raise typer.Exit(_EXIT_INTERRUPTED)


def _print(reached: _Reached, window: int, seconds: float, *, as_json: bool, was_stopped: bool) -> None:
    if as_json:
        row = {
            "perplexity": reached.perplexity,
            "tokens": reached.done,
            "total_tokens": reached.total,
            "window": window,
            "seconds": round(seconds, 3),
            "complete": not was_stopped,
        }
        print(json.dumps(row))
        return
    part = f"the first {reached.done} of {reached.total}" if was_stopped else f"{reached.done}"
    rate = reached.done / seconds if seconds > 0 else 0.0
    print(f"perplexity {reached.perplexity:.4f} over {part} tokens ({seconds:.1f} s, {rate:.0f} tokens/s)")


@contextlib.contextmanager
def _progress(device: str) -> Iterator[OnProgress]:
    """A progress bar on stderr when that is a terminal."""
    if not pipes.is_terminal(sys.stderr):
        yield lambda done, total, value: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[memory]}"),
        TextColumn("[bold]{task.fields[value]}"),
    )
    start = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, rate="", memory="", value="")

        def show(done: int, total: int, value: float) -> None:
            rate = f"{done / max(time.perf_counter() - start, 1e-9):.0f} tok/s"
            progress.update(
                task, completed=done, total=total, rate=rate, memory=_memory(device), value=f"ppl {value:.3f}"
            )

        yield show


def _memory(device: str) -> str:
    """Memory in use now: of the GPU when the model is there, else of this process."""
    if device.startswith("cuda"):
        import torch

        return f"{torch.cuda.memory_allocated() / 2**30:.1f} GiB"
    import os

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return ""
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
