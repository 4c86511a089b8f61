"""The Triton kernels without a GPU: their results by Triton's interpreter, their code by its compiler.

Neither shows that they run, or how fast, on a real one: benchmarks/gpu_quant.py does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit.kernels import gpu, ops
from tests.unit.kernels.triton_cases import CASES, Case, random_weight

HERE = Path(__file__).parent
SHARED_MEMORY = 99 << 10  # of one block on the smallest GPUs with bfloat16
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not made for this platform"
)


def run_script(name: str, *arguments: str, **environment: str) -> Any:
    """What a script beside this one prints; Triton decides at its import whether it interprets."""
    command = [sys.executable, str(HERE / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    found: dict[str, str] = run_script("triton_cases.py", "cpu", TRITON_INTERPRET="1")
    return found


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_interpreted_product(case: Case, interpreted: dict[str, str]) -> None:
    assert interpreted[case.name] == ""


@needs_triton
def test_compiles_for_ampere_and_hopper(tmp_path: Path) -> None:
    found = run_script("triton_compile.py", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert len(found) == 7
    for name, (shared, has_mma, reads_ahead) in found.items():
        assert shared <= SHARED_MEMORY, name
        assert reads_ahead == (not name.startswith("vector")), name
        assert has_mma == name.startswith(("few", "narrow", "wide")), name


@needs_triton
def test_wrong_activations_are_refused() -> None:
    from qwenkit.core.errors import InputError
    from qwenkit.kernels.triton_gpu import quant_matmul

    weight = random_weight(Case(1, 4, 64, 4, 32), torch.Generator().manual_seed(0))
    for x in (torch.zeros(1, 32), torch.zeros(1, 64, dtype=torch.float64)):
        with pytest.raises(InputError, match="64\\) in float16, bfloat16 or float32"):
            quant_matmul(x, weight)


@needs_triton
@pytest.mark.parametrize(
    ("group_size", "size", "bits", "parts"),
    [
        (128, 32, 4, 1),  # 64 inputs of one group
        (128, 128, 4, 2),
        (32, 32, 4, 2),
        (16, 32, 4, 2),  # each part has two groups, one for each half of the bytes
        (48, 32, 4, 2),
        (16, 64, 8, 4),
        (48, 64, 8, 4),
        (1 << 30, 128, 4, 1),
    ],
)
def test_parts_of_a_tile(group_size: int, size: int, bits: int, parts: int) -> None:
    from qwenkit.kernels.triton_gpu import spans

    assert spans(group_size, size, bits) == parts


@needs_triton
def test_choice_of_tiles() -> None:
    from qwenkit.kernels import triton_gpu as kernels

    def chosen(tokens: int, dtype: torch.dtype = torch.bfloat16) -> Any:
        return kernels.tiles_for(tokens, 4096, dtype, 132)

    assert [chosen(t) for t in (1, 4)] == [None, None]
    assert [chosen(t) for t in (5, 16)] == [kernels.FEW, kernels.FEW]
    assert [chosen(t) for t in (17, 512)] == [kernels.NARROW, kernels.NARROW]  # 4 x 32 wide tiles for 132
    assert chosen(2048) is kernels.WIDE
    assert chosen(2048, torch.float32) is kernels.FLOAT32


def test_a_cpu_never_imports_triton() -> None:
    code = (
        "import sys, torch; from qwenkit.kernels import ops; from qwenkit.kernels.packed import PackedWeight;"
        "w = PackedWeight(bits=8, group_size=32, shape=(2, 32), codes=torch.zeros(2, 32, dtype=torch.uint8),"
        "scales=torch.ones(2, 1, dtype=torch.float16)); ops.quant_linear(torch.ones(1, 32), w);"
        "print('triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class OnGpu(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    is_cuda = True


def test_a_gpu_gets_the_kernels_unless_a_gradient_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(Case(1, 4, 64, 4, 32), torch.Generator().manual_seed(0))
    taken = torch.zeros(1)
    monkeypatch.setattr(gpu, "packed_matmul", lambda: lambda x, weight: taken)
    x = torch.ones(1, 64).as_subclass(OnGpu)
    assert ops.quant_linear(x, weight) is taken
    assert ops.quant_linear(torch.ones(1, 64), weight).shape == (1, 4)
    assert ops.quant_linear(x.requires_grad_(), weight).shape == (1, 4)
    monkeypatch.setattr(gpu, "packed_matmul", lambda: None)
    assert ops.quant_linear(torch.ones(1, 64).as_subclass(OnGpu), weight).shape == (1, 4)


@pytest.mark.parametrize("missing", ["triton", "compiler", "nothing"])
def test_why_the_kernels_are_not_used(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None if missing == "triton" else sys)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None if missing == "compiler" else name)
    problem = gpu.problem.__wrapped__()
    expected = {"triton": "pip install 'qwenkit[gpu]'", "compiler": "C compiler (gcc or clang)"}
    assert problem is None if missing == "nothing" else expected[missing] in str(problem)
