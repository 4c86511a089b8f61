"""First-generation Qwen in transformers: golden numbers of the release, and qwenkit's own network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

import qwenkit.hf
from qwenkit import LLM
from qwenkit.hf import QWenLMHeadModel
from qwenkit.model.generate import all_logits
from tests.support.hf_models import SIZES, random_model, token_ids
from tests.support.models import greedy, load

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FOLDERS = ["qwen1-tiny-plain", "qwen1-tiny-ntk", "qwen1-tiny-ntk-logn"]
TOLERANCE = 5e-5
SWITCHES = [
    {"use_dynamic_ntk": False, "use_logn_attn": False},
    {"use_dynamic_ntk": True, "use_logn_attn": False},
    {"use_dynamic_ntk": True, "use_logn_attn": True},
]


def close(got: Tensor, expected: Tensor, atol: float = TOLERANCE) -> None:
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


def generate(model: QWenLMHeadModel, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
    """Greedy continuation that nothing ends, with logits."""
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "output_logits": True}
    mask = torch.ones_like(ids) if mask is None else mask
    return model.generate(
        ids,
        attention_mask=mask,
        return_dict_in_generate=True,
        **settings | {"top_p": None, "top_k": None} | options,
    )


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / request.param


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(folder: Path, request: pytest.FixtureRequest) -> QWenLMHeadModel:
    assert qwenkit.hf.QWenConfig.model_type
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=request.param)


@pytest.fixture(scope="module")
def cases(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "cases.safetensors")


@pytest.mark.parametrize("length", [1, 7, 31, 32, 33, 64, 101])
def test_golden_prefill(model: QWenLMHeadModel, cases: dict[str, Tensor], length: int) -> None:
    with torch.inference_mode():
        logits = model(cases[f"prefill.{length}.input_ids"]).logits
    close(logits, cases[f"prefill.{length}.logits"])


@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
@pytest.mark.parametrize("length", [5, 29, 41])
def test_golden_greedy(model: QWenLMHeadModel, cases: dict[str, Tensor], length: int, cache: str) -> None:
    expected = cases[f"greedy.{length}.output_ids"]
    if cache == "none" and (length == 29 and model.config.use_dynamic_ntk):
        pytest.skip(
            "without a cache the whole text is read again each step, with the NTK factor of its length"
        )
    options = {"use_cache": False} if cache == "none" else {"cache_implementation": cache}
    if cache == "static":
        options["disable_compile"] = True
    out = generate(model, cases[f"greedy.{length}.input_ids"], max_new_tokens=expected.shape[1], **options)
    assert out.sequences[:, length:].tolist() == expected.tolist()
    close(torch.stack(out.logits, dim=1), cases[f"greedy.{length}.logits"])


@pytest.mark.parametrize("kind", ["short", "long"])
def test_golden_left_padded_batches(model: QWenLMHeadModel, cases: dict[str, Tensor], kind: str) -> None:
    """The released code counts padding as positions, which shows in LogN alone; asked for, it comes out the same."""
    ids, mask = cases[f"batch.{kind}.input_ids"], cases[f"batch.{kind}.attention_mask"]
    expected = cases[f"batch.{kind}.output_ids"]
    count = expected.shape[1]
    slots = {}
    if model.config.use_logn_attn:
        slots["position_ids"] = torch.arange(ids.shape[1]).expand_as(ids)
    out = generate(model, ids, mask, max_new_tokens=count, **slots)
    assert out.sequences[:, ids.shape[1] :].tolist() == expected.tolist()
    close(torch.stack(out.logits, dim=1), cases[f"batch.{kind}.logits"])


@pytest.mark.parametrize("switches", SWITCHES)
def test_logits_equal_our_own_network(tmp_path: Path, switches: dict[str, Any]) -> None:
    model = random_model(**switches)
    model.save_pretrained(tmp_path)
    ours = load(tmp_path)
    for length in (1, 16, 17, 40):
        ids = token_ids(1, length)
        with torch.inference_mode():
            close(model(ids).logits[0], all_logits(ours, ids[0].tolist()), 2e-5)
    prompts = [token_ids(1, n, seed=n) for n in (3, 15, 30)]
    expected = greedy(ours, [p[0].tolist() for p in prompts], 12)
    got = [generate(model, p, max_new_tokens=12).sequences[0, p.shape[1] :].tolist() for p in prompts]
    assert got == expected


def test_saved_folder_loads_in_qwenkit_and_back(
    tmp_path: Path, folder: Path, cases: dict[str, Tensor]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    ids = cases["prefill.64.input_ids"]
    with torch.inference_mode():
        expected = model(ids).logits
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, expected)
    close(LLM(tmp_path, dtype="float32").logits([ids[0].tolist()])[0], expected[0])


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_left_and_right_padding_and_none_are_equal(switches: dict[str, Any], attention: str) -> None:
    model = random_model(attn_implementation=attention, **switches)
    lengths, width = (3, 16, 20, 45), 45
    rows = [token_ids(n, seed=n) for n in lengths]
    left = torch.stack([torch.cat((token_ids(width - len(r)), r)) for r in rows])
    right = torch.stack([torch.cat((r, token_ids(width - len(r)))) for r in rows])
    counts = torch.tensor(lengths)[:, None]
    right_mask = (torch.arange(width) < counts).long()
    left_mask = right_mask.flip(1)
    with torch.inference_mode():
        left_logits = model(left, attention_mask=left_mask).logits
        right_logits = model(right, attention_mask=right_mask).logits
        for i, row in enumerate(rows):
            alone = model(row[None]).logits[0]
            close(left_logits[i, -len(row) :], alone)
            close(right_logits[i, : len(row)], alone)


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_chunks_on_a_cache_equal_one_piece(switches: dict[str, Any], attention: str, chunk: int) -> None:
    """The whole prompt fixes the NTK factor, as ``generate`` does before it reads in chunks."""
    model = random_model(attn_implementation=attention, **switches)
    ids = token_ids(2, 40)
    whole = generate(model, ids, max_new_tokens=5)
    pieces = generate(model, ids, max_new_tokens=5, prefill_chunk_size=chunk)
    assert pieces.sequences.tolist() == whole.sequences.tolist()
    close(torch.stack(pieces.logits), torch.stack(whole.logits))


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_later_chunks_see_no_later_tokens(kind: type[Any]) -> None:
    model = random_model(use_dynamic_ntk=False)
    ids = token_ids(2, 40)
    cache = kind(config=model.config, max_cache_len=64) if kind is StaticCache else kind(config=model.config)
    with torch.inference_mode():
        expected = model(ids).logits
        parts = [model(piece, past_key_values=cache).logits for piece in ids.split(12, dim=1)]
    close(torch.cat(parts, dim=1), expected)


def test_ntk_factor_stays_with_the_cache() -> None:
    """Two conversations in turn, one short and one long: neither changes the other."""
    model = random_model()
    short, long = token_ids(1, 10), token_ids(1, 40)
    steps = token_ids(1, 12, seed=3)
    expected, caches = {}, {}
    with torch.inference_mode():
        for name, ids in (("short", short), ("long", long)):
            cache = DynamicCache(config=model.config)
            model(ids, past_key_values=cache)
            expected[name] = [model(s, past_key_values=cache).logits for s in steps.split(1, dim=1)]
        for name, ids in (("short", short), ("long", long)):
            caches[name] = DynamicCache(config=model.config)
            model(ids, past_key_values=caches[name])
        for i, step in enumerate(steps.split(1, dim=1)):
            for name, cache in caches.items():
                close(model(step, past_key_values=cache).logits, expected[name][i], 1e-6)


def test_ntk_factors_follow_the_rows_of_the_cache() -> None:
    model = random_model()
    ids = token_ids(2, 40)
    mask = torch.ones_like(ids)
    mask[0, :30] = 0  # 10 tokens: no scaling; the other row: 40
    step = token_ids(2, 1, seed=5)
    with torch.inference_mode():
        cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
        grown = torch.cat((mask, mask.new_ones(2, 1)), dim=1)
        expected = model(step, attention_mask=grown, past_key_values=copy.deepcopy(cache)).logits
        for change in ("reorder_cache", "batch_select_indices"):
            turned = copy.deepcopy(cache)
            getattr(turned, change)(torch.tensor([1, 0]))
            got = model(step.flip(0), attention_mask=grown.flip(0), past_key_values=turned).logits
            close(got.flip(0), expected)
        doubled = copy.deepcopy(cache)
        doubled.batch_repeat_interleave(2)
        twice = [t.repeat_interleave(2, dim=0) for t in (step, grown)]
        close(model(twice[0], attention_mask=twice[1], past_key_values=doubled).logits[::2], expected)


def test_an_emptied_cache_forgets_its_ntk_factor() -> None:
    model = random_model()
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(token_ids(1, 40), past_key_values=cache)
        cache.reset()
        ids = token_ids(1, 9)
        close(model(ids, past_key_values=cache).logits, model(ids).logits, 1e-6)
        cache.crop(-9)
        close(model(ids, past_key_values=cache).logits, model(ids).logits, 1e-6)


def test_beams_equal_single_beams_of_each_row() -> None:
    model = random_model()
    rows = [token_ids(n, seed=n) for n in (5, 40)]
    ids = torch.stack([torch.cat((torch.zeros(40 - len(r), dtype=torch.int64), r)) for r in rows])
    mask = torch.tensor([[0] * 35 + [1] * 5, [1] * 40])
    options = {"num_beams": 3, "max_new_tokens": 12, "num_return_sequences": 2}
    together = generate(model, ids, mask, **options).sequences[:, 40:].tolist()
    apart = [s.tolist() for r in rows for s in generate(model, r[None], **options).sequences[:, len(r) :]]
    assert together == apart


def test_packed_samples_do_not_see_each_other() -> None:
    """Also in evaluation and with a cache asked for, and each with the NTK factor of its own length."""
    model = random_model()
    samples = [token_ids(1, n, seed=n) for n in (7, 20, 35)]
    positions = torch.cat([torch.arange(s.shape[1]) for s in samples])[None]
    with torch.inference_mode():
        packed = model(torch.cat(samples, dim=1), position_ids=positions).logits
        close(packed, torch.cat([model(s).logits for s in samples], dim=1))


def test_bfloat16_stays_near_float32() -> None:
    """Rotation and norms are float32 inside, so a cast model keeps exact positions."""
    model = random_model(**SIZES | {"vocab_size": 131})
    ids = token_ids(1, 200)
    with torch.inference_mode():
        exact = model(ids).logits
        cast = model.to(torch.bfloat16)(ids).logits.float()
    assert (cast - exact).std() < 0.05 * exact.std()


def test_assisted_generation_gives_the_same_tokens() -> None:
    model = random_model()
    ids = token_ids(1, 20)
    plain = generate(model, ids, max_new_tokens=20).sequences
    looked_up = generate(model, ids, max_new_tokens=20, prompt_lookup_num_tokens=3).sequences
    drafted = generate(model, ids, max_new_tokens=20, assistant_model=random_model(seed=7)).sequences
    assert plain.tolist() == looked_up.tolist() == drafted.tolist()
