"""How a load test looks at a terminal: a line while it runs, tables when it is over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from qwenkit.cli.pipes import without_controls

if TYPE_CHECKING:
    from qwenkit.bench.load import LoadOptions, Progress
    from qwenkit.bench.report import LoadReport, Spread

_COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")


def progress_line(progress: Progress, options: LoadOptions) -> Text:
    """How far a test is, and when it will be over."""
    total = {"warmup": options.warmup, "verify": options.verify}.get(progress.stage, options.num_requests)
    done = f"{progress.done}/{total}" if total else f"{progress.done}"
    parts = [
        progress.stage,
        f"{done} done",
        f"{progress.running} running",
        f"{progress.pieces / max(progress.seconds, 1e-9):.1f} tokens/s",
        _left(progress, total, options.duration if progress.stage == "load" else None),
    ]
    line = Text(" · ".join(p for p in parts if p))
    if progress.failed:
        line.append(f" · {progress.failed} failed", "red")
    return line


def _left(progress: Progress, total: int | None, duration: float | None) -> str:
    if duration is not None:
        left = duration - progress.seconds
        return f"{left:.0f} s left" if left > 0 else "waiting for the last"
    if not total or not progress.done:
        return ""
    return f"{progress.seconds / progress.done * (total - progress.done):.0f} s left"


def render(report: LoadReport, model: str, url: str) -> Iterator[Table | Text]:
    """The tables of a finished test, and what went wrong."""
    yield Text(without_controls(f"{model} at {url}"), "bold")
    for name, value in _totals(report):
        yield Text.assemble((f"{name:<12}", "dim"), value)
    latencies = Table("seconds", *_COLUMNS, box=None, pad_edge=False, header_style="dim")
    for column in latencies.columns[1:]:
        column.justify = "right"
    for name, spread in (
        ("first token", report.first_token),
        ("between tokens", report.inter_token),
        ("end to end", report.end_to_end),
    ):
        if spread is not None:
            latencies.add_row(name, *_cells(spread))
    if latencies.row_count:
        yield Text()
        yield latencies
    yield from _failures(report)


def _cells(spread: Spread) -> list[str]:
    return [
        f"{getattr(spread, name):.4f}" if spread.max < 10 else f"{getattr(spread, name):.2f}"
        for name in _COLUMNS
    ]


def _totals(report: LoadReport) -> Iterator[tuple[str, str]]:
    failed = sum(report.failed.values())
    cut = f", {report.cut} cut off by the end of the test" if report.cut else ""
    yield "requests", f"{report.ok} answered, {failed} failed{cut}; at most {report.most_running} at once"
    yield "duration", f"{report.seconds:.2f} s"
    yield "throughput", f"{report.requests_per_second:.3f} requests/s"
    source = "" if report.counts_are_reported else " (pieces counted; the server gives no token counts)"
    yield "output", f"{report.output_tokens_per_second:.1f} tokens/s, {report.output_tokens} tokens{source}"
    if report.prompt_tokens is not None and report.total_tokens_per_second is not None:
        cached = f", {report.cached_tokens} of them cached" if report.cached_tokens else ""
        yield "prompts", f"{report.prompt_tokens} tokens{cached}"
        yield "in all", f"{report.total_tokens_per_second:.1f} tokens/s"
    if report.num_verified:
        same = report.num_verified - len(report.mismatches)
        yield "verified", f"{same} of {report.num_verified} texts are the same alone"
    yield "texts", f"sha256 {report.texts_digest[:16]}"


def _failures(report: LoadReport) -> Iterator[Text]:
    for kind, count in report.failed.items():
        example = report.examples.get(kind, "")
        yield Text(without_controls(f"{count} x {kind}" + (f": {example}" if example else "")), "red")
    for mismatch in report.mismatches[:3]:
        owner = mismatch["owner"]
        whose = "" if owner is None else f" (the text of request {owner})"
        got, alone = mismatch["under_load"], mismatch["alone"]
        at = next(
            (i for i, (a, b) in enumerate(zip(got, alone, strict=False)) if a != b), min(len(got), len(alone))
        )
        yield Text(
            without_controls(
                f"request {mismatch['index']} differs from character {at}{whose}: "
                f"{got[at : at + 40]!r} under load, {alone[at : at + 40]!r} alone"
            ),
            "red",
        )
