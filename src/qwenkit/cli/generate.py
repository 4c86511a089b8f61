"""``qwenkit generate``: raw completion of one or many prompts."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenkit.cli import loading, pipes
from qwenkit.cli.meter import Meter
from qwenkit.cli.options import (
    JsonFlag,
    ModelOptions,
    SamplingOptions,
    SpeculativeOptions,
    StatsFlag,
    spread,
)
from qwenkit.cli.texts import EN
from qwenkit.core.errors import InputError

if TYPE_CHECKING:
    from qwenkit.core.types import Completion, Delta, SamplingParams
    from qwenkit.llm import LLM


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    """How completions are printed."""

    as_json: bool
    echo: bool


@spread
def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="Texts to go on with.")
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help='.txt: a prompt a line; .jsonl: objects with "prompt".'
        ),
    ] = None,
    model: ModelOptions,
    speculation: SpeculativeOptions,
    sampling: SamplingOptions,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Prompts run together.")
    ] = 16,
    echo: Annotated[bool, typer.Option("--echo", help="Print each prompt before its completion.")] = False,
    stats: StatsFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Continue prompts as they are, without a chat template.

    Prompts come as arguments, from a file, or as the whole of stdin (less one line end). Several are printed in
    input order, each as soon as it is complete.
    """
    texts = _prompts(prompts, file)
    params = sampling.to_params()
    output = _Output(as_json=as_json, echo=echo)
    llm = loading.open_llm(model, speculation=speculation, max_batch_size=batch_size)
    meter = Meter()
    try:
        if len(texts) == 1 and not as_json:
            _stream_one(llm, texts[0], params, output, meter)
        else:
            _print_in_order(llm, texts, params, output, meter)
    finally:
        llm.close()
    if stats:
        print(meter.line(EN.stats), file=sys.stderr)


def _prompts(arguments: Sequence[str] | None, file: Path | None) -> list[str]:
    if arguments and file is not None:
        raise InputError("prompts come either as arguments or with --file; give only one of them")
    if arguments:
        prompts = [pipes.clean_argument(p) for p in arguments]
    elif file is not None:
        prompts = read_prompts(file)
    else:
        prompts = [pipes.read_stdin().removesuffix("\n")]
    if not prompts or prompts == [""]:
        raise InputError("there is no prompt; give PROMPT, --file FILE or pipe text in")
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise InputError(f"prompt {number} is empty; there is nothing to go on with")
    return prompts


def read_prompts(path: Path) -> list[str]:
    """Prompts of a .txt or .jsonl file; empty lines are skipped.

    Raises:
        InputError: another ending, or a line that is not an object with a "prompt".
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(
            f"{path}: the name must end in .txt (a prompt a line) or .jsonl (objects with a 'prompt')"
        )
    lines = pipes.decode(path.read_bytes(), str(path)).split("\n")
    numbered = [(n, line.removesuffix("\r")) for n, line in enumerate(lines, 1) if line.strip()]
    if path.suffix == ".txt":
        return [line for _, line in numbered]
    return [_prompt_of(line, f"{path}, line {number}") for number, line in numbered]


def _prompt_of(line: str, place: str) -> str:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: not JSON ({error})") from None
    prompt = item.get("prompt") if isinstance(item, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise InputError(f"{place}: needs an object with a non-empty text 'prompt', got {line[:60]}")
    return prompt


def _stream_one(llm: LLM, prompt: str, params: SamplingParams, output: _Output, meter: Meter) -> None:
    view = pipes.PlainView(sys.stdout, is_terminal=pipes.is_terminal(sys.stdout))
    if output.echo:
        view.feed(prompt)
    try:
        for delta in llm.stream_generate(prompt, params):
            meter.see(delta)
            view.feed(delta.text)
    finally:
        view.finish()


def completions_in_order(deltas: Iterator[Delta], count: int) -> Iterator[tuple[int, Completion]]:
    """Index and completion of each request, in order, as early as that order allows."""
    from qwenkit.core.types import collect

    parts: list[list[Delta]] = [[] for _ in range(count)]
    following = 0
    for delta in deltas:
        parts[delta.index].append(delta)
        while following < count and parts[following] and parts[following][-1].finish_reason is not None:
            yield following, collect(parts[following])
            parts[following] = []
            following += 1


def _print_in_order(
    llm: LLM, prompts: Sequence[str], params: SamplingParams, output: _Output, meter: Meter
) -> None:
    def watched() -> Iterator[Delta]:
        for delta in llm.stream_generate(prompts, params):
            meter.see(delta)
            yield delta

    is_terminal = pipes.is_terminal(sys.stdout)
    for index, completion in completions_in_order(watched(), len(prompts)):
        text = prompts[index] * output.echo + completion.text
        if output.as_json:
            text = _to_json(index, prompts[index], completion)
        elif is_terminal:
            text = f"[{index + 1}/{len(prompts)}] {pipes.without_controls(text)}\n"
        print(text, flush=True)


def _to_json(index: int, prompt: str, completion: Completion) -> str:
    row = {
        "index": index,
        "prompt": prompt,
        "text": completion.text,
        "token_count": completion.usage.completion_tokens,
        "finish_reason": completion.finish_reason,
    }
    return json.dumps(row, ensure_ascii=False)
