"""Reports from headers: features in words, memory, what does not run here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest

from qwenkit.config.families import FAMILIES
from qwenkit.config.model import RopeConfig, RopeScaling
from qwenkit.core.errors import QwenkitError, UnsupportedModelError
from qwenkit.llm import LLM
from qwenkit.tokenizer.hf_json import HfTokenizer
from qwenkit.weights.inspect import inspect_model, memory_rows
from qwenkit.weights.memory import held_bytes
from qwenkit.weights.save import save_model
from tests.support.models import load
from tests.support.networks import family_config, random_network, write_gguf
from tests.support.quantised import changed

GOLDEN = Path(__file__).parents[2] / "data" / "golden"


def test_a_folder_without_tokenizer() -> None:
    report = inspect_model(str(GOLDEN / "qwen1-tiny-ntk-logn"))
    assert (report.format, report.family, report.architecture) == ("safetensors", "qwen", "QWenLMHeadModel")
    assert report.features["dynamic NTK"] == report.features["LogN attention"] == "beyond 32 tokens"
    assert report.tensors == {"F32": 4 * report.num_params}
    assert report.file_bytes > report.tensors["F32"]
    assert (report.vocab_tokens, report.chat_template, report.runnable) == (None, "none", True)
    assert "qwen.tiktoken" in str(report.tokenizer_problem)
    assert json.loads(json.dumps(report.to_dict()))["memory"][0]["total_bytes"] > 2 * report.num_params


def test_a_gguf_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", random_network(family_config("qwen3")), "qwen3")
    report = inspect_model(str(tmp_path / "m.gguf"))
    assert (report.format, report.family, report.quantisation) == ("gguf", "qwen3", None)
    assert report.features["query and key norm"] == "yes"


def test_features_in_words(tmp_path: Path, smollm2_tokenizer: HfTokenizer) -> None:
    scaling = RopeScaling(kind="yarn", factor=4.0, original_length=64)
    config = family_config(
        "qwen2", rope=RopeConfig(base=1e6, dim=32, scaling=scaling), windows=(None, 9), vocab_size=49152
    )
    save_model(tmp_path / "m", random_network(config), FAMILIES["qwen2"], tokenizer=smollm2_tokenizer)
    report = inspect_model(str(tmp_path / "m"))
    assert report.features == {
        "rotary base": "1e+06",
        "rotary scaling": "yarn x4",
        "windows": "1 of 2 layers",
        "qkv bias": "yes",
        "tied embeddings": "yes",
    }
    assert (report.vocab_tokens, report.chat_template, report.tokenizer_problem) == (49152, "jinja", None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen1-tiny-gptq-int4", "gptq, 4 bit, group 128"),
        ("qwen1-tiny-gptq-int8", "gptq, 8 bit, group 128"),
        ("qwen1-tiny-awq-gemm-g32", "awq, 4 bit, group 32"),
    ],
)
def test_quantised_folders(name: str, said: str) -> None:
    report = inspect_model(str(GOLDEN / name))
    assert (report.quantisation, report.runnable, report.problem) == (said, True, None)
    assert (report.head, report.in_memory) == ("F16", {"I32": "packed", "F16": "numbers"})
    sizes = {row.dtype: row.weights_bytes for row in report.memory}
    info = LLM(GOLDEN / name, dtype="float32").info
    assert info.details["weights_bytes"] <= sizes["float32"] <= 1.02 * info.details["weights_bytes"]
    assert sizes["bfloat16"] < sizes["float32"] < 4 * report.num_params
    assert (info.details["quantisation"], info.details["head"]) == (said, "float16")


def test_settings_alone_make_no_quantised_model(tmp_path: Path) -> None:
    """Which matrices are packed follows from the tensors."""
    folder = tmp_path / "m"
    shutil.copytree(GOLDEN / "qwen1-tiny-plain", folder)
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 128}))
    report = inspect_model(str(folder))
    assert (report.runnable, report.in_memory) == (True, {"F32": "numbers"})


def test_what_does_not_run_says_why(tmp_path: Path) -> None:
    folder = changed(GOLDEN / "qwen1-tiny-gptq-int4", tmp_path / "m", config={"quant_method": "fp8"})
    report = inspect_model(str(folder))
    assert not report.runnable
    assert "quantised as fp8, which cannot be run" in str(report.problem)
    with pytest.raises(UnsupportedModelError, match="quantised as fp8, which cannot be run"):
        LLM(folder)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q5_0"])
def test_block_types_of_gguf(kind: str, tmp_path: Path) -> None:
    packed = kind != "Q5_0"
    write_gguf(
        tmp_path / "m.gguf",
        random_network(family_config("llama")),
        "llama",
        gguf.GGMLQuantizationType[kind],
    )
    report = inspect_model(str(tmp_path / "m.gguf"))
    assert report.in_memory == {kind: "packed" if packed else "numbers", "F32": "numbers"}
    shape = f", {kind[1]} bit, group 32" if packed else ""
    assert (report.quantisation, report.head) == (f"GGUF {kind}{shape}", kind)
    sizes = {row.dtype: row.weights_bytes for row in report.memory}
    model = load(tmp_path / "m.gguf")
    assert model.is_packed == packed
    assert sizes["float32"] == held_bytes(model)
    expected = sum(p.nbytes for p in load(tmp_path / "m.gguf", packed=False).parameters())
    assert (expected == sizes["float32"]) != packed


def test_memory() -> None:
    config = family_config("llama", context_length=10_000)
    rows = memory_rows(config, {"float32": 77})
    assert [(r.dtype, r.context) for r in rows] == [
        (dtype, length) for dtype in ("bfloat16", "float32") for length in (2048, 8192, 10_000)
    ]
    assert (rows[0].weights_bytes, rows[-1].weights_bytes) == (2 * config.num_params, 77)
    assert (
        rows[0].kv_bytes == 2 * 2 * 2 * 32 * 2048 * 2
    )  # keys and values, layers, heads, width, tokens, bytes
    assert rows[0].total_bytes == rows[0].weights_bytes + rows[0].kv_bytes


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(QwenkitError, match="no model folder"):
        inspect_model(str(tmp_path))
