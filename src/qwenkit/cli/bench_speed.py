"""``qwenkit bench speed``: how fast a model is on this machine, and what memory it takes."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenkit.cli import loading, pipes
from qwenkit.cli.options import ModelOptions, spread
from qwenkit.core.errors import InputError

if TYPE_CHECKING:
    import torch

    from qwenkit.bench.room import Room
    from qwenkit.bench.sessions import Session, SpeedResult
    from qwenkit.bench.speed import Case, Progress, SpeedOptions
    from qwenkit.bench.speed_report import SpeedRow
    from qwenkit.llm import LLM

_EXIT_INTERRUPTED = 130
_PREFILL, _BATCHES, _CONTEXT, _OUTPUT_TOKENS = 512, (1, 4, 16), 128, 64
_PROTOCOLS = ("qwen",)
_RELEASED = (2048, 8192)  # tokens generated behind one token of context
_REPEATS, _RELEASED_REPEATS = 3, 1
_WORK = "What to measure"
_ROUNDS = "How often"
_OUTPUT = "Output"


def _option(panel: str, *names: str, metavar: str, text: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel)


_ThreadsOption = Annotated[
    str | None,
    _option("Model", "--threads", metavar="N,...", text="CPU threads; the model is loaded for each."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedModelOptions(ModelOptions):
    """Which model, where and how; on several numbers of threads if wanted."""

    threads: _ThreadsOption = None  # type: ignore[assignment]  # a list here

    def with_threads(self, threads: int | None) -> ModelOptions:
        """These options for one number of threads."""
        names = [item.name for item in dataclasses.fields(ModelOptions) if item.name != "threads"]
        return ModelOptions(threads=threads, **{name: getattr(self, name) for name in names})

    def numbers_of_threads(self) -> tuple[int | None, ...]:
        """All that are asked for.

        Raises:
            InputError: one is not possible.
        """
        if self.threads is None:
            return (None,)
        from qwenkit.kernels.cpu import usable_cores

        cores, found = usable_cores(), _numbers(self.threads, "--threads")
        for threads in found:
            if threads > cores:
                raise InputError(
                    f"--threads {threads} is more than the {cores} cores this process may use; leave it out"
                )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedFlags:
    """What to measure."""

    prefill: Annotated[
        str | None, _option(_WORK, "--prefill", metavar="N,...", text="Tokens of prompts to read; 512.")
    ] = None
    batch: Annotated[
        str | None, _option(_WORK, "--batch", metavar="N,...", text="Sequences generated together; 1,4,16.")
    ] = None
    context: Annotated[
        str | None,
        _option(_WORK, "--context", metavar="N,...", text="Tokens before the generated ones; 128."),
    ] = None
    output_tokens: Annotated[
        str | None,
        _option(
            _WORK,
            "--output-tokens",
            metavar="N",
            text="Generated for each sequence; 64. With --protocol a list; 2048,8192 as far as the context goes.",
        ),
    ] = None
    protocol: Annotated[
        str | None,
        _option(
            _WORK,
            "--protocol",
            metavar="qwen",
            text="Measure as the figures released with Qwen: 1 token of context, 2048 and 8192 generated.",
        ),
    ] = None

    def cases(self, context_length: int) -> tuple[Case, ...]:
        """What these flags ask of a model with such a context; what is not given is cut to what fits it.

        Raises:
            InputError: they contradict each other or are not understood.
        """
        from qwenkit.bench.speed import plan_cases

        if self.protocol is not None:
            return self._released_cases(context_length)
        output = min(_OUTPUT_TOKENS, max(context_length // 2, 2))
        if self.output_tokens is not None:
            given = _numbers(self.output_tokens, "--output-tokens")
            if len(given) > 1:
                raise InputError(
                    f"--output-tokens {self.output_tokens} is a list; give one number without --protocol"
                )
            output = given[0]
        return plan_cases(
            _given(self.prefill, "--prefill", (min(_PREFILL, max(context_length - 1, 1)),)),
            _given(self.batch, "--batch", _BATCHES),
            _given(self.context, "--context", (min(_CONTEXT, max(context_length - output, 1)),)),
            output,
        )

    def _released_cases(self, context_length: int) -> tuple[Case, ...]:
        from qwenkit.bench.speed import Case

        if self.protocol not in _PROTOCOLS:
            known = ", ".join(_PROTOCOLS)
            raise InputError(f"--protocol {self.protocol} is not known; use {known}, or leave it out")
        for name in ("prefill", "batch", "context"):
            if (value := getattr(self, name)) is not None:
                raise InputError(f"--{name} {value} and --protocol exclude each other; leave one out")
        fitting = tuple(n for n in _RELEASED if n < context_length)
        lengths = _given(self.output_tokens, "--output-tokens", fitting)
        if not lengths:
            raise InputError(
                f"the context holds {context_length} tokens and --protocol {self.protocol} generates {_RELEASED[0]}; "
                f"give --output-tokens {context_length - 1}"
            )
        if self.output_tokens is None and len(fitting) < len(_RELEASED):
            pipes.warn(
                f"{_RELEASED[-1]} tokens behind 1 do not fit the context of {context_length} and are left out; "
                f"--max-context {_RELEASED[-1] + 1} makes room if the model allows"
            )
        return tuple(Case(kind="generate", prompt_tokens=1, output_tokens=n) for n in dict.fromkeys(lengths))


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFlags:
    """How often to measure, and on what."""

    repeats: Annotated[
        int | None,
        _option(
            _ROUNDS,
            "--repeats",
            metavar="N",
            text="Rounds that count; 3, or 1 with --protocol. Medians are told.",
        ),
    ] = None
    warmup: Annotated[
        int, typer.Option("--warmup", metavar="N", help="Rounds before them.", rich_help_panel=_ROUNDS)
    ] = 1
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", help="Of the prompts, random tokens.", rich_help_panel=_ROUNDS),
    ] = 0

    def to_options(self, *, is_protocol: bool) -> SpeedOptions:
        """With what is left out filled in."""
        from qwenkit.bench.speed import SpeedOptions

        usual = _RELEASED_REPEATS if is_protocol else _REPEATS
        repeats = usual if self.repeats is None else self.repeats
        return SpeedOptions(repeats=repeats, warmup=self.warmup, seed=self.seed)


@spread
def speed(
    *,
    model: SpeedModelOptions,
    work: SpeedFlags,
    rounds: RoundFlags,
    json_file: Annotated[
        str | None, _option(_OUTPUT, "--json", metavar="FILE", text="Write all numbers as JSON; - is stdout.")
    ] = None,
    plot: Annotated[
        Path | None,
        _option(_OUTPUT, "--plot", metavar="FILE", text="Draw decoding speed into a .png or .svg."),
    ] = None,
) -> None:
    """Measure a model's speed and memory on this machine. Ctrl-C ends early and still reports.

    [bold]qwenkit bench speed -m MODEL --batch 1,8 --context 128,4096[/] generates for one and for eight sequences
    behind 128 and 4,096 tokens; [bold]--protocol qwen[/] measures as the figures released with Qwen.
    """
    options = rounds.to_options(is_protocol=work.protocol is not None)
    _check_output(work, json_file, plot)
    threads = model.numbers_of_threads()
    path = loading.fetch(model.model)
    device, room = _room(model, path)
    cases = work.cases(room.config.context_length)
    room.check(cases)
    sessions = _sessions(cases, threads, each_alone=work.protocol is not None)
    result = _measure(sessions, model, options, room, device)
    from qwenkit.bench.speed_report import speed_rows

    rows = speed_rows(result, room.unread_weight_bytes)
    about = _about(model.model, room, options, work.protocol)
    _write(rows, result, about, json_file)
    if plot is not None and (rows or not result.was_stopped):
        from qwenkit.bench.speed_plot import draw_speed

        draw_speed(rows, plot, _headline(about, result))
    if result.was_stopped:
        raise typer.Exit(_EXIT_INTERRUPTED)


def _given(text: str | None, option: str, usual: tuple[int, ...]) -> tuple[int, ...]:
    return usual if text is None else _numbers(text, option)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise InputError(f"{option} {text} is not possible; give whole numbers from 1 up, between commas")
    return found


def _check_output(work: SpeedFlags, json_file: str | None, plot: Path | None) -> None:
    """Complains now of what would otherwise fail when all is measured."""
    if json_file not in (None, "-") and not Path(str(json_file)).absolute().parent.is_dir():
        raise InputError(f"{json_file} cannot be written: there is no folder {Path(str(json_file)).parent}")
    if plot is None:
        return
    if work.protocol is not None:
        raise InputError("--plot draws batches and contexts, which --protocol has only one of; leave one out")
    from qwenkit.bench.plot import check_format

    check_format(plot)


def _room(model: SpeedModelOptions, path: Path) -> tuple[torch.device, Room]:
    from qwenkit.backends.options import LocalOptions, resolve_device, resolve_dtype, wants_panels
    from qwenkit.bench.room import read_room

    device = resolve_device(model.device)
    dtype = resolve_dtype(model.dtype, device)
    local = LocalOptions(  # says now what is not possible
        dtype=model.dtype, max_context=model.max_context, activations=model.activations, head=model.head
    )
    wants_panels(local, device, dtype)
    room = read_room(
        path,
        device=device,
        dtype=dtype,
        head=model.head,
        kv_cache=model.kv_cache,
        max_context=model.max_context,
    )
    return device, room


def _sessions(cases: tuple[Case, ...], threads: tuple[int | None, ...], *, each_alone: bool) -> list[Session]:
    """Loads: one per number of threads, or one per case, whose peak of memory is then its own."""
    from qwenkit.bench.sessions import Session

    groups = [(case,) for case in cases] if each_alone else [cases]
    return [Session(cases=group, threads=number) for number in dict.fromkeys(threads) for group in groups]


def _measure(
    sessions: list[Session], model: SpeedModelOptions, options: SpeedOptions, room: Room, device: torch.device
) -> SpeedResult:
    from qwenkit.bench.sessions import run_sessions

    line = _Line()

    def open_llm(session: Session) -> LLM:
        line.clear()
        return loading.open_llm(
            model.with_threads(session.threads),
            max_batch_size=session.max_batch_size,
            cache_memory=room.cache_bytes(session.cases),
        )

    try:
        return run_sessions(sessions, open_llm, options, device=str(device), show=line.show)
    finally:
        line.clear()


def _about(name: str, room: Room, options: SpeedOptions, protocol: str | None) -> dict[str, Any]:
    from qwenkit.kernels.cpu import cpu_model

    return {
        "model": name,
        "num_params": room.config.num_params,
        "unread_weight_bytes": room.unread_weight_bytes,
        "context_length": room.config.context_length,
        "cpu": cpu_model(),
        "protocol": protocol,
        "repeats": options.repeats,
        "warmup": options.warmup,
        "seed": options.seed,
    }


def _headline(about: dict[str, Any], result: SpeedResult) -> str:
    session = result.sessions[0]
    return f"{about['model']}, {session.kernels}, {session.dtype}, {about['cpu']}"


def _write(rows: list[SpeedRow], result: SpeedResult, about: dict[str, Any], json_file: str | None) -> None:
    from qwenkit.bench.speed_report import session_facts

    if json_file != "-":
        from rich.console import Console

        from qwenkit.cli.speed_table import render

        console = Console(highlight=False)
        for part in render(rows, result, about):
            console.print(part)
    if json_file is None:
        return
    found = {
        "about": about,
        "sessions": [session_facts(session) for session in result.sessions],
        "results": [row.to_dict() for row in rows],
        "complete": not result.was_stopped,
    }
    if json_file == "-":
        print(json.dumps(found))
    else:
        Path(json_file).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


class _Line:
    """One line on stderr that says what is measured, when that is a terminal."""

    def __init__(self) -> None:
        self._live: Any = None

    def show(self, progress: Progress) -> None:
        """Draws it anew; only when there is news, because a clock of its own would take time from the model."""
        if not pipes.is_terminal(sys.stderr):
            return
        from qwenkit.cli.speed_table import progress_line

        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(progress_line(progress), refresh=True)

    def clear(self) -> None:
        """Takes it away."""
        if self._live is not None:
            self._live.stop()
            self._live = None
