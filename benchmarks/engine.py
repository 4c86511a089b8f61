"""How many tokens a second does the engine make for many at once, and do texts depend on the batch? Against vLLM.

    python benchmarks/engine.py [--dtype bfloat16] [--rounds 5] [--vllm PYTHON] [--kv-cache int8] [--json]

PYTHON is the interpreter of an environment with vLLM for CPUs. Both engines hold the same weights and take turns; a
round is greedy decoding of 64 tokens behind 32-token prompts, prompts included in the time. Then 40 prompts of 48 greedy
tokens, alone and together: how many texts differ. Then the first token behind a prefix of 1,000 tokens, cached and not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from qwenkit import LLM, SamplingParams
from qwenkit.config.families import FAMILIES
from qwenkit.kernels.cpu import cpu_model
from qwenkit.model.transformer import Transformer
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.load import build_model
from qwenkit.weights.save import save_model

BATCHES, PROMPT, OUTPUT = (1, 4, 16, 64), 32, 64
TEXTS, TEXT_LENGTH = 40, 48
WORKER = """
import json, os, sys, time
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
out = os.dup(1)
os.dup2(2, 1)  # vLLM talks on stdout
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype=sys.argv[2], max_model_len=2048, enforce_eager=True, skip_tokenizer_init=True,
          enable_prefix_caching=False)
os.write(out, b"ready\\n")
for line in sys.stdin:
    prompts, count = json.loads(line)
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    done = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    seconds = time.perf_counter() - start
    os.write(out, (json.dumps([seconds, [list(d.outputs[0].token_ids) for d in done]]) + "\\n").encode())
"""


class Engine(Protocol):
    """Continues prompts greedily."""

    def __call__(self, prompts: Sequence[Sequence[int]], count: int) -> tuple[float, list[list[int]]]:
        """Seconds, and the new tokens of each prompt."""


def ours(llm: LLM) -> Engine:
    """qwenkit."""

    def run(prompts: Sequence[Sequence[int]], count: int) -> tuple[float, list[list[int]]]:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        start = time.perf_counter()
        replies = llm.generate(prompts, params)
        return time.perf_counter() - start, [list(reply.token_ids) for reply in replies]

    return run


@contextmanager
def vllm(python: str, folder: Path, dtype: str) -> Iterator[Engine]:
    """vLLM in a process of its own."""
    command = [python, "-c", WORKER, str(folder), dtype]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        if stdout.readline() != "ready\n":
            raise SystemExit(f"vLLM does not start with {python}")

        def run(prompts: Sequence[Sequence[int]], count: int) -> tuple[float, list[list[int]]]:
            stdin.write(json.dumps([list(map(list, prompts)), count]) + "\n")
            stdin.flush()
            seconds, tokens = json.loads(stdout.readline())
            return seconds, tokens

        try:
            yield run
        finally:
            stdin.close()


def tokens(count: int, seed: int) -> list[int]:
    """Repeatable token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1000, 40000, (count,), generator=generator).tolist()


def throughput(engines: dict[str, Engine], rounds: int) -> dict[str, dict[int, float]]:
    """Median tokens a second by engine and batch, the engines taking turns."""
    found: dict[str, dict[int, list[float]]] = {name: {b: [] for b in BATCHES} for name in engines}
    for number in range(rounds + 1):
        for batch in BATCHES:
            prompts = [tokens(PROMPT, 1000 * number + i) for i in range(batch)]
            for name, run in engines.items():
                seconds, _ = run(prompts, OUTPUT)
                if number:  # the first round warms up
                    found[name][batch].append(batch * OUTPUT / seconds)
    return {name: {b: statistics.median(v) for b, v in of.items()} for name, of in found.items()}


def texts_that_differ(run: Engine) -> int:
    """Of TEXTS greedy texts, how many are not what they are alone."""
    prompts = [tokens(8 + 3 * (i % 20), 50_000 + i) for i in range(TEXTS)]
    alone = [run([prompt], TEXT_LENGTH)[1][0] for prompt in prompts]
    return sum(a != b for a, b in zip(alone, run(prompts, TEXT_LENGTH)[1], strict=True))


def prefix(llm: LLM, rounds: int) -> tuple[float, float]:
    """Median seconds to the first token behind a 1,000-token prefix, unknown and cached."""
    once = SamplingParams(temperature=0, max_tokens=1)
    first, second = [], []
    for number in range(rounds + 1):
        common = tokens(1000, 90_000 + number)
        for seconds, tail in ((first, [5, 6, 7]), (second, [8, 9, 10])):
            start = time.perf_counter()
            next(iter(llm.stream_generate([common + tail], once)))
            seconds.append(time.perf_counter() - start)
    return statistics.median(first[1:]), statistics.median(second[1:])


def main() -> None:
    """Runs everything and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vllm", metavar="PYTHON")
    parser.add_argument("--kv-cache", default="auto")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    llm = LLM(dtype=args.dtype, kv_cache=args.kv_cache)
    engines = {"qwenkit": ours(llm)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        if args.vllm:
            save_model(path, _numbers(llm), FAMILIES["llama"], tokenizer=llm.tokenizer)
            with vllm(args.vllm, path, args.dtype) as peer:
                report(llm, engines | {"vLLM": peer}, args)
        else:
            report(llm, engines, args)


def _numbers(llm: LLM) -> Transformer:
    """The model's network without packed weights, which the peer cannot read."""
    checkpoint = open_checkpoint(Path(llm.info.details["path"]))
    dtype = getattr(torch, llm.info.dtype)
    return build_model(checkpoint, device=torch.device("cpu"), dtype=dtype, packed=False)


def report(llm: LLM, engines: dict[str, Engine], args: argparse.Namespace) -> None:
    """Measures and prints."""
    speeds = throughput(engines, args.rounds)
    differ = {name: texts_that_differ(run) for name, run in engines.items()}
    uncached, cached = prefix(llm, args.rounds)
    about: dict[str, Any] = {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "kernels": llm.info.details["kernels"],
    }
    if args.json:
        result = {"speeds": speeds, "differ": differ, "uncached": uncached, "cached": cached}
        print(json.dumps(about | result))
        return
    print(about)
    print("| tok/s, sequences at once |", " | ".join(engines), "| ratio |")
    for batch in BATCHES:
        values = [of[batch] for of in speeds.values()]
        print(f"| {batch} |", " | ".join(f"{v:.1f}" for v in values), f"| {values[0] / values[-1]:.2f} |")
    print(f"texts of {TEXTS} that differ alone and together: {differ}")
    print(
        f"first token behind 1,000 tokens: {uncached:.3f} s, cached {cached:.3f} s, {uncached / cached:.1f}x"
    )


if __name__ == "__main__":
    main()
