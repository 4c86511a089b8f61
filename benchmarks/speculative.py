"""What does speculative decoding by lookup bring? The same model with and without, alternating in one run.

    python benchmarks/speculative.py [--model smollm2-135m] [--dtype auto] [--rounds 5] [--batch 1] [--json]

Greedy decoding of 128 tokens behind prompts whose continuation repeats them, changes them a little, or is new. Prints medians
of tokens per second, the acceptance rate, and tokens per step; replies with and without must be the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from qwenkit import LLM, SamplingParams
from qwenkit.kernels.cpu import cpu_model

COUNT = 128
_LIST = "Apples: 3\nPears: 12\nPlums: 7\nCherries: 45\nBananas: 9\nOranges: 22\n"
_CODE = """def average(values):
    s = 0
    for value in values:
        s = s + value
    return s / len(values)
"""
PROMPTS = {
    "a list that repeats": _LIST * 3,
    "code with a name changed": f"{_CODE}\n# The same with total for s:\n\ndef average(values):\n    total = 0\n",
    "a story": "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "an explanation": "Photosynthesis is the process by which",
}


def run(llm: LLM, prompt: str, batch: int) -> tuple[float, list[tuple[int, ...]], dict[str, int]]:
    """Tokens per second, the replies, and what the engine counted."""
    before = llm.backend.stats()
    start = time.perf_counter()
    out = llm.generate([prompt] * batch, SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True))
    seconds = time.perf_counter() - start
    after = llm.backend.stats()
    names = ("proposed_tokens", "accepted_tokens", "steps")
    counts = {name: getattr(after, name) - getattr(before, name) for name in names}
    return batch * COUNT / seconds, [c.token_ids for c in out], counts


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    llms = {kind: LLM(args.model, dtype=args.dtype, speculative=kind) for kind in ("off", "ngram")}
    rows = []
    for what, prompt in PROMPTS.items():
        speeds: dict[str, list[float]] = {kind: [] for kind in llms}
        for number in range(args.rounds + 1):
            done = {kind: run(llm, prompt, args.batch) for kind, llm in llms.items()}
            if done["off"][1] != done["ngram"][1]:
                raise SystemExit(f"{what}: the replies differ")
            for kind, (speed, _, _) in done.items():
                if number:  # the first round warms up
                    speeds[kind].append(speed)
        row = {kind: statistics.median(found) for kind, found in speeds.items()}
        counts = done["ngram"][2]
        row["accepted"] = counts["accepted_tokens"] / max(counts["proposed_tokens"], 1)
        row["tokens_per_step"] = COUNT / counts["steps"]
        rows.append({"text": what, **row})
    about = {"cpu": cpu_model(), "threads": torch.get_num_threads(), "model": args.model, "batch": args.batch}
    if args.json:
        print(json.dumps({"about": about, "rows": rows}))
        return
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    print("\n| text | tok/s | with lookup | ratio | accepted | tokens a step |\n|---|---|---|---|---|---|")
    for row in rows:
        off, ngram = row["off"], row["ngram"]
        print(
            f"| {row['text']} | {off:.1f} | {ngram:.1f} | {ngram / off:.2f} | {row['accepted']:.0%} | {row['tokens_per_step']:.2f} |"
        )


if __name__ == "__main__":
    main()
