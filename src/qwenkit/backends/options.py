"""How a model is run in this process: options, and what they come to on this machine."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from qwenkit.cache.paged import PAGE_SIZE, page_bytes
from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import InputError
from qwenkit.kernels.cpu import available_memory, cpu_has_bf16
from qwenkit.kernels.native import MAX_THREADS

_log = logging.getLogger("qwenkit")
_DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
}
_CACHE_SHARE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """How to run a model here."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N"""
    dtype: str = "auto"
    """auto, bfloat16, float16, float32; auto is bfloat16 where the hardware computes in it."""
    max_context: int | None = None
    """Most tokens of prompt and reply; None: what the model was made for."""
    max_batch_size: int = 64
    """Sequences computed together."""
    prefill_chunk: int = 512
    """Tokens computed in one step: long prompts are read in pieces of this size."""
    head: str = "auto"
    """What the output head is kept in: auto (as the checkpoint has it) or int8 (rounded to 8 bits while it is read)."""
    kv_cache: str = "auto"
    """What keys and values are stored in: auto (the model's dtype) or int8 (half the memory of bfloat16)."""
    cache_memory: int | None = None
    """Bytes of the key-value cache; None: what max_batch_size whole contexts take, at most 40 % of the free memory."""
    prefix_caching: bool = True
    """Find beginnings of prompts that were read before."""
    max_queue: int = 1024
    """Requests that may wait besides those that run, where a server asks."""
    deterministic: bool = False
    """Refuse to run where results could depend on the batch; compiled CPU kernels never let them."""
    windows: tuple[int | None, ...] | None = None
    """Attention window per layer; None: as the checkpoint says."""
    num_threads: int | None = None
    """CPU threads; None: as torch chooses."""

    def __post_init__(self) -> None:
        for name in ("max_context", "max_batch_size", "prefill_chunk", "num_threads", "cache_memory"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name}={value!r} is not possible; use a whole number from 1 up")
        if not isinstance(self.max_queue, int) or self.max_queue < 0:
            raise InputError(f"max_queue={self.max_queue!r} is not possible; use a whole number from 0 up")
        if self.kv_cache not in ("auto", "int8"):
            raise InputError(f"kv_cache={self.kv_cache!r} is not known; use auto or int8")
        if self.head not in ("auto", "int8"):
            raise InputError(f"head={self.head!r} is not known; use auto or int8")
        if self.num_threads is not None and self.num_threads > MAX_THREADS:
            raise InputError(f"num_threads={self.num_threads} is not possible; use at most {MAX_THREADS}")
        if any(isinstance(w, bool) or not isinstance(w, int | None) for w in self.windows or ()):
            raise InputError(f"windows={self.windows!r} must hold whole numbers, or None for full attention")


def resolve_device(name: str) -> torch.device:
    """The device a name stands for.

    Raises:
        InputError: unknown, or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device={name!r} is not known; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device={name!r} is not there: torch sees {torch.cuda.device_count()} GPUs; use cpu"
        )
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type weights and activations get.

    Raises:
        InputError: unknown.
    """
    if name in _DTYPES:
        return _DTYPES[name]
    if name != "auto":
        raise InputError(f"dtype={name!r} is not known; use auto, {', '.join(_DTYPES)}")
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_bf16() else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def num_pages(config: ModelConfig, options: LocalOptions, dtype: torch.dtype, device: torch.device) -> int:
    """Pages of the key-value cache.

    Raises:
        InputError: the memory given does not hold a single page.
    """
    page = page_bytes(config, dtype, options.kv_cache == "int8")
    wanted = options.max_batch_size * -(-config.context_length // PAGE_SIZE)
    if options.cache_memory is not None:
        if options.cache_memory < page:
            raise InputError(
                f"cache_memory={options.cache_memory} bytes hold no page of {page}; give it at least {page} bytes"
            )
        return min(wanted, options.cache_memory // page)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    count = max(min(wanted, int(free * _CACHE_SHARE) // page), 1)
    if count * PAGE_SIZE < config.context_length:
        _log.warning(
            "the key-value cache holds %d tokens, less than one whole context of %d; use kv_cache=int8, or give it memory with cache_memory",
            count * PAGE_SIZE,
            config.context_length,
        )
    return count
