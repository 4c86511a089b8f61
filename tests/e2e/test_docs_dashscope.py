"""Every example of the page on DashScope's protocol, in order, against the server that its first one starts."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_server import LiveServer, live_server
from tests.support.process import QWENKIT, environment

ADDRESS = "127.0.0.1:8000"
PAGE = (Path(__file__).parents[2] / "docs" / "protocol-dashscope.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[LiveServer]:
    """The fixture it asks for sees to it that the default model is there."""
    name, *arguments = shlex.split(blocks("sh")[0])
    assert name == "qwenkit"
    with live_server((QWENKIT, *arguments, "--port", "0", "--no-page"), model="qwen-plus") as found:
        yield found


def run(command: list[str], server: LiveServer, **changes: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        env=environment(PATH=path, no_proxy="*", **changes),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("script", blocks("bash"))
def test_shell(script: str, server: LiveServer, tmp_path: Path) -> None:
    assert ADDRESS in script
    (tmp_path / ".curlrc").write_text(f'connect-to = "{ADDRESS}:127.0.0.1:{server.port}"\nfail-with-body\n')
    said = run(
        ["bash", "-euo", "pipefail", "-c", script], server, HOME=str(tmp_path), CURL_HOME=str(tmp_path)
    )
    data = [line.removeprefix("data:") for line in said.splitlines() if line.startswith(("{", "data:"))]
    assert all(json.loads(each)["output"] for each in data)
    assert data


def test_the_command_line(server: LiveServer) -> None:
    _, script = blocks("sh")
    assert ADDRESS in script
    there = script.replace(ADDRESS, f"127.0.0.1:{server.port}")
    assert "Paris" in run(["bash", "-euo", "pipefail", "-c", there], server)


@pytest.mark.parametrize("program", blocks("python"))
def test_python(program: str, server: LiveServer) -> None:
    there = program.replace(ADDRESS, f"127.0.0.1:{server.port}")
    url = f"http://127.0.0.1:{server.port}/api/v1"
    said = run(
        [sys.executable, "-W", "error", "-c", there],
        server,
        DASHSCOPE_HTTP_BASE_URL=url,
        DASHSCOPE_API_KEY="any",
    )
    assert said.strip()
