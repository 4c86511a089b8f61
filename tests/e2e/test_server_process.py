"""Servers as processes: signals, ports, and the command line with a real model."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.process import QWENKIT, assert_one_sentence, environment, qwenkit

ROOT = Path(__file__).parents[2]


class Process:
    """A server that has started."""

    def __init__(self, process: subprocess.Popen[str], port: int, said: list[str]) -> None:
        self.process, self.port, self.said = process, port, said

    def ask(self, body: dict[str, object] | None, path: str = "/v1/chat/completions") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            connection.request(
                "GET" if body is None else "POST", path, data, {"content-type": "application/json"}
            )
            response = connection.getresponse()
            return response.status, response.read().decode()

    def wait(self) -> int:
        return self.process.wait(20)


@contextlib.contextmanager
def _started(*command: str) -> Iterator[Process]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    )
    try:
        assert process.stdout is not None
        said: list[str] = []
        while not said or "http://" not in said[-1]:
            line = process.stdout.readline()
            assert line, process.communicate()
            said.append(line.strip())
        yield Process(process, int(said[-1].rpartition(":")[2]), said)
    finally:
        process.kill()
        process.communicate()


def _scripted(reply: str, delay: float, drain_timeout: float) -> contextlib.AbstractContextManager[Process]:
    return _started(sys.executable, "-m", "tests.e2e.serve_scripted", reply, str(delay), str(drain_timeout))


CHAT: dict[str, object] = {"messages": [{"role": "user", "content": "hi"}]}


def _in_background(server: Process, found: list[tuple[int, str]], **fields: object) -> threading.Thread:
    thread = threading.Thread(target=lambda: found.append(server.ask(CHAT | fields)))
    thread.start()
    time.sleep(0.4)
    return thread


def test_a_signal_lets_running_requests_end() -> None:
    with _scripted("x" * 60, 0.05, 20) as server:
        found: list[tuple[int, str]] = []
        thread = _in_background(server, found, stream=True)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with (
            contextlib.suppress(ConnectionError),
            contextlib.closing(socket.create_connection(("127.0.0.1", server.port), 2)),
        ):
            raise AssertionError("the stopping server still takes connections")
        thread.join(20)
        assert found[0][1].rstrip().endswith("data: [DONE]")
        assert server.wait() == 0


def test_after_the_drain_timeout_requests_are_ended() -> None:
    with _scripted("x" * 6000, 0.05, 0.5) as server:
        found: list[tuple[int, str]] = []
        threads = [_in_background(server, found, stream=stream, max_tokens=6000) for stream in (True, False)]
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - start < 5
        for thread in threads:
            thread.join(10)
    assert all("shutting down" in text for _, text in found)
    assert sorted(status for status, _ in found) == [200, 503]


def test_a_second_signal_exits_at_once() -> None:
    with _scripted("x" * 6000, 0.05, 60) as server:
        found: list[tuple[int, str]] = []
        thread = threading.Thread(target=_swallow, args=(server,))
        thread.start()
        time.sleep(0.4)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.4)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 130
        thread.join(10)
        assert found == []


def _swallow(server: Process) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        server.ask(CHAT | {"max_tokens": 6000})


def test_ports_and_options_that_cannot_be() -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in assert_one_sentence(qwenkit("serve", "--port", str(port)))
    assert "--port" in assert_one_sentence(qwenkit("serve", "--port", "70000"))
    assert "no-such-host" in assert_one_sentence(qwenkit("serve", "--host", "no-such-host.invalid"))
    assert "NAME=PATH" in assert_one_sentence(qwenkit("serve", "--lora", "adapter"))
    assert "https://" in assert_one_sentence(qwenkit("serve", "--cors-origin", "example.org"))


def test_keys_from_everywhere(tmp_path: Path, smollm2_gguf: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# mine\nfrom-file\n\n")
    assert "holds no key" in assert_one_sentence(
        qwenkit("serve", "--api-key-file", str(_written(tmp_path / "empty", "#\n")))
    )
    command = (QWENKIT, "serve", "-m", str(smollm2_gguf), "--port", "0", "--max-context", "512")
    options = ("--api-key", "from-option", "--api-key-file", str(file), "--served-model-name", "small")
    with _started("env", "QWENKIT_API_KEYS=one, two", *command, *options) as server:
        assert any("4 keys" in line for line in server.said)
        assert any("bfloat16" in line or "float32" in line for line in server.said)
        assert server.ask(CHAT)[0] == 401
        for key in ("one", "two", "from-file", "from-option"):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})
            response = connection.getresponse()
            assert response.status == 200
            assert json.loads(response.read())["data"][0]["id"] == "small"
            connection.close()


def test_the_real_model_answers(smollm2_gguf: Path) -> None:
    with _started(
        QWENKIT, "serve", "-m", str(smollm2_gguf), "--port", "0", "--max-context", "1024"
    ) as server:
        question = {
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "temperature": 0,
        }
        status, text = server.ask(question)
        assert status == 200
        assert "Paris" in json.loads(text)["choices"][0]["message"]["content"]
        status, text = server.ask(question | {"stream": True})
        events = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
        assert "Paris" in "".join(e["choices"][0]["delta"].get("content", "") for e in events)
        words = {"prompt": "The capital of France is Paris", "echo": True, "logprobs": 1, "max_tokens": 0}
        status, text = server.ask(words, "/v1/completions")
        logprobs = json.loads(text)["choices"][0]["logprobs"]
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["tokens"][-1] == " Paris"
        assert logprobs["token_logprobs"][-1] > -1
        status, text = server.ask({"prompt": "word " * 2000}, "/v1/completions")
        assert (status, json.loads(text)["error"]["code"]) == (400, "context_length_exceeded")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
