"""Reports from headers: features in words, memory, what does not run here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwenkit.config.families import FAMILIES
from qwenkit.config.model import RopeConfig, RopeScaling
from qwenkit.core.errors import QwenkitError, UnsupportedModelError
from qwenkit.llm import LLM
from qwenkit.tokenizer.hf_json import HfTokenizer
from qwenkit.weights.inspect import inspect_model, memory_rows
from qwenkit.weights.save import save_model
from tests.support.networks import family_config, random_network, write_gguf

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
    ("name", "note", "said"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": False}, "gptq, 4 bit, group 128"),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 64, "version": "GEMM"}, "awq, 4 bit, group 64"),
    ],
)
def test_quantised_folders_are_described_but_not_run(
    name: str, note: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(GOLDEN / "qwen1-tiny-plain", folder)
    (folder / name).write_text(json.dumps(note))
    report = inspect_model(str(folder))
    assert (report.quantisation, report.runnable) == (said, False)
    with pytest.raises(UnsupportedModelError, match=f"quantised .{said}., which this version cannot run yet"):
        LLM(folder)


def test_memory() -> None:
    config = family_config("llama", context_length=10_000)
    rows = memory_rows(config)
    assert [(r.dtype, r.context) for r in rows] == [
        (dtype, length) for dtype in ("bfloat16", "float32") for length in (2048, 8192, 10_000)
    ]
    assert rows[0].weights_bytes == 2 * config.num_params
    assert (
        rows[0].kv_bytes == 2 * 2 * 2 * 32 * 2048 * 2
    )  # keys and values, layers, heads, width, tokens, bytes
    assert rows[0].total_bytes == rows[0].weights_bytes + rows[0].kv_bytes


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(QwenkitError, match="no model folder"):
        inspect_model(str(tmp_path))
