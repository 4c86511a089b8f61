"""Runs on tiny models: what is learnt, that stopping changes nothing, and that others can use the result."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qwenkit import LLM
from qwenkit.core.errors import CheckpointError, InputError
from qwenkit.quantize.recipe import Recipe
from qwenkit.quantize.run import quantize_model
from qwenkit.train.merge import merge_adapter
from qwenkit.train.run import Run
from tests.support.finetuning import losses, options, run, write_conversations
from tests.support.tiny_models import write_model, write_text

FAMILIES = ("llama", "qwen2", "qwen")


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    found = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return {name: tensor for part in found for name, tensor in part.items()}


@pytest.fixture(scope="module", autouse=True)
def _nothing_old_to_collect() -> Iterator[None]:
    """Every run collects garbage among all that is imported here, which takes longer than its steps."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    ("family", "method"), [("llama", "lora"), ("qwen", "lora"), ("qwen", "full"), ("qwen2", "full")]
)
def test_loss_falls_and_the_folder_is_complete(tmp_path: Path, family: str, method: str) -> None:
    chosen = options(tmp_path, family, method=method, max_steps=12)
    result = run(chosen, draws=True)
    curve = losses(result.folder)
    assert len(curve) == result.steps == 12
    assert curve[-1] < 0.7 * curve[0]
    assert result.plot is not None
    assert result.plot.stat().st_size > 5000
    record = json.loads((result.folder / "finetune.json").read_text())
    assert record["finished"]
    assert record["result"]["steps"] == 12
    with LLM(str(result.folder), dtype="float32") as llm:
        text = llm.chat("Colour 1?").text
    with LLM(chosen.model, dtype="float32") as base:
        assert base.chat("Colour 1?").text != text


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_is_one_of_peft(tmp_path: Path, family: str) -> None:
    """PEFT on transformers' model and our engine on our network give the same logits."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import qwenkit.hf  # noqa: F401

    chosen = options(tmp_path, family)
    result = run(chosen)
    config = json.loads((result.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == chosen.model
    assert config["inference_mode"]
    base = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.float32)
    network = PeftModel.from_pretrained(base, result.folder).eval()
    ids = torch.arange(40, 90)[None]
    with torch.no_grad():
        expected = network(input_ids=ids).logits[0]
    with LLM(str(result.folder), dtype="float32") as llm:
        got = torch.as_tensor(llm.logits([ids[0].tolist()])[0])
    torch.testing.assert_close(got, expected[:, : got.shape[1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "packing"), [("lora", True), ("full", False)])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, method: str, packing: bool) -> None:
    whole = run(options(tmp_path, method=method, packing=packing, out=str(tmp_path / "whole")))
    chosen = options(tmp_path, method=method, packing=packing, out=str(tmp_path / "parts"))
    first = run(chosen, stop_after=2)  # heard behind the next step
    assert first.interrupted
    assert first.steps == 3
    assert not list((tmp_path / "parts").glob("*.safetensors"))
    second = run(chosen)
    assert not second.interrupted
    assert losses(second.folder) == losses(whole.folder)
    ours, theirs = _weights(second.folder), _weights(whole.folder)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of ``options``, and in it a run that was stopped behind its first step."""
    folder = tmp_path_factory.mktemp("stopped")
    run(options(folder, max_steps=3, save_every=1), stop_after=1)
    return folder


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.pt", None),
        ("optimizer.pt", b""),
        ("adapter_model.safetensors", None),
        ("adapter_model.safetensors", b""),
        ("rng_state.pth", None),
        ("scheduler.pt", None),
        ("scheduler.pt", b"garbage"),
        ("trainer_state.json", b'{"global_step": 2, "no_such_field": 1}'),
        ("trainer_state.json", b"\0\0"),
    ],
)
def test_a_damaged_checkpoint_is_told(
    stopped: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    """None stands for the first half of the file."""
    out = tmp_path / "out"
    shutil.copytree(stopped / "out", out)
    newest = out / "checkpoints" / "checkpoint-2"
    whole = (newest / name).read_bytes()
    (newest / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    chosen = options(stopped, max_steps=3, save_every=1, out=str(out))
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        run(chosen)
    assert str(newest) in str(caught.value)
    assert "--restart" in str(caught.value)
    assert "\n" not in str(caught.value)
    shutil.rmtree(newest)  # as it says
    assert run(chosen).steps == 3


def test_a_run_killed_behind_its_last_step(tmp_path: Path) -> None:
    """Only the result is written then."""
    chosen = options(tmp_path, max_steps=4, schedule="constant")
    first = run(chosen)
    weights, curve = _weights(first.folder), losses(first.folder)
    record = first.folder / "finetune.json"
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    (first.folder / "adapter_model.safetensors").unlink()
    second = run(chosen)
    assert second.steps == 4
    assert losses(second.folder) == curve
    assert all(torch.equal(tensor, weights[name]) for name, tensor in _weights(second.folder).items())


def test_dropout_too_goes_on(tmp_path: Path) -> None:
    chosen = {"lora_dropout": 0.3, "max_steps": 4}
    whole = run(options(tmp_path, out=str(tmp_path / "whole"), **chosen))
    run(options(tmp_path, out=str(tmp_path / "parts"), **chosen), stop_after=2)
    second = run(options(tmp_path, out=str(tmp_path / "parts"), **chosen))
    assert losses(second.folder) == losses(whole.folder)


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_packing_and_accumulation_leave_the_loss_alone(tmp_path: Path, family: str) -> None:
    """All samples in one step: however they are laid out, the mean over their tokens is the same."""
    write_conversations(tmp_path / "data.json", 6)
    curves = [
        losses(
            run(
                options(
                    tmp_path,
                    family,
                    out=str(tmp_path / f"{packing}-{batch}-{accumulate}"),
                    packing=packing,
                    batch_size=batch,
                    accumulate=accumulate,
                    max_steps=2,
                    lora_dropout=0.0,
                )
            ).folder
        )
        for packing, batch, accumulate in ((False, 2, 3), (False, 6, 1), (True, 8, 1), (True, 1, 8))
    ]
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=2e-4)


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_checkpointing_and_the_whole_logits_change_nothing(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"lora_dropout": 0.0, "max_steps": 3}
    first = losses(run(options(tmp_path, family, out=str(tmp_path / "a"), **plain)).folder)
    second = losses(
        run(options(tmp_path, family, out=str(tmp_path / "b"), checkpointing=False, **plain)).folder
    )
    assert second == pytest.approx(first, rel=1e-5)
    monkeypatch.setattr("qwenkit.train.loss.use_head_loss", lambda network: None)
    third = losses(run(options(tmp_path, family, out=str(tmp_path / "c"), **plain)).folder)
    assert third == pytest.approx(first, rel=1e-5)


def test_twenty_steps_are_pinned(tmp_path: Path) -> None:
    """The curve of a tiny model: a change of data order, labels, loss, schedule or optimiser shows here."""
    chosen = options(tmp_path, "qwen", max_steps=20, lora_dropout=0.0, seed=3)
    expected = json.loads((Path(__file__).parents[1] / "data" / "finetune_curve.json").read_text())
    assert losses(run(chosen).folder) == pytest.approx(expected, rel=1e-3)


def test_held_out_loss_and_early_stopping(tmp_path: Path) -> None:
    chosen = options(
        tmp_path,
        eval_share=0.25,
        eval_every=2,
        patience=2,
        max_steps=200,
        learning_rate=0.3,
        schedule="constant",
    )
    result = run(chosen)
    assert result.steps < 200
    lines = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    held = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(held) >= 3
    assert result.eval_loss == min(held)


def test_held_out_loss_is_the_mean_over_tokens(tmp_path: Path) -> None:
    """So it does not depend on how samples are put together."""
    held = [
        run(
            options(
                tmp_path,
                out=str(tmp_path / f"{packing}-{batch}"),
                eval_share=0.4,
                eval_every=1,
                max_steps=1,
                learning_rate=0.0,
                packing=packing,
                batch_size=batch,
            )
        ).eval_loss
        for packing, batch in ((False, 1), (False, 4), (True, 3))
    ]
    assert held[1:] == pytest.approx(held[:1] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "qlora"}, "method qlora needs 4- or 8-bit weights"),
        ({"dtype": "float16"}, "float16 cannot be trained on a CPU"),
        ({"lora_targets": ("qq_proj",)}, "did you mean 'q_proj'?"),
        ({"device": "cuda"}, "device cuda was asked for and there is none"),
        ({"train_tables": "chatml"}, None),
        ({"deepspeed": "zero2"}, "between processes of a launcher"),
        ({"lora_adapter": "nowhere"}, "lora_adapter nowhere"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, changes: dict[str, Any], said: str | None) -> None:
    chosen = options(tmp_path, **changes)
    if said is None:
        assert run(chosen).steps == 6
        return
    with pytest.raises(InputError) as caught:
        run(chosen)
    assert said in str(caught.value)


def test_looking_at_a_run_writes_nothing(tmp_path: Path) -> None:
    chosen = options(tmp_path)
    each = Run(chosen)
    plan = each.prepare()
    assert plan.steps == 6
    assert plan.data.samples == 24
    assert plan.memory.trained_parameters < plan.memory.parameters
    assert "⟦" in next(iter(each.previews(1, colour=False)))
    assert not Path(chosen.out).exists()


@pytest.mark.parametrize("tables", ["all", "chatml", "none"])
def test_base_models_learn_the_tokens_of_conversations(tmp_path: Path, tables: str) -> None:
    """Embedding and head, or their rows of two tokens, are stored with the adapter and used from it."""
    chosen = options(tmp_path, "qwen", train_tables=tables, max_steps=4)
    result = run(chosen)
    names = set(load_file(result.folder / "adapter_model.safetensors"))
    stored = {name for name in names if "wte" in name or "lm_head" in name}
    assert bool(stored) == (tables != "none")
    if tables == "all":
        assert {name.split(".")[-2] for name in stored} == {"wte", "lm_head"}
    with LLM(str(result.folder), dtype="float32") as llm:
        adapted = torch.as_tensor(llm.logits([[40, 256, 257, 41]])[0])
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import qwenkit.hf  # noqa: F401

    base = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.float32)
    network = PeftModel.from_pretrained(base, result.folder).eval()
    with torch.no_grad():
        expected = network(input_ids=torch.tensor([[40, 256, 257, 41]])).logits[0]
    torch.testing.assert_close(adapted, expected[:, : adapted.shape[1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen"])
@pytest.mark.parametrize("layout", ["gptq", "awq-gemm"])
def test_qlora_from_quantised_weights_to_a_merged_model(tmp_path: Path, family: str, layout: str) -> None:
    method = "gptq" if layout == "gptq" else "awq"
    plain = write_model(tmp_path / "plain", family)
    small = tmp_path / "small"
    recipe = Recipe(method=method, layout=layout, group_size=32, num_samples=8, sample_length=64)
    quantize_model(plain, small, recipe, calibration=write_text(tmp_path / "text.txt"))
    chosen = options(tmp_path, family, model=str(small), method="qlora", max_steps=12)
    result = run(chosen)
    curve = losses(result.folder)
    assert curve[-1] < 0.8 * curve[0]
    merge_adapter(result.folder, tmp_path / "merged", dequantize=True, dtype="float32")
    with LLM(str(result.folder), dtype="float32", activations="float") as llm:
        adapted = torch.as_tensor(llm.logits([list(range(40, 70))])[0])
    with LLM(str(tmp_path / "merged"), dtype="float32") as llm:
        merged = torch.as_tensor(llm.logits([list(range(40, 70))])[0])
    torch.testing.assert_close(adapted, merged, rtol=2e-3, atol=2e-3)


def test_an_adapter_goes_on_with_other_data(tmp_path: Path) -> None:
    first = run(options(tmp_path, out=str(tmp_path / "first"), max_steps=8))
    write_conversations(tmp_path / "more.json", 8)
    more = {"data": (str(tmp_path / "more.json"),), "lora_adapter": str(first.folder), "max_steps": 2}
    second = run(options(tmp_path, out=str(tmp_path / "second"), **more))
    assert losses(second.folder)[0] < 0.8 * losses(first.folder)[0]


def test_full_training_keeps_the_type_of_the_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "bf16"
    model = AutoModelForCausalLM.from_pretrained(write_model(tmp_path / "m", "llama"), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((tmp_path / "m" / name).read_bytes())
    result = run(options(tmp_path, model=str(folder), method="full", max_steps=2))
    assert {tensor.dtype for tensor in _weights(result.folder).values()} == {torch.bfloat16}
    assert json.loads((result.folder / "config.json").read_text())["dtype"] == "bfloat16"
