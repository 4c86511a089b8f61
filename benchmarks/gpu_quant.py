"""Are the Triton kernels for packed weights right on this GPU, and faster than torch on bfloat16 weights?

    PYTHONPATH=src python benchmarks/gpu_quant.py [--checks-only] [--json]

Prints Markdown with the GPU's name: first every product of tests/unit/kernels/triton_cases.py and larger ones that do
not fit, then medians for the matrices of a 7B Qwen. The GPU's cache is emptied before each timed call, as the other
layers of a model would. Ends with status 1 if a result is wrong. Needs a GPU, torch for it and Triton.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from qwenkit.kernels.packed import PackedWeight
from qwenkit.kernels.triton_gpu import quant_matmul

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.unit.kernels.triton_cases import CASES, Case, problems, random_weight

SHAPES = {"qkv": (12288, 4096), "out": (4096, 4096), "gate, up": (22016, 4096), "down": (4096, 11008)}
TOKENS = (1, 4, 16, 64, 512, 2048)
LARGE = tuple(
    Case(tokens, 4096, 4096, bits, 128, zeros, False, "bf16")
    for tokens in (1, 4, 16, 64, 2048)
    for bits, zeros in ((4, "none"), (4, "given"), (8, "mins"))
)
KINDS = {
    "4 bits": Case(1, 0, 0, 4, 128, "none"),
    "4 bits, zeros": Case(1, 0, 0, 4, 128, "given"),
    "8 bits": Case(1, 0, 0, 8, 128, "none"),
}


def check(device: torch.device) -> list[str]:
    """What is wrong, one line each; empty: nothing."""
    wrong = [f"{case.name}: {'; '.join(p)}" for case in (*CASES, *LARGE) if (p := problems(case, device))]
    weight = random_weight(Case(1, 4096, 4096, 4, 128, "given"), torch.Generator().manual_seed(0)).to(device)
    x = torch.randn(2048, 4096, generator=torch.Generator().manual_seed(1)).to(device, torch.bfloat16)
    alone, together = quant_matmul(x[:17], weight), quant_matmul(x, weight)[:17]
    if not torch.equal(alone, together):
        wrong.append("17 rows alone and among 2048 differ")
    return wrong


def milliseconds(run: Callable[[], Tensor]) -> float:
    """Median on the GPU."""
    median: float = triton.testing.do_bench(run, warmup=50, rep=200, return_mode="median")
    return median


def through_bfloat16(x: Tensor, weight: PackedWeight) -> Tensor:
    """The product by way of all numbers in memory: what the kernels are to beat."""
    return F.linear(x, weight.dequantise(x.dtype))


def measure(device: torch.device) -> list[dict[str, Any]]:
    """One row for each matrix, number of activations and kind of weight."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    for name, (n, k) in SHAPES.items():
        dense = torch.randn(n, k, generator=generator).to(device, torch.bfloat16)
        kinds = {kind: replace(case, rows=n, columns=k) for kind, case in KINDS.items()}
        packed = {kind: random_weight(case, generator).to(device) for kind, case in kinds.items()}
        for tokens in TOKENS:
            x = torch.randn(tokens, k, generator=generator).to(device, torch.bfloat16)
            base = milliseconds(lambda x=x, dense=dense: F.linear(x, dense))
            for kind, weight in packed.items():
                ours = milliseconds(lambda x=x, weight=weight: quant_matmul(x, weight))
                detour = milliseconds(lambda x=x, weight=weight: through_bfloat16(x, weight))
                rows.append(
                    {
                        "matrix": f"{name} ({n}, {k})",
                        "tokens": tokens,
                        "weight": kind,
                        "torch_bf16_us": base * 1e3,
                        "packed_us": ours * 1e3,
                        "dequantised_us": detour * 1e3,
                        "speedup": base / ours,
                        "weight_gb_per_s": weight.nbytes / ours / 1e6,
                    }
                )
    return rows


def launch_microseconds(device: torch.device) -> float:
    """What one call costs the processor that asks for it: a product too small to occupy the GPU."""
    weight = random_weight(Case(1, 64, 64, 4, 32), torch.Generator().manual_seed(0)).to(device)
    x = torch.ones(1, 64, device=device, dtype=torch.bfloat16)
    quant_matmul(x, weight)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(1000):
        quant_matmul(x, weight)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A table."""
    lines = [
        "| matrix | tokens | weight | torch bf16, us | packed, us | dequantised first, us | speedup | GB/s of weight |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = " | ".join(f"{row[key]:.1f}" for key in ("torch_bf16_us", "packed_us", "dequantised_us"))
        rates = f"{row['speedup']:.2f} | {row['weight_gb_per_s']:.0f}"
        lines.append(f"| {row['matrix']} | {row['tokens']} | {row['weight']} | {times} | {rates} |")
    return "\n".join(lines)


def main() -> None:
    """Checks, then measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checks-only", action="store_true", help="measure nothing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU that torch can use: run this on a machine with one")
    device = torch.device("cuda", torch.cuda.current_device())
    made_with = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}"
    wrong = check(device)
    rows = [] if options.checks_only else measure(device)
    launch = launch_microseconds(device)
    if options.json:
        print(json.dumps({"device": made_with, "wrong": wrong, "rows": rows, "launch_us": launch}))
    else:
        print(f"## `gpu_quant.py`, {made_with}\n")
        print(f"{len(CASES) + len(LARGE) + 1} checks, {len(wrong)} wrong.\n")
        print("".join(f"- {line}\n" for line in wrong))
        print(f"One call costs {launch:.0f} us on the processor.\n\n{as_markdown(rows)}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
