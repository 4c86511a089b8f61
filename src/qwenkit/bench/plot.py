"""Draws a load test: latency by percentile, and throughput and requests under way over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwenkit.bench.load import LoadResult, Record
from qwenkit.bench.report import inter_token_gaps
from qwenkit.core.drawing import new_figure
from qwenkit.core.errors import InputError
from qwenkit.core.lazy import import_extra

_COLOURS = {"end to end": "#c44e52", "first token": "#4c72b0", "between tokens": "#55a868"}
_TICKS = (50, 90, 95, 99, 99.9)
_MOST_BINS = 200


def draw(result: LoadResult, path: Path, title: str) -> None:
    """Writes the picture; the ending of the name says in which format.

    Raises:
        InputError: the ending is no format of pictures.
        MissingExtraError: matplotlib is not there.
    """
    figure = new_figure("bench", width=12)
    figure.suptitle(title, fontsize=11)
    left, right = figure.subfigures(1, 2)
    ok = [r for r in result.records if r.is_ok]
    _draw_latency(left.subplots(), ok)
    above, below = right.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    _draw_over_time(above, below, result)
    for axes in (*left.axes, above, below):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def check_format(path: Path) -> None:
    """Makes sure, before anything is measured, that a picture of this name can be written.

    Raises:
        InputError: the ending is no format of pictures.
        MissingExtraError: matplotlib is not there.
    """
    bases: Any = import_extra("matplotlib.backend_bases", "bench")
    known = sorted(bases.FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".") not in known:
        raise InputError(f"{path} is no name of a picture; let it end in one of .{', .'.join(known)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}")


def _draw_latency(axes: Any, records: Sequence[Record]) -> None:
    series = {
        "end to end": [r.end - r.start for r in records],
        "first token": [r.times[0] - r.start for r in records if r.times],
        "between tokens": [gap for r in records for gap in inter_token_gaps(r)],
    }
    for name, values in series.items():
        if values:
            shares, heights = _curve(values)
            axes.plot([_stretch(p) for p in shares], heights, label=name, color=_COLOURS[name], linewidth=1.8)
    axes.set_yscale("log")
    axes.set_xticks([_stretch(p) for p in _TICKS], [f"{p:g}" for p in _TICKS])
    axes.set_xlabel("percentile")
    axes.set_ylabel("seconds")
    axes.set_xlim(left=0)
    if records:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(series), frameon=False)


def _curve(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Percentiles up to where there are values to tell them."""
    import numpy as np

    top = min(99.9, 100 - 50 / len(values)) if len(values) > 1 else 50.0
    shares = [p for p in [*np.linspace(1, 90, 90), *(100 - 10 ** np.linspace(1, -1, 40))] if p <= top] or [
        top
    ]
    return [float(p) for p in shares], [max(float(v), 1e-6) for v in np.percentile(values, shares)]


def _stretch(percentile: float) -> float:
    """Puts 90, 99 and 99.9 at equal distances."""
    return -math.log10(1 - percentile / 100)


def _draw_over_time(above: Any, below: Any, result: LoadResult) -> None:
    import numpy as np

    seconds = max(result.end - result.start, 1e-3)
    width = max(seconds / _MOST_BINS, min(1.0, seconds / 20))
    edges = np.arange(0.0, seconds + width, width)
    pieces = np.concatenate([np.asarray(r.times) - result.start for r in result.records] or [np.empty(0)])
    counts, _ = np.histogram(pieces, edges)
    # The last bin may be cut short by the end of the test.
    spans = np.minimum(edges[1:], seconds) - edges[:-1]
    rates = np.divide(counts, spans, out=np.zeros(len(counts)), where=spans > width / 10)
    above.stairs(rates, edges, fill=True, alpha=0.35, color=_COLOURS["first token"])
    above.stairs(rates, edges, color=_COLOURS["first token"], linewidth=1.2, baseline=None)
    above.axhline(len(pieces) / seconds, color="0.3", linestyle="--", linewidth=0.9)
    above.set_ylabel("tokens/s")
    above.set_title(f"Throughput (mean {len(pieces) / seconds:.1f} tokens/s)", fontsize=10)
    events = sorted(
        [(r.start - result.start, 1) for r in result.records]
        + [(r.end - result.start, -1) for r in result.records]
    )
    running = np.cumsum([change for _, change in events])
    below.step([at for at, _ in events], running, where="post", color=_COLOURS["end to end"], linewidth=1.2)
    for record in result.records:
        if record.error is not None:
            below.axvline(record.end - result.start, color="k", alpha=0.4, linewidth=0.8)
    below.set_ylabel("requests\nunder way")
    below.set_xlabel("seconds")
    below.set_ylim(bottom=0)
    below.yaxis.get_major_locator().set_params(integer=True)
