"""The operations of the network against loops and formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from qwenkit.kernels import ops


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int, window: int | None
) -> torch.Tensor:
    """One query, one head, one key at a time."""
    n, heads, d = q.shape
    group = heads // k.shape[0]
    out = torch.zeros(n, heads, d)
    for i in range(n):
        position = start + i
        first = 0 if window is None else max(0, position - window + 1)
        for h in range(heads):
            scores = [float(q[i, h] @ k[h // group, j]) / math.sqrt(d) for j in range(first, position + 1)]
            weights = torch.tensor(scores).softmax(-1)
            out[i, h] = sum(
                w * v[h // group, j] for w, j in zip(weights, range(first, position + 1), strict=True)
            )
    return out.reshape(n, heads * d)


@pytest.mark.parametrize("window", [None, 1, 3, 7, 100])
@pytest.mark.parametrize(("start", "n"), [(0, 1), (0, 9), (6, 1), (6, 5), (12, 2)])
@pytest.mark.parametrize(("heads", "kv_heads", "d"), [(4, 4, 8), (6, 2, 5), (3, 1, 16)])
def test_attend(heads: int, kv_heads: int, d: int, start: int, n: int, window: int | None) -> None:
    q, k, v = rand(n, heads, d), rand(kv_heads, start + n, d, seed=1), rand(kv_heads, start + n, d, seed=2)
    out = ops.attend(q, k, v, start, window)
    torch.testing.assert_close(out, naive_attention(q, k, v, start, window), atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_attend_in_chunks_is_attend_at_once(chunk: int, window: int | None) -> None:
    q, k, v = rand(20, 4, 8), rand(2, 20, 8, seed=1), rand(2, 20, 8, seed=2)
    whole = ops.attend(q, k, v, 0, window)
    parts = [
        ops.attend(q[at : at + chunk], k[:, : at + chunk], v[:, : at + chunk], at, window)
        for at in range(0, 20, chunk)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)


def test_attend_takes_slices_of_a_larger_cache() -> None:
    cache_k, cache_v, q = rand(2, 64, 8, seed=1), rand(2, 64, 8, seed=2), rand(1, 4, 8)
    out = ops.attend(q, cache_k[:, :30], cache_v[:, :30], 29, None)
    torch.testing.assert_close(out, ops.attend(q, cache_k[:, :30].clone(), cache_v[:, :30].clone(), 29, None))


def rotate_naive(x: torch.Tensor, position: int, base: float, r: int) -> torch.Tensor:
    out = x.clone()
    for j in range(r // 2):
        angle = position / base ** (2 * j / r)
        a, b = x[..., j], x[..., j + r // 2]
        out[..., j] = a * math.cos(angle) - b * math.sin(angle)
        out[..., j + r // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


@pytest.mark.parametrize("r", [16, 8])
def test_rotate(r: int) -> None:
    from qwenkit.config.model import RopeConfig
    from qwenkit.layers.rope import RotaryTables

    x = rand(3, 2, 16)
    cos, sin = RotaryTables(RopeConfig(base=10000.0, dim=r), torch.device("cpu")).rows(5, 3, 1)
    expected = torch.stack([rotate_naive(x[i], 5 + i, 10000.0, r) for i in range(3)])
    torch.testing.assert_close(ops.rotate(x, cos, sin), expected, atol=1e-5, rtol=0)


def test_rotate_of_the_released_code() -> None:
    """Eight dimensions, base 10000, position 2, the vector 1 to 8."""
    from qwenkit.config.model import RopeConfig
    from qwenkit.layers.rope import RotaryTables

    cos, sin = RotaryTables(RopeConfig(base=10000.0, dim=8), torch.device("cpu")).rows(2, 1, 1)
    torch.testing.assert_close(
        cos[0, 0, :4], torch.tensor([-0.416147, 0.980067, 0.999800, 0.999998]), atol=1e-6, rtol=0
    )
    out = ops.rotate(torch.arange(1.0, 9.0)[None, None], cos, sin)[0, 0]
    expected = [-4.962634, 0.768117, 2.859410, 3.983992, -1.171437, 6.277739, 7.058596, 8.007984]
    torch.testing.assert_close(out, torch.tensor(expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize("shape", [(5, 64), (3, 4, 24), (1, 1)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    x, weight = rand(*shape) * 10, rand(shape[-1], seed=1)
    expected = F.rms_norm(x, (shape[-1],), weight, 1e-6)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-6), expected, atol=1e-6, rtol=1e-6)


def test_rms_norm_of_halves_is_computed_in_float32() -> None:
    x = (rand(4, 256) * 300).half()  # the squares do not fit into float16
    weight = torch.ones(256, dtype=torch.float16)
    out = ops.rms_norm(x, weight, 1e-6)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), F.rms_norm(x.float(), (256,), eps=1e-6), atol=2e-3, rtol=1e-3)


def test_swiglu() -> None:
    x = rand(5, 22)
    gate, up = x[:, :11], x[:, 11:]
    torch.testing.assert_close(ops.swiglu(x), gate * torch.sigmoid(gate) * up)
