"""LoRA layers of PEFT with fewer and faster operations: the same parameters, names and files. Knows nothing of settings."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qwenkit.kernels.training import can_drop, dropout


class AdapterDropout(nn.Dropout):
    """Drops as nn.Dropout does, with other numbers on a CPU: they come from a seed that torch's generator gives.

    So a generator in the same state drops the same numbers, as checkpointing and resuming a run need it. Only the seed is
    kept for the backward pass.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(...) -> (...)"""
        if not self.training or not 0 < self.p < 1 or not can_drop(input):
            return super().forward(input)
        out: Tensor = _Dropped.apply(input, self.p)  # type: ignore[no-untyped-call]
        return out


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share, ctx.seed = share, int(torch.empty((), dtype=torch.int64).random_())
        return dropout(x, share, ctx.seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return dropout(grads[0], ctx.share, ctx.seed), None


class AdaptedLinear(Linear):
    """A linear layer with one adapter at work, whose product is scaled and added as it is made.

    Under autocast inputs keep their type: PEFT makes float32 of them, which autocast takes back for the first product. In
    all other cases this is the layer of PEFT.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., K) -> (..., N)"""
        name = self._only_adapter()
        if name is None or args or kwargs or not _autocasts(x):
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        result: Tensor = self.base_layer(x)
        low: Tensor = self.lora_A[name](self.lora_dropout[name](x))
        rows, up = result.flatten(0, -2), self.lora_B[name].weight
        return torch.addmm(rows, low.flatten(0, -2), up.t(), alpha=self.scaling[name]).view_as(result)

    def _only_adapter(self) -> str | None:
        """The one that acts, where it is a plain one and nothing else is to be done."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1 or names[0] in self.lora_variant:
            return None
        up = self.lora_B[names[0]]
        is_plain = type(up) is nn.Linear and up.bias is None and not _has_hooks(up)
        return names[0] if is_plain and not hasattr(up.weight, "placements") else None


def _has_hooks(module: nn.Module) -> bool:
    """Whether something happens around its calls, as sharding does it."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or hasattr(module.weight, "ds_id")


def _autocasts(x: Tensor) -> bool:
    kind = x.device.type
    return torch.is_autocast_enabled(kind) and x.dtype in (torch.float32, torch.get_autocast_dtype(kind))


def use_fast_layers(network: nn.Module) -> None:
    """Makes the LoRA layers of a network faster, in place."""
    for module in network.modules():
        if type(module) is Linear:
            module.__class__ = AdaptedLinear
        if isinstance(module, AdaptedLinear):
            for name, drop in module.lora_dropout.items():
                if type(drop) is nn.Dropout:
                    module.lora_dropout[name] = AdapterDropout(drop.p)
