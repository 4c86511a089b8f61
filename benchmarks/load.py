"""What does starting cost? Time to the first token of `make chat PROMPT=...`, and peak memory of loading.

    python benchmarks/load.py [--rounds 5] [--json]

Memory: the highest resident size a fresh process reaches while loading, less what it has after importing torch, over
the size of the weights in the target dtype. The GGUF file is dequantised; the folder holds bfloat16 safetensors.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_LOAD = """
import resource, sys
import torch, qwenkit.backends.opening
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
from qwenkit import LLM
model = LLM(sys.argv[1], dtype=sys.argv[2]).backend.model
weights = sum(p.nbytes for p in model.parameters())
print((peak() - before) / weights)
"""
_SAVE = """
import sys
from pathlib import Path
import torch
from qwenkit.config.families import FAMILIES
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.load import build_model
from qwenkit.weights.save import save_model
from qwenkit.weights.sources import fetch
checkpoint = open_checkpoint(fetch("smollm2-135m"))
model = build_model(checkpoint, device=torch.device("cpu"), dtype=torch.bfloat16, packed=False)
save_model(Path(sys.argv[1]), model, FAMILIES["llama"])
"""


def first_token_seconds() -> float:
    """Seconds from starting make to the first byte of the answer."""
    start = time.perf_counter()
    command = ["make", "-s", "chat", "PROMPT=What is the capital of France?"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - start
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"make chat failed with {process.returncode}")
    return seconds


def run(code: str, *args: str) -> str:
    """Runs Python code in a fresh process and returns what it prints."""
    return subprocess.run(
        [sys.executable, "-c", code, *args], check=True, capture_output=True, text=True
    ).stdout


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    first_token_seconds()  # makes the environment if need be
    rows: dict[str, Any] = {
        "first token of make chat, seconds": statistics.median(
            first_token_seconds() for _ in range(args.rounds)
        )
    }
    with tempfile.TemporaryDirectory() as folder:
        saved = f"{folder}/saved"
        run(_SAVE, saved)
        for model in ("smollm2-135m", saved):
            for dtype in ("bfloat16", "float32"):
                kind = "safetensors" if model == saved else "GGUF"
                rows[f"peak memory over weights, {kind} to {dtype}"] = float(run(_LOAD, model, dtype))
    print(json.dumps(rows) if args.json else "\n".join(f"| {k} | {v:.2f} |" for k, v in rows.items()))


if __name__ == "__main__":
    main()
