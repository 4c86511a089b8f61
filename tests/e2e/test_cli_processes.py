"""The command line as a process in pipes: what goes in, what comes out, and how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import assert_one_sentence

LAUNCHER = Path(__file__).with_name("cli_launcher.py")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def command(folder: Path, *arguments: str, **script: Any) -> list[str]:
    path = folder / "script.json"
    path.write_text(json.dumps({"replies": ["**one**\ntwo 二", "second", "third"], **script}))
    return [sys.executable, str(LAUNCHER), str(path), *arguments]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def start(*arguments: str, stdin: str | bytes = "", **script: Any) -> subprocess.CompletedProcess[str]:
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        done = subprocess.run(
            command(tmp_path, *arguments, **script), input=data, capture_output=True, timeout=30, check=False
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return start


def test_a_pipe_gets_plain_text(run: Run) -> None:
    done = run("chat", "hi", "--stats")
    assert (done.returncode, done.stdout) == (0, "**one**\ntwo 二\n")
    assert "tokens/s" in done.stderr
    assert run("chat", "hi").stderr == ""


def test_stdin_is_the_message(run: Run) -> None:
    done = run("chat", "--json", stdin="hello\n")
    answer = json.loads(done.stdout)
    assert answer["text"] == "**one**\ntwo 二"
    assert answer["finish_reason"] == "stop"
    assert set(answer["usage"]) == {"prompt_tokens", "completion_tokens"}


def test_invalid_utf8_is_replaced_with_a_warning(run: Run) -> None:
    done = run("chat", stdin=b"caf\xe9")
    assert done.returncode == 0
    assert "not valid UTF-8" in done.stderr


def test_nothing_to_answer(run: Run) -> None:
    assert "PROMPT" in assert_one_sentence(run("chat"))
    assert "PROMPT" in assert_one_sentence(run("chat", "", stdin=" \n"))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("chatt",), "'chat'"),
        (("chat", "hi", "--temprature", "1"), "--temperature"),
        (("chat", "hi", "--top-p", "7"), "top_p=7.0"),
        (("chat", "hi", "--top-k", "x"), "--top-k"),
        (("chat", "hi", "--lang", "fr"), "zh, en or auto"),
        (("chat", "hi", "--greedy", "--temperature", "1"), "contradict"),
        (("generate",), "no prompt"),
        (("generate", "a", ""), "prompt 2"),
        (("generate", "a", "--file", "b.txt"), "only one"),
        (("generate", "--file", "/no/such.txt"), "/no/such.txt: No such file"),
        (("detokenize", "x"), "'x'"),
        (("tokenize",), "no text"),
        (("perplexity", "/no/such.txt"), "/no/such.txt"),
        (("perplexity", "/"), "/: Is a directory"),
        (("perplexity",), "FILE"),
    ],
)
def test_errors_are_assert_one_sentence(run: Run, arguments: tuple[str, ...], part: str) -> None:
    assert part in assert_one_sentence(run(*arguments))


def test_traceback_on_request(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENKIT_TRACEBACK", "1")
    done = run("chat", "hi", "--top-p", "7")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("qwenkit: top_p")


def test_version_and_help_load_nothing_heavy(run: Run) -> None:
    assert run("--version").stdout.startswith("qwenkit ")
    code = (
        "import sys, qwenkit.cli.main as m\n"
        "try:\n m.app(['chat', '--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        "print([n for n in ('torch', 'prompt_toolkit', 'numpy', 'qwenkit.llm') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--repetition-penalty" in done.stdout


def test_help_pages(run: Run) -> None:
    for name in ("chat", "generate", "tokenize", "detokenize", "perplexity", "pull", "inspect", "doctor"):
        done = run(name, "--help")
        assert done.returncode == 0
        assert "Usage: qwenkit " + name in done.stdout


def test_broken_pipe_is_quiet(tmp_path: Path) -> None:
    line = [*command(tmp_path, "generate", "x", "-n", "99999", replies=["line\n" * 4000], delay=0.0)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) in (0, 141)


@pytest.mark.parametrize("arguments", [("chat", "hi"), ("generate", "hi"), ("generate", "a", "b", "--json")])
def test_ctrl_c_exits_130_without_traceback(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    line = command(tmp_path, *arguments, replies=["word " * 90], delay=0.05)
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == b""
    assert out == b"" or out.endswith(b"\n")


def test_generate_streams_one_and_echoes(run: Run) -> None:
    assert run("generate", "Once").stdout == "**one**\ntwo 二\n"
    assert run("generate", "Once ", "--echo").stdout == "Once **one**\ntwo 二\n"
    assert run("generate", stdin="Once\n", replies=["x"]).stdout == "x\n"


def test_generate_many_as_json(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    rows = [
        json.loads(line)
        for line in run("generate", "--file", str(path), "--json", "-n", "4").stdout.splitlines()
    ]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert [row["prompt"] for row in rows] == ["a", "b", "c"]
    assert [row["text"] for row in rows] == ["**on", "seco", "thir"]
    assert {row["finish_reason"] for row in rows} == {"length"}
    assert set(rows[0]) == {"index", "prompt", "text", "token_count", "finish_reason"}
    assert run("generate", "a", "b").stdout == "**one**\ntwo 二\nsecond\n"


def test_tokenize_and_back(run: Run) -> None:
    ids = run("tokenize", stdin="中\n").stdout
    assert ids == "228 184 173 10\n"
    assert run("detokenize", stdin=ids).stdout == "中\n"
    assert run("detokenize", "[104,", "105]").stdout == "hi"
    row = json.loads(run("tokenize", "hé", "--json").stdout)
    assert row == {"ids": [104, 195, 169], "pieces": ["h", "\\xc3", "\\xa9"], "count": 3}


def test_perplexity(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("some text " * 40)
    row = json.loads(run("perplexity", str(path), "--window", "64", "--json").stdout)
    assert row["perplexity"] == pytest.approx(256, rel=1e-4)
    assert (row["tokens"], row["total_tokens"], row["complete"]) == (400, 400, True)
    assert run("perplexity", "-", stdin="some text").stdout.startswith("perplexity 256.0")


def test_perplexity_interrupted_tells_what_was_reached(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("some text " * 200)
    line = command(tmp_path, "perplexity", str(path), "--window", "10", "--json", delay=0.1)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(2.5)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    row = json.loads(out)
    assert process.returncode == 130
    assert 0 < row["tokens"] < row["total_tokens"] == 2000
    assert row["complete"] is False


def test_output_that_the_locale_cannot_encode(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert run("chat", "hi").stdout == "**one**\ntwo ?\n"


def test_full_disk_is_assert_one_sentence(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(tmp_path, "generate", "hi"), stdout=full, stderr=subprocess.PIPE, timeout=30, check=False
        )
    assert done.returncode == 2
    assert done.stderr == b"qwenkit: No space left on device\n"
