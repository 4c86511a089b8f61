"""Quantised folders from the command line, with no option that says how they are stored."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from qwenkit.tokenizer.save import save_tokenizer
from tests.support.forks import qwenkit, together
from tests.support.process import QWENKIT, assert_one_sentence, environment
from tests.support.quantised import as_version_2, changed, copied
from tests.support.tiny_models import byte_tiktoken, write_text

NAMES = ["qwen1-tiny-gptq-int4", "qwen1-tiny-gptq-int8", "qwen1-tiny-awq-gemm"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Golden folders as chat models: with a tokenizer, and the settings of the released ones."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    for name in NAMES:
        found[name] = folder = copied(name, root / name)
        save_tokenizer(folder, byte_tiktoken())
        settings = {"chat_format": "chatml", "do_sample": False, "eos_token_id": 256, "max_new_tokens": 9}
        (folder / "generation_config.json").write_text(json.dumps(settings))
    return found


def test_chat_and_generate(folders: dict[str, Path]) -> None:
    commands = [("chat", "-m", str(folder), "Hi there", "--json") for folder in folders.values()]
    commands += [("generate", "-m", str(folder), "Hi there", "--json") for folder in folders.values()]
    for done in together(*commands):
        assert (done.returncode, done.stderr) == (0, "")
        answer = json.loads(done.stdout)
        assert answer["finish_reason"] in ("stop", "length")
        if "usage" in answer:
            assert 1 <= answer["usage"]["completion_tokens"] <= 9  # as generation_config.json says


def test_the_reference_and_compiled_kernels_say_the_same(folders: dict[str, Path]) -> None:
    command = ("generate", "-m", str(folders[NAMES[0]]), "one two", "--dtype", "float32", "-n", "12")
    plain = qwenkit(*command, QWENKIT_ISA="reference")
    assert plain.returncode == 0
    assert qwenkit(*command).stdout == plain.stdout


def test_version_2_needs_no_option(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its zeros read as version 1 would make every answer nonsense."""
    again = changed(folders[NAMES[0]], tmp_path / "m", tensors=as_version_2, config={})
    save_tokenizer(again, byte_tiktoken())
    answers = together(
        *(("generate", "-m", str(f), "one two", "-n", "12") for f in (folders[NAMES[0]], again))
    )
    assert answers[0].stdout == answers[1].stdout != ""


def test_perplexity_with_a_head_of_8_bits(folders: dict[str, Path], tmp_path: Path) -> None:
    text = str(write_text(tmp_path / "text.txt", 1024))
    model = str(folders[NAMES[0]])
    rows = [
        json.loads(done.stdout)
        for done in together(
            ("perplexity", text, "-m", model, "--json"),
            ("perplexity", text, "-m", model, "--head", "int8", "--json"),
        )
    ]
    assert rows[0]["perplexity"] != rows[1]["perplexity"]
    assert rows[0]["perplexity"] == pytest.approx(rows[1]["perplexity"], rel=0.01)


def test_inspect(folders: dict[str, Path]) -> None:
    shown, report = together(
        ("inspect", str(folders[NAMES[1]])), ("inspect", str(folders[NAMES[1]]), "--json")
    )
    assert "gptq, 8 bit, group 128" in shown.stdout
    assert "stays packed" in shown.stdout
    facts = json.loads(report.stdout)
    assert (facts["quantisation"], facts["runnable"], facts["head"]) == (
        "gptq, 8 bit, group 128",
        True,
        "F16",
    )


def test_impossible_heads(folders: dict[str, Path]) -> None:
    assert "auto or int8" in assert_one_sentence(
        qwenkit("chat", "-m", str(folders[NAMES[0]]), "hi", "--head", "int4")
    )
    assert "leave the option out" in assert_one_sentence(qwenkit("generate", "hi", "--head", "int8"))


def test_a_server_says_how_it_runs(folders: dict[str, Path]) -> None:
    command = [QWENKIT, "serve", "-m", str(folders[NAMES[2]]), "--port", "0", "--head", "int8"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert re.search(r"quantisation awq, 4 bit, group 128 · head 8 bit · kernels \S+", line), line
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
