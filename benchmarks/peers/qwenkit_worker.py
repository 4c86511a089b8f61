"""qwenkit behind the questions of cpu.py."""

import json
import os
import sys
import time

from qwenkit import LLM, SamplingParams


def main() -> None:
    """Answers one JSON line a question."""
    out = os.dup(1)
    os.dup2(2, 1)
    options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    llm = LLM(sys.argv[1], num_threads=int(sys.argv[2]), prefix_caching=False, packed_cache="off", **options)

    def seconds(prompts: list[list[int]], count: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        start = time.perf_counter()
        llm.generate(prompts, params)
        return time.perf_counter() - start

    os.write(out, b'"ready"\n')
    for line in sys.stdin:
        prompts, count = json.loads(line)
        first = seconds(prompts, 1)
        rest = seconds(prompts, count) - first if count > 1 else 0.0
        os.write(out, (json.dumps([first, rest]) + "\n").encode())


if __name__ == "__main__":
    main()
