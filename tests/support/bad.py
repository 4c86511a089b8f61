"""Ways to spoil a good model folder; each names words that the error must contain."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

GOOD = Path(__file__).parents[1] / "data" / "golden" / "qwen1-tiny-plain"
SHARDED = GOOD.parent / "qwen1-tiny-ntk-logn"


def _config(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        raw = json.loads(path.read_text())
        for key, value in changes.items():
            if value is None:
                del raw[key]
            else:
                raw[key] = value
        path.write_text(json.dumps(raw))

    return spoil


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return _bytes(edit)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code from a model folder ran",))


def _bin_with_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": _Evil()}, folder / "pytorch_model.bin")


def _bin_cut(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:5000])


def _as_gguf(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.with_suffix(".gguf").write_bytes(change(tiny_gguf()))

    return spoil


def tiny_gguf() -> bytes:
    """A GGUF header of one key and one tensor, with its 64 bytes of data."""
    key = b"general.architecture"
    out = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    out += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 5) + b"llama"
    out += struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 4, 4, 0, 0)
    return out + b"\0" * (-len(out) % 32) + b"\0" * 64


WEIGHT = "transformer.h.1.mlp.w1.weight"
CASES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json", "no model folder"]),
    "empty folder": (lambda f: [p.unlink() for p in f.iterdir()], ["config.json"]),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), ["config.json", "not valid JSON"]),
    "config is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        ["config.json", "not a JSON object"],
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["no weights", "model.safetensors"]),
    "unknown architecture": (
        _config(architectures=["MambaForCausalLM"]),
        ["MambaForCausalLM", "QWenLMHeadModel", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"],
    ),
    "key missing": (_config(seq_length=None), ["seq_length"]),
    "key contradictory": (_config(n_layer=7), ["num_hidden_layers=3", "n_layer=7"]),
    "key of a wrong kind": (_config(hidden_size="wide"), ["hidden_size", "'wide'", "whole number"]),
    "key negative": (_config(num_hidden_layers=-3), ["num_layers=-3"]),
    "size absurd": (_config(hidden_size=10**12), ["hidden_size=1000000000000"]),
    "layers absurd": (_config(num_hidden_layers=10**6), ["1000000"]),
    "two precisions": (_config(bf16=True, fp16=True), ["bf16", "fp16"]),
    "biased everywhere": (_config(no_bias=False), ["no_bias"]),
    "tensor missing": (_tensors(lambda t: t.pop(WEIGHT)), [WEIGHT, "lacks"]),
    "tensor unexpected": (_tensors(lambda t: t.update(extra=torch.ones(1))), ["'extra'"]),
    "tensor of a wrong shape": (
        _tensors(lambda t: t.update({WEIGHT: torch.ones(5, 64)})),
        [WEIGHT, "[5, 64]", "[128, 64]"],
    ),
    "file empty": (_bytes(lambda b: b""), ["0 bytes"]),
    "file cut in the data": (_bytes(lambda b: b[:-100]), ["truncated"]),
    "file cut in the header": (_bytes(lambda b: b[:100]), ["truncated"]),
    "file is text": (_bytes(lambda b: b"version https://git-lfs.github.com/spec/v1\n" * 3), ["safetensors"]),
    "header length absurd": (_bytes(lambda b: struct.pack("<Q", 2**62) + b[8:]), ["safetensors", str(2**62)]),
    "header shape absurd": (_header(lambda h: h[WEIGHT].update(shape=[2**40, 2**40])), [WEIGHT, "needs"]),
    "header shape negative": (_header(lambda h: h[WEIGHT].update(shape=[-128, -64])), [WEIGHT, "malformed"]),
    "header offsets outside": (
        _header(lambda h: h[WEIGHT].update(data_offsets=[2**40, 2**40 + 32768])),
        ["truncated"],
    ),
    "header type unknown": (_header(lambda h: h[WEIGHT].update(dtype="F7")), [WEIGHT, "'F7'"]),
    "header entry broken": (_header(lambda h: h.update({WEIGHT: 3})), [WEIGHT, "malformed"]),
    "bin with code": (_bin_with_code, ["refused", "could run code", "safetensors"]),
    "bin cut": (_bin_cut, ["pytorch_model.bin", "cannot be read"]),
    "gguf cut": (_as_gguf(lambda b: b[:-10]), ["truncated"]),
    "gguf cut in the header": (_as_gguf(lambda b: b[:60]), ["truncated"]),
    "gguf of version 9": (_as_gguf(lambda b: b[:4] + struct.pack("<I", 9) + b[8:]), ["version 9"]),
    "gguf with absurd counts": (
        _as_gguf(lambda b: b[:8] + struct.pack("<QQ", 2**60, 2**60) + b[24:]),
        ["damaged"],
    ),
    "gguf with an absurd string": (
        _as_gguf(lambda b: b[:24] + struct.pack("<Q", 2**50) + b[32:]),
        ["truncated or damaged"],
    ),
    "gguf without sizes": (_as_gguf(lambda b: b), ["llama.attention.head_count"]),
    "random bytes": (_as_gguf(lambda b: b"\x07" * 500), ["no GGUF file"]),
}


def spoiled(name: str, folder: Path) -> Path:
    """A copy of the good model under ``folder``, spoiled in the named way."""
    target = folder / "model"
    shutil.copytree(GOOD, target, ignore=shutil.ignore_patterns("cases.safetensors"))
    CASES[name][0](target)
    return target if target.exists() else target.with_suffix(".gguf")
