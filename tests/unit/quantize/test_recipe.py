"""Which settings go together."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import qwenkit.quantize
from qwenkit.core.errors import InputError
from qwenkit.quantize.recipe import Recipe


def test_defaults_are_those_of_the_released_models() -> None:
    made = Recipe().to_dict()
    assert made["method"] == "gptq"
    assert (made["bits"], made["group_size"], made["damp"]) == (4, 128, 0.01)
    assert made["symmetric"] is True
    assert made["true_sequential"] is True
    assert made["desc_act"] is False
    assert made["layout"] == "gptq"


@pytest.mark.parametrize(("method", "layout"), [("gptq", "gptq"), ("rtn", "gptq"), ("awq", "awq-gemm")])
def test_each_method_has_its_own_layout(method: str, layout: str) -> None:
    assert Recipe(method=method).file_layout == layout
    assert Recipe(method=method, layout="gptq_v2").file_layout == "gptq_v2"
    assert Recipe(method=method).is_symmetric == (method != "awq")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"method": "gptqq"}, r"method 'gptqq' is unknown; use gptq, awq or rtn; did you mean 'gptq'\?"),
        (
            {"layout": "gemm"},
            r"format 'gemm' is unknown; use gptq, gptq_v2, awq-gemm or awq-gemv; did you mean 'awq-gemm'\?",
        ),
        ({"bits": 3}, "bits=3 is not possible; use 4 or 8"),
        ({"group_size": 0}, "group_size=0"),
        ({"group_size": 100}, "group_size=100 is not possible; use a multiple of 16"),
        ({"damp": 0.0}, "damp=0"),
        ({"damp": 1.0}, "damp=1"),
        ({"num_samples": 0}, "samples=0"),
        ({"sample_length": 0}, "length=0"),
        ({"method": "awq", "desc_act": True}, "desc_act is a setting of gptq, not of awq"),
        ({"method": "rtn", "static_groups": True}, "static_groups is a setting of gptq, not of rtn"),
        ({"method": "rtn", "damp": 0.1}, "damp is a setting of gptq"),
        ({"method": "awq", "true_sequential": False}, "true_sequential is a setting of gptq and rtn"),
        ({"method": "awq", "symmetric": True}, "awq chooses a zero for every group"),
        ({"method": "awq", "bits": 8}, "awq-gemm format holds 4 bits, not 8"),
        ({"method": "awq", "group_size": -1}, "needs a group size"),
        ({"layout": "awq-gemv", "group_size": 256}, "cannot hold group_size=256; use 32, 64 or 128"),
        ({"layout": "awq-gemm", "desc_act": True}, "cannot hold groups in order of activations"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Recipe(**settings)


def test_awq_in_the_layout_of_gptq_may_have_8_bits_and_groups_of_a_row() -> None:
    assert Recipe(method="awq", layout="gptq", bits=8, group_size=-1).is_symmetric is False
    assert Recipe(layout="awq-gemm", desc_act=True, static_groups=True).is_awq_file


def test_public_names_load_on_use_and_checking_settings_needs_no_torch() -> None:
    for name in qwenkit.quantize.__all__:
        assert getattr(qwenkit.quantize, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        qwenkit.quantize.nothing  # noqa: B018
    code = "import sys; from qwenkit.quantize import Recipe; Recipe(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
