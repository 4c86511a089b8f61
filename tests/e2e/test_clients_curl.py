"""Every example of docs/serving.md, as it stands there, against a server process with a real model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.live_server import LiveServer

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    """The examples in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_there_are_examples() -> None:
    assert len(blocks("bash")) >= 3
    assert all(ADDRESS in block for block in blocks("bash") + blocks("python"))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("script", blocks("bash"))
def test_shell(script: str, smollm2_server: LiveServer, tmp_path: Path) -> None:
    # curl finds the server, and shows the key, by its settings: the example stays as it is
    (tmp_path / ".curlrc").write_text(
        f'connect-to = "{ADDRESS}:127.0.0.1:{smollm2_server.port}"\n'
        f'header = "Authorization: Bearer {smollm2_server.key}"\n'
        "fail-with-body\n"
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, "HOME": str(tmp_path), "CURL_HOME": str(tmp_path), "no_proxy": "*"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done
    values = _values(done.stdout)
    assert values, done.stdout
    assert not any("error" in value for value in values), values


def _values(output: str) -> list[dict[str, Any]]:
    """The JSON of an answer, or of each event of a stream."""
    if not output.startswith("data: "):
        return [json.loads(output)]
    events = [line.removeprefix("data: ") for line in output.split("\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


@pytest.mark.parametrize("program", blocks("python"))
def test_python(program: str, smollm2_server: LiveServer) -> None:
    there = program.replace(ADDRESS, f"127.0.0.1:{smollm2_server.port}").replace(
        '"any"', repr(smollm2_server.key)
    )
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(there, "docs/serving.md", "exec"), names)
    names["client"].close()
    assert said.getvalue().strip()
