"""Quantises the matrices of one block: gathers what a method needs, calls it, and measures what it did.

The algorithms themselves are pure functions in gptq.py, awq.py and grid.py. Knows nothing of files.

Shapes: N outputs, K inputs, T tokens of all samples, D model width.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from qwenkit.core.errors import QwenkitError
from qwenkit.layers.packing import Quantised
from qwenkit.model.transformer import Layer
from qwenkit.quantize.awq_block import AwqBlock
from qwenkit.quantize.blocks import LINEARS, BlockRunner, weight_of
from qwenkit.quantize.gptq import GptqSettings, Hessian, gptq
from qwenkit.quantize.grid import dequantise, round_to_nearest
from qwenkit.quantize.recipe import Recipe

_log = logging.getLogger("qwenkit")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearResult:
    """One matrix after quantisation, and what that did to its outputs."""

    quantised: Quantised
    error: Tensor
    """(N,) squared error of each output; of each row of weights where there was no calibration"""
    size: Tensor
    """(N,) what the square of each was before"""
    is_measured: bool
    """Whether the two are of outputs on calibration samples."""
    seconds: float


OnLinear = Callable[[str, LinearResult], None]
"""Called with one of LINEARS and what became of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The inputs of a block on all calibration samples."""

    runner: BlockRunner
    x: Tensor
    """(T, D) float32"""


def quantise_block(
    block: Layer, samples: Samples | None, recipe: Recipe, *, separate_values: bool, on_linear: OnLinear
) -> dict[str, LinearResult]:
    """Quantises every linear of a block.

    Args:
        block: in float32; its norms, biases and weights are changed: they belong to the result.
        samples: None: no calibration, which only rtn can do without.
        recipe: what to do.
        separate_values: whether the checkpoint holds the value projection as a matrix of its own.
        on_linear: told of each result.

    Returns:
        The result of each of LINEARS.

    Raises:
        QwenkitError: with the name of the layer and of the linear.
    """
    if recipe.method == "awq":
        assert samples is not None
        return _with_awq(block, samples, recipe, separate_values, on_linear)
    steps = [(name,) for name in LINEARS] if recipe.true_sequential else [LINEARS]
    results: dict[str, LinearResult] = {}
    for step in steps:
        started = time.perf_counter()
        hessians = {} if samples is None else _hessians(block, samples, step)
        gathering = (time.perf_counter() - started) / len(step)
        for name in step:
            with located(block, name):
                started = time.perf_counter() - gathering
                results[name] = _with_hessian(block, name, hessians.get(name), recipe, started)
            on_linear(name, results[name])
    return results


def _hessians(block: Layer, samples: Samples, linears: Sequence[str]) -> dict[str, Tensor]:
    found = {name: Hessian(weight_of(block, name).shape[1]) for name in linears}
    samples.runner.observe(block, samples.x, linears, lambda name, inputs: found[name].add(inputs))
    return {name: hessian.matrix for name, hessian in found.items()}


def _with_hessian(
    block: Layer, linear: str, hessian: Tensor | None, recipe: Recipe, started: float
) -> LinearResult:
    """GPTQ or rounding; the weight becomes what the codes stand for."""
    weight = weight_of(block, linear)
    if recipe.method == "gptq":
        assert hessian is not None
        settings = GptqSettings(
            bits=recipe.bits,
            group_size=recipe.group_size,
            symmetric=recipe.is_symmetric,
            desc_act=recipe.desc_act,
            static_groups=recipe.static_groups,
            damp=recipe.damp,
        )
        found = gptq(weight, hessian, settings)
        quantised = found.quantised
        if found.damp > recipe.damp:
            _log.warning(
                "layer %d, %s: damping raised from %g to %g, the Hessian was not positive definite otherwise; more calibration text would help",
                block.attn.layer,
                linear,
                recipe.damp,
                found.damp,
            )
    else:
        quantised = round_to_nearest(
            weight, bits=recipe.bits, group_size=recipe.group_size, symmetric=recipe.is_symmetric
        )
    rounded = dequantise(quantised)
    result = _measured(weight, rounded, hessian, quantised, started)
    weight.copy_(rounded)
    return result


def _with_awq(
    block: Layer, samples: Samples, recipe: Recipe, separate_values: bool, on_linear: OnLinear
) -> dict[str, LinearResult]:
    started = time.perf_counter()
    search = AwqBlock(block, samples.runner, samples.x, recipe, separate_values=separate_values)
    for name in LINEARS:
        with located(block, name):
            search.find_scales(name)
    search.apply_scales()
    shared = (time.perf_counter() - started) / len(LINEARS)
    results: dict[str, LinearResult] = {}
    for name in LINEARS:
        with located(block, name):
            started = time.perf_counter() - shared
            weight, inputs = weight_of(block, name), search.inputs(name)
            quantised = round_to_nearest(
                search.clipped(name),
                bits=recipe.bits,
                group_size=recipe.group_size,
                symmetric=False,
                extend_zero=False,
            )
            rounded = dequantise(quantised)
            # The samples' mean, so that numbers compare with those of a Hessian.
            hessian = inputs.T @ inputs * (2 / search.num_samples)
            results[name] = _measured(weight, rounded, hessian, quantised, started)
            weight.copy_(rounded)
        on_linear(name, results[name])
    return results


def _measured(
    before: Tensor, after: Tensor, hessian: Tensor | None, quantised: Quantised, started: float
) -> LinearResult:
    """With H = 2/n sum x^T x, the squared outputs of each row w are w H w^T / 2, mean of the samples."""

    def squares(weight: Tensor) -> Tensor:
        return (weight if hessian is None else weight @ hessian).mul(weight).sum(dim=1).div_(2)

    return LinearResult(
        quantised=quantised,
        error=squares(before - after),
        size=squares(before),
        is_measured=hessian is not None,
        seconds=time.perf_counter() - started,
    )


@contextlib.contextmanager
def located(block: Layer, linear: str) -> Iterator[None]:
    """Puts the layer's number and the linear's name before the text of an error."""
    try:
        yield
    except QwenkitError as error:
        raise type(error)(f"layer {block.attn.layer}, {linear}: {error}") from error
