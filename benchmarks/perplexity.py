"""Is it right? Perplexity of a text with qwenkit and with transformers, on the same weights, windows and dtype.

    python benchmarks/perplexity.py TEXT [--dtype float32] [--windows N] [--threads N]

TEXT is for example the WikiText-2 test set as one file. Windows have 2048 tokens and do not overlap.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import transformers

from qwenkit import LLM
from qwenkit.weights.sources import fetch

WINDOW = 2048


def main() -> None:
    """Computes both, window by window, and prints a Markdown row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--windows", type=int)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    path = fetch("smollm2-135m")
    llm = LLM(path, dtype=args.dtype, num_threads=args.threads)
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=getattr(torch, args.dtype)
    ).eval()
    ids = llm.tokenizer.encode(args.text.read_text(encoding="utf-8"), allowed_special=())
    starts = list(range(0, len(ids) - 1, WINDOW))[: args.windows]
    ours = theirs = 0.0
    count = 0
    for number, at in enumerate(starts, start=1):
        window = ids[at : at + WINDOW]
        ours -= math.fsum(llm.backend.logprobs([window])[0])
        theirs += score(peer, window)
        count += len(window) - 1
        a, b = math.exp(ours / count), math.exp(theirs / count)
        end = "\n" if number == len(starts) else "\r"
        print(
            f"| {args.dtype} | {number} windows | qwenkit {a:.5f} | transformers {b:.5f} | {a / b - 1:+.6%} |",
            end=end,
            flush=True,
        )


@torch.inference_mode()
def score(model: transformers.PreTrainedModel, ids: list[int]) -> float:
    """Summed negative log-likelihood of every token but the first."""
    logits = model(torch.tensor([ids])).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))


if __name__ == "__main__":
    main()
