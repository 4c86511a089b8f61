"""How a model is run in this process: options, and what they come to on this machine."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from qwenkit.cache.paged import PAGE_SIZE, page_bytes
from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import InputError
from qwenkit.kernels import native
from qwenkit.kernels.cpu import available_memory, cpu_has_bf16
from qwenkit.kernels.native import MAX_THREADS
from qwenkit.model.step import ACTIVATIONS

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
_DRAFT = 7  # with the token before them 8 rows, which kernels for decoding take together
_MAX_DRAFT = 64


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
    activations: str = "auto"
    """What 4- and 8-bit weights are multiplied with on the CPU: float (as the dtype has it) or int8 (rounded to 8 bits,
    much faster); auto is int8 unless the dtype is float32, except that AMX reads prompts in bfloat16."""
    packed_cache: str = "auto"
    """auto keeps large packed weights, rearranged for the CPU, in the user's cache folder for the next start; off does not."""
    kv_cache: str = "auto"
    """What keys and values are stored in: auto (the model's dtype) or int8 (half the memory of bfloat16)."""
    cache_memory: int | None = None
    """Bytes of the key-value cache; None: what max_batch_size whole contexts take, at most 40 % of the free memory."""
    prefix_caching: bool = True
    """Find beginnings of prompts that were read before."""
    max_queue: int = 1024
    """Requests that may wait besides those that run, where a server asks."""
    speculative: str = "off"
    """off, or ngram: guess tokens by looking up the last ones in the text so far; replies stay the same."""
    speculative_tokens: int | None = None
    """Most tokens guessed at once with ngram; None: 7."""
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
        if self.packed_cache not in ("auto", "off"):
            raise InputError(f"packed_cache={self.packed_cache!r} is not known; use auto or off")
        if self.activations not in ACTIVATIONS:
            raise InputError(f"activations={self.activations!r} is not known; use {', '.join(ACTIVATIONS)}")
        self._check_speculation()
        if self.num_threads is not None and self.num_threads > MAX_THREADS:
            raise InputError(f"num_threads={self.num_threads} is not possible; use at most {MAX_THREADS}")
        if any(isinstance(w, bool) or not isinstance(w, int | None) for w in self.windows or ()):
            raise InputError(f"windows={self.windows!r} must hold whole numbers, or None for full attention")

    def _check_speculation(self) -> None:
        if self.speculative not in ("off", "ngram"):
            raise InputError(f"speculative={self.speculative!r} is not known; use off or ngram")
        count = self.speculative_tokens
        if count is None:
            return
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MAX_DRAFT:
            raise InputError(
                f"speculative_tokens={count!r} is not possible; use a whole number from 1 to {_MAX_DRAFT}"
            )
        if self.speculative == "off":
            raise InputError(
                f"speculative_tokens={count} says nothing without speculative='ngram'; add that, or leave it out"
            )

    @property
    def max_draft(self) -> int:
        """Most tokens guessed at once; 0: none."""
        if self.speculative == "off":
            return 0
        return _DRAFT if self.speculative_tokens is None else self.speculative_tokens


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


def wants_panels(options: LocalOptions, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed weights are rearranged for products with 8-bit activations.

    Raises:
        InputError: they were asked for where there are none.
    """
    there = device.type == "cpu" and native.library() is not None
    if options.activations == "int8" and not there:
        reason = native.problem() if device.type == "cpu" else f"on {device.type}"
        raise InputError(f"activations='int8' needs the compiled CPU kernels ({reason}); use auto or float")
    if options.activations != "auto":
        return options.activations == "int8"
    asked = _DTYPES.get(options.dtype)
    return there and asked != torch.float32 and dtype.itemsize <= 4


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
