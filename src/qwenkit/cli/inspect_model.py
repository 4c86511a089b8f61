"""``qwenkit inspect``: what a model is and how much memory it needs, from its headers alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenkit.cli import memory_table
from qwenkit.cli.options import JsonFlag

if TYPE_CHECKING:
    from rich.table import Table

    from qwenkit.weights.inspect import ModelReport
    from qwenkit.weights.inspect_adapter import AdapterReport


_IN_MEMORY = {"packed": "stays packed", "numbers": "numbers"}


def inspect_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Short name, folder, .gguf file or hub id.")],
    memory: memory_table.MemoryFlag = False,
    batch: memory_table.BatchOption = None,
    lengths: memory_table.LengthsOption = None,
    kv_cache: memory_table.CacheOption = None,
    dtype: memory_table.DtypeOption = None,
    head: memory_table.HeadOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what a model or adapter is, its size, format and memory needs, without loading it."""
    wanted = {"batch": batch, "lengths": lengths, "kv_cache": kv_cache, "dtype": dtype, "head": head}
    if memory:
        memory_table.show_memory(model, **wanted, as_json=as_json)
        return
    memory_table.reject_without_memory(**wanted)
    from qwenkit.weights.inspect import inspect_model as read_report
    from qwenkit.weights.inspect_adapter import find_adapter, inspect_adapter

    adapter = find_adapter(model)
    _show(read_report(model) if adapter is None else inspect_adapter(adapter), as_json=as_json)


def _show(report: ModelReport | AdapterReport, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
        return
    from rich.console import Console

    from qwenkit.weights.inspect_adapter import AdapterReport

    console = Console(highlight=False)
    model = report.model if isinstance(report, AdapterReport) else report
    if isinstance(report, AdapterReport):
        console.print(_adapter_facts(report))
    if model is not None:
        for table in (_facts(model), _tensors(model), _memory(model)):
            console.print(table)


def _table(title: str, *columns: str) -> Table:
    """A table whose columns, but the first, hold numbers."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    return table


def _adapter_facts(report: AdapterReport) -> Table:
    rows: dict[str, Any] = {
        "path": report.path,
        "format": "LoRA adapter",
        "base": report.base or "not named",
        "rank": report.rank,
        "scale": f"{report.scale:g}",
        "modules": ", ".join(report.target_modules),
    }
    if report.modules_to_save:
        rows["stored whole"] = ", ".join(report.modules_to_save)
    if report.num_token_rows:
        rows["token rows"] = report.num_token_rows
    rows |= {
        "parameters": count(report.num_params),
        "stored as": ", ".join(report.tensors),
        "tokenizer": "its own" if report.has_tokenizer else "that of the base",
        "file size": size(report.file_bytes),
        "runs here": "yes, with the base" if report.problem is None else f"no: {report.problem}",
    }
    return _pairs(rows)


def _facts(report: ModelReport) -> Table:
    rows: dict[str, Any] = {
        "path": report.path,
        "format": report.format,
        "family": report.family,
        "architecture": report.architecture,
        "parameters": count(report.num_params),
        **{name.replace("_", " "): f"{value:,}" for name, value in report.sizes.items()},
        **report.features,
        "dtype": report.dtype,
        "quantisation": report.quantisation or "none",
        "output head": report.head,
        "context length": f"{report.context_length:,}",
        "tokenizer": report.tokenizer_problem or "ok",
        "chat template": report.chat_template,
        "file size": size(report.file_bytes),
        "runs here": f"yes, kernels {report.kernels}" if report.runnable else f"no: {report.problem}",
    }
    return _pairs(rows)


def _pairs(rows: dict[str, Any]) -> Table:
    """Names and what they are."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=box.SIMPLE)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(str(value)))
    return table


def _tensors(report: ModelReport) -> Table:
    table = _table("Tensors", "stored as", "bytes", "in memory")
    for dtype, num_bytes in sorted(report.tensors.items(), key=lambda item: -item[1]):
        table.add_row(dtype, size(num_bytes), _IN_MEMORY[report.in_memory[dtype]])
    return table


def _memory(report: ModelReport) -> Table:
    table = _table("Memory", "dtype", "context", "weights", "KV cache", "together")
    for row in report.memory:
        parts = (row.weights_bytes, row.kv_bytes, row.total_bytes)
        table.add_row(row.dtype, f"{row.context:,}", *map(size, parts))
    return table


def size(num_bytes: int) -> str:
    """Bytes as people read them: 92.1 MiB."""
    value, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def count(number: int) -> str:
    """A count as people say it, with the exact number: 134.5 M (134,515,008)."""
    for limit, letter in ((10**9, "B"), (10**6, "M")):
        if number >= limit:
            return f"{number / limit:.1f} {letter} ({number:,})"
    return f"{number:,}"
