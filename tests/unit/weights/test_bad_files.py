"""Every way a checkpoint can be broken is answered by one sentence that names it; nothing is executed or guessed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenkit import LLM, SamplingParams
from qwenkit.core.errors import (
    CheckpointError,
    InputError,
    NumericsError,
    PromptTooLongError,
    QwenkitError,
    TokenizerError,
)
from tests.support.bad import CASES, GOOD, SHARDED, spoiled


@pytest.mark.parametrize("name", list(CASES))
def test_one_sentence_that_names_the_fault(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = spoiled(name, tmp_path)
    with pytest.raises(QwenkitError) as caught:
        LLM(folder, dtype="float32")
    text = str(caught.value)
    assert "\n" not in text
    for word in CASES[name][1]:
        assert word in text, text
    assert capsys.readouterr().out == ""


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(SHARDED, folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"lacks 1 of 2 weight files, first model-00002-of-00002\.safetensors"
    ):
        LLM(folder)


def test_index_cannot_point_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(SHARDED, folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001-of", "../model-00001-of"))
    with pytest.raises(CheckpointError, match="not a plain file name"):
        LLM(folder)


def test_nan_names_the_layer_and_the_weight(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(GOOD, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.attn.c_proj.weight"][3, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        NumericsError,
        match=r"first in layers\.1\.attn\.out: the weight layers\.1\.attn\.out\.weight .* fetch",
    ):
        LLM(folder).generate([[1, 2, 3]])


def test_overflow_names_the_layer_and_another_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENKIT_ISA", "reference")  # the compiled kernels keep activations in float32
    folder = tmp_path / "m"
    shutil.copytree(GOOD, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.mlp.w1.weight"] *= 1e3
    tensors["transformer.h.0.mlp.w2.weight"] *= 1e3
    save_file(tensors, folder / "model.safetensors")
    model = LLM(folder, dtype="float16")
    with pytest.raises(NumericsError, match=r"in float16, first in layers\.0\.ffn.*bfloat16 or float32"):
        model.generate([[1, 2, 3]])
    assert LLM(folder, dtype="float32").generate([[1, 2, 3]], SamplingParams(max_tokens=2))[0].token_ids


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(GOOD, dtype="float32")


class TestRequests:
    def test_too_long_says_both_numbers(self, llm: LLM) -> None:
        with pytest.raises(PromptTooLongError, match=r"has 128 tokens, the context holds 128"):
            llm.generate([[1] * 128])
        with pytest.raises(PromptTooLongError, match=r"129 tokens.*128"):
            llm.logits([[1] * 129])

    def test_foreign_ids(self, llm: LLM) -> None:
        with pytest.raises(InputError, match="token id 512 is outside the model's vocabulary of 512"):
            llm.generate([[1, 512]])
        with pytest.raises(InputError, match="-1"):
            llm.logits([[-1]])

    def test_empty_prompts(self, llm: LLM) -> None:
        with pytest.raises(InputError, match="empty"):
            llm.generate([[]])
        assert llm.logits([[]])[0].shape == (0, 512)
        assert llm.generate([]) == []

    def test_text_needs_a_tokenizer(self, llm: LLM) -> None:
        for call in (lambda: llm.generate("text"), lambda: llm.chat("text"), lambda: llm.perplexity("text")):
            with pytest.raises(TokenizerError, match=r"qwen\.tiktoken"):
                call()

    def test_one_bad_request_stops_the_batch_before_it_starts(self, llm: LLM) -> None:
        with pytest.raises(InputError):
            llm.stream_generate([[1, 2], [999]])

    def test_reply_stops_at_the_end_of_the_context(self, llm: LLM) -> None:
        out = llm.generate([[1] * 120], SamplingParams(temperature=0, ignore_eos=True, max_tokens=100))[0]
        assert (len(out.token_ids), out.finish_reason) == (8, "length")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"device": "tpu"}, "tpu"),
        ({"device": "cuda:7"}, "GPU"),
        ({"dtype": "int3"}, "int3"),
        ({"max_context": 0}, "max_context=0"),
        ({"max_batch_size": -1}, "max_batch_size=-1"),
        ({"prefill_chunk": 1.5}, "prefill_chunk=1.5"),
        ({"windows": [4]}, "1 entries for 3 layers"),
        ({"windows": [4, 0, None]}, "at least 1"),
    ],
)
def test_impossible_options(option: dict[str, object], words: str) -> None:
    with pytest.raises(QwenkitError, match=words):
        LLM(GOOD, **option)  # type: ignore[arg-type]


def test_vocabulary_larger_than_the_embedding(tmp_path: Path, qwen_tiktoken: Path) -> None:
    shutil.copytree(GOOD, tmp_path / "m")
    shutil.copy(qwen_tiktoken, tmp_path / "m" / "qwen.tiktoken")
    with pytest.raises(TokenizerError, match=r"151851 tokens.*512 rows"):
        LLM(tmp_path / "m")


def test_missing_bin_of_torch_is_not_loaded_as_code(tmp_path: Path) -> None:
    """A legacy, uncompressed pickle takes another path through torch.load."""
    shutil.copytree(GOOD, tmp_path / "m")
    state = load_file(tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "m" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    plain = LLM(GOOD, dtype="float32").logits([[1, 2, 3]])[0]
    assert torch.equal(LLM(tmp_path / "m", dtype="float32").logits([[1, 2, 3]])[0], plain)
