"""What the files for deployment say, carried out: the image's start command and health check, the unit's, nginx."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dockerfile import Instruction, lineage, read_stages
from tests.support.live_server import live_server
from tests.support.nginx import free_port, insecure_context, programs, running_proxy
from tests.support.process import QWENKIT, environment

ROOT = Path(__file__).parents[2]
STAGES = read_stages(ROOT / "docker" / "Dockerfile")
REPLY = "".join(f"word{n} " for n in range(30))


def instruction(keyword: str) -> Instruction:
    """The image's last one of a kind."""
    return [each for stage in lineage(STAGES, "cpu") for each in stage.all(keyword)][-1]


def start_command() -> list[str]:
    words = [*instruction("ENTRYPOINT").words, *instruction("CMD").words]
    assert words[0] == "qwenkit"
    assert words[-2:] == ["--port", "8000"]
    return [QWENKIT, *words[1:-1]]


def health_command(port: int) -> list[str]:
    text = instruction("HEALTHCHECK").text
    words = json.loads(text[text.index("[") :])
    assert words[0] == "python"
    return [sys.executable, *(word.replace("8000", str(port)) for word in words[1:])]


def is_healthy(port: int) -> bool:
    # A proxy of the environment must not be asked.
    variables = environment(http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")
    return (
        subprocess.run(health_command(port), env=variables, capture_output=True, check=False).returncode == 0
    )


@contextlib.contextmanager
def container_like(folder: Path, model: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """The start command as the image runs it: nothing to write but the cache, and the first process of its own space."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    isolated = (
        shutil.which("unshare") is not None and not subprocess.run([*unshare, "true"], check=False).returncode
    )
    variables = environment(
        HOME=str(folder), QWENKIT_CACHE=f"{folder}/qwenkit", QWENKIT_HOME=f"{folder}/history"
    )
    command = [*(unshare if isolated else []), *start_command(), str(port), "-m", str(model)]
    process = subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_process(process: subprocess.Popen[str]) -> int:
    """Below unshare, which does not pass signals on."""
    if process.args[0] != "unshare":  # type: ignore[index]
        return process.pid
    children: list[str] = []
    deadline = time.monotonic() + 30
    while not children:
        assert time.monotonic() < deadline
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


def test_the_image_starts_tells_its_health_and_stops(smollm2_gguf: Path, tmp_path: Path) -> None:
    port = free_port()
    assert not is_healthy(port)
    with container_like(tmp_path, smollm2_gguf, port) as process:
        deadline = time.monotonic() + 60
        while not is_healthy(port):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
        os.kill(first_process(process), signal.SIGTERM)
        assert process.wait(30) == 0, process.communicate()
    assert not is_healthy(port)


def test_the_first_process_of_a_container_can_be_stopped_while_it_loads(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    with container_like(tmp_path, smollm2_gguf, free_port()) as process:
        if process.args[0] != "unshare":  # type: ignore[index]
            pytest.skip("this user may not make process namespaces")
        first, deadline = first_process(process), time.monotonic() + 30
        while "libtorch" not in Path(f"/proc/{first}/maps").read_text():  # torch is being imported
            assert time.monotonic() < deadline
        os.kill(first, signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM


def test_the_command_of_the_unit(smollm2_gguf: Path, tmp_path: Path) -> None:
    """With the variables that systemd would fill in."""
    (tmp_path / "api_keys").write_text("# ours\nsecret\n")
    text = (ROOT / "deploy" / "qwenkit.service").read_text(encoding="utf-8").replace("\\\n", " ")
    command = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert command
    values = {
        "${QWENKIT_MODEL}": str(smollm2_gguf),
        "${CREDENTIALS_DIRECTORY}": str(tmp_path),
        "$QWENKIT_OPTIONS": "",
    }
    line = command[1].replace("--port 8000", "--port 0")
    for name, value in values.items():
        assert name in line
        line = line.replace(name, value)
    words = shlex.split(line)
    assert words[0] == "/opt/qwenkit/bin/qwenkit"
    with live_server([QWENKIT, *words[1:]], model="any", key="secret") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        with contextlib.closing(connection):
            for header, status in (("Bearer secret", 200), ("Bearer other", 401)):
                connection.request("GET", "/v1/models", headers={"authorization": header})
                answer = connection.getresponse()
                answer.read()
                assert answer.status == status


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of nginx in front of a server that says a word every 50 ms."""
    if programs() is None:
        pytest.skip("needs nginx and openssl")
    command = [sys.executable, "-m", "tests.e2e.serve_scripted", REPLY, "0.05", "5"]
    with (
        live_server(command, model="any") as server,
        running_proxy(tmp_path_factory.mktemp("nginx"), server.port) as port,
    ):
        yield port


@contextlib.contextmanager
def answer_of(port: int, path: str, body: bytes | None = None) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=insecure_context())
    with contextlib.closing(connection):
        connection.request("POST" if body else "GET", path, body, {"content-type": "application/json"})
        yield connection.getresponse()


def test_streams_pass_nginx_piece_by_piece(proxied: int) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
    with answer_of(proxied, "/qwen/v1/chat/completions", body) as answer:
        assert answer.status == 200
        times = [time.monotonic() for line in answer if line.startswith(b"data: ")]
    assert len(times) > 10
    # In one piece they would come within a moment; the reply takes a second and a half.
    assert times[-1] - times[0] > 0.7


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/qwen/", 0, 200),
        ("/qwen/health", 0, 200),
        ("/qwen/v1/models", 0, 200),
        ("/qwen/metrics", 0, 200),
        ("/qwen", 0, 308),
        ("/health", 0, 404),
        ("/qwen/v1/chat/completions", 17 * 2**20, 413),
    ],
)
def test_what_nginx_lets_through(path: str, size: int, status: int, proxied: int) -> None:
    with answer_of(proxied, path, b" " * size or None) as answer:
        assert answer.status == status


def test_limits_of_nginx(proxied: int) -> None:
    """More than a page needs, asked at once."""
    connection = http.client.HTTPSConnection("127.0.0.1", proxied, timeout=30, context=insecure_context())
    statuses = []
    with contextlib.closing(connection):
        for _ in range(200):
            connection.request("GET", "/qwen/health")
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
    assert set(statuses[:50]) == {200}
    assert statuses[-1] == 429
