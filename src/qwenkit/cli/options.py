"""Options that several commands share, declared once as dataclasses and spread over a command's signature.

Knows nothing of models or terminals; importing it costs only typer.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from qwenkit.core.errors import InputError
from qwenkit.core.types import SamplingParams

T = TypeVar("T")

DEFAULT_MODEL = "smollm2-135m"
_MODEL = "Model"
_SAMPLING = "Sampling"
_SERVER = "Server"

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
StatsFlag = Annotated[bool, typer.Option("--stats", help="Show token counts, tokens per second and latency.")]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Short name, folder, .gguf file or hub id.",
        rich_help_panel=_MODEL,
    ),
]


def _model(*names: str, metavar: str, text: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=_MODEL)


def _sampling(*names: str, metavar: str | None = None, text: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=_SAMPLING, show_default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model to load, where and how."""

    model: ModelOption = DEFAULT_MODEL
    device: Annotated[str, _model("--device", metavar="DEVICE", text="auto, cpu, cuda or cuda:N.")] = "auto"
    dtype: Annotated[str, _model("--dtype", metavar="DTYPE", text="auto, float32, bfloat16 or float16.")] = (
        "auto"
    )
    max_context: Annotated[
        int | None, _model("--max-context", metavar="N", text="Most tokens of prompt and reply together.")
    ] = None
    threads: Annotated[int | None, _model("--threads", metavar="N", text="CPU threads to use.")] = None
    activations: Annotated[
        str,
        _model(
            "--activations",
            metavar="KIND",
            text="What 4- and 8-bit weights are multiplied with on the CPU: auto, int8 (rounded to 8 bits, fast) or float (as in the dtype).",
        ),
    ] = "auto"
    head: Annotated[
        str, _model("--head", metavar="KIND", text="auto, or int8 for an output head rounded to 8 bits.")
    ] = "auto"
    packed_cache: Annotated[
        str,
        _model(
            "--packed-cache",
            metavar="KIND",
            text="auto keeps large packed weights as the CPU needs them for the next start; off does not.",
        ),
    ] = "auto"
    kv_cache: Annotated[
        str, _model("--kv-cache", metavar="KIND", text="auto, or int8 for half the memory of bfloat16.")
    ] = "auto"
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Refuse to run where results could depend on the batch; compiled CPU kernels never let them.",
            rich_help_panel=_MODEL,
        ),
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeOptions:
    """Whether to guess tokens, which changes the speed of replies and nothing else."""

    speculative: Annotated[
        str,
        _model(
            "--speculative",
            metavar="KIND",
            text="off, or ngram: guess tokens from repeated text; replies stay the same, and may come faster.",
        ),
    ] = "off"
    speculative_tokens: Annotated[
        int | None,
        _model(
            "--speculative-tokens",
            metavar="N",
            text="Most tokens guessed at once with --speculative ngram; 7 unless given.",
        ),
    ] = None


ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="Key of the server; without it QWENKIT_API_KEY, else OPENAI_API_KEY is sent.",
        rich_help_panel=_SERVER,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Which server to ask instead of loading a model."""

    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="Ask the OpenAI-compatible server there instead of loading a model; MODEL is then one of its.",
            rich_help_panel=_SERVER,
        ),
    ] = None
    api_key: ApiKeyOption = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How to pick tokens and when to stop; what is not given is as the model asks for."""

    max_tokens: Annotated[
        int | None, _sampling("--max-tokens", "-n", metavar="N", text="Most tokens to generate.")
    ] = None
    temperature: Annotated[
        float | None,
        _sampling("--temperature", "-t", metavar="X", text="0 is greedy; higher is more random."),
    ] = None
    top_k: Annotated[
        int | None, _sampling("--top-k", metavar="K", text="Sample among the K most likely tokens; 0: all.")
    ] = None
    top_p: Annotated[
        float | None,
        _sampling("--top-p", metavar="P", text="Sample among the likeliest tokens that add up to P."),
    ] = None
    min_p: Annotated[
        float | None,
        _sampling("--min-p", metavar="P", text="Drop tokens less likely than P times the likeliest."),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        _sampling("--repetition-penalty", metavar="X", text="Above 1 discourages tokens already seen."),
    ] = None
    seed: Annotated[int | None, _sampling("--seed", metavar="N", text="Makes sampling repeatable.")] = None
    stop: Annotated[
        list[str] | None,
        _sampling("--stop", metavar="TEXT", text="Text that ends the reply; repeat for several."),
    ] = None
    greedy: Annotated[bool, _sampling("--greedy", text="Always take the likeliest token.")] = False

    def to_params(self) -> SamplingParams:
        """The sampling parameters these options ask for.

        Raises:
            InputError: a value is out of range, or --greedy is given with an option that it would cancel.
        """
        temperature = self.temperature
        if self.greedy:
            for option, value in {
                "--temperature": temperature,
                "--seed": self.seed,
                "--top-k": self.top_k,
            }.items():
                if value:
                    raise InputError(
                        f"--greedy and {option} {value} contradict each other; give only one of them"
                    )
            temperature = 0.0
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=tuple(self.stop or ()),
        )


def spread(function: Callable[..., T]) -> Callable[..., T]:
    """Lets a command take dataclasses of options: each of their fields becomes an option of the command."""
    signature = inspect.signature(function, eval_str=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if dataclasses.is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            parameters += _fields_as_parameters(parameter.annotation)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(function)
    def command(**values: Any) -> T:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in dataclasses.fields(group)})
        return function(**values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _fields_as_parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name])
        for f in dataclasses.fields(group)
    ]
