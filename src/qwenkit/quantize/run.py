"""Quantises a model block by block, keeps each finished block on disk, and goes on where an earlier run stopped.

Memory: one block in float32, what the method needs for it, and the activations of the calibration samples.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenkit.core.errors import InputError
from qwenkit.quantize.blocks import BlockRunner, activations, embed
from qwenkit.quantize.card import model_card
from qwenkit.quantize.entries import dense_entries, file_entries
from qwenkit.quantize.job import Job
from qwenkit.quantize.methods import LinearResult, Samples, quantise_block
from qwenkit.quantize.partial import PartialRun, writing
from qwenkit.quantize.progress import Clock, OnProgress, peak_memory
from qwenkit.quantize.recipe import Recipe
from qwenkit.quantize.report import LayerError, write_report
from qwenkit.tokenizer.save import save_tokenizer
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.sources import fetch
from qwenkit.weights.write import checked_target, write_json, write_weights

SHARD_BYTES = 5 * 10**9
"""Most bytes of one weight file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeResult:
    """What a run came to."""

    folder: Path
    layers: tuple[LayerError, ...]
    """Of every quantised module, in the order of the network."""
    nbytes: int
    """Of all tensors written."""
    seconds: float
    """Of this run."""
    peak_memory: int
    """Bytes this process held at most."""
    resumed_layers: int
    """Blocks that an earlier run had finished."""
    notes: tuple[str, ...]
    """What the user should know."""
    about: Mapping[str, Any]
    """The settings in words, for the report."""

    @property
    def mean_error(self) -> float:
        """Mean of the modules' relative squared errors."""
        return sum(layer.error for layer in self.layers) / len(self.layers)


def quantize_model(
    model: str | Path,
    out: Path,
    recipe: Recipe,
    *,
    calibration: Path | None = None,
    restart: bool = False,
    shard_bytes: int = SHARD_BYTES,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> QuantizeResult:
    """Writes a quantised copy of a model as a complete folder.

    Until it is complete, what is done lies in ``OUT.partial``. The same call continues there, with the same result as
    if it had never stopped (on the same number of threads).

    Args:
        model: folder, .gguf file, built-in name or hub id.
        out: must not exist yet, or be empty.
        recipe: how to quantise.
        calibration: file with text or conversations, see ``read_calibration``; rtn can do without.
        restart: throw away what an earlier run left.
        shard_bytes: most bytes per weight file.
        on_progress: told of every matrix and every block.
        on_note: told, before work begins, what the user should know.

    Raises:
        InputError: settings, folder or calibration file are not usable.
        SourceError: the disk is full or not writable; what is done is kept.
        NumericsError: NaN or infinity, with the layer's name.
        QwenkitError: the model cannot be found or read.
    """
    started = time.perf_counter()
    out = checked_target(out)
    if shard_bytes < 1:
        raise InputError(f"a shard of {shard_bytes} bytes is not possible; use a number from 1 up")
    with ExitStack() as stack:
        checkpoint = open_checkpoint(fetch(str(model)))
        stack.callback(checkpoint.store.close)
        job = Job(checkpoint, recipe, calibration)
        partial = PartialRun(out, job.manifest, restart=restart)
        stack.callback(partial.close)
        resumed = partial.finished(job.num_layers)
        room = job.needs.check_memory(partial.folder)
        job.needs.check_disk(
            partial.folder, missing_layers=job.num_layers - resumed, on_disk=room is not None
        )
        if room is not None:
            job.notes.append(f"memory has no room for the activations; they are kept in {room}")
        if on_note is not None:
            for note in job.notes:
                on_note(note)
        _quantise_blocks(job, partial, room, Clock(job.num_layers, job.num_tokens, on_progress))
        errors = [error for index in range(job.num_layers) for error in partial.errors(index)]
        nbytes = _finish(job, partial, out, str(model), errors, shard_bytes)
    return QuantizeResult(
        folder=out,
        layers=tuple(errors),
        nbytes=nbytes,
        seconds=time.perf_counter() - started,
        peak_memory=peak_memory(),
        resumed_layers=resumed,
        notes=tuple(job.notes),
        about=job.about(str(model)),
    )


def _quantise_blocks(job: Job, partial: PartialRun, room: Path | None, clock: Clock) -> None:
    """Makes every block that is not there yet."""
    done, count = partial.finished(job.num_layers), job.num_layers
    if done == count:
        return
    samples = _embedded(job, partial, room)
    for index in range(count):
        if index >= done:
            clock.begin(index)
            _quantise(job, index, samples, partial, clock)
        if samples is not None and index < count - 1:
            # As it was written, so that a run that goes on after an interruption sees the same numbers.
            block = job.format.block(index, partial.load(index))
            samples.runner.advance(block, samples.x)
        if index >= done:
            errors = [layer.error for layer in partial.errors(index)]
            clock.tell(index, None, sum(errors) / len(errors))


def _embedded(job: Job, partial: PartialRun, room: Path | None) -> Samples | None:
    """The inputs of the first block; None without calibration."""
    if job.calibration is None:
        return None
    samples, config = job.calibration.samples, job.checkpoint.config
    with writing(partial.folder):
        x = activations(job.num_tokens, config.hidden_size, room)
    embed(job.reader, samples, x)
    return Samples(runner=BlockRunner(config, [len(sample) for sample in samples]), x=x)


def _quantise(job: Job, index: int, samples: Samples | None, partial: PartialRun, clock: Clock) -> None:
    def told(linear: str, result: LinearResult) -> None:
        size = float(result.size.sum())
        clock.tell(index, linear, float(result.error.sum()) / size if size else 0.0)

    block = job.reader.block(index)
    results = quantise_block(
        block, samples, job.recipe, separate_values=job.format.separate_values, on_linear=told
    )
    tensors = job.format.tensors(block, index, results)
    partial.save(index, tensors, job.format.errors(index, results))


def _finish(
    job: Job, partial: PartialRun, out: Path, model: str, errors: list[LayerError], shard_bytes: int
) -> int:
    """Puts the folder together, moves it to its place and removes the work folder; bytes of all tensors."""
    family = job.checkpoint.family
    with ExitStack() as stack:
        stack.enter_context(writing(partial.folder))
        folder = partial.empty_folder()
        entries = list(dense_entries(job.reader, family, ["embed.weight"]))
        for index in range(job.num_layers):
            file = partial.open(index)
            stack.callback(file.close)
            entries += file_entries(file)
        entries += dense_entries(job.reader, family, ["norm.weight", "head.weight"])
        nbytes = write_weights(folder, entries, shard_bytes)
        for name, content in job.settings_files(model).items():
            write_json(folder / name, content)
        save_tokenizer(folder, job.tokenizer)
        write_report(folder, None, errors, about=job.about(model))
        card = model_card(out.name, model, job.recipe, job.calibration, errors)
        (folder / "README.md").write_text(card, encoding="utf-8")
        os.replace(folder, out)  # an empty target is replaced
    partial.remove()
    return nbytes
