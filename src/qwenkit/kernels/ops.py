"""The operations the network is made of, in plain torch: the definition that faster versions are checked against.

Shapes: N flat tokens of a ragged batch, D model width, H query heads, K key heads, d head width, T key positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenkit.kernels import gpu
from qwenkit.kernels.packed import PackedWeight
from qwenkit.kernels.panels import PanelWeight

_CHUNK = 2**24  # weights in float32 at once


def quant_linear(x: Tensor, weight: PackedWeight | PanelWeight) -> Tensor:
    """x W^T with a packed weight: (..., K) -> (..., N), in the type of ``x``.

    Rows are dequantised in float32 and rounded to the type of ``x``, a part at a time. On a GPU Triton's kernels do it
    where they can run and no gradient is wanted.
    """
    if (
        x.is_cuda
        and not x.requires_grad
        and isinstance(weight, PackedWeight)
        and (matmul := gpu.packed_matmul()) is not None
    ):
        return matmul(x, weight)
    rows, columns = weight.shape
    step = max(_CHUNK // columns, 1)
    parts = [
        F.linear(x, weight.rows(i, min(i + step, rows)).dequantise(x.dtype)) for i in range(0, rows, step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension (arXiv:1910.07467), computed in float32.

    The result is cast to the type of ``x`` before the weight multiplies it, as in the released Qwen code.
    """
    h = x.float()
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True).add_(eps))
    return h.to(x.dtype).mul_(weight)  # h is ours to change: the product made it


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, rotate-half layout (arXiv:2104.09864), in float32.

    Args:
        x: (N, heads, d); the first ``r`` of the d dimensions rotate.
        cos: (N, 1, r), each angle twice.
        sin: (N, 1, r), the first half negated.
    """
    r = cos.shape[-1]
    h = x[..., :r].float()
    swapped = torch.cat((h[..., r // 2 :], h[..., : r // 2]), dim=-1)
    out = torch.addcmul(h * cos, swapped, sin).to(x.dtype)
    return out if r == x.shape[-1] else torch.cat((out, x[..., r:]), dim=-1)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of (N, 2 F) -> (N, F) (arXiv:2002.05202)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def attend(q: Tensor, k: Tensor, v: Tensor, start: int, window: int | None) -> Tensor:
    """Causal attention of one sequence's new tokens over all its keys; scale d**-0.5, softmax in float32.

    Args:
        q: (n, H, d), the queries at positions start .. start + n - 1.
        k: (K, start + n, d). Key head j serves query heads j H/K .. (j + 1) H/K - 1.
        v: as k.
        start: number of keys before the first query.
        window: a query sees this many keys, itself included; None: all.

    Returns:
        (n, H d)
    """
    n, heads, d = q.shape
    if n == 1:
        if window is not None:
            k, v = k[:, -window:], v[:, -window:]
        grouped = q.view(1, k.shape[0], -1, d)  # (1, K, H/K, d): one query row per head of the group
        return F.scaled_dot_product_attention(grouped, k[None], v[None]).reshape(1, heads * d)
    causal_only = start == 0 and (window is None or window >= n)
    mask = None if causal_only else _mask(n, start, window, q.device)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k[None], v[None], attn_mask=mask, is_causal=causal_only, enable_gqa=True
    )
    return out[0].transpose(0, 1).reshape(n, heads * d)


def _mask(n: int, start: int, window: int | None, device: torch.device) -> Tensor:
    """(n, start + n), True where key j is visible to query i: i - window < j <= i in absolute positions."""
    i = torch.arange(start, start + n, device=device)[:, None]
    j = torch.arange(start + n, device=device)[None, :]
    visible = j <= i
    return visible if window is None else visible & (j > i - window)
