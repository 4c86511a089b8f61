"""Runs of random small networks over ragged batches in a paged cache, native or plain, for tests of the forward calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qwenkit.cache.dense import DenseCache
from qwenkit.cache.paged import PAGE_SIZE, PagedCache, PagePool
from qwenkit.config.model import ModelConfig, RopeConfig
from qwenkit.layers.lora import Adapter, LoraWeights
from qwenkit.layers.rope import ntk_alpha
from qwenkit.model.step import Forward, NativeForward, make_forward
from qwenkit.model.transformer import Span, Transformer
from tests.support.models import CPU

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
        "head_dim": 11,
        "rope": RopeConfig(base=1e4, dim=10),
        "vocab_size": 13,
    },
    "tiny heads": {"num_heads": 12, "num_kv_heads": 1, "head_dim": 2, "rope": RopeConfig(base=1e4, dim=2)},
    "wide heads": {"head_dim": 144, "rope": RopeConfig(base=1e4, dim=100)},
    "heads of 80": {"head_dim": 80, "num_kv_heads": 2, "rope": RopeConfig(base=1e4, dim=80)},
    "heads of 64": {"head_dim": 64, "num_kv_heads": 1, "rope": RopeConfig(base=1e4, dim=64)},
    "biases": {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
    "query and key norm": {"qk_norm": True, "head_dim": 24, "rope": RopeConfig(base=1e6, dim=24)},
    "partial rotation": {"rope": RopeConfig(base=10000.0, dim=6)},
    "windows": {"windows": (5, None), "num_kv_heads": 2},
    "ntk and logn": {"rope": RopeConfig(base=10000.0, dim=16, ntk_length=8), "logn_length": 8},
    "one head": {"num_heads": 1, "num_kv_heads": 1, "hidden_size": 16},
    "wider than a piece": {"hidden_size": 300, "ffn_size": 1100, "vocab_size": 1001},
}
PROMPTS = [7, 1, 70, 12, 33]
"""Lengths; every sequence reads PROMPTS[i] tokens and then a few more."""
MORE = 3


def make_model(shape: str, dtype: torch.dtype) -> Transformer:
    """A network with random weights, the same at every call."""
    config = ModelConfig(**BASE | SHAPES[shape])
    torch.manual_seed(len(shape))
    model = Transformer(config)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.15)
    return model.to(dtype).eval().requires_grad_(False)


def make_adapter(model: Transformer, seed: int, *, tables: bool) -> Adapter:
    """Random updates of every linear but one, with ``tables`` an embedding and a head too."""
    config, generator = model.config, torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        # In every type the same numbers.
        return (torch.randn(*shape, generator=generator) * 0.2).bfloat16().to(model.dtype)

    d, f = config.hidden_size, config.ffn_size
    sizes = {
        "qkv": (d, config.q_size + 2 * config.kv_size),
        "out": (config.q_size, d),
        "gate_up": (d, 2 * f),
        "down": (f, d),
    }
    layers = [
        {part: LoraWeights(a=draw(rank, n), b=draw(out, rank)) for part, (n, out) in sizes.items()}
        for rank in (3, 20)
    ]
    del layers[seed % 2]["out"]
    vocab = (config.vocab_size, d)
    embed, head = (draw(*vocab), draw(*vocab)) if tables else (None, None)
    return Adapter(name=str(seed), layers=tuple(layers), embed=embed, head=head)


def _ids(model: Transformer, row: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(row)
    return torch.randint(0, model.config.vocab_size, (count,), generator=generator).tolist()


def make_pool(model: Transformer, *, int8: bool = False, poison: bool = False) -> PagePool:
    """A pool for a few sequences; poisoned: every byte 255, which is NaN."""
    pool = PagePool(model.config, num_pages=64, dtype=model.dtype, device=CPU, int8=int8)
    if poison:  # whatever was in memory before
        for tensor in (
            pool.keys,
            pool.values,
            pool.key_scale,
            pool.value_scale,
            pool.key_zero,
            pool.value_zero,
        ):
            tensor.view(torch.uint8).fill_(255)
    return pool


def alpha_of(model: Transformer, row: int) -> int:
    """NTK factor of a row."""
    return ntk_alpha(PROMPTS[row % len(PROMPTS)], model.config.rope.ntk_length)


class Run:
    """Sequences read by one forward, all positions' logits kept."""

    def __init__(
        self,
        model: Transformer,
        rows: list[int],
        *,
        int8: bool = False,
        poison: bool = False,
        adapters: list[Adapter | None] | None = None,
        forward: Forward | None = None,
    ) -> None:
        self.model = model
        self.pool = make_pool(model, int8=int8, poison=poison)
        self.forward = forward or make_forward(model, self.pool)
        self.ids = {row: _ids(model, row, PROMPTS[row % len(PROMPTS)] + MORE) for row in rows}
        order = torch.randperm(
            self.pool.num_pages, generator=torch.Generator().manual_seed(len(rows))
        ).tolist()
        self.caches = {}
        for row in rows:
            pages = [order.pop() for _ in range(-(-len(self.ids[row]) // PAGE_SIZE))]
            self.caches[row] = PagedCache(self.pool, pages, alpha=alpha_of(model, row))
        self.adapters = {row: adapters[row % len(adapters)] if adapters else None for row in rows}
        self.logits: dict[int, list[torch.Tensor]] = {row: [] for row in rows}

    def step(self, counts: dict[int, int]) -> None:
        """The next counts[row] tokens of some rows, in one call."""
        ids, spans = [], []
        for row, count in counts.items():
            at = self.caches[row].length
            ids += self.ids[row][at : at + count]
            spans.append(Span(self.caches[row], count, self.adapters[row]))
        out = self.forward(ids, spans, range(len(ids)))
        for row, part in zip(counts, out.split(list(counts.values())), strict=True):
            self.logits[row].append(part)

    def read(self, chunks: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """Every row in pieces of these sizes, the last of them again and again, side by side."""
        left = {row: len(ids) for row, ids in self.ids.items()}
        while any(left.values()):
            counts = {}
            for row, sizes in chunks.items():
                size = min(left[row], sizes.pop(0) if len(sizes) > 1 else sizes[0])
                if size:
                    counts[row] = size
                    left[row] -= size
            self.step(counts)
        return {row: torch.cat(parts) for row, parts in self.logits.items()}

    def at_once(self) -> dict[int, torch.Tensor]:
        return self.read({row: [len(ids)] for row, ids in self.ids.items()})


def native_run(model: Transformer, rows: list[int], **options: Any) -> Run:
    """A run by the native forward."""
    run = Run(model, rows, **options)
    assert isinstance(run.forward, NativeForward)
    return run


def plain_logits(
    model: Transformer, row: int, adapter: Adapter | None = None, cache: DenseCache | PagedCache | None = None
) -> torch.Tensor:
    """The plain network's logits of one sequence, read at once."""
    if cache is None:
        cache = DenseCache(model.config, dtype=model.dtype, device=CPU, alpha=alpha_of(model, row))
    ids = _ids(model, row, PROMPTS[row % len(PROMPTS)] + MORE)
    with torch.inference_mode():
        return model(torch.tensor(ids), [Span(cache, len(ids), adapter)]).float()


class _Rounding(DenseCache):
    """Keeps float32 keys and values, rounded as the native forward's cache rounds them."""

    def __init__(self, config: ModelConfig, rounded: torch.dtype, alpha: int) -> None:
        super().__init__(config, dtype=torch.float32, device=CPU, alpha=alpha)
        self.rounded = rounded

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().update(layer, k.to(self.rounded).float(), v.to(self.rounded).float())


def exact_logits(
    shape: str, dtype: torch.dtype, row: int, adapter: Callable[[Transformer], Adapter] | None = None
) -> torch.Tensor:
    """As the plain network would have it if it computed half-precision weights and caches in float32."""
    model = make_model(shape, dtype).float()
    cache = _Rounding(model.config, dtype, alpha_of(model, row))
    return plain_logits(model, row, adapter and adapter(model), cache)


def assert_near(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Compares to a share of the largest number."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(got / scale, expected / scale, atol=tolerance, rtol=0)
