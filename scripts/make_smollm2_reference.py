"""Writes tests/data/smollm2.json: what transformers computes in float32 with the SmolLM2 weights of the GGUF file.

python scripts/make_smollm2_reference.py MODEL.gguf [--threads N]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import transformers

DATA = Path(__file__).parents[1] / "tests" / "data"
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at",
    "The three laws of motion are:\n1.",
    "Q: What is photosynthesis?\nA:",
    "In 1969, humans first",
    "She opened the door and",
    "import numpy as np\n\n# Compute the mean of each row\n",
    "Dear Sir or Madam,\n\n",
    "The difference between a virus and a bacterium is that",
    "List of fruits: apple, banana,",
    "你好，",
    "Le chat est sur",
    '{"name": "Alice", "age":',
    "<|im_start|>user\nName two primary colours.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a haiku about rain.<|im_end|>\n<|im_start|>assistant\n",
    "SELECT name FROM users WHERE",
    "The quick brown fox jumps over the lazy dog. " * 20,
    "1, 1, 2, 3, 5, 8, 13,",
]
CHARACTERS, WINDOW = 12_000, 2048


def main() -> None:
    """Computes and writes the reference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = {"pretrained_model_name_or_path": str(args.gguf.parent), "gguf_file": args.gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    cases = [greedy(model, tokenizer, prompt) for prompt in PROMPTS]
    text = (DATA / "wikitext2-excerpt.txt").read_text(encoding="utf-8")[:CHARACTERS]
    nll, count = score(model, tokenizer(text, add_special_tokens=False)["input_ids"])
    out = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "greedy": cases,
        "excerpt": {
            "characters": CHARACTERS,
            "window": WINDOW,
            "scored_tokens": count,
            "mean_nll": nll / count,
        },
    }
    (DATA / "smollm2.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def greedy(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, prompt: str
) -> dict[str, object]:
    """64 greedy tokens, end tokens ignored."""
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=64,
        eos_token_id=None,
        pad_token_id=0,
    )
    return {"prompt": prompt, "prompt_ids": ids[0].tolist(), "output_ids": out[0, ids.shape[1] :].tolist()}


@torch.inference_mode()
def score(model: transformers.PreTrainedModel, ids: list[int]) -> tuple[float, int]:
    """Summed negative log-likelihood over windows, and how many tokens it covers."""
    total, count = 0.0, 0
    for at in range(0, len(ids) - 1, WINDOW):
        window = torch.tensor([ids[at : at + WINDOW]])
        logits = model(window).logits[0, :-1].double()
        total -= float(logits.log_softmax(-1).gather(1, window[0, 1:, None]).sum())
        count += window.shape[1] - 1
    return total, count


if __name__ == "__main__":
    main()
