"""Loss by pieces: the same number and the same gradients as cross-entropy of whole logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenkit.train import loss
from qwenkit.train.loss import head_loss


def _case(batch: int, length: int, width: int, vocab: int, share: float) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(batch * length + vocab)
    hidden = torch.randn(batch, length, width, dtype=torch.float64, requires_grad=True)
    head = nn.Linear(width, vocab, bias=False, dtype=torch.float64)
    labels = torch.randint(0, vocab, (batch, length))
    labels[torch.rand(batch, length) > share] = -100
    return hidden, head, labels


def _plain(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    logits = head(hidden)[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("batch", "length"), [(1, 2), (3, 17), (2, 40)])
@pytest.mark.parametrize("kind", ["plain", "biased", "wrapped", "frozen"])
def test_equals_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, share: float, batch: int, length: int, kind: str
) -> None:
    monkeypatch.setattr(loss, "PIECE_BYTES", 4 * 53 * 16)  # 16 rows a piece
    hidden, linear, labels = _case(batch, length, 12, 53, share)
    head: nn.Module = linear
    if kind == "biased":
        head = linear = nn.Linear(12, 53, dtype=torch.float64)
    elif kind == "wrapped":
        head = nn.Sequential(linear)
    elif kind == "frozen":
        linear.requires_grad_(False)
    expected = _plain(hidden, head, labels)
    (expected * 3.0 / 7).backward()
    slope, weight_slope = hidden.grad, linear.weight.grad
    hidden.grad = linear.weight.grad = None
    got = head_loss(hidden, head, labels, num_items=7)
    assert got.item() == pytest.approx(expected.item() / 7, rel=1e-6, abs=1e-12)
    (got * 3.0).backward()
    assert slope is not None
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, slope, rtol=1e-5, atol=1e-7)
    if kind != "frozen":
        assert weight_slope is not None
        torch.testing.assert_close(linear.weight.grad, weight_slope, rtol=1e-5, atol=1e-7)


def test_mean_without_a_count_and_nothing_to_learn() -> None:
    hidden, head, labels = _case(2, 9, 8, 31, 0.5)
    count = (labels[:, 1:] != -100).sum().item()
    assert head_loss(hidden, head, labels).item() == pytest.approx(
        _plain(hidden, head, labels).item() / count, rel=1e-6
    )
    nothing = head_loss(hidden, head, torch.full_like(labels, -100))
    assert nothing.item() == 0
    nothing.backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_small_gradients(dtype: torch.dtype) -> None:
    """Of a loss that a scaler multiplies afterwards."""
    hidden, head, labels = _case(1, 30, 64, 4096, 1.0)
    reference = _plain(hidden, head, labels)
    reference.backward()
    slope = hidden.grad
    assert slope is not None
    half = hidden.detach().to(dtype).requires_grad_()
    head_loss(half, head.to(dtype), labels, num_items=1).backward()
    assert half.grad is not None
    error = (half.grad.double() - slope).norm() / slope.norm()
    assert error < 0.02


def test_under_autocast_the_head_is_rounded() -> None:
    hidden, head, labels = _case(1, 30, 64, 512, 1.0)
    single, head32 = hidden.detach().float().requires_grad_(), head.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head_loss(single, head32, labels)
        expected = F.cross_entropy(head32(single)[0, :-1].float(), labels[0, 1:])
    assert got.item() == pytest.approx(expected.item(), rel=1e-3)
    got.backward()
    assert head32.weight.grad is not None
    assert head32.weight.grad.dtype == torch.float32
