"""Compiles the Triton kernels for GPUs that need not be there: what the interpreter lets pass, the compiler may not.

    python tests/unit/kernels/triton_compile.py

Prints a JSON object: what was compiled -> [bytes of shared memory, whether it uses matrix units, reads ahead].
"""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qwenkit.kernels import triton_gpu

_OPTIONS = ("num_warps", "num_stages")
_POINTERS = {"codes": "*u8", "scales": "*fp16", "zeros": "*u8", "mins": "*fp16"}


def compiled(
    kernel: Any, constants: dict[str, Any], x_type: str, fixed: dict[str, int | None], capability: int
) -> Any:
    """The kernel for activations of a type. Tensors that are None and numbers that are 1 are compiled in."""
    options = {name: constants[name] for name in _OPTIONS if name in constants}
    values = {name: value for name, value in constants.items() if name not in _OPTIONS}
    values |= fixed
    pointers = _POINTERS | {"x": x_type, "out": x_type}
    signature = {
        name: "constexpr" if name in values else pointers.get(name, "i32") for name in kernel.arg_names
    }
    whole = [name for name in kernel.arg_names if signature[name][0] == "*" or name == "num_columns"]
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in whole}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def variants() -> dict[str, tuple[Any, dict[str, Any], str, dict[str, int | None]]]:
    """One of each kind: kernels, tiles, bits, zeros, groups; each for one GPU, Ampere (8.0) or Hopper (9.0)."""
    vector, tile = triton_gpu._vector_kernel, triton_gpu._tile_kernel
    fp16, bf16, fp32 = torch.float16, torch.bfloat16, torch.float32
    constants, cut = triton_gpu.vector_constants, triton_gpu.tile_constants
    no_zeros: dict[str, int | None] = {"zeros": None}
    no_mins: dict[str, int | None] = {"mins": None}
    one = dict.fromkeys(("num_groups", "num_rows"), 1)
    return {
        "vector 4, 90": (vector, constants(128, 4), "*bf16", no_zeros | no_mins),
        "vector 8, 80": (vector, constants(1 << 30, 8), "*fp32", no_zeros | one),
        "few 4, 90": (tile, cut(triton_gpu.FEW, 128, 4, bf16), "*bf16", no_mins),
        "narrow 4, 80": (tile, cut(triton_gpu.NARROW, 48, 4, fp16), "*fp16", no_mins),
        "wide 4, 90": (tile, cut(triton_gpu.WIDE, 128, 4, bf16), "*bf16", no_zeros | no_mins),
        "wide 8, 80": (tile, cut(triton_gpu.WIDE, 32, 8, fp16), "*fp16", no_zeros),
        "float32 8, 90": (tile, cut(triton_gpu.FLOAT32, 1 << 30, 8, fp32), "*fp32", no_mins | one),
    }


def main() -> None:
    """Compiles all of them."""
    found = {}
    for name, (kernel, constants, x_type, fixed) in variants().items():
        built = compiled(kernel, constants, x_type, fixed, int(name[-2:]))
        ptx = built.asm["ptx"]
        found[name] = [built.metadata.shared, "mma" in ptx, "cp.async" in ptx]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
