"""Merging: what the folder holds, what is refused with one sentence, and that nothing half-written stays behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenkit.core.errors import QwenkitError, SourceError
from qwenkit.llm import load_tokenizer
from qwenkit.train import merge as module
from qwenkit.train.merge import merge_adapter
from qwenkit.weights.inspect_adapter import inspect_adapter
from tests.support.adapters import with_settings, with_tensors, write_adapter
from tests.support.quantised import copied
from tests.support.tiny_models import write_model

PREFIX = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
WIDTH, ROWS, VOCAB = 64, 64, 288


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        PREFIX.format(layer, part): torch.randn(*shape, generator=generator)
        for layer in range(3)
        for part, shape in (("A", (4, WIDTH)), ("B", (ROWS, 4)))
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return write_adapter(
        tmp_path / "adapter", _tensors(), target_modules=["q_proj"], base_model_name_or_path=str(base)
    )


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_folder_is_complete(base: Path, adapter: Path, tmp_path: Path) -> None:
    (base / "LICENSE").write_text("yours")
    (base / "modeling_evil.py").write_text("raise SystemExit")
    told: list[tuple[int, int]] = []
    result = merge_adapter(adapter, tmp_path / "out", on_progress=lambda *numbers: told.append(numbers))
    assert _names(result.folder) == _names(base) - {"modeling_evil.py"} | {"README.md"}
    assert (result.base, result.dtype, result.num_merged) == (str(base), "float32", 3)
    assert told[-1] == (result.nbytes, result.nbytes)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE"):
        assert (result.folder / name).read_bytes() == (base / name).read_bytes()
    settings = json.loads((base / "config.json").read_text())
    assert json.loads((result.folder / "config.json").read_text()) == settings
    before, after = (load_file(f / "model.safetensors") for f in (base, result.folder))
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(3)}
    card = (result.folder / "README.md").read_text()
    assert all(text in card for text in (str(base), "| rank | 4 |", "| scale (alpha / rank) | 2 |", "q_proj"))
    assert not (tmp_path / "out.merging").exists()


def test_settings_follow_the_type(adapter: Path, base: Path, tmp_path: Path) -> None:
    out = merge_adapter(adapter, tmp_path / "out", dtype="bfloat16").folder
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_first_generation_settings_follow_the_type(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", "qwen")
    settings = json.loads((base / "config.json").read_text())
    settings |= {
        "bf16": False,
        "fp16": False,
        "fp32": True,
        "auto_map": {"AutoConfig": "configuration_qwen.X"},
    }
    (base / "config.json").write_text(json.dumps(settings))
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | {"auto_map": {"AutoTokenizer": ["x", None]}})
    )
    name = "base_model.model.transformer.h.0.mlp.w1.lora_"
    tensors = {f"{name}A.weight": torch.ones(4, 64), f"{name}B.weight": torch.ones(96, 4)}
    lora = {"target_modules": ["w1"], "layers_to_transform": [0]}
    adapter = write_adapter(tmp_path / "adapter", tensors, **lora)
    out = merge_adapter(adapter, tmp_path / "out", model=base, dtype="bfloat16").folder
    found = json.loads((out / "config.json").read_text())
    assert (found["bf16"], found["fp16"], found["fp32"]) == (True, False, False)
    assert "auto_map" not in found
    assert json.loads((out / "tokenizer_config.json").read_text()) == tokenizer
    assert (out / "qwen.tiktoken").read_bytes() == (base / "qwen.tiktoken").read_bytes()


def test_what_the_adapter_brings_wins(base: Path, adapter: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter / name)
    (adapter / "chat_template.jinja").write_text("{{ 'mine' }}")
    (adapter / "generation_config.json").write_text('{"eos_token_id": 7}')
    out = merge_adapter(adapter, tmp_path / "out").folder
    assert load_tokenizer(out).chat_template == load_tokenizer(adapter).chat_template == "{{ 'mine' }}"
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": 7}


def test_without_tokenizer_a_note_says_so(base: Path, adapter: Path, tmp_path: Path) -> None:
    for path in base.glob("tokenizer*"):
        path.unlink()
    notes: list[str] = []
    result = merge_adapter(adapter, tmp_path / "out", on_note=notes.append)
    assert list(result.notes) == notes
    assert "no tokenizer files" in notes[0] or "has tokenizer files" in notes[0]


def test_shards_have_an_index(adapter: Path, tmp_path: Path) -> None:
    out = merge_adapter(adapter, tmp_path / "out", shard_bytes=100_000).folder
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index.values()) == {path.name for path in out.glob("model-*.safetensors")}
    assert len(set(index.values())) > 2


def _cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


A = PREFIX.format(1, "A")
CASES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "truncated": (_cut, ["truncated", "fetch the file again"]),
    "NaN": (with_tensors(lambda t: t[A].fill_(float("nan"))), ["q_proj.lora_A", "NaN"]),
    "other width": (
        with_tensors(lambda t: t.update({A: torch.ones(4, 32)})),
        [A, "[4, 32]", "of another model"],
    ),
    "more layers": (
        with_tensors(lambda t: t.update({PREFIX.format(3, "A"): torch.ones(4, 64)})),
        ["layers.3.", "3 layers"],
    ),
    "other family": (
        with_tensors(lambda t: t.update({"transformer.h.0.attn.c_attn.lora_A.weight": torch.ones(4, 64)})),
        ["c_attn", "llama model"],
    ),
    "unexpected tensor": (with_tensors(lambda t: t.update(extra=torch.ones(1))), ["'extra'", "do not name"]),
    "half a pair": (with_tensors(lambda t: t.pop(A)), ["lacks", "q_proj.lora_A"]),
    "nothing": (
        lambda f: (with_settings(target_modules=["c_attn"])(f), with_tensors(lambda t: t.clear())(f)),
        ["c_attn", "no module"],
    ),
    "biases": (with_settings(bias="all"), ["bias='all'", "merge_and_unload"]),
    "DoRA": (with_settings(use_dora=True), ["DoRA", "merge_and_unload"]),
    "saved table missing": (with_settings(modules_to_save=["lm_head"]), ["lacks", "lm_head.weight"]),
    "no base named": (with_settings(base_model_name_or_path=None), ["which model", "--model"]),
    "base gone": (with_settings(base_model_name_or_path="./gone"), ["'./gone'", "cannot be had", "--model"]),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), ["holds neither"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_adapters(case: str, adapter: Path, tmp_path: Path) -> None:
    spoil, words = CASES[case]
    spoil(adapter)
    before = _names(tmp_path)
    with pytest.raises(QwenkitError) as caught:
        merge_adapter(adapter, tmp_path / "out")
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text
    assert _names(tmp_path) == before


def _fails(adapter: Path, out: Path, *words: str, **options: Any) -> None:
    with pytest.raises(QwenkitError) as caught:
        merge_adapter(adapter, out, **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_impossible_requests(base: Path, adapter: Path, tmp_path: Path) -> None:
    _fails(adapter, base, "exists already")
    _fails(adapter, tmp_path / "out", "float8", dtype="float8")
    _fails(adapter, tmp_path / "out", "not quantised", "leave --dequantize out", dequantize=True)
    _fails(adapter, tmp_path / "out", "from 1 up", shard_bytes=0)
    _fails(base, tmp_path / "out", "whole model")
    _fails(adapter, tmp_path / "out", "is a LoRA adapter", model=adapter)
    assert _names(tmp_path) == {"base", "adapter"}


def test_numbers_that_the_type_cannot_hold(adapter: Path, base: Path, tmp_path: Path) -> None:
    with_tensors(lambda t: t[A].fill_(1e5))(adapter)
    _fails(
        adapter, tmp_path / "out", "layers.1.self_attn.q_proj", "65504", "--dtype bfloat16", dtype="float16"
    )
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, base / "model.safetensors")
    _fails(adapter, tmp_path / "out", "model.norm.weight", "NaN", str(base))
    assert _names(tmp_path) == {"base", "adapter"}


def test_a_quantised_base_asks_first(tmp_path: Path) -> None:
    base = copied("qwen1-tiny-gptq-int4", tmp_path / "base")
    width = json.loads((base / "config.json").read_text())["hidden_size"]
    name = "base_model.model.transformer.h.0.attn.c_proj.lora_"
    tensors = {f"{name}A.weight": torch.ones(4, width), f"{name}B.weight": torch.ones(width, 4)}
    lora = {
        "target_modules": ["attn.c_proj"],
        "layers_to_transform": [0],
        "base_model_name_or_path": str(base),
    }
    adapter = write_adapter(tmp_path / "adapter", tensors, **lora)
    _fails(adapter, tmp_path / "out", "gptq, 4 bit", "--dequantize", "MB in full precision")
    notes: list[str] = []
    result = merge_adapter(adapter, tmp_path / "out", dequantize=True, on_note=notes.append)
    assert (result.dtype, result.is_dequantised) == ("bfloat16", True)
    assert "adapter was trained on" in notes[0]
    settings = json.loads((result.folder / "config.json").read_text())
    assert "quantization_config" not in settings
    assert settings["torch_dtype"] == "bfloat16"
    assert not list(result.folder.glob("quant*"))


def test_a_full_disk_is_seen_before(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_space", lambda folder: 10**6)
    _fails(adapter, tmp_path / "out", "1.0 MB are free", "make room")
    assert _names(tmp_path) == {"base", "adapter"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_breaks_off_leaves_nothing(error: BaseException, adapter: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise error

    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else SourceError) as caught:
        merge_adapter(adapter, tmp_path / "out", on_progress=stop)
    assert isinstance(error, KeyboardInterrupt) or "nothing was kept" in str(caught.value)
    assert _names(tmp_path) == {"base", "adapter"}


def test_what_a_killed_process_left_is_replaced(adapter: Path, tmp_path: Path) -> None:
    left = tmp_path / "out.merging"
    (left / "model").mkdir(parents=True)
    (left / "model" / "old.safetensors").write_text("half")
    (left / "lock").touch()
    with filelock.FileLock(left / "lock"):
        _fails(adapter, tmp_path / "out", "another process")
    assert (left / "model" / "old.safetensors").exists()
    out = merge_adapter(adapter, tmp_path / "out").folder
    assert "old.safetensors" not in _names(out)
    assert _names(tmp_path) == {"base", "adapter", "out"}


def test_a_folder_of_someone_else_stays(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "out.merging").mkdir()
    (tmp_path / "out.merging" / "thesis.tex").write_text("mine")
    _fails(adapter, tmp_path / "out", "thesis.tex", "move it away")
    assert (tmp_path / "out.merging" / "thesis.tex").read_text() == "mine"


def test_adapters_described(base: Path, adapter: Path) -> None:
    report = inspect_adapter(adapter)
    assert (report.base, report.rank, report.scale, report.target_modules) == (str(base), 4, 2.0, ("q_proj",))
    assert (report.problem, report.has_tokenizer, report.num_params) == (None, False, 3 * 4 * (WIDTH + ROWS))
    assert report.model is not None
    assert json.loads(json.dumps(report.to_dict()))["model"]["family"] == "llama"
    with_tensors(lambda t: t.update({A: torch.ones(4, 32)}))(adapter)
    assert "of another model" in str(inspect_adapter(adapter).problem)
    with_settings(base_model_name_or_path="./gone")(adapter)
    report = inspect_adapter(adapter)
    assert report.model is None
    assert "'./gone'" in str(report.problem)
