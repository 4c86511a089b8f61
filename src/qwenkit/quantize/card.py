"""The README.md of a quantised model: what it was made from, and how.

Knows nothing of how the numbers came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwenkit._version import __version__
from qwenkit.quantize.calibrate import Calibration
from qwenkit.quantize.evaluate import Comparison
from qwenkit.quantize.recipe import Recipe
from qwenkit.quantize.report import LayerError

_METHODS = {"gptq": "GPTQ", "awq": "AWQ", "rtn": "rounding to the nearest value"}


def settings_table(recipe: Recipe, calibration: Calibration | None) -> dict[str, Any]:
    """The settings in words, to their values."""
    out: dict[str, Any] = {
        "method": _METHODS[recipe.method],
        "bits": recipe.bits,
        "group size": recipe.group_size if recipe.group_size > 0 else "a whole row",
        "file format": recipe.file_layout,
        "zeros": "symmetric" if recipe.is_symmetric else "one per group",
    }
    if recipe.method == "gptq":
        out |= {
            "damping": f"{recipe.damp:g}",
            "activation order": _yes(recipe.desc_act),
            "static groups": _yes(recipe.static_groups),
        }
    if recipe.method != "awq":
        out["true sequential"] = _yes(recipe.true_sequential)
    if calibration is not None:
        out |= {
            "calibration": f"{len(calibration.samples)} samples, {calibration.num_tokens:,} tokens of {calibration.source}",
            "calibration file, SHA-256": calibration.digest,
            "seed": recipe.seed,
        }
    return out


def model_card(
    name: str, base: str, recipe: Recipe, calibration: Calibration | None, errors: Sequence[LayerError]
) -> str:
    """The page.

    Args:
        name: of the folder.
        base: the model that was quantised, as it was asked for.
        recipe: the settings.
        calibration: None: none was used.
        errors: of every module.
    """
    worst = max(errors, key=lambda e: e.error)
    mean = sum(e.error for e in errors) / len(errors)
    outputs = "outputs on the calibration text" if calibration is not None else "weights"
    return "\n".join(
        [
            "---",
            f"base_model: {base}",
            "tags: [qwenkit, quantized, " + recipe.file_layout.split("-")[0].split("_")[0] + "]",
            "---",
            "",
            f"# {name}",
            "",
            f"{base}, quantised to {recipe.bits} bits with qwenkit {__version__}.",
            "",
            *_table(settings_table(recipe, calibration)),
            "",
            f"Relative squared error of the {outputs}: {mean:.2e} in the mean of all {len(errors)} matrices, "
            f"{worst.error:.2e} at the worst ({worst.name}). Each one is in quantization_report.md.",
            "",
            "```",
            f"qwenkit chat -m {name}",
            "```",
            "",
        ]
    )


def add_comparison(folder: Path, comparison: Comparison, text: str) -> None:
    """Puts what a comparison with the original found at the end of the page in ``folder``.

    Args:
        folder: of the quantised model.
        comparison: the numbers.
        text: name of the text that was read.

    Raises:
        OSError: the page cannot be written.
    """
    c = comparison
    rows = {
        "perplexity of the original": f"{c.original_perplexity:.4f}",
        "perplexity": f"{c.perplexity:.4f} ({c.perplexity / c.original_perplexity - 1:+.2%})",
        "KL divergence from the original": f"{c.mean_kl:.5f} nats per token",
        "same likeliest token": f"{c.top1_agreement:.2%}",
    }
    for name, score in c.variants.items():
        rows[f"perplexity with {name}"] = (
            f"{score.perplexity:.4f} ({score.perplexity / c.original_perplexity - 1:+.2%})"
        )
    head = f"Beside the original, on {c.tokens:,} tokens of {text} in windows of {c.window:,} ({c.dtype}):"
    page = folder / "README.md"
    before = page.read_text(encoding="utf-8")
    page.write_text("\n".join([before, head, "", *_table(rows), ""]), encoding="utf-8")


def _table(values: Mapping[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in values.items())]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
