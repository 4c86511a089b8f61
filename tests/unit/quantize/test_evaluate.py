"""Comparisons of two networks against plain float64 arithmetic on their whole logits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from qwenkit import load_tokenizer
from qwenkit.config.families import FAMILIES
from qwenkit.config.model import RopeConfig
from qwenkit.core.errors import InputError, NumericsError
from qwenkit.llm import LLM
from qwenkit.model.generate import all_logits
from qwenkit.model.transformer import Transformer
from qwenkit.quantize import evaluate
from qwenkit.quantize.evaluate import Contestant, compare, compare_networks
from qwenkit.tokenizer.hf_json import HfTokenizer
from qwenkit.weights.save import save_model
from tests.support.networks import family_config, random_network

IDS = torch.randint(0, 60, (301,), generator=torch.Generator().manual_seed(5)).tolist()


def _rounded(model: Transformer, *, steps: int) -> Transformer:
    """The same network with coarser weights."""
    other = random_network(model.config)
    for weight in other.parameters():
        weight.copy_((weight * steps).round() / steps)
    return other


def _naive(
    a: Transformer, b: Transformer, ids: list[int], window: int, vocab: int
) -> tuple[float, float, float, float]:
    losses, others, kls, agreed = [], [], [], []
    for at in range(0, len(ids) - 1, window):
        piece = ids[at : at + window]
        p, q = (all_logits(m, piece)[:-1, :vocab].double().log_softmax(-1) for m in (a, b))
        kls += (p.exp() * (p - q)).sum(-1).tolist()
        agreed += (p.argmax(-1) == q.argmax(-1)).tolist()
        for found, scores in ((losses, p), (others, q)):
            found += [-float(row[i]) for row, i in zip(scores, piece[1:], strict=True)]
    count = len(losses)
    return (
        math.exp(math.fsum(losses) / count),
        math.exp(math.fsum(others) / count),
        math.fsum(kls) / count,
        sum(agreed) / count,
    )


@pytest.mark.parametrize("vocab_size", [None, 50])
def test_numbers_are_those_of_naive_arithmetic(
    vocab_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "_LOGITS", 64 * (vocab_size or 60))  # 64 positions at once, 150 in a window
    rope = RopeConfig(base=10000.0, dim=32, ntk_length=64)
    model = random_network(family_config("qwen", rope=rope))
    other = _rounded(model, steps=8)
    ids = [i % (vocab_size or 60) for i in IDS]
    perplexity, scores, count = compare_networks(
        model, {"": Contestant(other)}, ids, window=150, vocab_size=vocab_size
    )
    expected = _naive(model, other, ids, 150, vocab_size or 60)
    found = (perplexity, scores[""].perplexity, scores[""].mean_kl, scores[""].top1_agreement)
    assert found == pytest.approx(expected, rel=1e-4)
    assert count == 2 * 149  # the third window would be one token, which only conditions
    assert expected[2] > 1e-3  # the two do differ
    assert expected[3] < 1


def test_equal_networks() -> None:
    model = random_network(family_config("qwen2"))
    perplexity, scores, _ = compare_networks(
        model, {"": Contestant(random_network(model.config))}, IDS, window=64
    )
    assert (scores[""].perplexity, scores[""].mean_kl, scores[""].top1_agreement) == (perplexity, 0.0, 1.0)


def test_an_int8_cache_alone_makes_a_small_difference() -> None:
    model = random_network(family_config("qwen3"))
    contestants = {"": Contestant(model), evaluate.INT8_CACHE: Contestant(model, int8_cache=True)}
    perplexity, scores, _ = compare_networks(model, contestants, IDS, window=256)
    assert scores[""].mean_kl == 0
    assert 0 < scores[evaluate.INT8_CACHE].mean_kl < 1e-2
    assert scores[evaluate.INT8_CACHE].perplexity == pytest.approx(perplexity, rel=1e-2)


def test_progress_ends_at_the_result() -> None:
    model = random_network(family_config("qwen2"))
    other = _rounded(model, steps=16)
    seen: list[tuple[int, int, float]] = []
    _, scores, _ = compare_networks(
        model, {"": Contestant(other)}, IDS, window=100, on_progress=lambda *now: seen.append(now)
    )
    assert [(done, total) for done, total, _ in seen] == [(100, 301), (200, 301), (300, 301)]
    assert seen[-1][2] == scores[""].perplexity


def test_numbers_that_are_none_are_an_error() -> None:
    model = random_network(family_config("qwen2"))
    broken = random_network(model.config)
    broken.layers[1].ffn.down.weight[3] = float("nan")
    with pytest.raises(NumericsError, match=r"layers\.1\.ffn\.down"):
        compare_networks(model, {"": Contestant(broken)}, IDS[:20], window=64)


@pytest.mark.parametrize(("ids", "window"), [([5], 64), ([5, 6], 1)])
def test_too_little_to_compare(ids: list[int], window: int) -> None:
    model = random_network(family_config("qwen2"))
    with pytest.raises(InputError, match=r"at least 2 tokens|from 2 up"):
        compare_networks(model, {"": Contestant(model)}, ids, window=window)


TEXT = "The quick brown fox jumps over the lazy dog, and <|im_start|> is text. " * 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, smollm2_tokenizer: HfTokenizer) -> tuple[Path, Path]:
    """A model with a tokenizer, and the same with coarser weights."""
    parent = tmp_path_factory.mktemp("models")
    model = random_network(family_config("qwen3", vocab_size=49280, num_layers=1))
    for name, network in (("whole", model), ("coarse", _rounded(model, steps=8))):
        save_model(parent / name, network, FAMILIES["qwen3"], tokenizer=smollm2_tokenizer)
    return parent / "whole", parent / "coarse"


def test_perplexities_are_those_of_the_perplexity_command(folders: tuple[Path, Path]) -> None:
    whole, coarse = folders
    found = compare(whole, coarse, TEXT, window=64, kv_cache="int8", head="int8", dtype="float32")
    expected = {
        name: LLM(folder, dtype="float32", **options).perplexity(TEXT, window=64)
        for name, folder, options in (
            ("whole", whole, {}),
            ("coarse", coarse, {}),
            (evaluate.INT8_CACHE, coarse, {"kv_cache": "int8"}),
        )
    }
    assert found.original_perplexity == pytest.approx(expected["whole"], rel=1e-7)
    assert found.perplexity == pytest.approx(expected["coarse"], rel=1e-7)
    cache, head = found.variants[evaluate.INT8_CACHE], found.variants[evaluate.INT8_HEAD]
    assert cache.perplexity == pytest.approx(expected[evaluate.INT8_CACHE], rel=1e-7)
    assert cache.perplexity != found.perplexity
    assert head.perplexity == pytest.approx(found.perplexity, rel=0.05)
    assert head.mean_kl != found.mean_kl
    assert (found.dtype, found.window) == ("float32", 64)
    assert found.original_size.stored == found.size.held > 4 * 2 * 49280 * 256
    assert json.loads(json.dumps(found.to_dict()))["size"]["held"] == found.size.held


def test_what_cannot_be_compared(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, coarse = folders
    with pytest.raises(InputError, match="at least 2 tokens"):
        compare(whole, coarse, "a")
    with pytest.raises(InputError, match="use 2 to 256"):
        compare(whole, coarse, TEXT, window=257)
    with pytest.raises(InputError, match="kv_cache='fp8' is not known"):
        compare(whole, coarse, TEXT, kv_cache="fp8")
    monkeypatch.setattr(evaluate, "available_memory", lambda: 2**20)
    with pytest.raises(InputError, match=r"0\.2 GiB for the models, of which 0\.0 GiB are free"):
        compare(whole, coarse, TEXT, dtype="float32")


def test_models_of_different_vocabularies(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = random_network(family_config("qwen3", vocab_size=49152, num_layers=1, hidden_size=32))
    save_model(tmp_path / "other", other, FAMILIES["qwen3"], tokenizer=load_tokenizer(folders[0]))
    with pytest.raises(InputError, match="another vocabulary than"):
        compare(folders[0], tmp_path / "other", TEXT)
