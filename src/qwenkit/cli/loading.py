"""Fetching and loading a model, with a progress bar or a spinner on stderr when that is a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenkit.cli.options import ModelOptions, ServerOptions, SpeculativeOptions
from qwenkit.cli.pipes import is_terminal
from qwenkit.cli.texts import EN, Texts
from qwenkit.core.environment import api_key
from qwenkit.core.errors import InputError

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from qwenkit.llm import LLM


def fetch(model: str, *, force: bool = False) -> Path:
    """Downloads the model if it is not there yet; a progress bar appears only when something is downloaded."""
    from qwenkit.weights import sources

    with _downloads(model) as show:
        return sources.fetch(model, on_progress=show, force=force)


def fetch_with_base(model: str) -> None:
    """As ``fetch``, and of an adapter its base too."""
    from qwenkit.weights.adapter_base import fetch_base, is_adapter

    path = fetch(model)
    if is_adapter(path):
        with _downloads(model) as show:
            fetch_base(path, on_progress=show)


def byte_columns(width: int) -> tuple[ProgressColumn, ...]:
    """A bar of this width for work on bytes, with their number, speed and the time left."""
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    return BarColumn(bar_width=width), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()


@contextlib.contextmanager
def _downloads(name: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """Shows how far a download is, once it begins, on stderr when that is a terminal."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    columns = (TextColumn("{task.description}"), *byte_columns(40))
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task(name, total=None)

    def show(done: int, total: int | None) -> None:
        progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        progress.stop()


def open_llm(
    options: ModelOptions,
    *,
    speculation: SpeculativeOptions | None = None,
    max_batch_size: int = 16,
    cache_memory: int | None = None,
    texts: Texts = EN,
) -> LLM:
    """Fetches and loads the model that the options name, or reaches it where it runs."""
    speculation = speculation or SpeculativeOptions()
    if is_elsewhere(options.model):
        return open_elsewhere(options, speculation)
    fetch_with_base(options.model)
    with spinner(texts.loading.format(model=options.model)) as on_progress:
        from qwenkit.llm import LLM

        return LLM(
            options.model,
            device=options.device,
            dtype=options.dtype,
            max_context=options.max_context,
            max_batch_size=max_batch_size,
            cache_memory=cache_memory,
            num_threads=options.threads,
            activations=options.activations,
            head=options.head,
            packed_cache=options.packed_cache,
            kv_cache=options.kv_cache,
            speculative=speculation.speculative,
            speculative_tokens=speculation.speculative_tokens,
            deterministic=options.deterministic,
            on_progress=on_progress,
        )


def is_elsewhere(model: str) -> bool:
    """Whether the name of a model says that a service runs it."""
    from qwenkit.backends.dashscope_http import is_dashscope

    return is_dashscope(model)


def open_elsewhere(
    options: ModelOptions, speculation: SpeculativeOptions, *, api_key: str | None = None
) -> LLM:
    """Reaches the model of a service, which the name says.

    Raises:
        InputError: an option that only a model in this process can honour, or a key is missing.
    """
    refuse_local(options, speculation)
    from qwenkit.backends.dashscope_http import open_dashscope
    from qwenkit.llm import LLM

    # The command line shows thought as a model writes it, between tags.
    return LLM.from_backend(open_dashscope(options.model, api_key=api_key, inline_reasoning=True))


def refuse_local(*groups: Any, cure: str = "leave it out") -> None:
    """Refuses options that say how a model in this process should run.

    Args:
        groups: of options; the name of the model is no such option.
        cure: what to do about one.

    Raises:
        InputError: one is not as it is without being given.
    """
    for group in groups:
        for item in dataclasses.fields(group):
            if item.name != "model" and getattr(group, item.name) != item.default:
                option = f"--{item.name.replace('_', '-')}"
                raise InputError(f"{option} is for a model in this process; {cure}")


def open_remote(
    server: ServerOptions, options: ModelOptions, *, speculation: SpeculativeOptions, is_model_named: bool
) -> LLM:
    """Reaches the server that the options name.

    Args:
        server: where it is.
        options: of these only the model can be chosen.
        speculation: none of these can.
        is_model_named: whether the user named it; else it is the first of the server.

    Raises:
        InputError: an option that only a model in this process can honour.
        RemoteError: the server is not reached.
    """
    refuse_local(options, speculation, cure="leave it out, or start the server with it")
    from qwenkit.backends.openai_http import open_openai
    from qwenkit.llm import LLM

    # The command line shows thought as a model writes it, between tags.
    backend = open_openai(
        server.server or "",
        model=options.model if is_model_named else None,
        api_key=server.api_key or api_key(),
        inline_reasoning=True,
    )
    return LLM.from_backend(backend)


@contextlib.contextmanager
def spinner(text: str) -> Iterator[Callable[[int, int], None]]:
    """Shows that something takes a while, on stderr when that is a terminal; yields how to say how far it is."""
    if not is_terminal(sys.stderr):
        yield lambda done, total: None
        return
    from rich.console import Console

    with Console(stderr=True).status(text) as status:
        yield lambda done, total: status.update(f"{text} {done / max(total, 1):.0%}")
