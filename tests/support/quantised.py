"""Quantised folders made for tests: copies of golden ones with changes, and small networks rounded and packed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from qwenkit.config.families import FAMILIES
from qwenkit.config.quant import QuantConfig, quantisation_dict
from qwenkit.layers.packing import to_awq_gemm, to_awq_gemv, to_gptq
from qwenkit.model.transformer import Transformer
from qwenkit.quantize.grid import dequantise, round_to_nearest
from qwenkit.weights.save import save_model, stored_tensors

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FOLDERS = [
    "qwen1-tiny-gptq-int4",
    "qwen1-tiny-gptq-int4-act-order",
    "qwen1-tiny-gptq-int8",
    "qwen1-tiny-awq-gemm",
    "qwen1-tiny-awq-gemm-g32",
    "qwen1-tiny-awq-gemv",
]
Tensors = dict[str, Tensor]


def changed(
    folder: Path,
    to: Path,
    *,
    tensors: Callable[[Tensors], object] = lambda tensors: None,
    config: Mapping[str, Any] | None = None,
    side: Mapping[str, Any] | None = None,
) -> Path:
    """A copy of a quantised folder.

    Args:
        folder: what to copy.
        to: where; must not exist.
        tensors: changes them in place.
        config: keys changed in quantization_config, None takes one out; None: the whole of it is taken out.
        side: what the file beside config.json holds; None: there is none.
    """
    to.mkdir(parents=True)
    stored = load_file(folder / "model.safetensors")
    tensors(stored)
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, to / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    old = raw.pop("quantization_config")
    if config is not None:
        raw["quantization_config"] = {k: v for k, v in (old | dict(config)).items() if v is not None}
    (to / "config.json").write_text(json.dumps(raw))
    if side is not None:
        name = "quant_config.json" if "w_bit" in side else "quantize_config.json"
        (to / name).write_text(json.dumps(side))
    return to


def copied(name: str, to: Path) -> Path:
    """A copy of a golden folder."""
    shutil.copytree(GOLDEN / name, to)
    return to


def as_version_2(tensors: Tensors, bits: int = 4) -> None:
    """Rewrites GPTQ zeros as gptq_v2 stores them."""
    one = {4: 0x11111111, 8: 0x01010101}[bits]
    for name in tensors:
        if name.endswith(".qzeros"):
            tensors[name] += one


def sharded(folder: Path) -> Path:
    """Cuts model.safetensors of a folder in two, with an index; the tensors of one matrix come to lie apart."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors, key=lambda name: name[::-1])
    home = {n: f"model-0000{1 + (i >= len(names) // 2)}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(home.values()):
        save_file({n: tensors[n] for n in names if home[n] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": home}))
    return folder


def pack_network(
    model: Transformer,
    family: str,
    folder: Path,
    *,
    layout: str = "gptq",
    bits: int = 4,
    group_size: int = 64,
    symmetric: bool = True,
    skip: tuple[str, ...] = (),
) -> Path:
    """Saves a network with its linears rounded and packed, and gives it the values they stand for.

    Args:
        model: float32; changed.
        family: whose names are used.
        folder: must not exist.
        layout: gptq, gptq_v2, gemm or gemv.
        bits: of a code.
        group_size: -1: all inputs.
        symmetric: whether zeros lie in the middle.
        skip: modules whose names contain one of these stay as they are.
    """
    row = FAMILIES[family]
    for weight in model.parameters():
        weight.data.copy_(weight.half())
    dense = stored_tensors(model, row)
    if model.config.tie_embeddings:
        dense.pop(row.tensors["head.weight"][0], None)
    tables = {row.tensors[name][0] for name in ("embed.weight", "head.weight")}
    out: Tensors = {}
    for name, tensor in dense.items():
        if tensor.ndim < 2 or name in tables or any(part in name for part in skip):
            out[name] = tensor.half()
            continue
        found = round_to_nearest(tensor.float(), bits=bits, group_size=group_size, symmetric=symmetric)
        tensor.copy_(dequantise(found))  # a view of the weight
        writers: dict[str, Callable[[], Tensors]] = {
            "gptq": lambda found=found: to_gptq(found),
            "gptq_v2": lambda found=found: to_gptq(found, version=2),
            "gemm": lambda found=found: to_awq_gemm(found),
            "gemv": lambda found=found: to_awq_gemv(found),
        }
        out |= {f"{name.removesuffix('weight')}{suffix}": t for suffix, t in writers[layout]().items()}
    method = "gptq" if layout.startswith("gptq") else "awq"
    quant = QuantConfig(
        method=method,
        bits=bits,
        group_size=group_size,
        layout=layout,
        symmetric=symmetric if method == "gptq" else None,
        not_converted=skip,
    )
    save_model(folder, model, row)
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, folder / "model.safetensors")
    inside, beside, side = quantisation_dict(quant)
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": inside, "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / beside).write_text(json.dumps(side))
    return folder
