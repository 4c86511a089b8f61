"""``qwenkit bench``: ``speed`` measures a model here; ``serve`` puts load on a server and says how it copes."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from qwenkit.cli import pipes
from qwenkit.cli.bench_speed import speed
from qwenkit.cli.options import ApiKeyOption, spread
from qwenkit.core import environment
from qwenkit.core.errors import InputError, RemoteError

if TYPE_CHECKING:
    from qwenkit.bench.load import LoadOptions, LoadResult, Progress
    from qwenkit.bench.report import LoadReport
    from qwenkit.bench.workload import Endpoint, Workload

_EXIT_INTERRUPTED = 130
_DEFAULT_REQUESTS = 100
_DEFAULT_CONCURRENCY = 8
_WORK = "Requests"
_LOAD = "Load"
_OUTPUT = "Output"

app = typer.Typer(
    name="bench",
    help="Measure how fast things are.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _option(panel: str, *names: str, metavar: str | None = None, text: str, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFlags:
    """How much to ask, and how fast."""

    num_requests: Annotated[
        int | None,
        _option(
            _LOAD, "--num-requests", metavar="N", text=f"How many; {_DEFAULT_REQUESTS} without --duration."
        ),
    ] = None
    duration: Annotated[
        float | None, _option(_LOAD, "--duration", metavar="SECONDS", text="For how long to start requests.")
    ] = None
    concurrency: Annotated[
        int | None,
        _option(
            _LOAD, "--concurrency", "-c", metavar="N",
            text=f"Requests under way at any time; {_DEFAULT_CONCURRENCY} without --rate.",
        ),
    ] = None  # fmt: skip
    rate: Annotated[
        float | None,
        _option(
            _LOAD, "--rate", metavar="R", text="Requests a second at random moments (Poisson); inf: at once."
        ),
    ] = None
    warmup: Annotated[
        int, _option(_LOAD, "--warmup", metavar="N", text="Requests before the measured ones.", min=0)
    ] = 0
    verify: Annotated[
        int,
        _option(
            _LOAD, "--verify", metavar="N", min=0,
            text="Ask N of the requests again, alone and afterwards, and compare the texts; greedy unless told.",
        ),
    ] = 0  # fmt: skip

    def to_options(self) -> LoadOptions:
        """With what is left out filled in."""
        from qwenkit.bench.load import LoadOptions

        num_requests, concurrency = self.num_requests, self.concurrency
        if num_requests is None and self.duration is None:
            num_requests = _DEFAULT_REQUESTS
        if concurrency is None and self.rate is None:
            concurrency = _DEFAULT_CONCURRENCY
        return LoadOptions(
            num_requests=num_requests,
            duration=self.duration,
            concurrency=concurrency,
            rate=self.rate,
            warmup=self.warmup,
            verify=self.verify,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkFlags:
    """What to ask."""

    model: Annotated[
        str | None,
        _option(_WORK, "--model", "-m", metavar="MODEL", text="Of the server's models; else its first."),
    ] = None
    endpoint: Annotated[
        str, _option(_WORK, "--endpoint", metavar="chat|completions", text="Which to ask.")
    ] = "chat"
    prompt_tokens: Annotated[
        str | None,
        _option(
            _WORK,
            "--prompt-tokens",
            metavar="N|MIN:MAX",
            text="Words of made-up prompts, about as many tokens; 256.",
        ),
    ] = None
    output_tokens: Annotated[
        str, _option(_WORK, "--output-tokens", metavar="N|MIN:MAX", text="Most tokens of an answer.")
    ] = "128"
    dataset: Annotated[
        Path | None,
        _option(
            _WORK,
            "--dataset",
            metavar="FILE",
            text='.jsonl: objects with "prompt" or "messages", asked in turn.',
        ),
    ] = None
    shared_prefix: Annotated[
        int,
        _option(
            _WORK,
            "--shared-prefix",
            metavar="N",
            min=0,
            text="Words all made-up prompts begin with, besides their own.",
        ),
    ] = 0
    temperature: Annotated[
        float | None,
        _option(_WORK, "--temperature", "-t", metavar="X", text="0 is greedy; else the server decides."),
    ] = None
    ignore_eos: Annotated[
        bool,
        _option(_WORK, "--ignore-eos", text="Ask for answers of full length; not every server knows how."),
    ] = False
    seed: Annotated[int, _option(_WORK, "--seed", metavar="N", text="Of prompts, lengths and moments.")] = 0

    def to_workload(self, model: str, *, is_verified: bool) -> Workload:
        """What these flags ask of a model.

        Raises:
            InputError: they contradict each other, or the file cannot be used.
        """
        from qwenkit.bench.workload import Span, Workload, read_dataset

        if self.endpoint not in ("chat", "completions"):
            raise InputError(f"--endpoint {self.endpoint!r} is unknown; use chat or completions")
        if self.dataset is not None and (self.prompt_tokens is not None or self.shared_prefix):
            raise InputError("--dataset has its own prompts; leave out --prompt-tokens and --shared-prefix")
        endpoint = cast("Endpoint", self.endpoint)
        return Workload(
            model=model,
            endpoint=endpoint,
            prompt_tokens=Span.parse("--prompt-tokens", self.prompt_tokens or "256"),
            output_tokens=Span.parse("--output-tokens", self.output_tokens),
            shared_prefix=self.shared_prefix,
            dataset=() if self.dataset is None else read_dataset(self.dataset, endpoint),
            temperature=0.0 if is_verified and self.temperature is None else self.temperature,
            ignore_eos=self.ignore_eos,
            seed=self.seed,
            sends_seed=is_verified,
        )


@spread
def serve(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="http://host:port of an OpenAI-compatible server.")
    ],
    *,
    load: LoadFlags,
    work: WorkFlags,
    api_key: ApiKeyOption = None,
    timeout: Annotated[
        float, _option(_LOAD, "--timeout", metavar="SECONDS", text="After which a request counts as failed.")
    ] = 600.0,
    json_file: Annotated[
        str | None, _option(_OUTPUT, "--json", metavar="FILE", text="Write all numbers as JSON; - is stdout.")
    ] = None,
    plot: Annotated[
        Path | None,
        _option(_OUTPUT, "--plot", metavar="FILE", text="Draw latency and throughput into a .png or .svg."),
    ] = None,
) -> None:
    """Put load on a server and report throughput and latency. Ctrl-C ends early and still reports.

    [bold]qwenkit bench serve http://localhost:8000 --concurrency 16[/] keeps 16 requests under way;
    [bold]qwenkit bench serve http://localhost:8000 --rate 5 --duration 60[/] starts 5 a second for a minute.
    """
    from qwenkit.backends.openai_http import open_openai
    from qwenkit.backends.remote_server import parse_server
    from qwenkit.bench.load import run_load
    from qwenkit.bench.report import make_report

    options = load.to_options()
    if plot is not None:
        from qwenkit.bench.plot import check_format

        check_format(plot)
    work.to_workload("", is_verified=False)  # says what is wrong before anything is asked
    key = api_key or environment.api_key()
    model = open_openai(url, model=work.model, api_key=key, timeout=timeout).info.model
    workload = work.to_workload(model, is_verified=load.verify > 0)
    with _progress(options) as show:
        result = run_load(parse_server(url, api_key=key, timeout=timeout), workload, options, show)
    report = make_report(result)
    setting = {"url": url, "model": model, **_described(options, workload)}
    _write(report, result, setting, json_file)
    if plot is not None:
        from qwenkit.bench.plot import draw

        draw(result, plot, f"{model} at {url}: {_headline(options, workload)}")
    if result.was_stopped:
        raise typer.Exit(_EXIT_INTERRUPTED)
    _judge(report)


app.command("speed")(speed)
app.command("serve")(serve)


def _judge(report: LoadReport) -> None:
    """Makes a test that shows a broken server fail."""
    if report.mismatches:
        raise RemoteError(
            f"{len(report.mismatches)} of {report.num_verified} answers were another text under load than alone; "
            "the server mixes requests up, or its numbers depend on the batch"
        )
    if not report.ok:
        raise RemoteError("no request was answered; see the kinds of error above")


def _described(options: LoadOptions, workload: Workload) -> dict[str, Any]:
    return {
        "endpoint": workload.endpoint,
        "num_requests": options.num_requests,
        "duration": options.duration,
        "concurrency": options.concurrency,
        "rate": "inf" if options.rate == float("inf") else options.rate,
        "warmup": options.warmup,
        "prompt_tokens": None if workload.dataset else str(workload.prompt_tokens),
        "output_tokens": str(workload.output_tokens),
        "shared_prefix": workload.shared_prefix,
        "temperature": workload.temperature,
        "ignore_eos": workload.ignore_eos,
        "seed": workload.seed,
    }


def _headline(options: LoadOptions, workload: Workload) -> str:
    pace = f"{options.concurrency} at a time" if options.rate is None else f"{options.rate:g} requests/s"
    prompts = "prompts of a file" if workload.dataset else f"prompts of about {workload.prompt_tokens} tokens"
    return f"{pace}, {prompts}, at most {workload.output_tokens} tokens out"


def _write(report: LoadReport, result: LoadResult, setting: dict[str, Any], json_file: str | None) -> None:
    from qwenkit.bench.report import requests_table

    if json_file != "-":
        _print(report, setting)
    if json_file is None:
        return
    text = json.dumps({"setting": setting, "report": report.to_dict(), "requests": requests_table(result)})
    if json_file == "-":
        print(text)
    else:
        Path(json_file).write_text(text + "\n", encoding="utf-8")


def _print(report: LoadReport, setting: dict[str, Any]) -> None:
    from rich.console import Console

    from qwenkit.cli.bench_table import render

    console = Console(highlight=False)
    for part in render(report, setting["model"], setting["url"]):
        console.print(part)


@contextlib.contextmanager
def _progress(options: LoadOptions) -> Iterator[Callable[[Progress], None]]:
    """One line on stderr that says how far it is, when that is a terminal."""
    if not pipes.is_terminal(sys.stderr):
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.live import Live

    from qwenkit.cli.bench_table import progress_line

    # Drawn only when there is news: a clock of its own would take time from the server.
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield lambda progress: live.update(progress_line(progress, options), refresh=True)
