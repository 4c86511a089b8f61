"""What does HTTP cost? Tokens a second through `qwenkit serve` against the bare engine, the same requests, taking turns.

    python benchmarks/serve.py [--rounds 3] [--concurrency 1 16 64] [--peer URL ...] [--json]

Requests are chats of about 64 prompt tokens and 64 answer tokens, greedy, streamed. The load generator runs on the same
machine, and what it needs is part of the result. --peer names servers of others that are running already.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from qwenkit import LLM, SamplingParams
from qwenkit.bench.workload import Span, Workload

OUTPUT, PROMPT = 64, 64
QWENKIT = [sys.executable, "-c", "from qwenkit.cli.main import run; run()"]


@contextmanager
def server(*options: str) -> Iterator[str]:
    """A server in a process of its own; yields its URL."""
    command = [*QWENKIT, "serve", "--port", "0", "--no-access-log", "--no-prefix-caching", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(r"http://\S+:\d+", line):
                    yield found.group()
                    return
            raise SystemExit("the server did not start")
        finally:
            process.terminate()


def through_http(url: str, concurrency: int, requests: int, seed: int) -> float:
    """Output tokens a second."""
    options = ["--concurrency", concurrency, "--num-requests", requests, "--seed", seed, "--ignore-eos"]
    options += ["--temperature", 0, "--prompt-tokens", PROMPT, "--output-tokens", OUTPUT, "--json", "-"]
    command = [*QWENKIT, "bench", "serve", url, *map(str, options)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["report"]["output_tokens_per_second"])


def bare(llm: LLM, requests: int, seed: int) -> float:
    """The same requests without HTTP."""
    span = Span(PROMPT, PROMPT)
    work = Workload(model="", prompt_tokens=span, output_tokens=Span(OUTPUT, OUTPUT), seed=seed)
    chats = [work.body(i)["messages"] for i in range(requests)]
    params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
    start = time.perf_counter()
    replies = llm.chat_batch(chats, params)
    return sum(r.usage.completion_tokens for r in replies) / (time.perf_counter() - start)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--peer", nargs="*", default=[], metavar="URL")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows: dict[int, dict[str, float]] = {}
    for concurrency in args.concurrency:
        llm = LLM(max_batch_size=concurrency, prefix_caching=False)
        with server("--max-batch-size", str(concurrency)) as url:
            found: dict[str, list[float]] = {}
            requests = max(4, 3 * concurrency)
            for number in range(args.rounds + 1):
                values = {"engine": bare(llm, requests, number)}
                for name in (url, *args.peer):
                    values["server" if name == url else name] = through_http(
                        name, concurrency, requests, number
                    )
                for name, value in values.items():
                    found.setdefault(name, []).append(value)
            rows[concurrency] = {name: statistics.median(v[1:]) for name, v in found.items()}
        llm.close()
    if args.json:
        print(json.dumps(rows))
        return
    for concurrency, row in rows.items():
        ratio = row["server"] / row["engine"]
        shown = ", ".join(f"{name} {value:.1f}" for name, value in row.items())
        print(f"{concurrency} at once, output tok/s: {shown}; server / engine {ratio:.3f}")


if __name__ == "__main__":
    main()
