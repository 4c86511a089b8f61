"""Whole runs on small models: every method and layout, what stops them, and going on where they stopped."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

from qwenkit.core.errors import InputError, NumericsError, QwenkitError, SourceError
from qwenkit.llm import load_tokenizer
from qwenkit.model.generate import all_logits
from qwenkit.model.transformer import Transformer
from qwenkit.quantize.progress import Progress
from qwenkit.quantize.recipe import Recipe
from qwenkit.quantize.run import QuantizeResult, quantize_model
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.load import build_model
from tests.support.models import load
from tests.support.networks import family_config, random_network, write_gguf
from tests.support.tiny_models import SIZES, write_model, write_text

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"group_size": 32, "num_samples": 6, "sample_length": 40}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama") / "m")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "t.txt")


def quantised(model: Path, out: Path, text: Path | None, **settings: Any) -> QuantizeResult:
    options = {
        k: settings.pop(k) for k in ("on_progress", "on_note", "restart", "shard_bytes") if k in settings
    }
    return quantize_model(model, out, Recipe(**SMALL | settings), calibration=text, **options)


def plain(folder: Path) -> Transformer:
    """The network with its packed weights as numbers."""
    checkpoint = open_checkpoint(folder)
    return build_model(checkpoint, device=CPU, dtype=torch.float32, packed=False)


def difference(found: Transformer, expected: Transformer, folder: Path) -> float:
    """Relative squared difference of the logits of text like that of the calibration."""
    ids = load_tokenizer(folder).encode("12 apples, 13 pears; 144 apples")
    a, b = all_logits(found, ids), all_logits(expected, ids)
    return float((a - b).square().sum() / b.square().sum())


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"method": "gptq"}, 0.05),
        ({"method": "gptq", "layout": "gptq_v2", "symmetric": False}, 0.05),
        ({"method": "gptq", "bits": 8, "group_size": -1}, 1e-3),
        ({"method": "gptq", "desc_act": True, "group_size": 64}, 0.05),
        ({"method": "gptq", "desc_act": True, "static_groups": True, "layout": "awq-gemm"}, 0.05),
        ({"method": "gptq", "true_sequential": False}, 0.05),
        ({"method": "rtn"}, 0.2),
        ({"method": "rtn", "symmetric": False, "layout": "awq-gemv"}, 0.2),
        ({"method": "awq"}, 0.05),
        ({"method": "awq", "layout": "awq-gemv"}, 0.05),
        ({"method": "awq", "layout": "gptq", "bits": 8}, 1e-3),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_every_method_and_layout(
    family: str, settings: dict[str, Any], most: float, text: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "m", family)
    out = tmp_path / "out"
    result = quantised(model, out, text, **settings)
    assert 0 < difference(plain(out), load(model), out) < most
    modules = 5 if family == "qwen" else 7
    assert len(result.layers) == 3 * modules
    assert all(0 < layer.error < most and layer.loss is not None for layer in result.layers)
    names = {layer.name for layer in result.layers}
    assert ("transformer.h.2.attn.c_attn" if family == "qwen" else "model.layers.2.self_attn.v_proj") in names
    assert not (tmp_path / "out.partial").exists()
    files = {p.name for p in out.iterdir()}
    is_awq = settings.get("layout", settings["method"]).startswith("awq")
    side = "quant_config.json" if is_awq else "quantize_config.json"
    vocabulary = "qwen.tiktoken" if family == "qwen" else "tokenizer.json"
    expected = {"model.safetensors", "config.json", "generation_config.json", side, vocabulary, "README.md"}
    assert expected <= files
    tokenizer = load_tokenizer(out)
    assert tokenizer.decode(tokenizer.encode("abc é")) == "abc é"
    quant = open_checkpoint(out).quant
    assert quant is not None
    assert quant.method == ("awq" if is_awq else "gptq")
    config = json.loads((out / "config.json").read_text())
    assert config["torch_dtype"] == "float16"
    assert config["quantization_config"]["bits"] == settings.get("bits", 4)


def test_gptq_beats_rounding_where_inputs_hang_together(llama: Path, text: Path, tmp_path: Path) -> None:
    gptq = quantised(llama, tmp_path / "a", text)
    rtn = quantised(llama, tmp_path / "b", text, method="rtn")
    assert gptq.mean_error < 0.8 * rtn.mean_error


def test_rounding_needs_no_calibration(llama: Path, tmp_path: Path) -> None:
    result = quantised(llama, tmp_path / "out", None, method="rtn")
    assert all(layer.loss is None and 0 < layer.error < 0.05 for layer in result.layers)
    with pytest.raises(InputError, match="gptq needs calibration text"):
        quantised(llama, tmp_path / "other", None)
    assert not (tmp_path / "other.partial").exists()


@pytest.mark.parametrize(
    ("layout", "symmetric", "is_told"),
    [("gptq", False, True), ("gptq_v2", False, False), ("gptq", True, False), ("awq-gemm", False, False)],
)
def test_zeros_that_some_readers_misread_are_told(
    llama: Path, tmp_path: Path, layout: str, symmetric: bool, is_told: bool
) -> None:
    result = quantised(llama, tmp_path / "o", None, method="rtn", layout=layout, symmetric=symmetric)
    assert any("zero of 0" in note for note in result.notes) is is_told


def test_a_gguf_model_becomes_a_folder_of_its_family(text: Path, tmp_path: Path) -> None:
    model = random_network(family_config("llama", **SIZES, tie_embeddings=True))
    file = tmp_path / "m.gguf"
    write_gguf(file, model, "llama")
    with pytest.raises(QwenkitError, match="tokenizer"):  # these files have none; nothing is begun
        quantised(file, tmp_path / "out", text)
    assert not (tmp_path / "out.partial").exists()


def test_tied_embeddings_stay_tied_and_models_of_all_families_load(text: Path, tmp_path: Path) -> None:
    for family in ("qwen2", "qwen3"):
        model = write_model(tmp_path / family, family)
        quantised(model, tmp_path / f"{family}-out", text)
        out = tmp_path / f"{family}-out"
        assert difference(plain(out), load(model), out) < 0.1


def test_shards(llama: Path, text: Path, tmp_path: Path) -> None:
    quantised(llama, tmp_path / "one", text)
    quantised(llama, tmp_path / "many", text, shard_bytes=30_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    one, many = plain(tmp_path / "one"), plain(tmp_path / "many")
    for (name, a), (_, b) in zip(one.named_parameters(), many.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_progress_is_told(llama: Path, text: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    quantised(llama, tmp_path / "out", text, on_progress=seen.append)
    assert [(p.layer, p.linear) for p in seen[:5]] == [
        (0, "attn.qkv"),
        (0, "attn.out"),
        (0, "ffn.gate_up"),
        (0, "ffn.down"),
        (0, None),
    ]
    assert len(seen) == 15
    assert seen[0].remaining is None
    assert seen[-1].remaining == 0
    assert all(p.memory > 2**20 and 0 < p.error < 0.1 and p.num_layers == 3 for p in seen)
    assert seen[-1].rate is not None


def stop_at(layer: int, linear: str | None) -> Callable[[Progress], None]:
    def listener(progress: Progress) -> None:
        if (progress.layer, progress.linear) == (layer, linear):
            raise KeyboardInterrupt

    return listener


@pytest.mark.parametrize("method", ["gptq", "awq", "rtn"])
@pytest.mark.parametrize(("layer", "linear", "kept"), [(0, "ffn.down", 0), (1, "attn.out", 1), (2, None, 3)])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    method: str, layer: int, linear: str | None, kept: int, llama: Path, text: Path, tmp_path: Path
) -> None:
    quantised(llama, tmp_path / "whole", text, method=method)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        quantised(llama, out, text, method=method, on_progress=stop_at(layer, linear))
    assert not out.exists()
    assert len(list((tmp_path / "out.partial").glob("block-*.safetensors"))) == kept
    result = quantised(llama, out, text, method=method)
    assert result.resumed_layers == kept
    assert len(result.layers) == 21
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_unfinished_work_of_other_settings_is_not_mixed_in(llama: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        quantised(llama, out, text, on_progress=stop_at(1, "attn.qkv"))
    with pytest.raises(
        InputError, match=r"out\.partial holds unfinished work .*\(bits was 4, is now 8\).*--restart"
    ):
        quantised(llama, out, text, bits=8)
    other = write_text(tmp_path / "other.txt", 3000)
    with pytest.raises(InputError, match="calibration file was"):
        quantised(llama, out, other)
    with pytest.raises(InputError, match="model was"):
        quantised(write_model(tmp_path / "m2", seed=1), out, text)
    assert quantised(llama, out, text, bits=8, restart=True).resumed_layers == 0
    assert json.loads((out / "quantize_config.json").read_text())["bits"] == 8


def test_a_damaged_manifest_is_told(llama: Path, text: Path, tmp_path: Path) -> None:
    work = tmp_path / "out.partial"
    work.mkdir()
    (work / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json is damaged; add --restart"):
        quantised(llama, tmp_path / "out", text)


def test_two_runs_at_once_are_refused(llama: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    with (
        filelock.FileLock(tmp_path / "out.partial" / "lock"),
        pytest.raises(InputError, match="another process is quantising"),
    ):
        quantised(llama, tmp_path / "out", text)


def test_what_is_there_is_not_overwritten(llama: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "x").touch()
    with pytest.raises(InputError, match="exists already; give a new or empty folder"):
        quantised(llama, out, text)
    (out / "x").unlink()
    quantised(llama, out, text, method="rtn")
    assert (out / "model.safetensors").exists()


def test_a_quantised_model_is_refused(llama: Path, text: Path, tmp_path: Path) -> None:
    quantised(llama, tmp_path / "a", text)
    with pytest.raises(
        InputError, match=r"is quantised already \(gptq, 4 bit, group 32\).*qwenkit dequantize"
    ):
        quantised(tmp_path / "a", tmp_path / "b", text)


def test_groups_that_do_not_divide_are_refused_with_those_that_do(
    llama: Path, text: Path, tmp_path: Path
) -> None:
    complaint = r"group_size=64 does not divide the 96 inputs of model\.layers\.0\.mlp\.down_proj.*--group-size 32 or --format gptq"
    with pytest.raises(InputError, match=complaint):
        quantised(llama, tmp_path / "out", text, method="awq", group_size=64)
    assert not (tmp_path / "out.partial").exists()
    quantised(llama, tmp_path / "out", text, method="awq", group_size=64, layout="gptq")


def test_rows_that_no_layout_holds_are_refused(text: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", ffn_size=72)
    with pytest.raises(InputError, match=r"gate_proj has 72 outputs and 64 inputs; the gptq format needs"):
        quantised(model, tmp_path / "out", text)


def test_nan_in_a_weight_names_the_tensor(text: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = write_model(tmp_path / "m") / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(NumericsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight' holds NaN"):
        quantised(tmp_path / "m", tmp_path / "out", text)


def test_infinite_activations_name_the_layer(text: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", mlp_bias=True)
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1e30
    tensors["model.layers.1.mlp.gate_proj.weight"] *= 1e30
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(NumericsError, match=r"^layer 1, ffn\.(gate_up|down): "):
        quantised(model, tmp_path / "out", text)


@pytest.mark.parametrize("victim", ["block-00001.safetensors", "model.safetensors"])
def test_a_full_disk_keeps_what_is_done(
    victim: str, llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwenkit.quantize import partial
    from qwenkit.weights import write

    real = write.write_tensors

    def full(path: Path, *args: Any) -> None:
        is_victim = path.name == victim or (
            path.name == "block.tmp"
            and victim.startswith("block")
            and (path.parent / "block-00000.safetensors").exists()
        )
        if is_victim:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, *args)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(write, "write_tensors", full)
        patch.setattr(partial, "write_tensors", full)
        with pytest.raises(
            SourceError, match=r"the disk is full; what was done is kept in .*out\.partial"
        ) as caught:
            quantised(llama, out, text)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert quantised(llama, out, text).resumed_layers == (1 if victim.startswith("block") else 3)
    quantised(llama, tmp_path / "whole", text)
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_too_little_disk_or_memory_is_told_before_work(
    llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("qwenkit.quantize.needs.free_space", lambda folder: 1000)
        with pytest.raises(SourceError, match=r"of disk at .* and 0\.0 MB are free"):
            quantised(llama, tmp_path / "out", text)
    with monkeypatch.context() as patch:
        patch.setattr("qwenkit.quantize.needs.available_memory", lambda: 1000)
        with pytest.raises(InputError, match=r"of memory, and 0\.0 MB are free"):
            quantised(llama, tmp_path / "out", text)
    assert not (tmp_path / "out").exists()


def test_activations_that_memory_has_no_room_for_go_to_a_file(
    llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwenkit.quantize.needs import Needs

    quantised(llama, tmp_path / "memory", text)
    seen: list[bool] = []
    monkeypatch.setattr(
        "qwenkit.quantize.needs.available_memory",
        lambda: 10**9,
    )
    monkeypatch.setattr(Needs, "activations", 10**9)
    listener = lambda progress: seen.append((tmp_path / "disk.partial" / "activations").exists())  # noqa: E731
    notes: list[str] = []
    quantised(llama, tmp_path / "disk", text, on_progress=listener, on_note=notes.append)
    assert all(seen)
    assert seen
    assert notes == [
        f"memory has no room for the activations; they are kept in {tmp_path / 'disk.partial' / 'activations'}"
    ]
    a, b = (tmp_path / name / "model.safetensors" for name in ("memory", "disk"))
    assert a.read_bytes() == b.read_bytes()


def test_the_model_page_says_what_was_done(llama: Path, text: Path, tmp_path: Path) -> None:
    quantised(llama, tmp_path / "out", text, seed=7)
    page = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "GPTQ",
        "| bits | 4 |",
        "| seed | 7 |",
        "6 samples, 240 tokens of t.txt",
        "SHA-256",
        "base_model:",
    ):
        assert part in page
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert len(report["layers"]) == 21


@pytest.mark.parametrize("method", ["gptq", "awq", "rtn"])
def test_a_block_sees_what_the_quantised_ones_before_it_put_out(
    method: str, llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwenkit.quantize import run

    seen: list[torch.Tensor] = []
    real = run.quantise_block

    def spy(block: Any, samples: Any, *args: Any, **options: Any) -> Any:
        seen.append(samples.x.clone())
        runners.append(samples.runner)
        return real(block, samples, *args, **options)

    runners: list[Any] = []
    monkeypatch.setattr(run, "quantise_block", spy)
    quantised(llama, tmp_path / "out", text, method=method)
    model = plain(tmp_path / "out")
    for index in range(2):
        x = seen[index].clone()
        runners[index].advance(model.layers[index], x)
        torch.testing.assert_close(seen[index + 1], x, rtol=1e-5, atol=1e-5)
