"""Draws decoding speed against context and against batch, with the memory's limit for one sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qwenkit.bench.speed_report import SpeedRow
from qwenkit.core.drawing import new_figure
from qwenkit.core.errors import InputError

_COLOURS = ("#4c72b0", "#c44e52", "#55a868", "#8172b3", "#dd8452", "#64b5cd", "#937860", "#8c8c8c")
_LINES = ("-", "--", ":", "-.")


def draw_speed(rows: Sequence[SpeedRow], path: Path, title: str) -> None:
    """Writes the picture; the ending of the name says in which format.

    Raises:
        InputError: the ending is no format of pictures, or there is nothing to draw.
        MissingExtraError: matplotlib is not there.
    """
    decoded = [row for row in rows if row.kind == "decode"]
    if not decoded:
        raise InputError(f"{path} was not written: no decoding was measured")
    figure = new_figure("bench", width=12)
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2)
    _draw(left, decoded, lambda r: r.prompt_tokens, lambda r: r.batch, "batch")
    _draw_limit(left, decoded)
    _draw(right, decoded, lambda r: r.batch, lambda r: r.prompt_tokens, "context")
    _scale(left, "tokens of context", {row.prompt_tokens for row in decoded})
    _scale(right, "sequences together", {row.batch for row in decoded})
    for axes in (left, right):
        axes.set_ylabel("tokens/s, all sequences together")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, handlelength=4)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _draw(
    axes: Any,
    rows: Sequence[SpeedRow],
    across: Callable[[SpeedRow], int],
    group: Callable[[SpeedRow], int],
    name: str,
) -> None:
    """A line per group and number of threads, with the spread of its rounds."""
    all_threads = list(dict.fromkeys(row.threads for row in rows))
    for i, value in enumerate(sorted({group(row) for row in rows})):
        for j, threads in enumerate(all_threads):
            own = sorted((r for r in rows if group(r) == value and r.threads == threads), key=across)
            speeds = [r.tokens_per_second for r in own]
            errors = [[s.median - s.low for s in speeds], [s.high - s.median for s in speeds]]
            label = f"{name} {value}" + (f", threads {threads}" if len(all_threads) > 1 else "")
            axes.errorbar(
                [across(r) for r in own],
                [s.median for s in speeds],
                errors,
                label=label,
                color=_COLOURS[i % len(_COLOURS)],
                linestyle=_LINES[j % len(_LINES)],
                marker="o",
                markersize=4,
                capsize=3,
                linewidth=1.6,
            )


def _scale(axes: Any, label: str, values: set[int]) -> None:
    """Doublings at equal distances, with a mark at each value that was measured."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(values), [str(value) for value in sorted(values)])
    axes.minorticks_off()
    axes.set_xlabel(label)


def _draw_limit(axes: Any, rows: Sequence[SpeedRow]) -> None:
    """What one sequence would reach if reading memory were all there is to do."""
    points = sorted(
        (r.prompt_tokens, r.tokens_per_second.median / r.limit.share)
        for r in rows
        if r.limit is not None and r.limit.share and r.threads == max(row.threads for row in rows)
    )
    if points:
        axes.plot(
            *zip(*points, strict=True),
            color="0.4",
            linestyle="--",
            marker="_",
            label="memory's limit, batch 1",
        )
