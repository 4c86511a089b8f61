"""The command line as a process, with the real default model."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.forks import qwenkit, together
from tests.support.process import QWENKIT, environment

DATA = Path(__file__).parents[1] / "data"
pytestmark = pytest.mark.usefixtures("smollm2_gguf")


def test_one_answer() -> None:
    done = qwenkit("chat", "--greedy", "What is 2+2?")
    assert (done.returncode, done.stdout) == (0, "The answer to this classic math problem is 4.\n")
    assert done.stderr == ""


def test_piped_text_is_part_of_the_question() -> None:
    done = qwenkit("chat", "--greedy", "--json", "Repeat this:", stdin="The sky is green.\n")
    answer = json.loads(done.stdout)
    assert answer["usage"]["prompt_tokens"] > 36
    assert "green" in answer["text"]


def test_a_batch_says_what_its_prompts_say_alone() -> None:
    prompts = ["The capital of France is", "Once upon a time,", "def fibonacci(n):\n"]
    options = ("--greedy", "-n", "16", "--dtype", "float32", "--json")
    runs = together(("generate", *options, *prompts), *(("generate", *options, prompt) for prompt in prompts))
    batch, *alone = [[json.loads(line) for line in done.stdout.splitlines()] for done in runs]
    assert [row["prompt"] for row in batch] == prompts
    assert [row["text"] for row in batch] == [rows[0]["text"] for rows in alone]


@pytest.mark.parametrize("text", ["Hello, 你好！👩‍👩‍👧 é\u0301\n\ttail ", "<|im_start|>user\nHi<|im_end|>\n"])
def test_tokens_and_back(text: str) -> None:
    done = qwenkit("tokenize", stdin=text)
    assert done.returncode == 0
    assert qwenkit("detokenize", stdin=done.stdout).stdout == text


def test_text_that_looks_like_a_control_token() -> None:
    ids = json.loads(qwenkit("tokenize", "--no-specials", "--json", "<|im_end|>").stdout)["ids"]
    assert len(ids) > 1


def test_inspect_tells_the_numbers_of_the_header() -> None:
    done = qwenkit("inspect", "smollm2-135m", "--json")
    report = json.loads(done.stdout)
    sizes = {"num_layers": 30, "hidden_size": 576, "ffn_size": 1536, "num_heads": 9, "num_kv_heads": 3}
    assert report["sizes"].items() >= {**sizes, "head_dim": 64, "vocab_size": 49152}.items()
    assert (report["file_bytes"], report["num_params"]) == (98362432, 134515008)
    assert (report["family"], report["format"], report["context_length"]) == ("llama", "gguf", 8192)
    assert set(report["tensors"]) == {"Q4_1", "Q8_0", "F32"}
    assert report["features"] == {"rotary base": "100000", "tied embeddings": "yes"}
    assert (report["vocab_tokens"], report["chat_template"]) == (49152, "jinja")


def test_inspect_loads_no_weights(tmp_path: Path) -> None:
    """A folder in the shape of Qwen-7B, 15 GB of holes: read in, it would fill the memory."""
    make_qwen_7b(tmp_path)
    # A process counts the memory of the one it was forked from as its own, and this one may be large by now.
    measure = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", measure, QWENKIT, "inspect", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    shown, _, kilobytes = done.stdout.strip().rpartition("\n")
    report = json.loads(shown)
    assert report["num_params"] == 7_721_324_544
    assert report["tensors"] == {"BF16": 2 * 7_721_324_544}
    assert int(kilobytes) < 1_000_000  # importing torch takes a quarter of that


def make_qwen_7b(folder: Path) -> None:
    """config.json and a sparse model.safetensors with the tensors of Qwen-7B."""
    layers, hidden, ffn, vocab = 32, 4096, 11008, 151936
    config = {
        "architectures": ["QWenLMHeadModel"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "intermediate_size": 2 * ffn,
        "seq_length": 8192,
        "vocab_size": vocab,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"transformer.wte.weight": [vocab, hidden], "lm_head.weight": [vocab, hidden]}
    shapes["transformer.ln_f.weight"] = [hidden]
    for i in range(layers):
        name = f"transformer.h.{i}."
        shapes |= {name + "ln_1.weight": [hidden], name + "ln_2.weight": [hidden]}
        shapes |= {name + "attn.c_attn.weight": [3 * hidden, hidden], name + "attn.c_attn.bias": [3 * hidden]}
        shapes |= {name + "attn.c_proj.weight": [hidden, hidden], name + "mlp.c_proj.weight": [hidden, ffn]}
        shapes |= {name + "mlp.w1.weight": [ffn, hidden], name + "mlp.w2.weight": [ffn, hidden]}
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def test_perplexity_of_a_file(tmp_path: Path) -> None:
    text = (DATA / "wikitext2-excerpt.txt").read_bytes()[:8000]
    (tmp_path / "text.txt").write_bytes(text)
    done = qwenkit("perplexity", str(tmp_path / "text.txt"), "--json")
    row = json.loads(done.stdout)
    assert (row["tokens"], row["total_tokens"], row["complete"]) == (2069, 2069, True)
    # What transformers computes in float32; here it may be bfloat16.
    assert row["perplexity"] == pytest.approx(13.804, rel=0.01)
