"""A fine-tuning run from options to a finished folder."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qwenkit.core.errors import InputError
from qwenkit.core.lazy import import_extra
from qwenkit.kernels.cpu import available_memory
from qwenkit.train import devices
from qwenkit.train.adapter import check_adapter, tables_to_train
from qwenkit.train.base import Base, compute_dtype, load_network, open_base
from qwenkit.train.checkpoints import BOARD, LOG, PLOT, RunFolder, damage_told, run_identity
from qwenkit.train.collate import PackedCollator, PaddedCollator
from qwenkit.train.dataset import TrainingData
from qwenkit.train.labels import LabelRules
from qwenkit.train.memory import MemoryEstimate, estimate_memory
from qwenkit.train.options import FinetuneOptions
from qwenkit.train.plan import FinetuneResult, Plan
from qwenkit.train.quiet import quieten
from qwenkit.train.reading import Reading, read_samples
from qwenkit.train.samples import hold_out
from qwenkit.train.saving import save_result, shortages_told
from qwenkit.weights.cache import format_size
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.memory import weights_bytes

if TYPE_CHECKING:
    from qwenkit.train.progress import OnProgress

_MODULES = ("transformers", "peft", "accelerate")


def check_extra() -> None:
    """Makes sure that what training needs is installed.

    Raises:
        MissingExtraError: something is not.
    """
    for module in _MODULES:
        import_extra(module, "train")


class Run:
    """One run: ``prepare``, look at it if wanted, ``train``.

    Args:
        options: what to do.
        on_note: is told what the user should know.
    """

    def __init__(self, options: FinetuneOptions, *, on_note: Callable[[str], None] | None = None) -> None:
        self._options, self._note = options, on_note or (lambda sentence: None)
        self._folder = RunFolder(Path(options.out))
        self._stop = threading.Event()

    def prepare(self) -> Plan:
        """Reads model settings and data, looks at the folder, and tells what will happen. Writes nothing.

        Raises:
            QwenkitError: something is wrong with them.
        """
        options = self._options
        if options.threads:
            torch.set_num_threads(options.threads)
        from qwenkit.train.trainer import training_arguments, uses_zero3

        if "tensorboard" in options.loggers:
            import_extra("tensorboard", "train")
        quieten()
        devices.check_launch(options)
        self._dtype = compute_dtype(options)
        self._args = training_arguments(options, self._folder.checkpoints, self._dtype)
        if options.deepspeed:
            devices.join_deepspeed()
        if options.fsdp:
            devices.join_fsdp(self._args)
        self._base = devices.together(lambda: open_base(options), one_first=True)
        if options.is_lora:
            check_adapter(self._base, options)
        devices.together(self._read_data)
        memory = devices.together(self._estimate)
        self._identity = run_identity(options, self._base.digest, self._digest, self._args.world_size)
        if options.method == "qlora" and (options.fsdp or uses_zero3(options)):
            self._tell("weights of 4 and 8 bits are not sharded: every device holds all of them")
        resumed = devices.from_first(lambda: self._folder.check(self._identity, restart=options.restart))
        return Plan(
            model=self._base.name,
            method=options.method,
            dtype=str(self._dtype).removeprefix("torch."),
            devices=self._args.world_size,
            steps=self._num_steps(),
            sequences_per_step=options.batch_size * options.accumulate * self._args.world_size,
            data=self._data.report,
            held_out=None if self._held_out is None else self._held_out.report,
            memory=memory,
            free_memory=self._free,
            resumes_at=_step(resumed) or None,
        )

    def stop(self) -> None:
        """Asks a run under way to stop behind its step, with a checkpoint; any thread may ask."""
        self._stop.set()

    def _wants_stop(self) -> bool:
        """Signals reach processes between different steps, so they ask each other."""
        return devices.any_of(self._stop.is_set(), self._args.device)

    def _tell(self, sentence: str) -> None:
        if self.is_main:
            self._note(sentence)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that speaks."""
        return bool(self._args.process_index == 0)

    @property
    def base(self) -> Base:
        """The model it starts from."""
        return self._base

    def _read_data(self) -> None:
        options = self._options
        reading = read_samples(options.data, data_format=options.data_format, skip_bad=options.skip_bad)  # type: ignore[arg-type]
        digest, held_out = reading.digest, None
        if options.eval_share:
            kept, held = hold_out(reading.samples, options.eval_share, options.seed)
            reading.samples = kept
            held_out = Reading(samples=held)
        elif options.eval_data:
            held_out = read_samples(
                options.eval_data,
                data_format=options.data_format,  # type: ignore[arg-type]
                skip_bad=options.skip_bad,
            )
            digest += held_out.digest
        self._digest = digest
        self._data = self._rows(reading)
        self._held_out = None if held_out is None else self._rows(held_out)

    def _rows(self, reading: Reading) -> TrainingData:
        options, base = self._options, self._base
        return TrainingData(
            reading,
            base.tokenizer,
            base.template,
            max_length=options.max_length,
            rules=LabelRules(
                loss=options.loss,  # type: ignore[arg-type]
                default_system=options.system,
                structure_loss=options.structure_loss,
            ),
            too_long=options.too_long,  # type: ignore[arg-type]
            packing=options.packing,
            lazy=options.lazy,
            skip_bad=options.skip_bad,
            seed=options.seed,
        )

    def _num_steps(self) -> int:
        options = self._options
        if options.max_steps:
            return options.max_steps
        batches: int = -(-len(self._data) // (options.batch_size * self._args.world_size))
        return math.ceil(-(-batches // options.accumulate) * options.epochs)

    def _estimate(self) -> MemoryEstimate:
        options, base = self._options, self._base
        tables = tables_to_train(base, options) if options.is_lora else "none"
        checkpoint = open_checkpoint(base.folder)
        try:
            held = weights_bytes(checkpoint, self._dtype)
        finally:
            checkpoint.store.close()
        longest = options.max_length if options.packing else self._data.report.longest or options.max_length
        estimate = estimate_memory(
            base, options, dtype=self._dtype, weights_bytes=held, tables=tables, longest=longest
        )
        is_gpu = self._args.device.type == "cuda"
        self._free = torch.cuda.mem_get_info()[0] if is_gpu else available_memory()
        sharded = options.fsdp or options.deepspeed is not None
        if not sharded and self._free and estimate.certain > self._free:
            raise InputError(
                f"weights, gradients and optimizer take {format_size(estimate.certain)} and {format_size(self._free)} are free; "
                "use method lora or qlora, or shard them over several devices with fsdp or deepspeed zero3"
            )
        if not sharded and self._free and estimate.total > self._free:
            self._tell(
                f"this run may take {format_size(estimate.total)} and {format_size(self._free)} are free; lower batch_size or max_length if it fails"
            )
        return estimate

    def _claim(self) -> Path | None:
        """The main process claims the folder; the others then see the same checkpoint."""

        def claim() -> Path | None:
            resumed = self._folder.claim(self._identity, restart=self._options.restart)
            self._folder.trim_log(_step(resumed))
            return resumed

        def check() -> None:
            if resumed is not None and not resumed.is_dir():
                raise InputError(
                    f"{resumed} is not on this machine; give an out folder that all machines share, or go on with --restart"
                )

        resumed = devices.from_first(claim)
        devices.together(check)
        return resumed

    def previews(self, count: int, *, colour: bool) -> Iterator[Any]:
        """Samples with what is learnt of them: rich Text, or str without colour."""
        from qwenkit.train.preview import preview, preview_plain

        show = preview if colour else preview_plain
        for index in range(min(count, len(self._data))):
            for sequence in self._data.row(index):
                yield show(sequence, self._base.tokenizer)

    def train(self, *, on_progress: OnProgress | None = None) -> FinetuneResult:
        """Trains to the end, or until SIGINT or SIGTERM, which are answered with a checkpoint.

        Raises:
            QwenkitError: the model cannot be loaded or the loss is no number any more.
        """
        from qwenkit.train.progress import Meter, device_memory, other_listeners
        from qwenkit.train.trainer import Trainer

        options, started = self._options, time.perf_counter()
        resumed = self._claim()
        log = self._folder.path / LOG
        writes = self.is_main and "jsonl" in options.loggers
        meter = Meter(log if writes else None, on_progress, self._wants_stop)
        network = load_network(self._base, options, self._dtype)
        trainer = Trainer(
            meter=meter,
            model=network,
            args=self._args,
            train_dataset=self._data,
            eval_dataset=self._held_out,
            data_collator=self._collator(),
        )
        for listener in other_listeners(options, self._folder.path / BOARD if self.is_main else None):
            trainer.add_callback(listener)
        reads = damage_told(resumed, lambda: trainer.is_under_way)
        with _stopping(self._stop), reads, devices.lost_peers(), shortages_told(self._folder.path):
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
            return self._finish(trainer, meter, time.perf_counter() - started, device_memory())

    def _collator(self) -> PackedCollator | PaddedCollator:
        tokenizer = self._base.tokenizer
        pad = tokenizer.eos_token_id or 0
        return PackedCollator(pad, single_row=False) if self._options.packing else PaddedCollator(pad)

    def _finish(self, trainer: Any, meter: Any, seconds: float, memory: int) -> FinetuneResult:
        history = trainer.state.log_history
        losses = [line["loss"] for line in history if "loss" in line]
        held = [line["eval_loss"] for line in history if "eval_loss" in line]
        tail = losses[-max(1, len(losses) // 10) :]
        if not meter.was_stopped:
            save_result(trainer, self._base, self._folder.path)
        result = FinetuneResult(
            folder=self._folder.path,
            steps=trainer.state.global_step,
            first_loss=losses[0] if losses else math.nan,
            loss=sum(tail) / len(tail) if tail else math.nan,
            eval_loss=_kept_loss(trainer, held),
            tokens=devices.sum_of(meter.tokens, self._args.device),
            seconds=round(seconds, 3),
            peak_memory=memory,
            plot=self._draw(history) if self.is_main else None,
            interrupted=meter.was_stopped,
        )
        if self.is_main and not meter.was_stopped:
            self._folder.finish(result.to_dict())
        return result

    def _draw(self, history: list[dict[str, Any]]) -> Path | None:
        from qwenkit.core.errors import MissingExtraError
        from qwenkit.train.progress import draw_loss

        path = self._folder.path / PLOT
        try:
            draw_loss(history, path, f"{self._base.folder.name}, {self._options.method}")
        except MissingExtraError as error:
            self._tell(f"no curve is drawn: {error}")
            return None
        return path


def _kept_loss(trainer: Any, held_out: list[float]) -> float | None:
    """Held-out loss of the weights that are kept: the best of a run with patience, else the last."""
    best = trainer.state.best_metric if trainer.args.load_best_model_at_end else None
    return best if best is not None else held_out[-1] if held_out else None


def _step(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.split("-")[-1])


@contextlib.contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks the run to stop behind its step, the second ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    earlier = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
