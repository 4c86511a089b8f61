"""The lm-evaluation-harness against a server process with a real model, with tasks of our own.

What it measures through HTTP must be what the model says in this process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenkit import LLM, Message, SamplingParams
from qwenkit.tokenizer.hf_json import HfTokenizer
from qwenkit.tokenizer.save import save_tokenizer
from tests.support.live_server import LiveServer
from tests.support.process import environment

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "tests" / "data" / "lm_eval"
SCORES, TEXTS, PROSE = "qwenkit_capitals", "qwenkit_counting", "qwenkit_prose"
STYLES: dict[str, tuple[str, ...]] = {
    "tokenizer of its own": (SCORES, TEXTS, PROSE),
    "texts for prompts": (SCORES,),
    "tokenizer of the server": (SCORES, TEXTS),
    "no tokenizer": (TEXTS,),
}
CHAT = "chat"
Samples = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path) -> Iterator[LLM]:
    """The same model as the server's."""
    with LLM(smollm2_gguf, dtype="float32", max_context=512, num_threads=1) as found:
        yield found


@pytest.fixture(scope="module")
def answers(
    smollm2_server: LiveServer, smollm2_tokenizer: HfTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Samples]:
    """Every answer lm-eval got, by style of asking and task."""
    folder = tmp_path_factory.mktemp("lm_eval")
    save_tokenizer(folder, smollm2_tokenizer)
    own = {"tokenizer_backend": "huggingface", "tokenizer": str(folder)}
    styles = (
        own | {"batch_size": 4},
        own | {"tokenized_requests": False},
        {"tokenizer_backend": "auto", "auth_token": smollm2_server.key, "num_concurrent": 3},
        {"tokenizer_backend": "none"},
    )
    common = {"model": smollm2_server.model, "max_length": 512}
    raw = common | {"base_url": f"{smollm2_server.base_url}/completions"}
    runs = [
        {"model": "local-completions", "tasks": tasks, "arguments": raw | style}
        for tasks, style in zip(STYLES.values(), styles, strict=True)
    ]
    chat = common | {"base_url": f"{smollm2_server.base_url}/chat/completions"}
    runs.append({"model": "local-chat-completions", "tasks": (TEXTS,), "arguments": chat})
    return dict(zip((*STYLES, CHAT), _run(runs, smollm2_server.key, folder), strict=True))


def _run(runs: list[dict[str, Any]], key: str, folder: Path) -> list[Samples]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.lm_eval_runs"],
        input=json.dumps(runs),
        cwd=TASKS,  # where the tasks find their documents
        env=environment(OPENAI_API_KEY=key, PYTHONPATH=path, **offline),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("style", [name for name, tasks in STYLES.items() if SCORES in tasks])
def test_scores_are_the_models_own(style: str, answers: dict[str, Samples], model: LLM) -> None:
    samples = answers[style][SCORES]
    assert len(samples) == len((TASKS / "capitals.jsonl").read_text(encoding="utf-8").splitlines())
    for sample in samples:
        doc = sample["doc"]
        asked = len(model.tokenizer.encode(doc["question"]))
        wholes = [model.tokenizer.encode(doc["question"] + choice) for choice in doc["choices"]]
        expected = [
            sum(row[asked - 1 :]) for row in model.backend.logprobs(wholes)
        ]  # the first token has none
        found = [float(answer[0][0]) for answer in sample["resps"]]
        assert found == pytest.approx(expected, abs=1e-3)
    by_question = {sample["doc"]["question"]: sample["acc"] for sample in samples}
    assert by_question["The capital of France is"] == 1


@pytest.mark.parametrize("style", [name for name, tasks in STYLES.items() if TEXTS in tasks])
def test_replies_are_the_models_own(style: str, answers: dict[str, Samples], model: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, stop=("\n",))
    samples = answers[style][TEXTS]
    assert len(samples) == 2
    for sample in samples:
        expected = model.generate(sample["doc"]["question"], params).text
        assert expected
        assert sample["resps"] == [[expected]]


def test_whole_texts_are_scored_from_the_start_token(answers: dict[str, Samples], model: LLM) -> None:
    samples = answers["tokenizer of its own"][PROSE]
    assert len(samples) == 2
    for sample in samples:
        text = f"{sample['doc']['question']} {sample['doc']['answer']}"
        start = model.tokenizer.bos_token_id
        assert start is not None
        (row,) = model.backend.logprobs([[start, *model.tokenizer.encode(text)]])
        assert float(sample["resps"][0][0]) == pytest.approx(sum(row), abs=1e-3)


def test_chats_are_the_models_own(answers: dict[str, Samples], model: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, stop=("\n",))
    for sample in answers[CHAT][TEXTS]:
        expected = model.chat([Message("user", sample["doc"]["question"])], params).text
        assert sample["resps"] == [[expected]]
