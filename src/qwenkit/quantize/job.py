"""A quantisation run before it begins: the model is opened, the samples are drawn, and all is checked.

Knows nothing of how blocks are made.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from qwenkit._version import __version__
from qwenkit.chat.template import choose_template
from qwenkit.config.quant import QuantConfig, quantisation_dict
from qwenkit.core.errors import InputError
from qwenkit.quantize.blocks import BlockReader
from qwenkit.quantize.calibrate import Calibration, read_calibration
from qwenkit.quantize.card import settings_table
from qwenkit.quantize.needs import Needs
from qwenkit.quantize.recipe import Recipe
from qwenkit.quantize.stored import DENSE, BlockFormat
from qwenkit.weights.checkpoint import Checkpoint, check_vocabulary
from qwenkit.weights.save import generation_dict, to_hf
from qwenkit.weights.tokenizer import tokenizer_of

_MODEL_FILES = (".safetensors", ".bin", ".json", ".tiktoken", ".txt", ".jinja")


class Job:
    """One model, one recipe, one calibration file.

    Args:
        checkpoint: the model; stays open.
        recipe: how to quantise.
        calibration: file of samples; None: none.

    Raises:
        QwenkitError: any of them cannot be used, or they do not go together.
    """

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, calibration: Path | None) -> None:
        if checkpoint.quant is not None and checkpoint.format != "gguf":
            raise InputError(
                f"{checkpoint.path} is quantised already ({checkpoint.quant}); give the original model, or turn it into "
                "plain weights with `qwenkit dequantize` first"
            )
        if calibration is None and recipe.needs_calibration:
            raise InputError(
                f"{recipe.method} needs calibration text; give a file with --calibration, or use --method rtn"
            )
        self.checkpoint, self.recipe = checkpoint, recipe
        self.format = BlockFormat(checkpoint.family, checkpoint.config, recipe)
        self._settings = to_hf(checkpoint.config, checkpoint.family, str(DENSE).removeprefix("torch."))
        self.reader = BlockReader(checkpoint)
        self.tokenizer = tokenizer_of(checkpoint.path, checkpoint.metadata or None)
        check_vocabulary(checkpoint.config, self.tokenizer.vocab_size)
        self.calibration = None if calibration is None else self._read(calibration)
        self.notes = [] if self.calibration is None else list(self.calibration.notes)
        if checkpoint.quant is not None:
            self.notes.append(f"the model is {checkpoint.quant}: its weights have been rounded once before")
        if recipe.file_layout == "gptq" and not recipe.is_symmetric:
            self.notes.append(
                "some readers misread a zero of 0 in the gptq format; where yours knows it, --format gptq_v2 is safer"
            )

    def _read(self, path: Path) -> Calibration:
        return read_calibration(
            path,
            self.tokenizer,
            choose_template(self.checkpoint.family.chat_format, self.tokenizer),
            num_samples=self.recipe.num_samples,
            length=self.recipe.sample_length,
            seed=self.recipe.seed,
        )

    @property
    def num_layers(self) -> int:
        """Blocks of the model."""
        return self.checkpoint.config.num_layers

    @property
    def num_tokens(self) -> int:
        """Tokens that go through every block."""
        return 0 if self.calibration is None else self.calibration.num_tokens

    @property
    def needs(self) -> Needs:
        """Of memory and disk."""
        return Needs(self.checkpoint.config, self.recipe, self.format, self.num_tokens)

    @property
    def manifest(self) -> dict[str, Any]:
        """All that decides the result, by names that a message can use."""
        return {
            **self.recipe.to_dict(),
            "calibration file": self.calibration and self.calibration.digest[:16],
            "model": _fingerprint(self.checkpoint.path),
            "version of qwenkit": __version__,
            "version of torch": torch.__version__,
        }

    def about(self, source: str) -> dict[str, Any]:
        """The settings in words; ``source`` is the model that is quantised, as the user named it."""
        return {"model": source, **settings_table(self.recipe, self.calibration)}

    def settings_files(self, source: str) -> dict[str, dict[str, Any]]:
        """The JSON files of the quantised model, by name; ``source`` is the model it was made from."""
        recipe = self.recipe
        is_awq = recipe.is_awq_file
        quant = QuantConfig(
            method="awq" if is_awq else "gptq",
            bits=recipe.bits,
            group_size=recipe.group_size,
            layout=recipe.file_layout.removeprefix("awq-"),
            symmetric=None if is_awq else recipe.is_symmetric,
            desc_act=recipe.desc_act and not is_awq,
        )
        inside, side_name, side = quantisation_dict(
            quant,
            damp=recipe.damp,
            static_groups=recipe.static_groups,
            true_sequential=recipe.true_sequential,
            source=source,
        )
        return {
            "config.json": {**self._settings, "quantization_config": inside},
            side_name: side,
            "generation_config.json": generation_dict(self.checkpoint.generation),
        }


def _fingerprint(path: Path) -> str:
    """Digest of names, sizes and times of a model's files: reading them all would take as long as quantising."""
    files = [p for p in sorted(path.iterdir()) if p.suffix in _MODEL_FILES] if path.is_dir() else [path]
    rows = [(p.name, (info := p.stat()).st_size, info.st_mtime_ns) for p in files]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
