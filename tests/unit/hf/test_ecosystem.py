"""Libraries around transformers with first-generation Qwen: pipelines, PEFT, accelerate, lm-eval, modelscope."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

from qwenkit.hf import QWenConfig, QWenLMHeadModel
from tests.support.hf_models import SIZES, random_model, token_ids
from tests.support.process import environment

TASKS = Path(__file__).parents[2] / "data" / "lm_eval"
PAGE = Path(__file__).parents[3] / "docs" / "transformers.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, qwen_tiktoken: Path) -> Path:
    """A small random model with the released vocabulary, laid out as published."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": 151936, "hidden_size": 32, "max_position_embeddings": 64}
    QWenLMHeadModel(QWenConfig(**sizes)).save_pretrained(folder)
    (folder / "qwen.tiktoken").symlink_to(qwen_tiktoken)
    settings = {"tokenizer_class": "QWenTokenizer", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_pipeline(folder: Path) -> None:
    generator = pipeline("text-generation", model=str(folder), tokenizer=str(folder))
    settings = {"do_sample": False, "max_new_tokens": 3}
    out = generator("Hello", return_full_text=False, **settings)[0]["generated_text"]
    model, tokenizer = generator.model, generator.tokenizer
    ids = torch.tensor([tokenizer.encode("Hello")])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert out == tokenizer.decode(expected[0, 1:], skip_special_tokens=True)
    chat = generator([{"role": "user", "content": "Hi"}], **settings)[0]["generated_text"]
    assert chat[-1]["role"] == "assistant"


@pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")  # peft uses the old name
def test_lora_adapters_of_peft(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    model = random_model()
    ids = token_ids(1, 9)
    before = model(ids).logits.detach()
    config = LoraConfig(r=2, target_modules=["c_attn", "c_proj", "w1", "w2"], task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    assert sum("lora_A" in name for name, _ in tuned.named_parameters()) == 5 * SIZES["num_hidden_layers"]
    torch.testing.assert_close(tuned(ids).logits, before)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    tuned.eval()
    after = tuned(ids).logits.detach()
    assert not torch.allclose(after, before)
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(random_model(), tmp_path).eval()
    torch.testing.assert_close(again(ids).logits, after)
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, after, atol=1e-4, rtol=1e-4)


def test_device_map_of_accelerate_keeps_layers_whole(tmp_path: Path) -> None:
    from accelerate import infer_auto_device_map

    model = random_model()
    size = sum(p.numel() * p.element_size() for p in model.transformer.h[0].parameters())
    devices = infer_auto_device_map(
        model, max_memory={0: int(size * 2.2), "cpu": 10**9}, no_split_module_classes=model._no_split_modules
    )
    assert not any(".attn" in name or ".mlp" in name for name in devices)
    model.save_pretrained(tmp_path)
    ids = token_ids(1, 20)
    placed = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    torch.testing.assert_close(placed(ids).logits, model(ids).logits)


def test_layers_offloaded_to_disk_give_the_same(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    where: dict[str, Any] = {"transformer.wte": "cpu", "transformer.h.0": "disk", "transformer.h.1": "cpu"}
    where |= {"transformer.drop": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
    placed = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map=where, offload_folder=tmp_path / "offload"
    )
    ids = token_ids(1, 20)
    with torch.no_grad():
        torch.testing.assert_close(placed(ids).logits, model(ids).logits)


def test_trainer_accumulates_gradients_by_number_of_labels(tmp_path: Path) -> None:
    """Two parts of different lengths give the loss and the step of the whole batch."""
    rows = [{"input_ids": token_ids(n, seed=n).tolist()} for n in (6, 20)]

    def collate(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = 20
        ids = torch.tensor([s["input_ids"] + [0] * (width - len(s["input_ids"])) for s in samples])
        mask = torch.tensor(
            [[1] * len(s["input_ids"]) + [0] * (width - len(s["input_ids"])) for s in samples]
        )
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    weights, losses = [], []
    for size, parts in ((2, 1), (1, 2)):
        model = random_model()
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            max_steps=1,
            learning_rate=1e-2,
            optim="sgd",
            report_to="none",
            logging_steps=1,
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
        losses.append(trainer.train().training_loss)
        weights.append(model.transformer.h[0].mlp.w1.weight.detach())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_lm_eval(folder: Path) -> None:
    """The command of docs/transformers.md, with a model and a task that are here."""
    pytest.importorskip("lm_eval")
    (command,) = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    small = command.replace("pretrained=Qwen-7B", f"pretrained={folder},dtype=float32")
    small = small.replace("cmmlu", f"qwenkit_capitals --include_path {TASKS} --limit 1 --batch_size 4")
    assert small.count(str(folder)) == small.count(str(TASKS)) == 1
    scripts = str(Path(sys.executable).parent)
    env = environment(HF_HUB_OFFLINE="1", PATH=f"{scripts}:{os.environ.get('PATH', '')}")
    done = subprocess.run(
        ["bash", "-euc", small], capture_output=True, text=True, check=False, cwd=TASKS, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "|qwenkit_capitals|" in done.stdout


def test_modelscope(folder: Path) -> None:
    modelscope = pytest.importorskip("modelscope")
    assert type(modelscope.AutoModelForCausalLM.from_pretrained(str(folder))).__name__ == "QWenLMHeadModel"
    assert type(modelscope.AutoTokenizer.from_pretrained(str(folder))).__name__ == "QWenTokenizer"


def test_batch_inference_as_in_the_guide(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, pad_token="<|extra_0|>", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True
        )
        for q in ("Hi", "Who was the first to walk on the moon?")
    ]
    batch = tokenizer(texts, padding="longest", return_tensors="pt")
    settings = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": tokenizer.pad_token_id}
    together = model.generate(**batch, stop_words_ids=[[tokenizer.im_end_id]], **settings)
    for row, text in zip(together, texts, strict=True):
        ids = torch.tensor([tokenizer.encode(text)])
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :]
        assert row[batch["input_ids"].shape[1] :].tolist() == alone.tolist()
