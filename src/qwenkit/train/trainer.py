"""transformers' Trainer with our loss, our count of tokens and our settings."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput

from qwenkit.core.errors import InputError, NumericsError
from qwenkit.train.base import uses_gpu
from qwenkit.train.devices import wait_for_all
from qwenkit.train.loss import IGNORED
from qwenkit.train.options import FinetuneOptions
from qwenkit.train.progress import Meter

_ZERO = ("zero2", "zero3")


class Trainer(transformers.Trainer):
    """Counts tokens, and refuses to go on with NaN.

    Args:
        meter: listens and counts.
        options: those of transformers.Trainer; the model's loss takes ``num_items_in_batch``.
    """

    def __init__(self, *, meter: Meter, **options: Any) -> None:
        super().__init__(**options, callbacks=[meter])
        self.model_accepts_loss_kwargs = True
        self.is_under_way = False
        """Whether all that it goes on from has been read."""
        self._meter = meter
        self.remove_callback(transformers.trainer_callback.PrinterCallback)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward pass."""
        self.is_under_way = True
        mask = inputs.get("attention_mask")
        self._meter.tokens += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise NumericsError(
                f"the loss became {loss.item()} in step {self.state.global_step + 1}; lower learning_rate, or use dtype bfloat16 or float32"
            )
        return loss

    def _run_epoch(self, **settings: Any) -> None:
        """The original takes one step more when a run goes on from its very last checkpoint."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = self.is_under_way = True
            return
        super()._run_epoch(**settings)

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Mean loss over all labelled tokens, as in training. The original weighs batches alike, however few tokens they hold."""
        model = self.model_wrapped
        model.eval()
        total, count = torch.zeros((), device=self.args.device), torch.zeros((), device=self.args.device)
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            labelled = (inputs["labels"][:, 1:] != IGNORED).sum()
            with self.compute_loss_context_manager():
                total += self.compute_loss(model, inputs) * labelled
            count += labelled
        total, count = (self.accelerator.gather(each[None]).sum() for each in (total, count))
        metrics = {f"{metric_key_prefix}_loss": (total / count.clamp(min=1)).item()}
        return EvalLoopOutput(None, None, metrics, self.num_examples(dataloader))

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """accelerate puts autocast around every model but those of FSDP2. Casts are not cached: that would keep all weights gathered."""
        if self.is_fsdp_enabled and (self.args.bf16 or self.args.fp16):
            dtype = torch.bfloat16 if self.args.bf16 else torch.float16
            return torch.autocast(self.args.device.type, dtype=dtype, cache_enabled=False)
        return super().autocast_smart_context_manager(cache_enabled)

    def _save_rng_state(self, output_dir: str) -> None:
        """The file behind this one tells that a checkpoint is whole, so it has to wait for all processes."""
        super()._save_rng_state(output_dir)
        wait_for_all()


def training_arguments(
    options: FinetuneOptions, folder: Path, dtype: torch.dtype
) -> transformers.TrainingArguments:
    """The settings as transformers wants them. Making these starts the process group of a launch by torchrun.

    Args:
        options: of the run.
        folder: for checkpoints.
        dtype: of computing.
    """
    evaluates = bool(options.eval_data or options.eval_share)
    on_gpu = uses_gpu(options)
    every = "steps" if options.eval_every else "epoch"
    save = _save_settings(options, evaluates)
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": options.epochs,
        "max_steps": options.max_steps or -1,
        "per_device_train_batch_size": options.batch_size,
        "per_device_eval_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.accumulate,
        "learning_rate": options.top_rate,
        "lr_scheduler_type": options.schedule,
        "warmup_steps": options.warmup_share,
        "weight_decay": options.weight_decay,
        "adam_beta2": options.adam_beta2,
        "max_grad_norm": options.max_grad_norm,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "seed": options.seed,
        "logging_steps": options.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "eval_strategy": every if evaluates else "no",
        "eval_steps": options.eval_every,
        "prediction_loss_only": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "report_to": [],
        "disable_tqdm": True,
        "log_level": "error",
        "log_level_replica": "error",
        "use_cpu": not on_gpu,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": on_gpu,
        "deepspeed": deepspeed_settings(options.deepspeed),
        **save,
    }
    if options.fsdp:
        settings |= {
            "fsdp": True,
            "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"},
        }
    return transformers.TrainingArguments(**settings)


def _save_settings(options: FinetuneOptions, evaluates: bool) -> dict[str, Any]:
    """The best of several evaluations can only be kept where a checkpoint is written with each."""
    settings: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": options.save_every,
        "save_total_limit": options.keep,
    }
    if evaluates and options.patience is not None:
        settings |= {
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
        }
        if options.eval_every is None:
            settings["save_strategy"] = "epoch"
        else:
            settings["save_steps"] = options.eval_every
    return settings


def deepspeed_settings(named: str | None) -> dict[str, Any] | None:
    """The configuration of DeepSpeed: one of ours, or a file.

    Raises:
        InputError: there is no such file, or it holds no JSON object.
    """
    if named is None:
        return None
    if named in _ZERO:
        text = (resources.files("qwenkit.train") / "configs" / f"{named}.json").read_text("utf-8")
    else:
        try:
            text = Path(named).read_text("utf-8")
        except OSError as error:
            raise InputError(
                f"deepspeed {named}: {error.strerror}; use {', '.join(_ZERO)} or a configuration file"
            ) from None
    try:
        loaded = json.loads(text)
    except ValueError as error:
        raise InputError(f"deepspeed {named} is not JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"deepspeed {named} must hold a JSON object")
    return loaded


def uses_zero3(options: FinetuneOptions) -> bool:
    """Whether weights are sharded by DeepSpeed."""
    settings = deepspeed_settings(options.deepspeed) or {}
    return bool(settings.get("zero_optimization", {}).get("stage") == 3)
