"""``qwenkit finetune``: teach a model from conversations."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenkit.cli import loading, pipes
from qwenkit.cli.inspect_model import size
from qwenkit.cli.options import JsonFlag
from qwenkit.cli.quantize import duration
from qwenkit.core.environment import let_threads_sleep, local_rank
from qwenkit.core.errors import InputError, QwenkitError
from qwenkit.train.options import FIELDS, default_of, field_types, read_options

if TYPE_CHECKING:
    from qwenkit.train.plan import FinetuneResult, Plan
    from qwenkit.train.progress import Progress

_EXIT_ERROR = 2
_EXIT_INTERRUPTED = 130
_METAVARS = {int: "N", float: "X", str: "TEXT"}


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command one option for every field of FinetuneOptions; what was given arrives as ``given``."""
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "given"]
    types = field_types()
    added = [_parameter(name, types[name]) for name in FIELDS]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        given = {}
        for name in FIELDS:
            value = values.pop(name)
            if value is not None and value != []:
                given[name] = tuple(value) if isinstance(value, list) else value
        function(given=given, **values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [p.replace(kind=keyword) for p in own] + added
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(name: str, kind: Any) -> inspect.Parameter:
    data, default = FIELDS[name].metadata, default_of(name)
    flag = "--" + name.replace("_", "-")
    is_list = kind == tuple[str, ...]
    is_flag = kind is bool or bool in _inside(kind)
    names = [f"{flag}/--no-{flag[2:]}"] if is_flag else [flag]
    if name == "model":
        names.append("-m")
    text = data["help"]
    shown = ", ".join(default) if is_list else default
    if shown not in (None, "", False):
        text = f"{text} Default: {shown}."
    if is_list:
        text += " Repeat for several."
    metavar = None if is_flag else _METAVARS[next(k for k in _METAVARS if k is kind or k in _inside(kind))]
    option = typer.Option(
        *names, help=text, rich_help_panel=data["group"], show_default=False, metavar=metavar
    )
    wanted = list[str] | None if is_list else kind | None
    annotation = Annotated[wanted, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _inside(kind: Any) -> tuple[Any, ...]:
    """int and None of int | None."""
    return getattr(kind, "__args__", ())


@_with_options
def finetune(
    given: dict[str, Any],
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG",
            help="YAML file of the options below; those given here win.",
            show_default=False,
        ),
    ] = None,
    preview: Annotated[
        int | None,
        typer.Option(
            "--preview",
            metavar="N",
            min=1,
            help="Show N samples with what is learnt of them, and stop.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the data, the memory and the number of steps, and stop.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Teach a model from conversations: LoRA, Q-LoRA or all weights. Whatever stops it, the same command goes on where it was."""
    if config is not None and not config.is_file():
        raise InputError(f"there is no file {config}; give a YAML file of options, or options alone")
    if preview is not None and (plan or as_json):
        raise InputError("--preview shows samples as text and stops; leave --plan and --json out")
    let_threads_sleep()
    with _told_once():
        options = read_options(config, given)
        loading.fetch(options.model)
        with loading.spinner("preparing"):
            from qwenkit.train.run import Run, check_extra

            check_extra()
            run = Run(options, on_note=_note)
            planned = run.prepare()
    if preview is not None:
        if run.is_main:
            _preview(run, preview)
        return
    if run.is_main:
        _announce(planned, as_json=as_json and plan)
    if plan:
        return
    with _live(run.is_main) as show:
        result = run.train(on_progress=show)
    if not run.is_main:
        return
    print(json.dumps(result.to_dict(), ensure_ascii=False) if as_json else _summary(result))
    if result.interrupted:
        print("qwenkit: stopped; run the same command again to go on from there", file=sys.stderr)
        raise typer.Exit(_EXIT_INTERRUPTED)


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """Of several processes of a launcher, which all fail when one does, the first of each machine says why."""
    try:
        yield
    except QwenkitError:
        if local_rank():
            raise typer.Exit(_EXIT_ERROR) from None
        raise


def _note(sentence: str) -> None:
    pipes.warn(sentence)


def _preview(run: Any, count: int) -> None:
    from rich.console import Console

    console = Console()
    for text in run.previews(count, colour=console.is_terminal and not console.no_color):
        console.print(text, soft_wrap=True, highlight=False, markup=False)
        console.print()


def _announce(planned: Plan, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(planned.to_dict(), ensure_ascii=False))
        return
    for line in planned.lines():
        print(line, file=sys.stderr)


def describe(progress: Progress) -> str:
    """One line: where the run is."""
    parts = [f"step {progress.step} of {progress.steps}"]
    for name, value in (("loss", progress.loss), ("held-out loss", progress.eval_loss)):
        if value is not None:
            parts.append(f"{name} {value:.4f}")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:.0f} tokens/s")
    if progress.remaining is not None:
        parts.append(f"{duration(progress.remaining)} left")
    return ", ".join([*parts, size(progress.memory)])


@contextlib.contextmanager
def _live(is_main: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A bar on stderr when that is a terminal, else a line for every line of the log."""
    if not is_main:
        yield None
        return
    if not pipes.is_terminal(sys.stderr):
        yield lambda progress: print(describe(progress), file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=20), TextColumn("{task.fields[state]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, state="loading")

        def show(progress: Any) -> None:
            bar.update(task, completed=progress.step, total=progress.steps, state=describe(progress))
            if progress.eval_loss is not None:
                bar.console.print(f"step {progress.step}: held-out loss {progress.eval_loss:.4f}")

        yield show


def _summary(result: FinetuneResult) -> str:
    lines = [
        f"{result.folder}: {result.steps} steps, loss {result.first_loss:.4f} to {result.loss:.4f}, "
        f"{result.tokens} tokens in {duration(result.seconds)}, peak memory {size(result.peak_memory)}"
    ]
    if result.eval_loss is not None:
        lines.append(f"held-out loss {result.eval_loss:.4f}")
    if result.plot is not None:
        lines.append(f"curve: {result.plot}")
    return "\n".join(lines)
