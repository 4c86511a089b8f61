"""``qwenkit chat --server`` as a process, against a scripted server."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import QWENKIT, assert_one_sentence, environment, qwenkit
from tests.support.sse_server import Answer, Seen, SseServer, chat_chunk, chat_events, error, sse_server
from tests.support.terminal import Terminal

NO_KEYS = environment(QWENKIT_API_KEY=None, OPENAI_API_KEY=None)


@pytest.fixture
def server() -> Iterator[SseServer]:
    with sse_server() as script:
        yield script


def test_one_answer(server: SseServer) -> None:
    done = qwenkit("chat", "--server", server.url, "hi", "--system", "be brief", "--stats", env=NO_KEYS)
    assert (done.returncode, done.stdout) == (0, "Hello\n")
    assert "7 prompt tokens, 3 generated" in done.stderr
    asked = server.asked[0]
    assert asked.body["model"] == "tiny"
    assert [m["role"] for m in asked.body["messages"]] == ["system", "user"]
    assert "Authorization" not in asked.headers


def test_json_model_settings_and_key(server: SseServer) -> None:
    env = environment(QWENKIT_API_KEY="from-env", OPENAI_API_KEY="other")
    options = ("-m", "smollm2-135m", "--top-k", "3", "--no-think", "--json")
    done = qwenkit("chat", "--server", f"{server.url}/v1/", *options, stdin="hello", env=env)
    answer = json.loads(done.stdout)
    assert (answer["text"], answer["usage"]) == ("Hello", {"prompt_tokens": 7, "completion_tokens": 3})
    asked = server.asked[0]
    assert (asked.body["model"], asked.body["top_k"]) == ("smollm2-135m", 3)
    assert asked.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert asked.headers["Authorization"] == "Bearer from-env"
    qwenkit("chat", "--server", server.url, "--api-key", "given", "hi", env=env)
    assert server.asked[1].headers["Authorization"] == "Bearer given"


def test_errors_are_one_sentence(server: SseServer) -> None:
    server.answers = [error(500, "boom")]
    assert f"{server.url} failed" in assert_one_sentence(qwenkit("chat", "--server", server.url, "hi"))
    local_only = qwenkit("chat", "--server", server.url, "--threads", "2", "hi")
    assert "--threads" in assert_one_sentence(local_only)
    assert "--server" in assert_one_sentence(qwenkit("chat", "--api-key", "k", "hi"))


def test_a_conversation(server: SseServer, tmp_path: Path) -> None:
    def reply(seen: Seen) -> Answer:
        words = [m["content"] for m in seen.body["messages"]]
        if words[-1] == "long":
            return error(400, "maximum context length is 512 tokens")
        thought = [chat_chunk({"reasoning_content": "I ponder"})] if words[-1] == "think" else []
        return Answer(pieces=[*thought, *chat_events(f"answer to {'+'.join(words)}")])

    server.reply = reply
    environ = {"PATH": "/usr/bin:/bin", "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    environ |= {"QWENKIT_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
    chat = Terminal([QWENKIT, "chat", "--server", server.url], environ)
    with contextlib.closing(chat.process):
        first = chat.wait_for_prompt(1)
        assert first.splitlines()[0].startswith(f"tiny · {server.url} · context 512")
        chat.send("think\r")
        chat.wait_for(r"I ponder(.|\n)*answer to think\n")
        chat.wait_for_prompt(2)
        chat.send("/tokens\r")
        chat.wait_for(r"not known here")
        chat.wait_for_prompt(3)
        chat.send("long\r")
        chat.wait_for(r"does not fit the model's context")
        chat.wait_for_prompt(4)
        chat.send("more\r")
        chat.wait_for(r"answer to think\+answer to think\+more")
        # The thought of an earlier turn is told apart from what was said, and the turn that failed is forgotten.
        assert server.asked[-1].body["messages"][1]["reasoning_content"] == "I ponder"
        chat.wait_for_prompt(5)
        chat.send("/q\r")
        assert chat.exit_code() == 0


@pytest.mark.parametrize("is_begun", [False, True])
def test_ctrl_c_hangs_up(server: SseServer, tmp_path: Path, is_begun: bool) -> None:
    def wait(at: int) -> None:
        if at > 10 or not is_begun:
            time.sleep(0.1)

    server.answers = [Answer(pieces=chat_events(*["word "] * 300), pause=wait)]
    environ = {"PATH": "/usr/bin:/bin", "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    environ |= {"QWENKIT_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
    chat = Terminal([QWENKIT, "chat", "--server", server.url], environ)
    with contextlib.closing(chat.process):
        chat.wait_for_prompt(1)
        chat.send("go\r")
        if is_begun:
            chat.wait_for("word word")
        else:
            while not server.asked:
                chat.pump()
        chat.send("\x03")
        chat.wait_for(r"\[stopped\]")
        assert server.hung_up.wait(5)
        chat.wait_for_prompt(2)
        chat.send("/q\r")
        assert chat.exit_code() == 0
