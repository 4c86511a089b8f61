"""Adapters that were just learnt, served together: each answers as its own merged model, whoever else is asked meanwhile."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwenkit import LLM, SamplingParams
from tests.support.forks import qwenkit
from tests.support.live_server import live_server
from tests.support.process import QWENKIT
from tests.support.tiny_models import write_model

QUESTIONS = ("Colour 1?", "Colour 2?", "Colour 3?")
ANSWERS = {"a": ("red", "green", "blue"), "b": ("north", "south", "west")}
LENGTH = 10
TRAINING = ("--dtype", "float32", "--lora-r", "8", "--learning-rate", "2e-2", "--threads", "1")
STEPS = ("--max-steps", "60", "--accumulate", "1", "--batch-size", "3", "--lora-dropout", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters that were taught other answers to the same questions, and both merged."""
    root = tmp_path_factory.mktemp("adapters")
    write_model(root / "base")
    for name, answers in ANSWERS.items():
        rows = [{"instruction": q, "output": said} for q, said in zip(QUESTIONS, answers, strict=True)]
        (root / f"{name}.json").write_text(json.dumps(rows))
        where = ("-m", str(root / "base"), "--data", str(root / f"{name}.json"), "--out", str(root / name))
        learnt = qwenkit("finetune", *where, *TRAINING, *STEPS)
        assert learnt.returncode == 0, learnt.stderr
        merged = qwenkit("merge", str(root / name), str(root / f"{name}-merged"))
        assert merged.returncode == 0, merged.stderr
    return root


def answers_of(model: Path) -> list[str]:
    """Greedy ones, in this process."""
    params = SamplingParams(temperature=0, max_tokens=LENGTH)
    with LLM(str(model), dtype="float32") as llm:
        return [llm.chat(question, params).text for question in QUESTIONS]


def test_each_answers_as_its_own_merged_model(folder: Path) -> None:
    wanted = {name: answers_of(folder / f"{name}-merged") for name in ANSWERS} | {
        "base": answers_of(folder / "base")
    }
    assert wanted["a"] == list(ANSWERS["a"])
    assert wanted["b"] == list(ANSWERS["b"])
    assert wanted["base"] not in (wanted["a"], wanted["b"])
    adapters = [text for name in ANSWERS for text in ("--lora", f"{name}={folder / name}")]
    command = (QWENKIT, "serve", "-m", str(folder / "base"), "--port", "0", "--dtype", "float32", *adapters)
    with live_server((*command, "--served-model-name", "base"), model="base") as server:

        def ask(model: str, question: str) -> str:
            body = {"model": model, "messages": [{"role": "user", "content": question}]}
            data = json.dumps(body | {"temperature": 0, "max_tokens": LENGTH}).encode()
            headers = {"content-type": "application/json"}
            request = urllib.request.Request(f"{server.base_url}/chat/completions", data, headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return str(json.load(answer)["choices"][0]["message"]["content"])

        asked = [(name, question) for question in QUESTIONS for name in wanted] * 3
        with ThreadPoolExecutor(len(asked)) as pool:
            said = list(pool.map(lambda pair: ask(*pair), asked))
    assert said == [wanted[name][QUESTIONS.index(question)] for name, question in asked]
