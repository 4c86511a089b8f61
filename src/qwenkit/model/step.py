"""One forward call of the network over the new tokens of many sequences: native where possible, else plain torch.

A small model is bound by the overhead of a few hundred small operations and by how fast weights are read; one native
call removes the first and reads weights at memory speed. Activations are float32 inside, so the result is at least as
exact as the plain path's. Knows nothing of sampling or of who owns which page.
"""

from __future__ import annotations

import array
import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwenkit.cache.paged import PagedCache, PagePool
from qwenkit.core.errors import InputError
from qwenkit.kernels import native
from qwenkit.kernels.cpu import usable_cores
from qwenkit.kernels.packed import BLOCK, PackedWeight
from qwenkit.kernels.panels import ROWS, PanelWeight
from qwenkit.layers.linear import Linear
from qwenkit.layers.lora import PARTS, Adapter
from qwenkit.layers.quant_linear import QuantLinear, Stored
from qwenkit.layers.rope import logn_scale
from qwenkit.model.transformer import Layer, RMSNorm, Span, Transformer

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_OTHER_TYPES = {torch.float16: native.Format.HALF, torch.bfloat16: native.Format.BRAIN}
ACTIVATIONS = ("auto", "int8", "float")
"""What packed weights are multiplied with on the CPU: see LocalOptions.activations."""


class Forward(Protocol):
    """Runs new tokens of sequences whose caches are in one pool."""

    @property
    def name(self) -> str:
        """What computes, for people."""

    @property
    def is_deterministic(self) -> bool:
        """Whether a sequence gets the same numbers whatever else is in the call and however it is cut into calls."""

    @property
    def tells_generated(self) -> bool:
        """Whether numbers depend on Span.generated."""

    def __call__(
        self, token_ids: Sequence[int], spans: Sequence[Span], rows: Sequence[int], *, hidden: bool = False
    ) -> Tensor:
        """Runs the new tokens, stores their keys and values and advances the caches.

        Args:
            token_ids: of all spans, one after the other.
            spans: one per sequence; their counts add up to the number of tokens.
            rows: which of the tokens to return something for.
            hidden: the output of the last norm instead of logits.

        Returns:
            (len(rows), V) or, with ``hidden``, (len(rows), D), float32.

        Raises:
            InputError: counts, rows, ids or pages do not fit together; nothing was stored.
        """


def make_forward(model: Transformer, pool: PagePool, activations: str = "auto") -> Forward:
    """The native forward where it can be used: on the CPU, with compiled kernels, not in float64; else plain torch.

    Args:
        model: the network.
        pool: the pages of all sequences.
        activations: of a model with weights in panels: int8 for all tokens, or auto: only for those that the model chose
            where tiles of bfloat16 read prompts faster.
    """
    library = native.library() if model.device.type == "cpu" and model.dtype in _TYPES else None
    if library is None:
        return PlainForward(model)
    return NativeForward(model, pool, library, int8_prompts=activations == "int8")


class PlainForward:
    """The network in plain torch, on any device."""

    name = "torch"
    is_deterministic = False
    tells_generated = False

    def __init__(self, model: Transformer) -> None:
        self._network = model

    @torch.inference_mode()
    def __call__(
        self, token_ids: Sequence[int], spans: Sequence[Span], rows: Sequence[int], *, hidden: bool = False
    ) -> Tensor:
        """See Forward."""
        _check(token_ids, spans, rows, self._network.config.vocab_size)
        device = self._network.device
        ids, wanted = (torch.tensor(n, dtype=torch.int64, device=device) for n in (token_ids, rows))
        run = self._network.hidden_states if hidden else self._network
        out: Tensor = run(ids, _joined(spans), wanted)
        return out.float()


class NativeForward:
    """The network in one call of the compiled kernels. Build it with ``make_forward``."""

    is_deterministic = True

    def __init__(
        self, model: Transformer, pool: PagePool, library: ctypes.CDLL, *, int8_prompts: bool = False
    ) -> None:
        if pool.dtype != model.dtype:
            raise InputError(
                f"a pool of {pool.dtype} does not fit a model of {model.dtype}; make it of the same"
            )
        self._network, self._pages, self._library = model, pool, library
        self._isa = native.isa()
        self._cores = min(usable_cores(), native.MAX_THREADS)  # asking the system takes as long as a layer
        self.name = f"native {native.isa_name()}"
        """What computes, for people."""
        self._kept: list[object] = []  # what the C structs point to
        self._orders: list[Tensor] = []  # of the parts of one linear layer
        self._has_panels = False
        self._adapters: weakref.WeakKeyDictionary[Adapter, _NativeAdapter] = weakref.WeakKeyDictionary()
        self._pool = _native_pool(pool)
        config = model.config
        layers = (native.Layer * config.num_layers)()
        for out, layer in zip(layers, model.layers, strict=True):
            assert isinstance(layer, Layer)
            self._fill(out, layer)
        self._model = native.Model(
            type=_TYPES[model.dtype],
            layers=config.num_layers,
            hidden=config.hidden_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            ffn=config.ffn_size,
            vocab=config.vocab_size,
            rotary=config.rope.dim,
            eps=config.norm_eps,
            norm=self._address(model.norm.weight),
            embed=self._matrix(model.embed.table, config.hidden_size),
            head=self._head(model),
            layer=layers,
        )
        # Other networks never run on tiles, so that all their tokens are computed alike.
        has_tiles = self._isa == native.AMX and model.dtype == torch.bfloat16 and config.head_dim % 32 == 0
        self.tells_generated = self._has_panels and has_tiles and not int8_prompts
        if self._has_panels:
            self.name += ", int8 activations behind prompts" if self.tells_generated else ", int8 activations"

    def _head(self, model: Transformer) -> native.Matrix:
        if model.head.bias is not None or len(model.head.parts) != 1:
            raise InputError("an output head must be one matrix without a bias; load it as such")
        return self._matrix(model.head.parts[0], model.config.hidden_size)

    def _fill(self, out: native.Layer, layer: Layer) -> None:
        config = self._network.config
        d, q, f = config.hidden_size, config.q_size, config.ffn_size
        out.qkv = self._linear(layer.attn.qkv, q + 2 * config.kv_size, d)
        out.out = self._linear(layer.attn.out, d, q)
        out.gate_up = self._linear(layer.ffn.gate_up, 2 * f, d)
        out.down = self._linear(layer.ffn.down, d, f)
        norms: dict[str, RMSNorm | None] = {"attn_norm": layer.attn_norm, "ffn_norm": layer.ffn_norm}
        norms |= {"q_norm": layer.attn.q_norm, "k_norm": layer.attn.k_norm}
        for name, norm in norms.items():
            setattr(out, name, None if norm is None else self._address(norm.weight))
        out.window = layer.attn.window or 0

    def _linear(self, linear: Linear | QuantLinear, rows: int, columns: int) -> native.Linear:
        self._orders.clear()
        matrices, row = [], 0
        for part in linear.parts:
            # Rows are handed out in whole panels, counted from the first of the layer.
            fits = not isinstance(part, PanelWeight) or row % ROWS == 0
            matrices.append(self._matrix(part if fits else _as_rows(part), columns))
            row += part.shape[0]
        parts = (native.Matrix * len(matrices))(*matrices)
        self._kept.append(parts)
        assert sum(part.rows for part in parts) == rows, "a layer's parts have other sizes than the network"
        assert linear.bias is None or linear.bias.dtype == self._network.dtype
        return native.Linear(parts=len(parts), part=parts, bias=self._address(linear.bias))

    def _matrix(self, stored: Stored, columns: int) -> native.Matrix:
        assert stored.shape[1] == columns, "a matrix has another width than the network"
        if not isinstance(stored, Tensor):
            return self._packed(stored)
        if stored.dtype == self._network.dtype:
            kind = native.Format.DENSE
        elif stored.dtype in _OTHER_TYPES:
            kind = _OTHER_TYPES[stored.dtype]
        else:
            raise InputError(
                f"weights of {stored.dtype} do not fit a network of {self._network.dtype}; convert them to it"
            )
        return native.Matrix(format=kind, rows=len(stored), data=self._address(stored))

    def _packed(self, weight: PackedWeight | PanelWeight) -> native.Matrix:
        rows, columns = weight.shape
        assert columns % BLOCK == 0
        assert weight.group_size % 16 == 0 or weight.group_size >= columns
        order = weight.order
        if order is not None:  # activations are put in order once for each address
            order = next((known for known in self._orders if torch.equal(known, order)), order)
            self._orders.append(order)
        four, eight = native.Format.INT4, native.Format.INT8
        if isinstance(weight, PanelWeight):
            self._has_panels = True
            four, eight = native.Format.PANEL4, native.Format.PANEL8
        return native.Matrix(
            format=four if weight.bits == 4 else eight,
            rows=rows,
            group=weight.group_size,
            data=self._address(weight.codes),
            scales=self._address(weight.scales),
            zeros=self._address(weight.zeros),
            mins=self._address(weight.mins),
            order=self._address(order),
        )

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        assert tensor.is_contiguous()
        # Detached, so that moving the network elsewhere does not free what the C structs point to.
        self._kept.append(tensor.detach())
        return tensor.data_ptr()

    @torch.inference_mode()
    def __call__(
        self, token_ids: Sequence[int], spans: Sequence[Span], rows: Sequence[int], *, hidden: bool = False
    ) -> Tensor:
        """See Forward."""
        _check(token_ids, spans, rows, self._network.config.vocab_size)
        joined = _joined(spans)
        if not self.tells_generated:
            return self._run(token_ids, joined, rows, hidden=hidden, int8=self._has_panels)
        for span in joined:
            self._paged(span).check_room(span.count)
        kinds = {span.generated for span in spans}
        if len(kinds) == 1:
            return self._run(token_ids, spans, rows, hidden=hidden, int8=kinds == {True})
        return self._run_apart(token_ids, spans, rows, hidden=hidden)

    def _run_apart(
        self, token_ids: Sequence[int], spans: Sequence[Span], rows: Sequence[int], *, hidden: bool
    ) -> Tensor:
        """Tokens of prompts, then those that the model chose: what they are computed with must not depend on each other."""
        config = self._network.config
        out = torch.empty(len(rows), config.hidden_size if hidden else config.vocab_size)
        kind_of = np.repeat([span.generated for span in spans], [span.count for span in spans])
        ids, wanted = np.array(token_ids, dtype=np.int64), np.array(rows, dtype=np.int64)
        for generated in (False, True):
            own = kind_of == generated
            here = np.flatnonzero(own[wanted]) if len(wanted) else wanted
            numbers = np.cumsum(own) - 1  # of each token among its kind
            out[here] = self._run(
                ids[own],
                [span for span in spans if span.generated == generated],
                numbers[wanted[here]],
                hidden=hidden,
                int8=generated,
            )
        return out

    def _run(
        self,
        token_ids: Sequence[int] | NDArray[np.int64],
        spans: Sequence[Span],
        rows: Sequence[int] | NDArray[np.int64],
        *,
        hidden: bool,
        int8: bool,
    ) -> Tensor:
        config = self._network.config
        structs = (native.Span * len(spans))()
        keep = [self._span(out, span) for out, span in zip(structs, spans, strict=True)]
        ids, wanted = np.array(token_ids, dtype=np.int64), np.array(rows, dtype=np.int64)
        out = torch.empty(len(rows), config.hidden_size if hidden else config.vocab_size)
        threads = max(1, min(torch.get_num_threads(), self._cores))
        failed = self._library.qk_forward(
            ctypes.byref(self._model),
            ctypes.byref(self._pool),
            len(spans),
            structs,
            ids.ctypes.data,
            len(rows),
            wanted.ctypes.data,
            out.data_ptr(),
            hidden,
            int8,
            threads,
            self._isa,
        )
        assert not failed, "the instruction set was checked before"
        del keep
        for span in spans:
            span.cache.advance(span.count)
        return out

    def _paged(self, span: Span) -> PagedCache:
        cache = span.cache
        if not isinstance(cache, PagedCache) or cache.pool is not self._pages:
            raise InputError(
                "a cache of another pool was given; use pages of the pool this forward was made for"
            )
        return cache

    def _span(self, out: native.Span, span: Span) -> tuple[object, ...]:
        """Fills the C struct of one span; what is returned must live through the call."""
        cache = self._paged(span)
        cache.check_room(span.count)
        pages = array.array("i", cache.pages)
        position = cache.offset + cache.length
        cos, sin = self._network.rotary_rows(position, span.count, cache.alpha)
        logn, scale = self._network.config.logn_length, None
        if logn is not None and position + span.count > logn:
            scale = logn_scale(position, span.count, logn, cos.device)
        out.pages, out.length, out.count = pages.buffer_info()[0], cache.length, span.count
        out.cos, out.sin = cos.data_ptr(), sin.data_ptr()
        out.query_scale = None if scale is None else scale.data_ptr()
        adapter = None if span.adapter is None else self._adapter(span.adapter)
        if adapter is not None:
            out.adapter = ctypes.pointer(adapter.struct)
        return pages, cos, sin, scale, adapter

    def _adapter(self, adapter: Adapter) -> _NativeAdapter:
        found = self._adapters.get(adapter)
        if found is None:
            found = self._adapters[adapter] = _NativeAdapter(adapter, self._network.dtype)
        return found


def _as_rows(part: Stored) -> Stored:
    return part.rows(0, part.shape[0]) if isinstance(part, PanelWeight) else part


def _joined(spans: Sequence[Span]) -> list[Span]:
    """With neighbours of one sequence in one."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].cache is span.cache:
            joined[-1] = replace(span, count=joined[-1].count + span.count)
        else:
            joined.append(span)
    return joined


class _NativeAdapter:
    """The C structs of one adapter, and the tensors they point to."""

    def __init__(self, adapter: Adapter, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._kept: list[Tensor] = []
        lora = (native.Lora * (len(PARTS) * len(adapter.layers)))()
        for i, layer in enumerate(adapter.layers):
            for j, part in enumerate(PARTS):
                if (weights := layer.get(part)) is not None:
                    a, b = self._address(weights.a), self._address(weights.b)
                    lora[len(PARTS) * i + j] = native.Lora(rank=len(weights.a), a=a, b=b)
        self.struct = native.Adapter(
            lora=lora, embed=self._address(adapter.embed), head=self._address(adapter.head)
        )

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.detach().to(device="cpu", dtype=self._dtype).contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def _native_pool(pool: PagePool) -> native.Pool:
    names = ("keys", "values", "key_scale", "value_scale", "key_zero", "value_zero")
    return native.Pool(**{name: getattr(pool, name).data_ptr() for name in names}, int8=pool.int8)


def _check(token_ids: Sequence[int], spans: Sequence[Span], rows: Sequence[int], vocab_size: int) -> None:
    counts = [span.count for span in spans]
    if sum(counts) != len(token_ids) or min(counts, default=1) < 1:
        raise InputError(
            f"{len(token_ids)} token ids do not match spans of {counts} tokens; give every span its own"
        )
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        bad = next(i for i in token_ids if not 0 <= i < vocab_size)
        raise InputError(f"token id {bad} is outside the model's vocabulary of {vocab_size}")
    if rows and not 0 <= min(rows) <= max(rows) < len(token_ids):
        raise InputError(f"rows {min(rows)} to {max(rows)} were asked for; there are {len(token_ids)} tokens")
