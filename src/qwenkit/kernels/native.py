"""Loads the compiled CPU kernels (csrc/) and mirrors their C structs. Knows nothing of models.

The library is optional: without it `library()` is None and `problem()` says why. QWENKIT_ISA=amx, avx512, avx2,
portable or reference forces an instruction set; reference turns the kernels off.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import importlib.machinery
import logging
from pathlib import Path

from qwenkit.core.environment import forced_isa
from qwenkit.core.errors import InputError, did_you_mean

_log = logging.getLogger("qwenkit")
_ISAS = ("portable", "avx2", "avx512", "amx")  # in the order of QkIsa
_ABI_VERSION = 5  # QK_ABI_VERSION of csrc/native.h
AMX = _ISAS.index("amx")
_NO_MEMORY = 2  # of QkStatus
MAX_THREADS = 256

_pointer = ctypes.c_void_p


class Format(enum.IntEnum):
    """QkFormat of csrc/native.h."""

    DENSE = 0
    HALF = 1
    BRAIN = 2
    INT4 = 3
    INT8 = 4
    PANEL4 = 5
    PANEL8 = 6


class Matrix(ctypes.Structure):
    """QkMatrix of csrc/native.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("format", "rows")),
        ("group", ctypes.c_int64),
        *((name, _pointer) for name in ("data", "scales", "zeros", "mins", "order")),
    )


class Linear(ctypes.Structure):
    """QkLinear of csrc/native.h."""

    _fields_ = (("parts", ctypes.c_int32), ("part", ctypes.POINTER(Matrix)), ("bias", _pointer))


class Layer(ctypes.Structure):
    """QkLayer of csrc/native.h."""

    _fields_ = (
        *((name, _pointer) for name in ("attn_norm", "q_norm", "k_norm", "ffn_norm")),
        *((name, Linear) for name in ("qkv", "out", "gate_up", "down")),
        ("window", ctypes.c_int64),
    )


class Model(ctypes.Structure):
    """QkModel of csrc/native.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("type", "layers", "hidden", "heads", "kv_heads", "head_dim")),
        *((name, ctypes.c_int32) for name in ("ffn", "vocab", "rotary")),
        ("eps", ctypes.c_float),
        ("norm", _pointer),
        *((name, Matrix) for name in ("embed", "head")),
        ("layer", ctypes.POINTER(Layer)),
    )


class Pool(ctypes.Structure):
    """QkPool of csrc/native.h."""

    _fields_ = (
        *((name, _pointer) for name in ("keys", "values", "key_scale", "value_scale")),
        *((name, _pointer) for name in ("key_zero", "value_zero")),
        ("int8", ctypes.c_int32),
    )


class Lora(ctypes.Structure):
    """QkLora of csrc/native.h."""

    _fields_ = (("rank", ctypes.c_int32), ("a", _pointer), ("b", _pointer))


class Adapter(ctypes.Structure):
    """QkAdapter of csrc/native.h."""

    _fields_ = (("lora", ctypes.POINTER(Lora)), ("embed", _pointer), ("head", _pointer))


class Span(ctypes.Structure):
    """QkSpan of csrc/native.h."""

    _fields_ = (
        ("pages", _pointer),
        ("length", ctypes.c_int64),
        ("count", ctypes.c_int64),
        *((name, _pointer) for name in ("cos", "sin", "query_scale")),
        ("adapter", ctypes.POINTER(Adapter)),
    )


class Words(ctypes.Structure):
    """QkWords of csrc/native.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "bits", "version", "scale_type")),
        *((name, ctypes.c_int64) for name in ("k", "n", "group", "width")),
        *((name, _pointer) for name in ("codes", "zeros", "scales", "order")),
    )


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why."""
    folder = Path(__file__).parent
    names = [f"_native{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        return None, "not compiled; install a C++ compiler and install qwenkit again"
    try:
        loaded = ctypes.CDLL(str(path))
        if not _matches(loaded):
            return None, f"{path.name} was compiled for another version of qwenkit; install qwenkit again"
        loaded.qk_best_isa.restype = ctypes.c_int32
        loaded.qk_forward.restype = ctypes.c_int32
        loaded.qk_forward.argtypes = (
            ctypes.POINTER(Model),
            ctypes.POINTER(Pool),
            ctypes.c_int32,
            ctypes.POINTER(Span),
            _pointer,
            ctypes.c_int32,
            _pointer,
            _pointer,
            *(ctypes.c_int32,) * 4,
        )
        loaded.qk_int8_product.restype = ctypes.c_int32
        loaded.qk_int8_product.argtypes = (
            ctypes.POINTER(Matrix),
            ctypes.c_int64,
            _pointer,
            ctypes.c_int32,
            _pointer,
            *(ctypes.c_int32,) * 2,
        )
        loaded.qk_dropout.restype = loaded.qk_unpack_words.restype = ctypes.c_int32
        loaded.qk_dropout.argtypes = (
            *(_pointer,) * 2,
            ctypes.c_int64,
            ctypes.c_int32,
            ctypes.c_uint64,
            ctypes.c_uint32,
            ctypes.c_float,
            _pointer,
            *(ctypes.c_int32,) * 2,
        )
        loaded.qk_unpack_words.argtypes = (
            ctypes.POINTER(Words),
            _pointer,
            ctypes.c_int32,
            _pointer,
            *(ctypes.c_int32,) * 2,
        )
        loaded.qk_int8_product.errcheck = _raise_for  # type: ignore[assignment]
        loaded.qk_forward.errcheck = _raise_for  # type: ignore[assignment]  # ctypes knows no types of arguments
    except (OSError, AttributeError) as error:
        return None, f"{path.name} cannot be loaded ({error}); install qwenkit again"
    return loaded, ""


def _matches(loaded: ctypes.CDLL) -> bool:
    """Whether the library was compiled with the structs above: an older one would read wild addresses."""
    if not hasattr(loaded, "qk_abi"):
        return False
    structs = (Layer, Model, Pool, Lora, Adapter, Span, Matrix, Linear, Words)
    found = (ctypes.c_int64 * (1 + len(structs)))()
    loaded.qk_abi.argtypes, loaded.qk_abi.restype = (ctypes.POINTER(ctypes.c_int64),), None
    loaded.qk_abi(found)
    return list(found) == [_ABI_VERSION, *(ctypes.sizeof(struct) for struct in structs)]


def _raise_for(status: int, _function: object, _arguments: object) -> int:
    """Turns lack of memory into an exception; the other statuses are for the caller."""
    if status == _NO_MEMORY:
        raise MemoryError(
            "no memory for one step; use a smaller batch, smaller pieces of prompts or fewer threads"
        )
    return status


def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None when they are missing or turned off; a missing library is logged once."""
    if forced_isa() == "reference":
        return None
    loaded, problem_text = _load()
    if loaded is None:
        _warn_once(problem_text)
    return loaded


@functools.cache
def _warn_once(problem_text: str) -> None:
    _log.warning("native CPU kernels are not in use, everything is several times slower: %s", problem_text)


def problem() -> str:
    """Why the kernels are not in use, or an empty text."""
    return "turned off by QWENKIT_ISA=reference" if forced_isa() == "reference" else _load()[1]


def isa() -> int:
    """Number of the instruction set to use.

    Raises:
        InputError: QWENKIT_ISA names one that is unknown or that this CPU does not have.
    """
    loaded = library()
    best = 0 if loaded is None else int(loaded.qk_best_isa())
    forced = forced_isa()
    if forced in (None, "reference"):
        return best
    if forced not in _ISAS:
        known = (*_ISAS, "reference")
        raise InputError(
            f"QWENKIT_ISA={forced!r} is unknown; use {', '.join(known)}{did_you_mean(str(forced), known)}"
        )
    if _ISAS.index(forced) > best:
        raise InputError(f"QWENKIT_ISA={forced!r} is more than this CPU has; use {_ISAS[best]}")
    return _ISAS.index(forced)


def isa_name() -> str:
    """Name of the instruction set in use."""
    return _ISAS[isa()]
