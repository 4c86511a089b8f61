"""Logits and tokens of the released Qwen v1 code (tests/data/golden), reproduced in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwenkit import LLM
from qwenkit.cache.dense import DenseCache
from qwenkit.layers.rope import ntk_alpha
from qwenkit.model.generate import all_logits
from qwenkit.model.transformer import Span, Transformer
from tests.support.models import CPU, greedy, load

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FOLDERS = ["qwen1-tiny-plain", "qwen1-tiny-ntk", "qwen1-tiny-ntk-logn"]
TOLERANCE = 5e-5


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / request.param


@pytest.fixture(scope="module")
def model(folder: Path) -> Transformer:
    return load(folder)


@pytest.fixture(scope="module")
def cases(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "cases.safetensors")


@pytest.mark.parametrize("chunk", [None, 1, 7, 32])
@pytest.mark.parametrize("length", [1, 7, 31, 32, 33, 64, 101])
def test_prefill_in_one_piece_and_in_chunks(
    model: Transformer, cases: dict[str, torch.Tensor], length: int, chunk: int | None
) -> None:
    logits = all_logits(model, cases[f"prefill.{length}.input_ids"][0].tolist(), chunk=chunk)
    torch.testing.assert_close(logits, cases[f"prefill.{length}.logits"][0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("length", [5, 29, 41])
def test_greedy_decoding(model: Transformer, cases: dict[str, torch.Tensor], length: int) -> None:
    prompt = cases[f"greedy.{length}.input_ids"][0].tolist()
    expected = cases[f"greedy.{length}.output_ids"][0].tolist()
    assert greedy(model, [prompt], len(expected)) == [expected]
    logits = _decode_logits(model, prompt, expected)
    torch.testing.assert_close(logits, cases[f"greedy.{length}.logits"][0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["short", "long"])
def test_left_padded_batches_as_sequences(
    folder: Path, model: Transformer, cases: dict[str, torch.Tensor], kind: str
) -> None:
    """The released code counts padded slots as positions; we have no padding.

    Rotation is relative, so the shift is harmless for plain and NTK models (each row has its own factor, from its
    own length). LogN scales by absolute position, so there the padding of the released batch changes the numbers:
    that is reproduced by starting at the padding's length, which no user of ours would want.
    """
    ids, mask = cases[f"batch.{kind}.input_ids"], cases[f"batch.{kind}.attention_mask"].bool()
    expected, expected_logits = cases[f"batch.{kind}.output_ids"], cases[f"batch.{kind}.logits"]
    rows = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    for row, prompt in enumerate(rows):
        shifted = "logn" in folder.name
        offset = ids.shape[1] - len(prompt) if shifted else 0
        logits = _decode_logits(model, prompt, expected[row].tolist(), offset=offset)
        torch.testing.assert_close(logits, expected_logits[row], atol=TOLERANCE, rtol=0)
    if "logn" not in folder.name:
        assert greedy(model, rows, expected.shape[1]) == expected.tolist()


def test_public_logits_are_ragged(folder: Path, cases: dict[str, torch.Tensor]) -> None:
    llm = LLM(folder, dtype="float32", prefill_chunk=16)
    lengths = [7, 64, 1]
    out = llm.logits([cases[f"prefill.{n}.input_ids"][0].tolist() for n in lengths])
    for n, logits in zip(lengths, out, strict=True):
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, cases[f"prefill.{n}.logits"][0], atol=TOLERANCE, rtol=0)


def test_interleaved_sequences_keep_their_own_ntk_factor(
    cases: dict[str, torch.Tensor], folder: Path, model: Transformer
) -> None:
    prompts = [cases[f"greedy.{n}.input_ids"][0].tolist() for n in (5, 41, 29)]
    expected = [cases[f"greedy.{n}.output_ids"][0].tolist() for n in (5, 41, 29)]
    assert greedy(model, prompts, 12) == expected
    assert greedy(model, prompts, 12, max_batch_size=2) == expected


def _decode_logits(model: Transformer, prompt: list[int], output: list[int], offset: int = 0) -> torch.Tensor:
    """Logits of a prefill and one step per token, fed with the expected tokens."""
    alpha = ntk_alpha(len(prompt), model.config.rope.ntk_length)
    cache = DenseCache(model.config, dtype=model.dtype, device=CPU, alpha=alpha, offset=offset, capacity=1)
    with torch.inference_mode():
        rows = [model(torch.tensor(prompt), [Span(cache, len(prompt))])[-1]]
        for token in output[:-1]:
            rows.append(model(torch.tensor([token]), [Span(cache, 1)])[0])
    return torch.stack(rows)
