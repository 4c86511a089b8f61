"""Products to check the Triton kernels with, on a GPU or, by Triton's interpreter, on a CPU.

    TRITON_INTERPRET=1 python tests/unit/kernels/triton_cases.py cpu

Prints a JSON object: name of the case -> what is wrong, empty where nothing is.
"""

from __future__ import annotations

import json
import sys
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.kernels.packed import PackedWeight, pack_codes

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Largest error over sum |x w|, and its norm over that of the result: fp16 and bf16 round weights and results.
TOLERANCE = {torch.float32: (2e-6, 2e-6), torch.float16: (2e-3, 1e-3), torch.bfloat16: (1.6e-2, 8e-3)}


@dataclass(frozen=True)
class Case:
    """One product: T rows of activations, N outputs, K inputs."""

    tokens: int
    rows: int
    columns: int
    bits: int
    group: int
    zeros: str = "none"  # none, given, mins
    has_order: bool = False
    dtype: str = "fp32"

    @property
    def name(self) -> str:
        """Every property, in a line."""
        order = "-order" if self.has_order else ""
        shape = f"t{self.tokens}-n{self.rows}-k{self.columns}"
        return f"{shape}-{self.bits}bit-g{self.group}-{self.zeros}{order}-{self.dtype}"


CASES = (
    # vector kernel
    Case(1, 9, 64, 4, 32),
    Case(1, 8, 1056, 4, 128, "given"),
    Case(1, 17, 96, 4, 48, "given", True, "fp16"),
    Case(3, 5, 1120, 4, 16, "mins", False, "bf16"),
    Case(4, 8, 160, 4, 160, "none", True, "bf16"),
    Case(2, 3, 576, 8, 128, "given", True),
    Case(1, 24, 544, 8, 4096, "none", False, "fp16"),
    Case(4, 7, 64, 8, 32, "mins"),
    # tiles, few rows
    Case(5, 40, 320, 4, 128, "given", True, "fp16"),
    Case(16, 32, 512, 4, 64, "none", False, "bf16"),
    Case(7, 33, 288, 4, 32, "mins", False, "fp16"),
    Case(9, 70, 352, 4, 48, "given", False, "bf16"),
    Case(15, 31, 160, 4, 160, "given", False, "fp16"),
    Case(11, 12, 576, 8, 128, "given", True, "fp16"),
    Case(6, 65, 96, 8, 16, "mins", False, "bf16"),
    Case(16, 30, 416, 8, 256, "none", False, "fp16"),
    # tiles, many rows
    Case(17, 130, 192, 4, 128, "given", False, "fp16"),
    Case(131, 65, 96, 4, 32, "none", True, "bf16"),
    Case(40, 128, 128, 4, 16, "mins", False, "fp16"),
    Case(33, 20, 224, 4, 80, "given", True, "bf16"),
    Case(65, 129, 96, 4, 32, "given", False, "fp16"),
    Case(257, 129, 64, 8, 64, "given", False, "fp16"),
    Case(20, 3, 352, 8, 32, "mins", True, "bf16"),
    Case(19, 50, 96, 8, 96, "none", False, "fp16"),
    # tiles in float32
    Case(5, 65, 160, 4, 64, "given", True),
    Case(37, 66, 96, 4, 16, "mins"),
    Case(32, 64, 192, 8, 128, "none"),
)


def random_weight(case: Case, generator: torch.Generator) -> PackedWeight:
    """Codes of every value, scales of both signs."""
    n, k = case.rows, case.columns
    shape = (n, -(-k // case.group))

    def integers(shape: tuple[int, ...]) -> Tensor:
        return torch.randint(0, 1 << case.bits, shape, dtype=torch.uint8, generator=generator)

    return PackedWeight(
        bits=case.bits,
        group_size=case.group,
        shape=(n, k),
        codes=pack_codes(integers((n, k)), case.bits),
        scales=(torch.randn(shape, generator=generator) / 16).half(),
        zeros=integers(shape) if case.zeros == "given" else None,
        mins=torch.randn(shape, generator=generator).half() if case.zeros == "mins" else None,
        order=torch.randperm(k, generator=generator).int() if case.has_order else None,
    )


def problems(case: Case, device: torch.device) -> list[str]:
    """What is wrong with the product on this device; empty: nothing."""
    from qwenkit.kernels.triton_gpu import quant_matmul

    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    dtype = DTYPES[case.dtype]
    weight = random_weight(case, generator).to(device)
    x = torch.randn(case.tokens, case.columns, generator=generator).to(device, dtype)
    out = quant_matmul(x, weight)
    numbers = weight.dequantise().double()
    found = []
    if out.shape != (case.tokens, case.rows) or out.dtype != dtype:
        found.append(f"shape {tuple(out.shape)}, {out.dtype}")
        return found
    expected = x.double() @ numbers.T
    error = (out.double() - expected).abs()
    largest = (error / (x.double().abs() @ numbers.abs().T)).max().item()
    overall = (error.norm() / expected.norm()).item()
    if not (largest <= TOLERANCE[dtype][0] and overall <= TOLERANCE[dtype][1]):
        found.append(f"off by {largest:.1e} of sum |x w|, {overall:.1e} in the norm")
    if not torch.equal(out, quant_matmul(x, weight)):
        found.append("another call gives another result")
    return found + _row_problems(case, x, weight, out)


def _row_problems(case: Case, x: Tensor, weight: PackedWeight, out: Tensor) -> list[str]:
    """A row must not feel the others, nor their number inside one range."""
    from qwenkit.kernels.triton_gpu import FEW, VECTOR_ROWS, quant_matmul

    if case.tokens - 1 in (0, VECTOR_ROWS, FEW.tokens):
        return []
    others = quant_matmul(x[1:].flip(0), weight).flip(0)
    return [] if torch.equal(others, out[1:]) else ["a row's result depends on the other rows"]


def main() -> None:
    """Checks every case on the device named first."""
    device = torch.device(sys.argv[1])
    print(json.dumps({case.name: "; ".join(problems(case, device)) for case in CASES}))


if __name__ == "__main__":
    main()
