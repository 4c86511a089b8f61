"""OpenVINO GenAI behind the questions of cpu.py. Runs in an environment with openvino-genai."""

import json
import os
import sys

import numpy as np
import openvino as ov
import openvino_genai


def main() -> None:
    """Answers one JSON line a question."""
    out = os.dup(1)
    os.dup2(2, 1)
    threads = {"INFERENCE_NUM_THREADS": int(sys.argv[2])}
    pipe = openvino_genai.LLMPipeline(sys.argv[1], "CPU", **threads)
    config = openvino_genai.GenerationConfig()
    config.do_sample, config.ignore_eos = False, True
    os.write(out, b'"ready"\n')
    for line in sys.stdin:
        prompts, count = json.loads(line)
        config.max_new_tokens = count
        ids = np.array(prompts, dtype=np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        metrics = pipe.generate(inputs, config).perf_metrics
        first = metrics.get_ttft().mean / 1e3
        rest = metrics.get_generate_duration().mean / 1e3 - first if count > 1 else 0.0
        os.write(out, (json.dumps([first, rest]) + "\n").encode())


if __name__ == "__main__":
    main()
