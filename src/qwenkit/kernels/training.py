"""Dropout, and the words of quantised checkpoints as numbers, by the compiled CPU kernels. Knows nothing of layers."""

from __future__ import annotations

import ctypes
import functools
import os
import re
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.kernels import native

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # QkType
_COMPUTED = (torch.float32, torch.bfloat16)
_KINDS = {"gptq": 0, "gemm": 1, "gemv": 2}  # QkKind
_WHOLE = 1 << 32


def can_drop(x: Tensor) -> bool:
    """Whether ``dropout`` takes such a tensor here."""
    return x.device.type == "cpu" and x.dtype in _COMPUTED and native.library() is not None


def dropout(x: Tensor, share: float, seed: int) -> Tensor:
    """``x`` without a share of its numbers, the others scaled so that the expectation stays.

    Args:
        x: one that ``can_drop`` accepts.
        share: of zeros, from 0 to below 1; rounded to a whole number of 2^-32.
        seed: of 64 bits, says which.
    """
    loaded = native.library()
    assert loaded is not None
    x = x.contiguous()
    out = torch.empty_like(x)
    threshold = round(share * _WHOLE)
    scale = _WHOLE / (_WHOLE - threshold)
    loaded.qk_dropout(
        x.data_ptr(),
        out.data_ptr(),
        x.numel(),
        _TYPES[x.dtype],
        seed,
        threshold,
        scale,
        _torch_threads(),
        torch.get_num_threads(),
        native.isa(),
    )
    return out


def can_unpack(scales: Tensor, dtype: torch.dtype) -> bool:
    """Whether ``unpack_words`` makes numbers of this type with scales of that one here."""
    kinds = (torch.float16, torch.bfloat16)
    is_on_cpu = scales.device.type == "cpu"
    return is_on_cpu and scales.dtype in kinds and dtype in _COMPUTED and native.library() is not None


def unpack_words(
    kind: str,
    bits: int,
    version: int,
    group_size: int,
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    order: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The numbers of a matrix of K inputs and N outputs: (K, N), of gemv (N, K).

    Args:
        kind: gptq, gemm or gemv.
        bits: 4, of gptq also 8.
        version: 1: zeros are stored less one; 2: as they are.
        group_size: inputs that share a scale.
        qweight: int32 words of codes.
        qzeros: int32 words of zeros.
        scales: as ``can_unpack`` accepts them.
        order: (K,) int64: row j belongs to input order[j], of gptq; None: to input j.
        dtype: float32 or bfloat16.
    """
    loaded = native.library()
    assert loaded is not None
    qweight, qzeros, scales = qweight.contiguous(), qzeros.contiguous(), scales.contiguous()
    order = None if order is None else order.contiguous()
    per_word = 32 // bits
    if kind == "gemv":
        n, k = qweight.shape[0], qweight.shape[1] * per_word
    else:
        n, k = scales.shape[1], qweight.shape[0] * (per_word if kind == "gptq" else 1)
    out = torch.empty((n, k) if kind == "gemv" else (k, n), dtype=dtype)
    words = native.Words(
        kind=_KINDS[kind],
        bits=bits,
        version=version,
        scale_type=_TYPES[scales.dtype],
        k=k,
        n=n,
        group=group_size,
        width=qzeros.shape[1],
        codes=qweight.data_ptr(),
        zeros=qzeros.data_ptr(),
        scales=scales.data_ptr(),
        order=None if order is None else order.data_ptr(),
    )
    loaded.qk_unpack_words(
        ctypes.byref(words),
        out.data_ptr(),
        _TYPES[dtype],
        _torch_threads(),
        torch.get_num_threads(),
        native.isa(),
    )
    return out


@functools.cache
def _torch_threads() -> int | None:
    """Address of GOMP_parallel in the OpenMP library that torch uses; None: it is not known.

    Between two operations of torch its threads stay awake for a while: others would have to share the cores with them.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    fields = (line.split(maxsplit=5) for line in maps.read_text("utf-8", "replace").splitlines())
    paths = {parts[5] for parts in fields if len(parts) == 6}
    found = [path for path in paths if re.match(r"lib(gomp|iomp5|omp)\b", Path(path).name)]
    home = str(Path(torch.__file__).parent)
    own = [path for path in found if path.startswith((home + os.sep, home + ".libs" + os.sep))] or found
    if len(own) != 1:
        return None
    try:
        library = ctypes.CDLL(own[0], mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
