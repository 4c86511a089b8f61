"""``qwenkit quantize``: a smaller copy of a model, in 4 or 8 bits."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenkit.cli import loading, pipes
from qwenkit.cli.inspect_model import size
from qwenkit.cli.options import JsonFlag, spread
from qwenkit.core.errors import InputError

if TYPE_CHECKING:
    from qwenkit.quantize.progress import Progress
    from qwenkit.quantize.recipe import Recipe
    from qwenkit.quantize.run import QuantizeResult

_EXIT_INTERRUPTED = 130
_CALIBRATION = "Calibration"
_GPTQ = "GPTQ"
_OUTPUT = "Output"
_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def _option(*names: str, text: str, panel: str | None = None, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOptions:
    """How to quantise."""

    method: Annotated[
        str, _option("--method", metavar="METHOD", text="gptq, awq, or rtn (round to nearest).")
    ] = "gptq"
    bits: Annotated[int, _option("--bits", metavar="N", text="4 or 8.")] = 4
    group_size: Annotated[
        int, _option("--group-size", metavar="N", text="Weights that share a scale; -1: all of a row.")
    ] = 128
    layout: Annotated[
        str | None,
        _option(
            "--format",
            metavar="FORMAT",
            text="gptq, gptq_v2, awq-gemm or awq-gemv; without it gptq, for awq awq-gemm.",
        ),
    ] = None
    symmetric: Annotated[
        bool | None,
        _option("--sym/--no-sym", text="Zero in the middle of every group's range; awq never has it."),
    ] = None
    samples: Annotated[
        int, _option("--samples", metavar="N", text="Samples to draw.", panel=_CALIBRATION)
    ] = 128
    length: Annotated[
        int, _option("--length", metavar="N", text="Most tokens of a sample.", panel=_CALIBRATION)
    ] = 512
    seed: Annotated[int, _option("--seed", metavar="N", text="Which samples.", panel=_CALIBRATION)] = 0
    desc_act: Annotated[
        bool,
        _option("--desc-act", text="Columns with the largest activations first.", panel=_GPTQ),
    ] = False
    static_groups: Annotated[
        bool, _option("--static-groups", text="With --desc-act: keep groups side by side.", panel=_GPTQ)
    ] = False
    damp: Annotated[
        float, _option("--damp", metavar="X", text="Share added to the Hessian's diagonal.", panel=_GPTQ)
    ] = 0.01
    true_sequential: Annotated[
        bool,
        _option(
            "--true-sequential/--no-true-sequential",
            text="Later matrices of a block see what earlier ones became.",
            panel=_GPTQ,
        ),
    ] = True

    def to_recipe(self) -> Recipe:
        """The recipe these options ask for.

        Raises:
            InputError: a value is impossible, or two do not go together.
        """
        from qwenkit.quantize.recipe import Recipe

        return Recipe(
            method=self.method,
            bits=self.bits,
            group_size=self.group_size,
            layout=self.layout,
            symmetric=self.symmetric,
            desc_act=self.desc_act,
            static_groups=self.static_groups,
            damp=self.damp,
            true_sequential=self.true_sequential,
            num_samples=self.samples,
            sample_length=self.length,
            seed=self.seed,
        )


@spread
def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Short name, folder, .gguf file or hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must be new or empty.")],
    *,
    recipe: RecipeOptions,
    calibration: Annotated[
        Path | None,
        _option(
            "--calibration",
            metavar="FILE",
            text="Text, or conversations as .json or .jsonl; rtn can do without.",
            panel=_CALIBRATION,
        ),
    ] = None,
    report: Annotated[
        bool,
        _option(
            "--report", text="Compare with the original afterwards, on the calibration text.", panel=_OUTPUT
        ),
    ] = False,
    report_text: Annotated[
        Path | None,
        _option("--report-text", metavar="FILE", text="Compare on this text instead.", panel=_OUTPUT),
    ] = None,
    shard_size: Annotated[
        str,
        _option(
            "--shard-size", metavar="SIZE", text="Most bytes of a weight file: 2GB, 500MB.", panel=_OUTPUT
        ),
    ] = "5GB",
    restart: Annotated[
        bool, _option("--restart", text="Throw away what an earlier, unfinished run left.", panel=_OUTPUT)
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Quantise a model to 4 or 8 bits. Whatever stops it, the same command goes on where it was."""
    asked = recipe.to_recipe()
    if calibration is None:
        _reject_without_calibration(recipe)
    text = _report_text(report, report_text, calibration)
    shard_bytes = parse_size(shard_size)
    loading.fetch(model)
    from qwenkit.quantize.run import quantize_model

    try:
        with _progress() as show:
            result = quantize_model(
                model,
                out,
                asked,
                calibration=calibration,
                restart=restart,
                shard_bytes=shard_bytes,
                on_progress=show,
                on_note=pipes.warn,
            )
    except KeyboardInterrupt:
        print("qwenkit: stopped; run the same command again to go on from there", file=sys.stderr)
        raise typer.Exit(_EXIT_INTERRUPTED) from None
    row = _row(result)
    if text is not None:
        row["comparison"] = _compare(model, result, *text)
    print(json.dumps(row, ensure_ascii=False) if as_json else _summary(result, asked, row))


def _reject_without_calibration(recipe: RecipeOptions) -> None:
    for name in ("samples", "length", "seed"):
        if (value := getattr(recipe, name)) != getattr(RecipeOptions(), name):
            raise InputError(
                f"--{name} {value} says nothing without calibration text; add --calibration, or leave it out"
            )


def parse_size(text: str) -> int:
    """Bytes of ``2GB``, ``500MB`` or a plain number.

    Raises:
        InputError: something else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
    count = int(float(match[1]) * _SUFFIXES[match[2]]) if match else 0
    if count < 1:
        raise InputError(f"size {text!r} is not possible; use a number with KB, MB or GB, such as 5GB")
    return count


def _report_text(wanted: bool, file: Path | None, calibration: Path | None) -> tuple[str, str] | None:
    """Text to compare on and the name of its file, read before the work begins; None: no comparison."""
    if file is None and not wanted:
        return None
    file = file or calibration
    if file is None or file.suffix.lower() in (".json", ".jsonl"):
        raise InputError("--report needs a plain text to compare on; name one with --report-text")
    text = pipes.decode(file.read_bytes(), str(file))
    if not text.strip():
        raise InputError(f"{file} holds no text to compare on; give another file")
    return text, file.name


def _compare(model: str, result: QuantizeResult, text: str, name: str) -> dict[str, Any]:
    """Holds the result against the original, writes the report and adds the numbers to the model's page."""
    from qwenkit.quantize.card import add_comparison
    from qwenkit.quantize.evaluate import compare
    from qwenkit.quantize.report import write_report

    with loading.spinner("comparing with the original") as show:
        comparison = compare(
            model,
            result.folder,
            text,
            kv_cache="int8",
            head="int8" if _has_own_head(result.folder) else "auto",
            on_progress=lambda done, total, perplexity: show(done, total),
        )
    write_report(result.folder, comparison, result.layers, about=result.about)
    add_comparison(result.folder, comparison, name)
    return comparison.to_dict()


def _has_own_head(folder: Path) -> bool:
    from qwenkit.weights.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    checkpoint.store.close()
    return not checkpoint.config.tie_embeddings


def _row(result: QuantizeResult) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "bytes": result.nbytes,
        "seconds": round(result.seconds, 3),
        "peak_memory": result.peak_memory,
        "mean_error": result.mean_error,
        "resumed_layers": result.resumed_layers,
        "notes": list(result.notes),
    }


def _summary(result: QuantizeResult, recipe: Recipe, row: dict[str, Any]) -> str:
    lines = [
        f"{result.folder}: {recipe.method}, {recipe.bits} bit, {recipe.file_layout}, {size(result.nbytes)}",
        f"mean error {result.mean_error:.2e}, {duration(result.seconds)}, peak memory {size(result.peak_memory)}",
    ]
    if comparison := row.get("comparison"):
        lines.append(
            f"perplexity {comparison['perplexity']:.4f}, of the original {comparison['original_perplexity']:.4f}; "
            f"KL divergence {comparison['mean_kl']:.5f}, same likeliest token {comparison['top1_agreement']:.2%}"
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Time as people say it: 42 s, 3 min 20 s, 1 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _describe(progress: Progress) -> str:
    parts = [f"error {progress.error:.2e}"]
    parts += [f"{progress.rate:.0f} tokens/s"] if progress.rate else []
    parts += [f"{duration(progress.remaining)} left"] if progress.remaining is not None else []
    return ", ".join([*parts, size(progress.memory)])


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr when that is a terminal, else a line for every block."""
    if not pipes.is_terminal(sys.stderr):
        yield _print_block
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("layer {task.fields[layer]}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[linear]:<11}"),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, layer="", linear="", state="")

        def show(progress: Any) -> None:
            done = progress.layer + (progress.linear is None)
            bar.update(
                task,
                completed=done,
                total=progress.num_layers,
                layer=f"{progress.layer + 1} of {progress.num_layers}",
                linear=progress.linear or "",
                state=_describe(progress),
            )

        yield show


def _print_block(progress: Progress) -> None:
    if progress.linear is None:
        head = f"layer {progress.layer + 1} of {progress.num_layers}"
        print(f"{head}: {_describe(progress)}", file=sys.stderr, flush=True)
