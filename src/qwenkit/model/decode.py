"""One decode step of the whole network in a single native call, checked against the plain network it stands for.

A token of a small model is bound by the overhead of a few hundred small operations and by how fast weights are read;
one call removes the first and reads weights at memory speed. Activations are float32 inside, so the result is at
least as exact as the plain path's. Knows nothing of sampling.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qwenkit.cache.dense import DenseCache
from qwenkit.kernels import native
from qwenkit.kernels.cpu import usable_cores
from qwenkit.layers.rope import logn_scale
from qwenkit.model.transformer import Layer, Transformer

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class NativeDecoder:
    """Decode steps of one network. Build it with ``native_decoder``."""

    def __init__(self, model: Transformer, library: ctypes.CDLL) -> None:
        self._network, self._library = model, library
        self._isa = native.isa()
        self._kept: list[Tensor] = []  # what the C structs point to
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
            embed=self._address(model.embed.weight),
            norm=self._address(model.norm.weight),
            head=self._address(model.head.weight),
            layer=layers,
        )

    def _fill(self, out: native.Layer, layer: Layer) -> None:
        linears = {
            "qkv": layer.attn.qkv,
            "out": layer.attn.out,
            "gate_up": layer.ffn.gate_up,
            "down": layer.ffn.down,
        }
        for name, linear in linears.items():
            setattr(out, f"{name}_weight", self._address(linear.weight))
            setattr(out, f"{name}_bias", self._address(linear.bias))
        norms: dict[str, nn.Module | None] = {"attn_norm": layer.attn_norm, "ffn_norm": layer.ffn_norm}
        norms |= {"q_norm": layer.attn.q_norm, "k_norm": layer.attn.k_norm}
        for name, norm in norms.items():
            setattr(out, name, None if norm is None else self._address(norm.weight))
        out.window = layer.attn.window or 0

    def _address(self, tensor: object) -> int | None:
        if tensor is None:
            return None
        assert isinstance(tensor, Tensor)
        assert tensor.is_contiguous()
        # Detached, so that moving the network elsewhere does not free what the C structs point to.
        self._kept.append(tensor.detach())
        return tensor.data_ptr()

    def step(self, token_ids: Sequence[int], caches: Sequence[DenseCache]) -> Tensor:
        """Runs one token of each sequence and stores its key and value.

        Args:
            token_ids: one per sequence, each inside the vocabulary.
            caches: of the same sequences.

        Returns:
            (B, V) float32 logits.
        """
        sequences = (native.Sequence * len(caches))()
        keep = [self._sequence(out, cache) for out, cache in zip(sequences, caches, strict=True)]
        ids = torch.tensor(token_ids, dtype=torch.int64)
        logits = torch.empty(len(caches), self._network.config.vocab_size)
        threads = max(1, min(torch.get_num_threads(), usable_cores(), native.MAX_THREADS))
        failed = self._library.qk_decode(
            ctypes.byref(self._model),
            len(caches),
            ids.data_ptr(),
            sequences,
            logits.data_ptr(),
            threads,
            self._isa,
        )
        assert not failed, "the instruction set was checked before"
        del keep
        for cache in caches:
            cache.advance(1)
        return logits

    def _sequence(self, out: native.Sequence, cache: DenseCache) -> tuple[Tensor, Tensor]:
        """Fills the C struct of one sequence; the tensors returned must live through the call."""
        keys, values = cache.reserve(1)
        position = cache.offset + cache.length
        cos, sin = self._network.rotary_rows(position, 1, cache.alpha)
        out.keys, out.values, out.capacity = keys.data_ptr(), values.data_ptr(), keys.shape[2]
        out.length, out.cos, out.sin = cache.length, cos.data_ptr(), sin.data_ptr()
        logn = self._network.config.logn_length
        far = logn is not None and position >= logn
        out.query_scale = (
            float(logn_scale(position, 1, logn, cos.device)) if far and logn is not None else 1.0
        )
        return cos, sin


def native_decoder(model: Transformer) -> NativeDecoder | None:
    """The native decode step of ``model``, or None where it cannot be used (GPU, no compiled kernels, float64)."""
    if model.device.type != "cpu" or model.dtype not in _TYPES:
        return None
    library = native.library()
    return None if library is None else NativeDecoder(model, library)
