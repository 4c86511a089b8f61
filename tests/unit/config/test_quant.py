"""What checkpoints say of their quantisation, and what is written about ours."""

from __future__ import annotations

from typing import Any

import pytest

from qwenkit.config.quant import AWQ_SIDE_FILE, GPTQ_SIDE_FILE, QuantConfig, quant_config, quantisation_dict
from qwenkit.core.errors import ConfigError, UnsupportedModelError

GPTQ = {  # as the released Int4 models have it
    "bits": 4,
    "group_size": 128,
    "damp_percent": 0.01,
    "desc_act": False,
    "static_groups": False,
    "sym": True,
    "true_sequential": True,
    "model_name_or_path": None,
    "model_file_base_name": "model",
}
AWQ = {  # as the released AWQ models have it, in config.json and in a file of its own
    "quant_method": "awq",
    "zero_point": True,
    "group_size": 128,
    "bits": 4,
    "version": "gemm",
    "modules_to_not_convert": None,
}
AWQ_SIDE = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}


def inside(**changes: Any) -> dict[str, Any]:
    return {"quantization_config": GPTQ | {"quant_method": "gptq"} | changes}


def read(config: dict[str, Any], side: dict[str, Any] | None = None) -> QuantConfig:
    found = quant_config(config, side)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("config", "side"),
    [
        ({}, GPTQ),
        (inside(), None),
        (inside(), GPTQ),
        (inside(quant_method="GPTQ"), {}),
        ({"quantization_config": None}, GPTQ),
    ],
)
def test_gptq_in_either_file(config: dict[str, Any], side: dict[str, Any] | None) -> None:
    assert read(config, side) == QuantConfig(method="gptq", bits=4, group_size=128, symmetric=True)


@pytest.mark.parametrize(
    ("config", "side"),
    [
        ({"quantization_config": AWQ}, None),
        ({}, AWQ_SIDE),
        ({"quantization_config": AWQ}, AWQ_SIDE),
        ({"quantization_config": AWQ | {"version": "Gemm", "quant_method": "AWQ"}}, AWQ_SIDE),
        ({"quantization_config": {"quant_method": "awq"}}, None),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "format": "gemm"}},
            None,
        ),
    ],
)
def test_awq_in_either_file(config: dict[str, Any], side: dict[str, Any] | None) -> None:
    assert read(config, side) == QuantConfig(method="awq", bits=4, group_size=128, layout="gemm")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"checkpoint_format": "gptq"}, {"layout": "gptq"}),
        ({"checkpoint_format": "GPTQ_V2"}, {"layout": "gptq_v2"}),
        ({"format": "gptq_v2"}, {"layout": "gptq_v2"}),
        ({"bits": 8, "group_size": -1}, {"bits": 8, "group_size": -1}),
        ({"sym": False, "desc_act": True}, {"symmetric": False, "desc_act": True}),
        ({"sym": None, "desc_act": None, "group_size": None}, {"symmetric": None, "group_size": None}),
        ({"modules_to_not_convert": ["lm_head"]}, {"not_converted": ("lm_head",)}),
        ({"dynamic": {"-:lm_head": {}}}, {"not_converted": ("lm_head",)}),
        ({"dynamic": {"-:.*lm_head.*": {}}}, {"not_converted": ("lm_head",)}),
    ],
)
def test_every_key_counts(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    usual = {"bits": 4, "group_size": 128, "symmetric": True}
    assert read(inside(**changes)) == QuantConfig(method="gptq", **(usual | expected))


def test_gemv() -> None:
    assert read({}, AWQ_SIDE | {"version": "GEMV"}).layout == "gemv"


def test_what_one_file_leaves_open_the_other_says() -> None:
    assert read(inside(), GPTQ | {"checkpoint_format": "gptq_v2"}).layout == "gptq_v2"


@pytest.mark.parametrize(
    ("config", "side"), [({}, None), ({"quantization_config": None}, None), ({"quantization_config": {}}, {})]
)
def test_plain_checkpoints(config: dict[str, Any], side: dict[str, Any] | None) -> None:
    assert quant_config(config, side) is None


@pytest.mark.parametrize(
    ("raw", "method"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    ],
)
def test_other_methods_are_named(raw: dict[str, Any], method: str) -> None:
    assert str(read({"quantization_config": raw})) == method


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bits": 3}, "bits=3 is not supported; gptq with 4 and 8 bits is"),
        ({"bits": 0}, "bits=0 is not supported"),
        ({"checkpoint_format": "marlin"}, "'marlin' is not supported; gptq with gptq or gptq_v2 is"),
        ({"checkpoint_format": 2}, "checkpoint_format=2 is not supported"),
        ({"is_marlin_format": True}, "is_marlin_format=True is not supported"),
        (
            {"dynamic": {r"+:.*down.*": {"bits": 8}}},
            "dynamic='.*down.*' is not supported; one number of bits",
        ),
        ({"dynamic": {r".*down.*": {"bits": 8}}}, "dynamic='.*down.*' is not supported"),
        (AWQ | {"version": "gemv_fast"}, "version='gemv_fast' is not supported; awq with gemm or gemv is"),
        (AWQ | {"version": "marlin"}, "'marlin' is not supported"),
        (AWQ | {"version": None, "checkpoint_format": "llm-awq"}, "'llm-awq' is not supported"),
        (AWQ | {"backend": "llm-awq"}, "backend='llm-awq' is not supported"),
        (AWQ | {"bits": 8}, "bits=8 is not supported; awq with 4 bits is"),
        (AWQ | {"zero_point": False}, "zero_point=False is not supported"),
    ],
)
def test_kinds_that_are_not_supported(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said) as caught:
        quant_config(inside(**changes))
    assert "config.json: quantization_config" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bits": "four"}, "bits='four' must be a whole number"),
        ({"bits": 4.5}, "bits=4.5 must be a whole number"),
        ({"bits": True}, "bits=True must be a whole number"),
        ({"bits": None}, "needs the key 'bits'"),
        ({"w_bit": 8}, "contradicts itself: bits=4 and w_bit=8"),
        ({"group_size": 0}, "group_size=0 must be at least 1, or -1"),
        ({"group_size": -128}, "group_size=-128 must be"),
        ({"group_size": [128]}, "must be a whole number"),
        ({"sym": "yes"}, "sym='yes' must be true or false"),
        ({"desc_act": 1}, "desc_act=1 must be true or false"),
        ({"quant_method": 5}, "quant_method=5 must be a name"),
        ({"modules_to_not_convert": "lm_head"}, "must be a list of names, or null"),
        ({"modules_to_not_convert": [None]}, "must be a list of names, or null"),
        ({"dynamic": ["lm_head"]}, "must be an object, or null"),
    ],
)
def test_wrong_values(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        quant_config(inside(**changes))
    with pytest.raises(ConfigError, match=said):
        quant_config({}, inside(**changes)["quantization_config"])


@pytest.mark.parametrize("value", ["gptq", [GPTQ], 4])
def test_something_else_than_an_object(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"quantization_config=.* must be an object"):
        quant_config({"quantization_config": value})


@pytest.mark.parametrize(
    ("config", "side", "said"),
    [
        (inside(), GPTQ | {"bits": 8}, "says bits 4 of its quantisation, the file beside it 8"),
        (inside(), GPTQ | {"group_size": 32}, "group_size 128"),
        (
            inside(checkpoint_format="gptq"),
            GPTQ | {"checkpoint_format": "gptq_v2"},
            "layout gptq .* it gptq_v2",
        ),
        ({"quantization_config": AWQ}, AWQ_SIDE | {"version": "GEMV"}, "layout gemm"),
        (inside(), AWQ_SIDE, "method gptq .* awq"),
    ],
)
def test_files_that_contradict_each_other(config: dict[str, Any], side: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        quant_config(config, side)


def test_what_is_written_of_gptq() -> None:
    quant = QuantConfig(method="gptq", bits=4, group_size=128, symmetric=True)
    assert quantisation_dict(quant) == (GPTQ | {"quant_method": "gptq"}, GPTQ_SIDE_FILE, GPTQ)
    changed = quantisation_dict(
        quant, damp=0.1, static_groups=True, true_sequential=False, source="Qwen/Qwen-7B"
    )[2]
    assert changed == GPTQ | {
        "damp_percent": 0.1,
        "static_groups": True,
        "true_sequential": False,
        "model_name_or_path": "Qwen/Qwen-7B",
    }


def test_what_is_written_of_awq() -> None:
    quant = QuantConfig(method="awq", bits=4, group_size=128, layout="gemm")
    assert quantisation_dict(quant) == (AWQ, AWQ_SIDE_FILE, AWQ_SIDE)


@pytest.mark.parametrize(
    "quant",
    [
        QuantConfig(method="gptq", bits=8, group_size=-1, symmetric=False, desc_act=True, layout="gptq_v2"),
        QuantConfig(
            method="gptq", bits=4, group_size=32, symmetric=True, not_converted=("mlp.gate", "lm_head")
        ),
        QuantConfig(method="awq", bits=4, group_size=64, layout="gemv", not_converted=("v_proj",)),
    ],
    ids=str,
)
def test_what_is_written_is_read_back(quant: QuantConfig) -> None:
    config, _, side = quantisation_dict(quant)
    assert read({"quantization_config": config}) == quant
    assert read({}, side) == quant
    assert read({"quantization_config": config}, side) == quant
