"""Which kernels multiply packed weights on a GPU: Triton's, or plain torch and why.

Imports Triton, which is optional, only when asked for a kernel. Knows nothing of models.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from qwenkit.kernels.packed import PackedWeight

    PackedMatmul: TypeAlias = Callable[[Tensor, PackedWeight], Tensor]

_COMPILERS = ("gcc", "clang")  # those that Triton looks for; it compiles the code that launches a kernel


@cache
def problem() -> str | None:
    """Why Triton's kernels are not used on a GPU; None: they are."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error}); pip install 'qwenkit[gpu]'"
    if not any(shutil.which(name) for name in _COMPILERS):
        return f"Triton needs a C compiler ({' or '.join(_COMPILERS)}), and none is found"
    return None


@cache
def packed_matmul() -> PackedMatmul | None:
    """x W^T with a packed weight on a GPU; None: in plain torch, for the reason that `problem()` gives."""
    if problem() is not None:
        return None
    from qwenkit.kernels.triton_gpu import quant_matmul

    return quant_matmul
