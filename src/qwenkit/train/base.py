"""The model a run starts from: its files, tokenizer and chat template, and the network of transformers with its adapter."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwenkit.backends.options import resolve_dtype
from qwenkit.chat.base import ChatTemplate
from qwenkit.chat.template import choose_template
from qwenkit.config.families import Family
from qwenkit.config.model import ModelConfig
from qwenkit.config.quant import QuantConfig
from qwenkit.core.environment import cache_dir
from qwenkit.core.errors import InputError
from qwenkit.quantize.dequantize import dequantize_model
from qwenkit.tokenizer.base import Tokenizer
from qwenkit.train.options import FinetuneOptions
from qwenkit.weights.checkpoint import check_vocabulary, open_checkpoint
from qwenkit.weights.sources import fetch
from qwenkit.weights.tokenizer import tokenizer_of

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A model on disk that can be trained: a folder in the layout of its family."""

    name: str
    """As an adapter's configuration names it: an absolute folder, or a hub id or short name."""
    folder: Path
    family: Family
    config: ModelConfig
    quant: QuantConfig | None
    tokenizer: Tokenizer
    template: ChatTemplate | None
    is_chat: bool
    """Whether it was trained on conversations."""
    digest: str
    """Of its settings and of the names, types and sizes of its weights."""

    @property
    def linears(self) -> tuple[str, ...]:
        """Last names of the linear layers of a block, e.g. c_attn, c_proj, w1, w2."""
        stored = [name for key, names in self.family.tensors.items() if _is_linear(key) for name in names]
        return tuple(dict.fromkeys(sorted(name.split(".")[-2] for name in stored)))

    @property
    def tables(self) -> tuple[str, str]:
        """Last names of the embedding and the head."""
        embed, head = (self.family.tensors[f"{part}.weight"][0].split(".")[-2] for part in ("embed", "head"))
        return embed, head


def _is_linear(key: str) -> bool:
    return key.startswith("layers.") and key.endswith(".weight") and "norm" not in key


def open_base(options: FinetuneOptions) -> Base:
    """Finds the model and reads everything but its weights. A GGUF file is first written out as a folder, in our cache.

    Raises:
        InputError: the method does not fit the model's weights.
        QwenkitError: it cannot be found or read.
    """
    path = fetch(options.model)
    if not path.is_dir():
        path = _unpacked(path, options)
    checkpoint = open_checkpoint(path)
    try:
        _check_method(options, checkpoint.quant, path)
        tokenizer = tokenizer_of(path, None)
        check_vocabulary(checkpoint.config, tokenizer.vocab_size)
        stored = {name: [info.dtype, list(info.shape)] for name, info in checkpoint.store.tensors.items()}
    finally:
        checkpoint.store.close()
    raw = json.loads((path / "config.json").read_text("utf-8"))
    raw.pop("_name_or_path", None)
    digest = hashlib.sha256(json.dumps([raw, stored], sort_keys=True, default=str).encode()).hexdigest()
    template = choose_template(checkpoint.family.chat_format, tokenizer)
    return Base(
        name=str(path.absolute()) if Path(options.model).expanduser().exists() else options.model,
        folder=path,
        family=checkpoint.family,
        config=checkpoint.config,
        quant=checkpoint.quant,
        tokenizer=tokenizer,
        template=template,
        is_chat=_is_chat(path, options.model, checkpoint.family),
        digest=digest,
    )


def _check_method(options: FinetuneOptions, quant: QuantConfig | None, path: Path) -> None:
    if options.method == "qlora" and quant is None:
        raise InputError(
            f"method qlora needs 4- or 8-bit weights and {path} has none; use method lora, or quantise the model first"
        )
    if options.method != "qlora" and quant is not None:
        raise InputError(
            f"{path} has {quant.method} weights, which method {options.method} cannot train; use method qlora, or dequantise the model first"
        )


def _unpacked(file: Path, options: FinetuneOptions) -> Path:
    """The folder of plain weights of a GGUF file, written once."""
    if options.method == "qlora":
        raise InputError(
            f"method qlora trains on GPTQ or AWQ folders, {file} is a GGUF file; use method lora, which unpacks it"
        )
    stat = file.stat()
    mark = hashlib.sha256(f"{file.absolute()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache_dir() / "unpacked" / f"{file.stem}-{mark}"
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        dequantize_model(file, folder, dtype="bfloat16")
    return folder


def _is_chat(path: Path, name: str, family: Family) -> bool:
    """The release goes by the name of the model; its own setting says it better where there is one."""
    file = path / "generation_config.json"
    chat_format = json.loads(file.read_text("utf-8")).get("chat_format") if file.is_file() else None
    if chat_format is not None:
        return bool(chat_format == "chatml")
    return family.chat_format is None or "chat" in name.lower() or (path / "tokenizer.json").is_file()


def uses_gpu(options: FinetuneOptions) -> bool:
    """Whether a run computes on one."""
    return options.device != "cpu" and torch.cuda.is_available()


def compute_dtype(options: FinetuneOptions) -> torch.dtype:
    """What products are computed in.

    Raises:
        InputError: this device cannot.
    """
    device = torch.device("cuda" if uses_gpu(options) else "cpu")
    if options.device == "cuda" and device.type != "cuda":
        raise InputError("device cuda was asked for and there is none; use device cpu, or auto")
    if options.dtype == "float16" and device.type == "cpu":
        raise InputError("float16 cannot be trained on a CPU; use dtype bfloat16 or float32")
    return resolve_dtype(options.dtype, device)


def load_network(base: Base, options: FinetuneOptions, dtype: torch.dtype) -> Any:
    """The network, with a fresh or given adapter where one is trained.

    Args:
        base: what to load.
        options: method and adapter.
        dtype: of computing. Weights that are trained themselves are kept in float32.

    Returns:
        PreTrainedModel, or PeftModel around one.
    """
    from transformers import AutoModelForCausalLM, set_seed

    import qwenkit.hf  # noqa: F401  (registers the first generation)
    from qwenkit.train.loss import use_head_loss

    kept = torch.float32 if options.method == "full" else dtype
    set_seed(options.seed)  # of the fresh matrices of an adapter
    network: Any = AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=kept, attn_implementation="sdpa", local_files_only=True
    )
    network.config.use_cache = False
    if options.checkpointing:
        # The name changed in 5.23.
        enable = getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    use_head_loss(network)
    if options.is_lora:
        from qwenkit.train.adapter import add_adapter
        from qwenkit.train.trainer import uses_zero3

        network = add_adapter(network, base, options)
        _set_trained_dtype(network, dtype if uses_zero3(options) else torch.float32)
    return network


def _set_trained_dtype(network: Any, dtype: torch.dtype) -> None:
    """Steps of Adam are too small for 16 bits. ZeRO-3 keeps copies in float32 itself, and wants one type for all that is trained."""
    for weight in network.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(dtype)
