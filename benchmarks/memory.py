"""How much memory does a model take, and does the computed table say so? Resident memory of a process per size.

    python benchmarks/memory.py [--model smollm2-135m] [--dtype bfloat16] [--kv-cache auto,int8] [--head auto]
                                [--sizes 1x512,1x2048,...] [--json]

Every size, SEQUENCESxTOKENS, is a process of its own: it runs a tiny network first, so that libraries have what they
keep, takes note of its memory, loads the model without tokenizer, and generates, so that all sequences are there at
once. Prints a Markdown row per size: what weights/memory.py computes, and the peak measured above that note.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from qwenkit.backends.base import BackendInfo
from qwenkit.backends.local import LocalBackend
from qwenkit.backends.options import LocalOptions
from qwenkit.config.model import ModelConfig, RopeConfig
from qwenkit.core.types import Request, SamplingParams
from qwenkit.kernels.cpu import release_freed_memory
from qwenkit.model.transformer import Transformer
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.load import build_model
from qwenkit.weights.memory import kv_bytes, memory_table, weights_bytes
from qwenkit.weights.sources import fetch

SIZES = "1x512,1x2048,1x8192,4x512,4x2048,16x512,16x2048,64x512"
OUTPUT = 128  # more steps than the prompts of any size take, so that the first sequence still runs when the last comes
TINY = ModelConfig(
    vocab_size=64,
    hidden_size=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    ffn_size=64,
    norm_eps=1e-6,
    context_length=64,
    rope=RopeConfig(base=10000.0, dim=32),
)


def resident(key: str) -> int:
    """Bytes this process holds (VmRSS), or held at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status does not tell {key}; this needs Linux")


def run(network: Transformer, kv_cache: str, batch: int, length: int) -> None:
    """Generates with that many sequences of that length."""
    config, output = network.config, min(OUTPUT, length // 2)
    cache = kv_bytes(config, network.dtype, kv_cache == "int8", batch=batch, length=length)
    options = LocalOptions(
        device="cpu", max_batch_size=batch, kv_cache=kv_cache, cache_memory=cache, prefix_caching=False
    )
    info = BackendInfo(
        model="benchmark",
        family="",
        context_length=max(config.context_length, length),
        vocab_size=config.vocab_size,
        dtype=str(network.dtype).removeprefix("torch."),
        device="cpu",
        can_chat=False,
        max_window_size=length,
        defaults=SamplingParams(),
        details={},
    )
    backend = LocalBackend(network, info, tokenizer=None, template=None, eos_ids=(), options=options)
    params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(config.vocab_size, (batch, length - output), generator=generator).tolist()
    for _ in backend.stream([Request(prompt=tuple(ids), params=params) for ids in prompts]):
        pass
    backend.close()


def measure(args: dict[str, Any]) -> dict[str, Any]:
    """One size in this process."""
    dtype = getattr(torch, args["dtype"])
    tiny = Transformer(TINY).to(dtype)
    for weight in tiny.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    run(tiny.requires_grad_(False), args["kv_cache"], 2, 64)
    checkpoint = open_checkpoint(fetch(args["model"]))
    checkpoint.metadata.clear()
    weights = weights_bytes(checkpoint, dtype, head=args["head"])
    release_freed_memory()
    before = resident("VmRSS")
    network = build_model(checkpoint, device=torch.device("cpu"), dtype=dtype, head=args["head"])
    checkpoint.store.close()
    loading = resident("VmHWM") - before
    loaded = resident("VmRSS") - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    run(network, args["kv_cache"], args["batch"], args["length"])
    (row,) = memory_table(
        network.config,
        weights,
        dtype=dtype,
        kv_caches=(args["kv_cache"],),
        batches=(args["batch"],),
        lengths=(args["length"],),
    )
    peak = resident("VmHWM") - before
    return row.to_dict() | {"loading": loading, "loaded": loaded, "peak": peak, "before": before}


def main() -> None:
    """Runs every size and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kv-cache", default="auto,int8")
    parser.add_argument("--head", default="auto")
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the size that a process of its own measures
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(json.loads(args.one))))
        return
    if not args.json:
        print(
            "| cache | sequences | tokens | weights | loaded | cache | room | computed | peak | difference |"
        )
        print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for kind in args.kv_cache.split(","):
        for size in args.sizes.split(","):
            batch, length = map(int, size.split("x"))
            wanted = {"model": args.model, "dtype": args.dtype, "head": args.head, "kv_cache": kind}
            task = json.dumps(wanted | {"batch": batch, "length": length})
            done = subprocess.run(
                [sys.executable, __file__, "--one", task], stdout=subprocess.PIPE, check=True, text=True
            )
            show(json.loads(done.stdout), as_json=args.json)


def show(row: dict[str, Any], *, as_json: bool) -> None:
    """One size, in MiB."""
    if as_json:
        print(json.dumps(row), flush=True)
        return
    names = ("weights_bytes", "loaded", "kv_bytes", "workspace_bytes", "total_bytes", "peak")
    cells = [f"{row[name] / 2**20:,.1f}" for name in names]
    kind = row["dtype"] if row["kv_cache"] == "auto" else row["kv_cache"]
    share = row["peak"] / row["total_bytes"] - 1
    print(f"| {kind} | {row['batch']} | {row['length']:,} | {' | '.join(cells)} | {share:+.1%} |", flush=True)


if __name__ == "__main__":
    main()
