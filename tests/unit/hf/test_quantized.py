"""A layer over packed tensors computes and differentiates as a plain one with the same numbers, and stays what it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from qwenkit.core.errors import CheckpointError, InputError
from qwenkit.hf.quantized import PackedLinear
from qwenkit.hf.quantizer import plain_layer

KINDS = ["gptq", "gptq8", "act-order", "gemm", "gemv"]


def layer(
    kind: str, *, k: int = 64, n: int = 96, size: int = 32, bias: bool = True, **how: Any
) -> PackedLinear:
    """Random codes and scales."""
    torch.manual_seed(0)
    bits = 8 if kind == "gptq8" else 4
    name = kind if kind in ("gemm", "gemv") else "gptq"
    made = PackedLinear(
        k,
        n,
        kind=name,
        bits=bits,
        group_size=size,
        groups=-(-k // size),
        bias=bias,
        with_g_idx=kind == "act-order",
        **how,
    )
    for words in (made.qweight, made.qzeros):
        words.copy_(torch.randint(-(2**31), 2**31 - 1, words.shape))
    made.scales.copy_(torch.randn(made.scales.shape) * 0.02)
    if made.g_idx is not None:
        made.g_idx.copy_((torch.arange(k) // size)[torch.randperm(k)])
    if made.bias is not None:
        torch.nn.init.normal_(made.bias)
    return made


def outputs(module: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What comes out, and the gradient of the inputs."""
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(torch.sin(torch.arange(y.numel(), dtype=torch.float32)).view(y.shape).to(y.dtype))
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_plain_layer(kind: str, dtype: torch.dtype) -> None:
    packed = layer(kind).to(dtype)
    plain = plain_layer(packed)
    assert plain.weight.dtype == dtype
    assert torch.equal(packed.weight, plain.weight)
    x = torch.randn(2, 5, 64, dtype=dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for ours, theirs in zip(outputs(packed, x), outputs(plain, x), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_against_finite_differences(kind: str) -> None:
    packed = layer(kind, k=32, n=32, size=16 if kind != "gemv" else 32).double()
    x = torch.randn(3, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(packed, (x,))
    assert torch.autograd.gradgradcheck(packed, (x,))


def test_a_shorter_last_group() -> None:
    packed = layer("gptq", k=96, n=32, size=64)
    x = torch.randn(4, 96)
    torch.testing.assert_close(packed(x), F.linear(x, packed.dequantise(torch.float32), packed.bias))


def test_autocast_computes_in_its_type() -> None:
    packed = layer("gptq")
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = packed(x)
        expected = plain_layer(packed)(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradient(use_reentrant: bool) -> None:
    packed = layer("act-order")
    x = torch.randn(3, 64)
    _, expected = outputs(packed, x)
    again = x.clone().requires_grad_()
    y = checkpoint(packed, again, use_reentrant=use_reentrant)
    y.backward(torch.sin(torch.arange(y.numel(), dtype=torch.float32)).view(y.shape))
    assert torch.equal(again.grad, expected)


def test_nothing_is_kept_for_the_backward_pass() -> None:
    kept: list[int] = []
    packed = layer("gemm", bias=False)
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        packed(x)
    assert kept == []


def test_only_the_bias_is_a_parameter() -> None:
    assert [name for name, _ in layer("gptq").named_parameters()] == ["bias"]
    assert list(layer("act-order").state_dict()) == ["bias", "qweight", "qzeros", "scales", "g_idx"]
    assert list(layer("gemm", bias=False).state_dict()) == ["qweight", "qzeros", "scales"]


def test_scales_stay_as_stored_whatever_type_the_model_has() -> None:
    packed = layer("gptq")
    before = packed.weight.clone()
    scales = packed.scales.clone()
    packed.to(torch.bfloat16).to(torch.float32)
    assert packed.scales.dtype == torch.float16
    assert torch.equal(packed.scales, scales)
    assert torch.equal(packed.weight, before)


def test_state_loads_into_another_layer() -> None:
    first, second = layer("act-order"), layer("act-order", name="other")
    assert second.g_idx is not None
    second.prepare()
    second.g_idx.copy_(second.g_idx.flip(0))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.weight, first.weight)
    assert torch.equal(copy.deepcopy(first).weight, first.weight)


def test_weights_cannot_be_replaced() -> None:
    packed = layer("gptq")
    with pytest.raises(InputError, match="cannot be replaced"):
        packed.weight = torch.zeros(96, 64)  # type: ignore[assignment]
    with pytest.raises(InputError, match="dequantise the model"):
        packed.weight.data += 1
    with pytest.raises(InputError, match="cannot be replaced"):
        packed.weight.data = torch.zeros(96, 64)
    assert type(packed.weight + 1) is Tensor
    assert not packed.weight.requires_grad


def test_a_g_idx_of_zeros_counts_as_absent_without_desc_act() -> None:
    packed = layer("act-order", desc_act=False)
    other = layer("gptq")
    assert packed.g_idx is not None
    packed.g_idx.zero_()
    packed.load_state_dict({**other.state_dict(), "g_idx": packed.g_idx})
    assert torch.equal(packed.weight, other.weight)


def test_damaged_tensors_are_refused_by_name() -> None:
    packed = layer("gptq", name="h.0.mlp.w1")
    packed.scales[1, 3] = float("nan")
    with pytest.raises(CheckpointError, match=r"h\.0\.mlp\.w1\.scales holds infinity or NaN"):
        packed.prepare()
    scattered = layer("act-order", name="h.0.mlp.w2")
    assert scattered.g_idx is not None
    scattered.g_idx[0] = 9
    with pytest.raises(CheckpointError, match=r"h\.0\.mlp\.w2\.g_idx holds groups from 0 to 9"):
        scattered(torch.randn(1, 64))


@pytest.mark.parametrize(
    ("kind", "sizes", "text"),
    [
        ("gptq", {"n": 40}, "multiple of 32 outputs"),
        ("gptq", {"k": 72}, "of 32 inputs"),
        ("gemm", {"k": 96, "size": 64}, "groups that divide the inputs"),
        ("gemv", {"size": 16}, "has groups of 16 inputs"),
    ],
)
def test_sizes_that_cannot_be_packed(kind: str, sizes: dict[str, int], text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        layer(kind, **sizes)  # type: ignore[arg-type]


def test_it_says_what_it_is() -> None:
    assert "gptq, bits=8, group_size=32" in repr(layer("gptq8"))
