"""Forward calls: which one is made, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from qwenkit.cache.dense import DenseCache
from qwenkit.cache.paged import PagedCache, PagePool
from qwenkit.core.errors import InputError
from qwenkit.kernels import native
from qwenkit.model.step import Forward, NativeForward, PlainForward, make_forward
from qwenkit.model.transformer import Span, Transformer
from tests.support.networks import family_config, random_network

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_network(family_config("qwen2"))


@pytest.fixture
def pool(model: Transformer) -> PagePool:
    return PagePool(model.config, num_pages=6, dtype=model.dtype, device=CPU)


@pytest.fixture(params=["native", "plain"])
def forward(request: pytest.FixtureRequest, model: Transformer, pool: PagePool) -> Forward:
    if request.param == "plain":
        return PlainForward(model)
    if native.library() is None:
        pytest.skip("the native kernels are not compiled")
    return make_forward(model, pool)


def test_the_plain_forward_is_the_network(model: Transformer, pool: PagePool) -> None:
    cache, other = PagedCache(pool, [4, 2]), PagedCache(pool, [1, 5])
    dense = DenseCache(model.config, dtype=model.dtype, device=CPU)
    ids = list(range(40))
    forward = PlainForward(model)
    got = forward([*ids, 7, 8], [Span(cache, 40), Span(other, 2)], [39, 0, 41])
    with torch.inference_mode():
        expected = model(torch.tensor(ids), [Span(dense, 40)])
    torch.testing.assert_close(got[:2], expected[[39, 0]], atol=1e-4, rtol=0)
    assert (cache.length, other.length) == (40, 2)
    states = forward([3], [Span(cache, 1)], [0], hidden=True)
    with torch.inference_mode():
        expected = model(torch.tensor([3]), [Span(dense, 1)])
    torch.testing.assert_close(model.head(states), expected, atol=1e-4, rtol=0)


def test_native_where_it_can_be(model: Transformer, pool: PagePool, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library() is not None:
        forward = make_forward(model, pool)
        assert isinstance(forward, NativeForward)
        assert forward.is_deterministic
        assert forward.name == f"native {native.isa_name()}"
    double = random_network(family_config("qwen2")).double()
    assert isinstance(make_forward(double, pool), PlainForward)
    monkeypatch.setenv("QWENKIT_ISA", "reference")
    plain = make_forward(model, pool)
    assert isinstance(plain, PlainForward)
    assert not plain.is_deterministic
    assert plain.name == "torch"


@pytest.mark.parametrize(
    ("ids", "counts", "rows", "message"),
    [
        ([1, 2, 3], [2], [0], "3 token ids do not match spans of \\[2\\]"),
        ([1, 2], [2, 0], [0], "do not match"),
        ([1, 60], [2], [0], "token id 60 is outside the model's vocabulary of 60"),
        ([-1, 2], [2], [0], "token id -1"),
        ([1, 2], [2], [2], "rows 2 to 2 were asked for; there are 2 tokens"),
        ([1, 2], [2], [0, -1], "rows -1 to 0"),
        ([1] * 70, [70], [0], "70 tokens do not fit in 2 pages"),
    ],
)
def test_what_does_not_fit_is_refused(
    forward: Forward, pool: PagePool, ids: list[int], counts: list[int], rows: list[int], message: str
) -> None:
    caches = [PagedCache(pool, [1, 3]), PagedCache(pool, [2])]
    with pytest.raises(InputError, match=message):
        forward(ids, [Span(c, n) for c, n in zip(caches, counts, strict=False)], rows)
    assert caches[0].length == 0


def test_a_cache_of_another_pool_is_refused(model: Transformer, pool: PagePool) -> None:
    forward = make_forward(model, pool)
    if isinstance(forward, PlainForward):
        pytest.skip("the native kernels are not compiled")
    other = PagePool(model.config, num_pages=6, dtype=model.dtype, device=CPU)
    with pytest.raises(InputError, match="another pool"):
        forward([1], [Span(PagedCache(other, [0]), 1)], [0])
    half = PagePool(model.config, num_pages=1, dtype=torch.float16, device=CPU)
    with pytest.raises(InputError, match=r"does not fit a model of torch\.float32"):
        make_forward(model, half)
