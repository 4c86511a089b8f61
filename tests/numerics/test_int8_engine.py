"""Engines over weights in panels: prompts and replies computed in two ways, and the options that decide about it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit import LLM, SamplingParams
from qwenkit.backends.local import LocalBackend
from qwenkit.backends.options import LocalOptions, wants_panels
from qwenkit.cache.paged import PagedCache, PagePool
from qwenkit.core.errors import InputError
from qwenkit.core.types import Delta, Request, collect
from qwenkit.engine.sequence import Sequence
from qwenkit.kernels import native
from qwenkit.kernels.packed import PackedWeight
from qwenkit.kernels.panels import PanelWeight
from qwenkit.layers.quant_linear import QuantLinear
from qwenkit.model.step import make_forward
from qwenkit.model.transformer import Span, Transformer
from tests.numerics.test_engine import backend, prompts_of
from tests.support.int8 import ISAS, in_panels, isas_here
from tests.support.models import CPU
from tests.support.networks import family_config, random_network
from tests.support.packed import Form, pack_network
from tests.support.quantised import pack_network as write_gptq
from tests.support.tiny_models import write_model

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not compiled")


@pytest.mark.skipif(native.library() is None or native.isa_name() != "amx", reason="no AMX here")
class TestEngine:
    """What it promises holds where tokens of prompts and of replies are computed in two ways."""

    PARAMS = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=2)

    @pytest.fixture(params=["auto", "int8"])
    def kv_cache(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def model(self) -> Transformer:
        sizes = {"vocab_size": 144, "hidden_size": 96, "ffn_size": 160, "num_heads": 4, "context_length": 512}
        config = family_config("qwen2", tie_embeddings=False, **sizes)
        model = random_network(config).bfloat16()
        form = in_panels(Form(4, 64, "zeros"))
        return pack_network(model, [form], table=form)

    def test_batches_pieces_and_starting_again_change_nothing(
        self, model: Transformer, kv_cache: str
    ) -> None:
        params = dataclasses.replace(self.PARAMS, max_tokens=80)
        asked = prompts_of(model.config, [20, 25, 1, 31, 50, 8, 12, 65])
        engine = backend(model, kv_cache=kv_cache, deterministic=True)
        assert engine.info.details["kernels"] == "native amx, int8 activations behind prompts"
        expected = [_replies(engine, [prompt], params)[0] for prompt in asked]
        assert _replies(engine, asked, params) == expected
        for options in ({"prefix_caching": False}, {"prefix_caching": True, "speculative": "ngram"}):
            tight = backend(
                model, tokens=192, prefill_chunk=13, max_batch_size=5, kv_cache=kv_cache, **options
            )
            assert _replies(tight, asked, params) == expected, options
            assert tight.stats().preemptions > 0

    def test_the_reply_begins_behind_the_prompt(self, model: Transformer, kv_cache: str) -> None:
        prompt = prompts_of(model.config, [45])[0]
        reply = _replies(backend(model, kv_cache=kv_cache), [prompt], self.PARAMS)[0]
        tokens = prompt + _tokens(reply)
        pool = PagePool(model.config, num_pages=3, dtype=model.dtype, device=CPU, int8=kv_cache == "int8")
        cache, forward = PagedCache(pool, [2, 0, 1]), make_forward(model, pool)
        spans = [Span(cache, len(prompt)), Span(cache, len(reply) - 1, generated=True)]
        logits = forward(tokens[:-1], spans, range(len(prompt) - 1, len(tokens) - 1))
        expected = logits.log_softmax(dim=-1).gather(1, torch.tensor(tokens[len(prompt) :])[:, None])
        torch.testing.assert_close(
            torch.tensor([score.logprob for score in reply]), expected[:, 0], atol=1e-5, rtol=0
        )

    def test_several_replies_to_one_prompt(self, model: Transformer, kv_cache: str) -> None:
        prompt = prompts_of(model.config, [70])[0]
        sampled = SamplingParams(temperature=1.0, seed=3, n=3, max_tokens=40, ignore_eos=True, logprobs=1)
        engine, tight = (backend(model, tokens=tokens, kv_cache=kv_cache) for tokens in (4096, 192))

        def ask(one: LocalBackend) -> list[tuple[Any, ...]]:
            found = collect(list(one.stream([Request(prompt=tuple(prompt), params=sampled)])))
            return [reply.logprobs for reply in (found, *found.others)]

        expected = ask(engine)
        assert len(set(expected)) == 3
        assert ask(engine) == expected
        assert ask(tight) == expected

    def test_a_reply_in_the_next_prompt(
        self, model: Transformer, kv_cache: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is read as a prompt is, whatever was stored while it was written."""
        engine = backend(model, kv_cache=kv_cache)
        fresh = backend(model, kv_cache=kv_cache, prefix_caching=False)
        prompt = prompts_of(model.config, [70])[0]
        said = _tokens(_replies(engine, [prompt], self.PARAMS)[0])
        second = prompt + said + [1, 2, 3]
        expected = _replies(fresh, [second], self.PARAMS)
        before = engine.stats().cached_tokens
        assert _replies(engine, [second], self.PARAMS) == expected
        assert engine.stats().cached_tokens - before == 64
        # A third time all of it was read as a prompt before.
        assert _replies(engine, [second], self.PARAMS) == expected
        assert engine.stats().cached_tokens - before == 64 + 96
        # What is said holds only because pages know which of their tokens the model chose.
        monkeypatch.setattr(Sequence, "_content", lambda self, first, end: self.tokens[first:end])
        forgetful = backend(model, kv_cache=kv_cache)
        _replies(forgetful, [prompt], self.PARAMS)
        assert _replies(forgetful, [second], self.PARAMS) != expected

    def test_asked_for_everything_in_8_bits(self, model: Transformer, kv_cache: str) -> None:
        engine = backend(model, kv_cache=kv_cache, activations="int8")
        assert engine.info.details["kernels"] == "native amx, int8 activations"
        prompt = prompts_of(model.config, [70])[0]
        said = _tokens(_replies(engine, [prompt], self.PARAMS)[0])
        second = prompt + said + [1, 2, 3]
        before = engine.stats().cached_tokens
        found = _replies(engine, [second], self.PARAMS)
        assert engine.stats().cached_tokens - before == 96, "the reply's pages are as good as a prompt's"
        fresh = backend(model, kv_cache=kv_cache, activations="int8", prefix_caching=False)
        assert found == _replies(fresh, [second], self.PARAMS)


def _replies(engine: LocalBackend, asked: list[list[int]], params: SamplingParams) -> list[tuple[Any, ...]]:
    """Log-probabilities of each reply's tokens and of the likeliest others."""
    deltas: list[list[Delta]] = [[] for _ in asked]
    for delta in engine.stream([Request(prompt=tuple(prompt), params=params) for prompt in asked]):
        deltas[delta.index].append(delta)
    return [collect(found).logprobs for found in deltas]


def _tokens(reply: tuple[Any, ...]) -> list[int]:
    return [score.token_id for score in reply]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_network(family_config("llama"))
    return write_gptq(model, "llama", tmp_path_factory.mktemp("gptq") / "m")


class TestOptions:
    """What a model is loaded as, and computed with."""

    def _open(self, folder: Path, **options: Any) -> tuple[LLM, set[type]]:
        """And what its linears are stored as."""
        llm = LLM(folder, cache_memory=2**24, **options)
        model = llm.backend.model  # type: ignore[attr-defined]
        linears = [module for module in model.modules() if isinstance(module, QuantLinear)]
        parts = [part for linear in linears for part in linear.parts]
        return llm, {type(part) for part in parts if not isinstance(part, torch.Tensor)}

    def test_unknown(self) -> None:
        with pytest.raises(InputError, match="activations='int4' is not known; use auto, int8, float"):
            LocalOptions(activations="int4")

    def test_int8_needs_the_kernels(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QWENKIT_ISA", "reference")
        with pytest.raises(
            InputError, match=r"activations='int8' needs the compiled CPU kernels \(.*\); use"
        ):
            LLM(folder, activations="int8")
        assert self._open(folder)[1] == {PackedWeight}

    def test_int8_is_for_cpus(self) -> None:
        cuda = torch.device("cuda")
        with pytest.raises(InputError, match=r"\(on cuda\)"):
            wants_panels(LocalOptions(activations="int8"), cuda, torch.bfloat16)
        assert not wants_panels(LocalOptions(), cuda, torch.bfloat16)
        assert wants_panels(LocalOptions(), CPU, torch.float32), (
            "a CPU without bfloat16 was not asked for float32"
        )

    @pytest.mark.parametrize(
        ("options", "stored"),
        [
            ({"dtype": "bfloat16"}, PanelWeight),
            ({"dtype": "float16"}, PanelWeight),
            ({"dtype": "float32", "activations": "int8"}, PanelWeight),
            ({"dtype": "float32"}, PackedWeight),
            ({"dtype": "fp32"}, PackedWeight),
            ({"dtype": "bfloat16", "activations": "float"}, PackedWeight),
        ],
        ids=str,
    )
    def test_what_is_stored(self, folder: Path, options: dict[str, Any], stored: type) -> None:
        llm, kinds = self._open(folder, **options)
        assert kinds == {stored}
        assert ("int8 activations" in llm.info.details["kernels"]) == (stored is PanelWeight)

    @pytest.mark.parametrize("isa", [*ISAS[:3], None])
    def test_int8_for_all_tokens(
        self, folder: Path, isa: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The replies of the same network with any instruction set."""
        if isa is not None and isa not in isas_here():
            pytest.skip(f"no {isa} here")
        params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=1)
        asked = prompts_of(family_config("llama"), [5, 40])
        llm, _ = self._open(folder, dtype="bfloat16", activations="int8")
        expected = [out.logprobs for out in llm.generate(asked, params)]
        if isa is not None:
            monkeypatch.setenv("QWENKIT_ISA", isa)
        other, _ = self._open(folder, dtype="bfloat16", activations="int8")
        assert [out.logprobs for out in other.generate(asked, params)] == expected

    def test_all_ways_of_asking_compute_alike(self, folder: Path) -> None:
        """Log-probabilities of a prompt are those of its logits."""
        ids = prompts_of(family_config("llama"), [40])[0]
        for activations in ("auto", "int8"):
            llm, _ = self._open(folder, dtype="bfloat16", activations=activations)
            scores = llm.backend.logprobs([ids])[0]
            logits = llm.logits([ids])[0].log_softmax(dim=-1)
            expected = logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(scores), expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(native.library() is None, reason="the native kernels are not compiled")
def test_int8_without_packed_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this model has none; use auto"):
        LLM(write_model(tmp_path / "m"), activations="int8")
