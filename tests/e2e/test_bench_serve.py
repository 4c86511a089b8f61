"""``qwenkit bench serve`` as a process, against a scripted server."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import QWENKIT, assert_one_sentence, environment, qwenkit
from tests.support.sse_server import Answer, Seen, SseServer, chat_events, error, sse_server


@pytest.fixture
def server() -> Iterator[SseServer]:
    with sse_server() as script:
        yield script


def test_tables_and_files(server: SseServer, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = ("--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"))
    load = (
        "-c",
        "4",
        "--num-requests",
        "12",
        "--warmup",
        "2",
        "--prompt-tokens",
        "5:9",
        "--shared-prefix",
        "3",
    )
    env = environment(QWENKIT_API_KEY="secret")
    done = qwenkit("bench", "serve", server.url, *load, *files, "--ignore-eos", env=env)
    assert done.returncode == 0, done
    assert done.stderr == ""
    assert "12 answered, 0 failed; at most 4 at once" in done.stdout
    assert "first token" in done.stdout
    assert "36 tokens\n" in done.stdout
    assert not any(line.endswith(" ") for line in done.stdout.splitlines())
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["setting"]["model"] == "tiny"
    assert found["setting"]["shared_prefix"] == 3
    assert found["report"]["ok"] == len(found["requests"]) == 12
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert {s.headers["Authorization"] for s in server.seen} == {"Bearer secret"}
    assert len(server.asked) == 14
    assert all(s.body["ignore_eos"] and s.body["model"] == "tiny" for s in server.asked)


def test_json_on_stdout_and_a_dataset(server: SseServer, tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    load = ("--rate", "inf", "--num-requests", "3", "--dataset", str(file), "--json", "-", "-m", "mine")
    done = qwenkit("bench", "serve", server.url, *load)
    assert json.loads(done.stdout)["setting"]["rate"] == "inf"
    assert {s.body["messages"][0]["content"] for s in server.asked} == {"one", "two"}
    assert {s.body["model"] for s in server.asked} == {"mine"}


def test_failures_are_told(server: SseServer) -> None:
    server.answers = [error(500, "boom"), Answer(pieces=chat_events("x"))]
    done = qwenkit("bench", "serve", server.url, "--num-requests", "3", "-c", "1")
    assert done.returncode == 0
    assert "2 answered, 1 failed" in done.stdout
    assert "1 x HTTP 500: boom" in done.stdout
    server.answers = [error(500, "boom")]
    done = qwenkit("bench", "serve", server.url, "--num-requests", "2")
    assert done.returncode == 2
    assert done.stderr.startswith("qwenkit: no request was answered")


def test_texts_that_differ_make_it_fail(server: SseServer) -> None:
    def reply(seen: Seen) -> Answer:
        return Answer(pieces=chat_events(f"text {len(server.asked) > 3}"))

    server.reply = reply
    done = qwenkit("bench", "serve", server.url, "--num-requests", "3", "--verify", "2")
    assert done.returncode == 2
    assert "0 of 2 texts are the same alone" in done.stdout
    assert "request 0 differs from character 5" in done.stdout
    assert "2 of 2 answers were another text" in done.stderr
    assert {(s.body["temperature"], s.body["seed"]) for s in server.asked} == {(0.0, 0)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate", "1", "-c", "1"), "either a concurrency or a rate"),
        (("--duration", "1", "--num-requests", "1"), "either a number of requests or a duration"),
        (("--endpoint", "poem"), "use chat or completions"),
        (("--prompt-tokens", "x"), "--prompt-tokens 'x' is not possible"),
        (("--dataset", "d.jsonl", "--shared-prefix", "3"), "has its own prompts"),
        (("--plot", "a.exe"), "no name of a picture"),
        (("--timeout", "0"), "timeout=0.0"),
    ],
)
def test_contradictions(server: SseServer, arguments: tuple[str, ...], words: str) -> None:
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    assert words in assert_one_sentence(qwenkit("bench", "serve", server.url, *arguments))
    assert server.asked == []


def test_ctrl_c_still_reports(server: SseServer) -> None:
    server.answers = [Answer(pieces=chat_events(*"abcdef"), pause=lambda at: time.sleep(0.05))]
    command = [QWENKIT, "bench", "serve", server.url, "-c", "2", "--num-requests", "1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    while len(server.asked) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "2 cut off by the end of the test" in out
    assert "end to end" in out
