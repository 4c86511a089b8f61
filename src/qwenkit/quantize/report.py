"""Writes what a quantisation cost: one JSON file, one page of Markdown, one picture of the error per layer.

Knows nothing of how the numbers came about.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwenkit.core.drawing import new_figure
from qwenkit.core.errors import MissingExtraError, SourceError
from qwenkit.quantize.evaluate import Comparison

_log = logging.getLogger("qwenkit")
NAME = "quantization_report"
"""Of the files, before their endings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerError:
    """What quantising one linear layer did."""

    name: str
    """As the checkpoint calls it, e.g. ``transformer.h.3.attn.c_attn``."""
    error: float
    """Squared error of the layer's outputs on the calibration text, relative to the squares of the outputs."""
    loss: float | None
    """What the algorithm made small, in its own unit; None: it reports nothing."""
    seconds: float

    @property
    def number(self) -> int | None:
        """Of the layer in the network; None where the name has none."""
        return None if (found := _numbered(self.name)) is None else int(found[1])

    @property
    def kind(self) -> str:
        """Which linear of its layer, e.g. ``attn.c_attn``; the whole name where it has no number."""
        return self.name if (found := _numbered(self.name)) is None else found[2]


def _numbered(name: str) -> re.Match[str] | None:
    return re.search(r"(?:^|\.)(\d+)\.(.+)", name)


def write_report(
    folder: Path,
    comparison: Comparison | None,
    layers: Sequence[LayerError],
    *,
    about: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Writes the report into a folder, each file complete or not at all.

    Args:
        folder: is made if it is not there; older reports in it are replaced.
        comparison: None: the models were not compared.
        layers: in the order in which they were quantised; empty: not known.
        about: settings worth keeping, by name in words.

    Returns:
        What was written. Without matplotlib there is no picture, and one warning.

    Raises:
        SourceError: the folder cannot be written.
    """
    data = {
        "about": dict(about or {}),
        "comparison": comparison and comparison.to_dict(),
        "layers": [asdict(layer) for layer in layers],
    }
    encoded = json.dumps(_storable(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    page = "\n".join(_page(comparison, layers, about or {})) + "\n"
    writers: dict[str, Callable[[Path], object]] = {
        ".json": lambda path: path.write_text(encoded, encoding="utf-8"),
        ".md": lambda path: path.write_text(page, encoding="utf-8"),
    }
    if any(layer.number is not None for layer in layers):
        writers[".png"] = lambda path: _draw(path, layers)
    written = []
    for ending, write in writers.items():
        try:
            written.append(_put(folder / (NAME + ending), write))
        except MissingExtraError as error:
            _log.warning("%s was not drawn: %s", NAME + ending, error)
    picture = folder / (NAME + ".png")
    if picture not in written:
        picture.unlink(missing_ok=True)  # one of an older report would belong to other numbers
    return written


def _put(path: Path, write: Callable[[Path], object]) -> Path:
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise SourceError(
            f"{path} cannot be written: {error.strerror or error}; choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def _storable(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _storable(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _page(comparison: Comparison | None, layers: Sequence[LayerError], about: Mapping[str, Any]) -> list[str]:
    lines = ["# Quantisation report"]
    if about:
        lines += ["", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in about.items())]
    if comparison is not None:
        lines += ["", *_comparison_lines(comparison)]
    if layers:
        lines += ["", *_layer_lines(layers)]
    return lines


def _comparison_lines(c: Comparison) -> list[str]:
    rise = c.perplexity / c.original_perplexity - 1
    lines = [
        "## Beside the original",
        "",
        f"{c.tokens:,} tokens in windows of {c.window:,}, computed in {c.dtype}.",
        "",
        "| | original | quantised | |",
        "|---|--:|--:|--:|",
        f"| perplexity | {c.original_perplexity:.4f} | {c.perplexity:.4f} | {rise:+.2%} |",
    ]
    for name in ("stored", "held"):
        before, after = getattr(c.original_size, name), getattr(c.size, name)
        place = "files" if name == "stored" else "memory"
        share = f"{after / before:.1%}" if before else ""
        lines.append(f"| weights in {place}, MiB | {before / 2**20:,.1f} | {after / 2**20:,.1f} | {share} |")
    lines += [
        "",
        "| | perplexity | KL divergence | same likeliest token |",
        "|---|--:|--:|--:|",
        f"| quantised | {c.perplexity:.4f} | {c.mean_kl:.5f} | {c.top1_agreement:.2%} |",
    ]
    lines += [
        f"| with {name} | {v.perplexity:.4f} | {v.mean_kl:.5f} | {v.top1_agreement:.2%} |"
        for name, v in c.variants.items()
    ]
    return [*lines, "", "KL divergence is from the original, in nats per token, mean over all positions."]


def _layer_lines(layers: Sequence[LayerError]) -> list[str]:
    lines = [
        "## Layers",
        "",
        "Error: squared error of a layer's outputs on the calibration text, relative to the squares of the outputs.",
        "",
        "| linear | layers | mean error | worst error | worst layer | seconds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for kind, members in _by_kind(layers).items():
        worst = max(members, key=lambda layer: layer.error)
        mean = math.fsum(layer.error for layer in members) / len(members)
        where = "" if worst.number is None else str(worst.number)
        seconds = sum(layer.seconds for layer in members)
        lines.append(
            f"| {kind} | {len(members)} | {mean:.3e} | {worst.error:.3e} | {where} | {seconds:.1f} |"
        )
    lines += ["", "| name | error | loss | seconds |", "|---|--:|--:|--:|"]
    for layer in layers:
        loss = "" if layer.loss is None else f"{layer.loss:.4g}"
        lines.append(f"| {layer.name} | {layer.error:.3e} | {loss} | {layer.seconds:.1f} |")
    return lines


def _by_kind(layers: Sequence[LayerError]) -> dict[str, list[LayerError]]:
    """In the order in which kinds first come."""
    kinds: dict[str, list[LayerError]] = {}
    for layer in layers:
        kinds.setdefault(layer.kind, []).append(layer)
    return kinds


def _draw(path: Path, layers: Sequence[LayerError]) -> None:
    """Error over the number of the layer, one line per kind of linear.

    Raises:
        MissingExtraError: matplotlib is not there.
    """
    figure = new_figure("bench")
    axes = figure.subplots()
    for kind, members in _by_kind([layer for layer in layers if layer.number is not None]).items():
        members.sort(key=lambda layer: layer.number or 0)
        numbers, errors = [m.number for m in members], [m.error for m in members]
        axes.plot(numbers, errors, label=kind, marker="o", markersize=3, linewidth=1.3)
    axes.set_yscale("log", nonpositive="mask")
    axes.set_xlabel("layer")
    axes.set_ylabel("relative squared error of the outputs")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2)
    figure.savefig(path, format="png")
