"""``qwenkit merge``: a LoRA adapter and its base as one model."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenkit.cli import loading, pipes
from qwenkit.cli.inspect_model import size
from qwenkit.cli.options import JsonFlag
from qwenkit.cli.quantize import duration, parse_size

if TYPE_CHECKING:
    from qwenkit.train.merge import MergeResult

_EXIT_INTERRUPTED = 130


def merge(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Folder or hub id of a LoRA adapter.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must be new or empty.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="MODEL", help="The base; without it the one that the adapter names."
        ),
    ] = None,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize",
            help="Merge into a quantised base, and write its rounded weights in full precision.",
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="float32, bfloat16 or float16; without it as the base has it, bfloat16 for a quantised one.",
        ),
    ] = None,
    shard_size: Annotated[
        str, typer.Option("--shard-size", metavar="SIZE", help="Most bytes of a weight file: 2GB, 500MB.")
    ] = "2048MB",
    as_json: JsonFlag = False,
) -> None:
    """Write the base of a LoRA adapter with the adapter merged into it, as a complete model."""
    shard_bytes = parse_size(shard_size)
    loading.fetch(adapter)
    if model is not None:
        loading.fetch(model)
    from qwenkit.quantize.progress import peak_memory
    from qwenkit.train.merge import merge_adapter

    try:
        with _progress() as show:
            result = merge_adapter(
                adapter,
                out,
                model=model,
                dequantize=dequantize,
                dtype=dtype,
                shard_bytes=shard_bytes,
                on_progress=show,
                on_note=pipes.warn,
            )
    except KeyboardInterrupt:
        print(f"qwenkit: stopped; nothing was written to {out}", file=sys.stderr)
        raise typer.Exit(_EXIT_INTERRUPTED) from None
    row = _row(result) | {"peak_memory": peak_memory()}
    print(json.dumps(row, ensure_ascii=False) if as_json else _summary(result, row))


def _row(result: MergeResult) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "base": result.base,
        "adapter": str(result.adapter),
        "dtype": result.dtype,
        "dequantised": result.is_dequantised,
        "merged_matrices": result.num_merged,
        "changed_tables": list(result.tables),
        "bytes": result.nbytes,
        "seconds": round(result.seconds, 3),
        "notes": list(result.notes),
    }


def _summary(result: MergeResult, row: dict[str, Any]) -> str:
    changed = [f"{result.num_merged} matrices", *result.tables]
    return "\n".join(
        [
            f"{result.folder}: {result.dtype}, {size(result.nbytes)}",
            f"merged into {result.base}: {', '.join(changed)}; {duration(result.seconds)}, peak memory {size(row['peak_memory'])}",
        ]
    )


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr when that is a terminal."""
    if not pipes.is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    from qwenkit.quantize.progress import peak_memory

    columns = (
        TextColumn("merging"),
        *loading.byte_columns(20),
        TextColumn("memory {task.fields[memory]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, memory="")
        yield lambda done, total: bar.update(task, completed=done, total=total, memory=size(peak_memory()))
