"""LoRA layers with fewer operations give what those of PEFT give, and their dropout can be repeated."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qwenkit.kernels import native
from qwenkit.train.lora_layers import AdaptedLinear, AdapterDropout, use_fast_layers

needs_kernels = pytest.mark.skipif(native.library() is None, reason="the CPU kernels are not compiled")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(nn.functional.silu(self.first(x)))
        return out


def pair(dropout: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """A network with PEFT's layers and the same with ours, in bfloat16 with adapters in float32."""
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=12, lora_dropout=dropout, target_modules=["first", "second"])
    plain = get_peft_model(Net().to(torch.bfloat16), config)
    for name, weight in plain.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    fast = copy.deepcopy(plain)
    use_fast_layers(fast)
    return plain.train(), fast.train()


def results(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and all gradients."""
    x = x.clone().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x)
    out.float().square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in network.parameters() if p.requires_grad)]  # type: ignore[list-item]


def test_same_as_peft() -> None:
    plain, fast = pair()
    x = torch.randn(2, 5, 64).to(torch.bfloat16)
    expected, found = results(plain, x), results(fast, x)
    assert len(expected) == len(found) == 6
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).float().norm() < 0.01 * a.float().norm()


def test_names_and_files_stay() -> None:
    plain, fast = pair(0.1)
    assert plain.state_dict().keys() == fast.state_dict().keys()
    layers = [m for m in fast.modules() if isinstance(m, AdaptedLinear)]
    assert len(layers) == 2
    assert all(isinstance(layer.lora_dropout["default"], AdapterDropout) for layer in layers)


def test_other_cases_are_those_of_peft() -> None:
    """Without autocast, switched off, with two adapters, and merged."""
    plain, fast = pair()
    x = torch.randn(3, 64)
    for network in (plain, fast):
        network.float().eval()
    assert torch.equal(plain(x), fast(x))
    with plain.disable_adapter(), fast.disable_adapter():  # type: ignore[operator]
        assert torch.equal(plain(x), fast(x))
    for network in (plain, fast):
        torch.manual_seed(1)
        network.add_adapter(
            "two", LoraConfig(r=4, target_modules=["first", "second"], init_lora_weights=False)
        )  # type: ignore[operator]
        network.base_model.set_adapter(["default", "two"])  # type: ignore[operator, union-attr]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain(x), fast(x))
        merged = [network.merge_and_unload()(x) for network in (plain, fast)]  # type: ignore[operator]
    assert torch.equal(*merged)


@needs_kernels
def test_dropout_repeats_with_the_generator_and_in_its_backward_pass() -> None:
    drop = AdapterDropout(0.4)
    x = torch.ones(50, 40, requires_grad=True)
    state = torch.get_rng_state()
    first, second = drop(x), drop(x)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(drop(x), first)
    first.sum().backward()
    assert torch.equal(x.grad, first.detach())  # type: ignore[arg-type]
    assert torch.equal(drop.eval()(x), x)


@needs_kernels
def test_checkpointing_drops_the_same_numbers() -> None:
    _, fast = pair(0.5)
    x = torch.randn(4, 64, requires_grad=True)
    grads = []
    for call in (fast, lambda x: checkpoint(fast, x, use_reentrant=False)):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = call(x)
        grads.append(torch.autograd.grad(out.float().sum(), x)[0])
    assert torch.equal(*grads)
    assert bool(grads[0].any())
