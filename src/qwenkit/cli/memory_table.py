"""How ``qwenkit inspect --memory`` reads its options and looks at a terminal. Knows nothing of how memory is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from qwenkit.core.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from qwenkit.weights.memory import MemoryUse

MemoryFlag = Annotated[
    bool,
    typer.Option(
        "--memory", help="Show the memory that batches and lengths need; the next options are for it."
    ),
]
BatchOption = Annotated[
    str | None,
    typer.Option(
        "--batch", metavar="N,...", help="Sequences computed together.", show_default="1,4,16,32,64,100"
    ),
]
LengthsOption = Annotated[
    str | None,
    typer.Option(
        "--lengths",
        metavar="N,...",
        help="Tokens of each sequence, prompt and reply together.",
        show_default="512,1024,2048,4096,8192 as far as the context goes",
    ),
]
CacheOption = Annotated[
    str | None,
    typer.Option("--kv-cache", metavar="KIND", help="auto or int8.", show_default="both"),
]
DtypeOption = Annotated[
    str | None,
    typer.Option("--dtype", metavar="DTYPE", help="auto, float32, bfloat16 or float16.", show_default="auto"),
]
HeadOption = Annotated[
    str | None,
    typer.Option(
        "--head", metavar="KIND", help="auto, or int8 for a rounded output head.", show_default="auto"
    ),
]


def show_memory(
    model: str,
    *,
    batch: str | None,
    lengths: str | None,
    kv_cache: str | None,
    dtype: str | None,
    head: str | None,
    as_json: bool,
) -> None:
    """Prints the memory of a model at some batch sizes and lengths; what is None is as the help says.

    Raises:
        InputError: a value that cannot be honoured.
    """
    from qwenkit.backends.options import resolve_device, resolve_dtype
    from qwenkit.weights import memory

    rows = memory.read_memory(
        model,
        dtype=resolve_dtype(dtype or "auto", resolve_device("auto")),
        head=head or "auto",
        kv_caches=(kv_cache,) if kv_cache else memory.KV_CACHES,
        batches=memory.BATCHES if batch is None else numbers(batch, "--batch"),
        lengths=None if lengths is None else numbers(lengths, "--lengths"),
    )
    if as_json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for part in tables(rows):
        console.print(part)


def reject_without_memory(**options: str | None) -> None:
    """Refuses options that mean something only with --memory.

    Raises:
        InputError: one of them is given.
    """
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"--{name.replace('_', '-')} {value} says nothing without --memory; add --memory"
            )


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers between commas.

    Raises:
        InputError: something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text} is not understood; give whole numbers between commas") from None


def tables(rows: Sequence[MemoryUse]) -> Iterator[Text | Table]:
    """One titled table per kind of cache: sequences down, tokens of each across."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from qwenkit.cli.inspect_model import size

    yield Text(
        f"Weights {size(rows[0].weights_bytes)}. All memory, by sequences (down) and tokens of each (across):"
    )
    for kind in dict.fromkeys(row.kv_cache for row in rows):
        of_kind = [row for row in rows if row.kv_cache == kind]
        yield Text(f"\nCache in {of_kind[0].dtype if kind == 'auto' else kind}", "bold")
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("", justify="right")
        for length in dict.fromkeys(row.length for row in of_kind):
            table.add_column(f"{length:,}", justify="right")
        for batch in dict.fromkeys(row.batch for row in of_kind):
            cells = [size(row.total_bytes) for row in of_kind if row.batch == batch]
            table.add_row(f"{batch:,}", *cells)
        yield table
