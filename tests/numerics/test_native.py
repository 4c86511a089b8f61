"""The native decode step against the plain network, over random shapes, types, instruction sets and batches."""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit.cache.dense import DenseCache
from qwenkit.config.model import ModelConfig, RopeConfig
from qwenkit.kernels import native
from qwenkit.layers.rope import ntk_alpha
from qwenkit.model.decode import NativeDecoder, native_decoder
from qwenkit.model.transformer import Span, Transformer
from tests.support.models import CPU

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not compiled")

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 16,
    "ffn_size": 80,
    "norm_eps": 1e-6,
    "context_length": 256,
    "rope": RopeConfig(base=10000.0, dim=16),
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped and tied": {"num_kv_heads": 2, "tie_embeddings": True},
    "odd sizes": {
        "hidden_size": 37,
        "ffn_size": 53,
        "head_dim": 10,
        "rope": RopeConfig(base=1e4, dim=10),
        "vocab_size": 13,
    },
    "tiny heads": {"num_heads": 6, "num_kv_heads": 1, "head_dim": 2, "rope": RopeConfig(base=1e4, dim=2)},
    "wide heads": {"head_dim": 144, "rope": RopeConfig(base=1e4, dim=100)},
    "biases": {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
    "query and key norm": {"qk_norm": True, "head_dim": 24, "rope": RopeConfig(base=1e6, dim=24)},
    "partial rotation": {"rope": RopeConfig(base=10000.0, dim=6)},
    "windows": {"windows": (5, None)},
    "ntk and logn": {"rope": RopeConfig(base=10000.0, dim=16, ntk_length=8), "logn_length": 8},
    "one head": {"num_heads": 1, "num_kv_heads": 1, "hidden_size": 16},
    "wider than a piece": {"hidden_size": 300, "ffn_size": 1100, "vocab_size": 1001},
}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
TYPES = [torch.float32, torch.bfloat16, torch.float16]
PROMPTS = [7, 1, 30, 12, 9]


def _model(shape: str, dtype: torch.dtype) -> Transformer:
    config = ModelConfig(**BASE | SHAPES[shape])
    torch.manual_seed(len(shape))
    model = Transformer(config)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.15)
    return model.to(dtype).eval().requires_grad_(False)


def _caches(model: Transformer, dtype: torch.dtype, prompts: list[int] = PROMPTS) -> list[DenseCache]:
    """Caches that hold random prompts of these lengths, the same for every call."""
    caches = []
    generator = torch.Generator().manual_seed(1)
    for length in prompts:
        alpha = ntk_alpha(length, model.config.rope.ntk_length)
        cache = DenseCache(model.config, dtype=dtype, device=CPU, capacity=length + 1, alpha=alpha)
        ids = torch.randint(0, model.config.vocab_size, (length,), generator=generator)
        with torch.inference_mode():
            model(ids, [Span(cache, length)])
        caches.append(cache)
    return caches


def _steps(decoder: NativeDecoder, caches: list[DenseCache], count: int = 4) -> torch.Tensor:
    return torch.stack(
        [decoder.step([(7 * i + j) % 13 for j in range(len(caches))], caches) for i in range(count)]
    )


def _decoder(model: Transformer) -> NativeDecoder:
    decoder = native_decoder(model)
    assert decoder is not None
    return decoder


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_equals_the_plain_network_in_float32(shape: str, dtype: torch.dtype) -> None:
    """Half-precision weights are compared with the plain network computing in float32 on the same values."""
    model = _model(shape, dtype)
    got = _steps(_decoder(model), _caches(model, dtype))
    exact = _model(shape, dtype).float()
    caches = _caches(model, dtype)
    wide = [_widened(exact, cache) for cache in caches]
    for i in range(4):
        ids = torch.tensor([(7 * i + j) % 13 for j in range(len(wide))])
        with torch.inference_mode():
            expected = exact(ids, [Span(cache, 1) for cache in wide])
        scale = float(expected.abs().max())
        torch.testing.assert_close(got[i] / scale, expected / scale, atol=TOLERANCE[dtype], rtol=0)


def _widened(model: Transformer, cache: DenseCache) -> DenseCache:
    """A float32 cache with the same contents."""
    wide = DenseCache(
        model.config, dtype=torch.float32, device=CPU, capacity=cache.length + 8, alpha=cache.alpha
    )
    for layer in range(model.config.num_layers):
        keys, values = (t[layer, :, : cache.length].float().transpose(0, 1) for t in cache.reserve(0))
        wide.update(layer, keys, values)
    wide.advance(cache.length)
    return wide


@pytest.mark.parametrize("shape", ["grouped and tied", "odd sizes", "ntk and logn", "wider than a piece"])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_sequence_gets_the_same_bits_in_every_batch(shape: str, dtype: torch.dtype) -> None:
    model = _model(shape, dtype)
    decoder = _decoder(model)
    together = _steps(decoder, _caches(model, dtype, PROMPTS * 4))
    alone = _caches(model, dtype, PROMPTS * 4)
    for row in (0, 3, 6, 11, 19):
        expected = torch.cat([decoder.step([(7 * i + row) % 13], [alone[row]]) for i in range(4)])
        assert torch.equal(together[:, row], expected)


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("dtype", TYPES)
def test_instruction_sets_give_the_same_bits(
    shape: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(shape, dtype)
    results = {}
    for number, isa in enumerate(("portable", "avx2", "avx512")):
        monkeypatch.delenv("QWENKIT_ISA", raising=False)
        if number <= native.isa():
            monkeypatch.setenv("QWENKIT_ISA", isa)
            results[isa] = _steps(_decoder(model), _caches(model, dtype))
    for isa, result in results.items():
        assert torch.equal(result, results["portable"]), isa


def test_threads_do_not_change_the_bits() -> None:
    model = _model("wider than a piece", torch.bfloat16)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(_steps(_decoder(model), _caches(model, torch.bfloat16)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])


def test_callers_with_other_thread_counts_do_not_disturb_each_other() -> None:
    model = _model("plain", torch.float32)
    expected = _steps(_decoder(model), _caches(model, torch.float32))
    results: list[torch.Tensor] = []

    def call(threads: int) -> None:
        torch.set_num_threads(threads)  # counts for the calling thread
        results.append(_steps(_decoder(model), _caches(model, torch.float32)))

    before = torch.get_num_threads()
    try:
        callers = [threading.Thread(target=call, args=(1 + i % 3,)) for i in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        torch.set_num_threads(before)
    assert len(results) == len(callers)
    assert all(torch.equal(result, expected) for result in results)


def test_a_first_token_needs_no_prompt() -> None:
    model = _model("odd sizes", torch.float32)
    ours, other = (DenseCache(model.config, dtype=torch.float32, device=CPU) for _ in range(2))
    with torch.inference_mode():
        expected = model(torch.tensor([5]), [Span(other, 1)])
    torch.testing.assert_close(_decoder(model).step([5], [ours]), expected, atol=1e-5, rtol=0)


def test_half_precision_is_closer_to_the_truth_than_the_plain_path() -> None:
    model = _model("wider than a piece", torch.bfloat16)
    exact = _model("wider than a piece", torch.bfloat16).float()
    caches = _caches(model, torch.bfloat16)
    wide = [_widened(exact, cache) for cache in caches]
    ids = list(range(len(caches)))
    with torch.inference_mode():
        truth = exact(torch.tensor(ids), [Span(c, 1) for c in wide])
        plain = model(torch.tensor(ids), [Span(c, 1) for c in _caches(model, torch.bfloat16)]).float()
    ours = _decoder(model).step(ids, caches)
    assert (ours - truth).abs().mean() < (plain - truth).abs().mean()


def test_long_context_and_growth() -> None:
    """More keys than fit any block, through several growths of the cache."""
    model = _model("grouped and tied", torch.float32)
    (cache,), (other,) = _caches(model, torch.float32, [1000]), _caches(model, torch.float32, [1000])
    decoder = _decoder(model)
    for i in range(600):
        logits = decoder.step([i % 97], [cache])
        if i % 100 == 99 or i < 3:
            with torch.inference_mode():
                expected = model(torch.tensor([i % 97]), [Span(other, 1)])
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        else:
            with torch.inference_mode():
                model(torch.tensor([i % 97]), [Span(other, 1)])


def test_nan_reaches_the_logits() -> None:
    model = _model("plain", torch.float32)
    model.layers[1].ffn.down.weight[3, 5] = float("nan")  # type: ignore[union-attr,index]
    assert bool(_decoder(model).step([1], _caches(model, torch.float32, [3])).isnan().any())


@pytest.mark.parametrize("row", [0, 4 * 16, 8 * 16])
def test_nan_queries_keys_and_values_reach_the_logits(row: int) -> None:
    """Softmax is where a NaN could get lost: every comparison with it is false."""
    model = _model("plain", torch.float32)
    caches = _caches(model, torch.float32, [20])
    model.layers[1].attn.qkv.weight[row, 5] = float("nan")  # type: ignore[union-attr,index]
    assert bool(_decoder(model).step([1], caches).isnan().all())


def test_lack_of_memory_is_an_exception() -> None:
    model = _model("plain", torch.float32)
    (cache,) = _caches(model, torch.float32, [3])
    decoder = _decoder(model)
    cache.length, cache.reserve = 2**60, lambda _: (cache._k, cache._v)  # type: ignore[assignment,method-assign]
    cache.offset = -cache.length
    with pytest.raises(MemoryError, match="smaller batch"):
        decoder.step([1], [cache])


@pytest.fixture
def other_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the loader looks for the library during this test."""
    monkeypatch.delenv("QWENKIT_ISA", raising=False)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    native._load.cache_clear()
    yield tmp_path / f"_native{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    native._load.cache_clear()


@pytest.mark.parametrize("field", ["_ABI_VERSION", "Layer", "Model", "Sequence"])
def test_a_library_of_another_version_is_not_used(
    field: str, other_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(_compiled(), other_library)
    assert native.problem() == ""
    native._load.cache_clear()
    newer = 0 if field == "_ABI_VERSION" else type(field, (ctypes.Structure,), {"_fields_": ()})
    monkeypatch.setattr(native, field, newer)
    assert native.library() is None
    assert "compiled for another version of qwenkit; install qwenkit again" in native.problem()


def test_a_library_without_a_version_is_not_used(other_library: Path) -> None:
    """As the first ones were; any other shared library will do."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    subprocess.run([compiler, "-shared", "-x", "c", "-o", str(other_library), os.devnull], check=True)
    assert native.library() is None
    assert "another version" in native.problem()


def test_a_file_that_is_no_library_is_not_used(other_library: Path) -> None:
    other_library.write_bytes(b"not a library")
    assert native.library() is None
    assert "cannot be loaded" in native.problem()


def _compiled() -> Path:
    folder = Path(str(native.__spec__.origin)).parent
    return next(folder.glob("_native*.so"))


def test_reference_turns_the_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENKIT_ISA", "reference")
    assert native_decoder(_model("plain", torch.float32)) is None
    monkeypatch.setenv("QWENKIT_ISA", "avx1024")
    with pytest.raises(ValueError, match="avx1024"):
        native_decoder(_model("plain", torch.float32))
