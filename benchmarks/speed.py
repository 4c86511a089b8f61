"""How fast is one sequence? qwenkit against transformers on the same weights, dtype and threads, alternating in one run.

    python benchmarks/speed.py [--dtype bfloat16] [--rounds 5] [--json]

Prints a Markdown table of medians: prefill of 512 tokens, greedy decoding of 128 tokens behind a 32-token prompt
(batch 1), greedy decoding of 16 such sequences together. Both engines are warmed up by one short generation.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qwenkit import LLM, SamplingParams
from qwenkit.kernels.cpu import cpu_model
from qwenkit.weights.sources import fetch

PREFILL, PROMPT, DECODE, BATCH = 512, 32, 128, 16


def ours(path: Path, dtype: str) -> dict[str, Callable[[], float]]:
    """Timed runs of qwenkit; the time of a one-token generation is taken off the decode time."""
    llm = LLM(path, dtype=dtype, prefix_caching=False)

    def generate(prompts: list[list[int]], count: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        start = time.perf_counter()
        llm.generate(prompts, params)
        return time.perf_counter() - start

    def run_decode(batch: int) -> float:
        prompts = [tokens(PROMPT, seed) for seed in range(batch)]
        first = generate(prompts, 1)
        return batch * (DECODE - 1) / (generate(prompts, DECODE) - first)

    return {
        "prefill": lambda: PREFILL / generate([tokens(PREFILL)], 1),
        "decode": lambda: run_decode(1),
        "decode x16": lambda: run_decode(BATCH),
    }


def theirs(path: Path, dtype: str) -> dict[str, Callable[[], float]]:
    """The same of transformers' generate; the time of a one-token generation is taken off the decode time."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=getattr(torch, dtype)
    ).eval()

    def generate(ids: torch.Tensor, count: int) -> float:
        start = time.perf_counter()
        options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count, "pad_token_id": 0}
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return time.perf_counter() - start

    @torch.inference_mode()
    def run_prefill() -> float:
        ids = torch.tensor([tokens(PREFILL)])
        start = time.perf_counter()
        model(ids, use_cache=True, logits_to_keep=1)
        return PREFILL / (time.perf_counter() - start)

    def run_decode(batch: int) -> float:
        ids = torch.tensor([tokens(PROMPT, seed) for seed in range(batch)])
        first = generate(ids, 1)
        return batch * (DECODE - 1) / (generate(ids, DECODE) - first)

    return {"prefill": run_prefill, "decode": lambda: run_decode(1), "decode x16": lambda: run_decode(BATCH)}


def tokens(count: int, seed: int = 0) -> list[int]:
    """Repeatable token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1000, 40000, (count,), generator=generator).tolist()


def measure(rounds: int, engines: dict[str, dict[str, Callable[[], float]]]) -> dict[str, dict[str, float]]:
    """Medians over ``rounds``, the engines taking turns within each."""
    results: dict[str, dict[str, list[float]]] = {name: {} for name in engines}
    for number in range(rounds + 1):
        for what in ("prefill", "decode", "decode x16"):
            for name, runs in engines.items():
                value = runs[what]()
                if number:  # the first round warms up
                    results[name].setdefault(what, []).append(value)
    return {name: {w: statistics.median(v) for w, v in r.items()} for name, r in results.items()}


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    path = fetch("smollm2-135m")
    medians = measure(
        args.rounds, {"qwenkit": ours(path, args.dtype), "transformers": theirs(path, args.dtype)}
    )
    about: dict[str, Any] = {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if args.json:
        print(json.dumps({"about": about, "tokens_per_second": medians}))
        return
    print(
        ", ".join(f"{k} {v}" for k, v in about.items()),
        "\n\n| tok/s | qwenkit | transformers | ratio |\n|---|---|---|---|",
    )
    for what, value in medians["qwenkit"].items():
        peer = medians["transformers"][what]
        print(f"| {what} | {value:.1f} | {peer:.1f} | {value / peer:.2f} |")


if __name__ == "__main__":
    main()
