"""LoRA adapters for tests: saved by peft or written by hand, and networks run with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwenkit.cache.dense import DenseCache
from qwenkit.layers.lora import Adapter
from qwenkit.model.transformer import Span, Transformer

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "modules_to_save": None,
    "base_model_name_or_path": "someone/some-model",
}


def write_adapter(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """A folder as PEFT lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def with_settings(**changes: Any) -> Callable[[Path], None]:
    """What gives a folder other settings."""

    def change_settings(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change_settings


def with_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """What gives a folder other tensors."""

    def change_tensors(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return change_tensors


def save_with_peft(model: Any, folder: Path, *, seed: int = 0, **lora: Any) -> Any:
    """Wraps a transformers model with random adapter weights, saves the adapter, returns the wrapped model."""
    import peft

    torch.manual_seed(seed)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **lora)
    wrapped = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if ".modules_to_save." in name or "trainable_tokens_delta" in name:
                weight.add_(torch.randn_like(weight), alpha=0.3)
            elif "lora_" in name:
                torch.nn.init.normal_(weight, std=0.2)
    wrapped.save_pretrained(folder)
    return wrapped


def new_cache(model: Transformer) -> DenseCache:
    """An empty cache that has to grow."""
    return DenseCache(model.config, dtype=model.dtype, device=model.device, capacity=8)


@torch.inference_mode()
def batch_logits(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    adapters: Sequence[Adapter | None],
    *,
    rows: Tensor | None = None,
) -> Tensor:
    """Logits of several fresh sequences in one ragged batch, (N or len(rows), V)."""
    spans = [Span(new_cache(model), len(p), a) for p, a in zip(prompts, adapters, strict=True)]
    return model(torch.tensor([i for p in prompts for i in p]), spans, rows)


@torch.inference_mode()
def greedy_batch(
    model: Transformer, prompts: Sequence[Sequence[int]], adapters: Sequence[Adapter | None], count: int
) -> list[list[int]]:
    """Greedy continuations of ``count`` tokens, all sequences in one ragged batch at every step."""
    caches = [new_cache(model) for _ in prompts]
    pending = [list(p) for p in prompts]
    out: list[list[int]] = [[] for _ in prompts]
    for _ in range(count):
        spans = [Span(c, len(p), a) for c, p, a in zip(caches, pending, adapters, strict=True)]
        last = torch.tensor([len(p) for p in pending]).cumsum(0) - 1
        logits = model(torch.tensor([i for p in pending for i in p]), spans, last)
        pending = [[i] for i in logits.argmax(-1).tolist()]
        for reply, new in zip(out, pending, strict=True):
            reply += new
    return out
