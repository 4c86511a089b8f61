"""How a measurement of a model looks at a terminal: a line while it runs, tables when it is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from qwenkit.cli.inspect_model import size
from qwenkit.cli.pipes import without_controls

if TYPE_CHECKING:
    from qwenkit.bench.sessions import SessionResult, SpeedResult
    from qwenkit.bench.speed import Progress
    from qwenkit.bench.speed_report import Range, SpeedRow

_STAGES = {"read": "reading prompts", "warm-up": "warm-up", "measure": "round"}
_DTYPES = {"bfloat16": "BF16", "float16": "FP16", "float32": "FP32"}
_BILLION = 1e9
_NOTED_CORES = 0.2


def progress_line(progress: Progress) -> Text:
    """What is measured now, and what is left."""
    stage = _STAGES[progress.stage]
    if progress.stage != "read":
        stage = f"{stage} {progress.round}/{progress.rounds}"
    parts = [
        f"{progress.number}/{progress.total} {progress.case.label}",
        stage,
        f"{progress.done}/{progress.expected}",
        "" if progress.seconds_left is None else f"{progress.seconds_left:.0f} s left for this one",
    ]
    return Text(" · ".join(part for part in parts if part))


def render(rows: Sequence[SpeedRow], result: SpeedResult, about: Mapping[str, Any]) -> Iterator[Table | Text]:
    """The tables of a measurement, whole or stopped."""
    if not result.sessions:
        yield Text("stopped before anything was measured", "yellow")
        return
    first = result.sessions[0]
    yield Text(without_controls(f"{about['model']} on {about['cpu']}"), "bold")
    yield _fact("kernels", f"{first.kernels}, {first.dtype} on {first.device}")
    yield _fact("rounds", f"{about['repeats']}; medians, with the least and the most")
    yield from _memory(result.sessions, is_by_length=about["protocol"] is not None)
    many = len({session.threads for session in result.sessions}) > 1
    if about["protocol"] is not None:
        yield from _released(rows, about, first, many_threads=many)
    else:
        yield from _prefill([r for r in rows if r.kind == "prefill"], many_threads=many)
        yield from _decode([r for r in rows if r.kind == "decode"], many_threads=many)
    yield from _limits(rows, result, many_threads=many)
    yield from _warnings(result.sessions)
    if result.was_stopped:
        yield Text("\nstopped early: the rest was not measured", "yellow")


def _fact(name: str, value: str) -> Text:
    return Text.assemble((f"{name:<10}", "dim"), value)


def _memory(sessions: Sequence[SessionResult], *, is_by_length: bool) -> Iterator[Text]:
    seen: set[int] = set()
    for session in sessions:
        if session.threads in seen:
            continue  # the same load again, for another length
        seen.add(session.threads)
        yield _fact("threads", str(session.threads))
        yield _fact("loading", f"{session.load_seconds:.2f} s")
        if not is_by_length:
            yield _fact("peak", _peak(session.peak_bytes, session.peak_gpu_bytes))
    held = sessions[0]
    yield _fact(
        "memory",
        f"weights {size(held.weights_bytes)}, cache {size(round(held.cache_bytes_per_token))} a token",
    )


def _peak(process: int | None, gpu: int | None) -> str:
    parts = [f"{size(gpu)} on the GPU"] if gpu is not None else []
    parts.append(
        "the process's is not told by this system" if process is None else f"{size(process)} of the process"
    )
    return ", ".join(parts)


def _table(*columns: str, many_threads: bool) -> Table:
    names = ("threads", *columns) if many_threads else columns
    table = Table(*names, box=None, header_style="dim", pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    return table


def _add(table: Table, row: SpeedRow, *cells: str, many_threads: bool) -> None:
    table.add_row(*((str(row.threads),) if many_threads else ()), *cells)


def _prefill(rows: Sequence[SpeedRow], *, many_threads: bool) -> Iterator[Text | Table]:
    if not rows:
        return
    yield Text("\nReading a prompt", "bold")
    table = _table("tokens", "tokens/s", "first token, s", many_threads=many_threads)
    for row in rows:
        first = row.first_token_seconds
        cells = (f"{row.prompt_tokens:,}", _speed(row), "" if first is None else _range(first, "{:.3f}"))
        _add(table, row, *cells, many_threads=many_threads)
    yield table


def _decode(rows: Sequence[SpeedRow], *, many_threads: bool) -> Iterator[Text | Table]:
    if not rows:
        return
    yield Text(f"\nGenerating {rows[0].output_tokens} tokens behind a context", "bold")
    table = _table("batch", "context", "tokens/s", "of each", "ms a step", many_threads=many_threads)
    for row in rows:
        each = row.tokens_per_second.median / row.batch
        step = "" if row.step_seconds is None else f"{1000 * row.step_seconds.median:.2f}"
        cells = (str(row.batch), f"{row.prompt_tokens:,}", _speed(row), f"{each:.1f}", step)
        _add(table, row, *cells, many_threads=many_threads)
    yield table


def _released(
    rows: Sequence[SpeedRow], about: Mapping[str, Any], session: SessionResult, *, many_threads: bool
) -> Iterator[Text | Table]:
    """The columns of the figures that were released with Qwen."""
    if not rows:
        return
    yield Text("\n1 token of context; speed averaged over the generated tokens", "bold")
    table = _table(
        "Model Size",
        "Quantization",
        "Generated",
        "Speed (Tokens/s)",
        "Memory Usage",
        many_threads=many_threads,
    )
    kind = (session.quantisation or _DTYPES.get(session.dtype, session.dtype)).partition(",")[0]
    for row in rows:
        memory = row.peak_bytes if row.peak_gpu_bytes is None else row.peak_gpu_bytes
        cells = (
            _params(about["num_params"]),
            kind,
            f"{row.output_tokens:,}",
            _speed(row),
            "not told" if memory is None else f"{memory / _BILLION:.2f}GB",
        )
        _add(table, row, *cells, many_threads=many_threads)
    yield table


def _limits(rows: Sequence[SpeedRow], result: SpeedResult, *, many_threads: bool) -> Iterator[Text | Table]:
    """What one sequence reads for a token, and what that is of the memory's speed."""
    limited = [(row, row.limit) for row in rows if row.limit is not None]
    if not limited:
        return
    bandwidths = {s.threads: s.bandwidth.bytes_per_second for s in result.sessions if s.bandwidth is not None}
    yield Text("\nOne sequence against the memory's speed", "bold")
    for threads, speed in bandwidths.items():
        yield Text(f"{threads} thread{'s' * (threads > 1)} can read {speed / _BILLION:.1f} GB/s")
    is_decode = limited[0][0].kind == "decode"
    where = "context" if is_decode else "generated"
    table = _table(where, "weights a token", "cache", "read", "of that", many_threads=many_threads)
    for row, limit in limited:
        cells = (
            f"{row.prompt_tokens if is_decode else row.output_tokens:,}",
            _megabytes(limit.weight_bytes),
            _megabytes(limit.cache_bytes),
            f"{limit.bytes_per_second / _BILLION:.1f} GB/s",
            "" if limit.share is None else f"{limit.share:.0%}",
        )
        _add(table, row, *cells, many_threads=many_threads)
    yield table


def _warnings(sessions: Sequence[SessionResult]) -> Iterator[Text]:
    cores = max((s.other_cores for s in sessions if s.other_cores is not None), default=0.0)
    if cores >= _NOTED_CORES:
        yield Text(
            f"\nother programs kept {cores:.1f} cores busy meanwhile: alone the model is faster", "yellow"
        )


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _speed(row: SpeedRow) -> str:
    return _range(row.tokens_per_second, "{:.1f}")


def _range(found: Range, form: str) -> str:
    low, high = form.format(found.low), form.format(found.high)
    middle = form.format(found.median)
    return middle if low == high else f"{middle} ({low} - {high})"


def _params(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"
