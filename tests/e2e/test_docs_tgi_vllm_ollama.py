"""Every example of the pages on TGI, vLLM's demo and Ollama, as it stands there, against a server with a real model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from tests.support.live_server import LiveServer

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("protocol-tgi.md", "protocol-vllm-demo.md", "protocol-ollama.md")
ADDRESS = "127.0.0.1:8000"


def examples(language: str) -> list[Any]:
    """Those of all pages in one language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        pytest.param(block, id=f"{page}-{n}")
        for page in PAGES
        for n, block in enumerate(pattern.findall((DOCS / page).read_text(encoding="utf-8")))
    ]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("script", examples("bash"))
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
    values = [json.loads(line.removeprefix("data:")) for line in done.stdout.split("\n") if line]
    assert values, done.stdout
    assert not any("error" in value for value in values), values


@pytest.mark.parametrize("program", examples("python"))
def test_python(program: str, smollm2_server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # where clients look for a key, so that the example stays as it is
    for name in ("HF_TOKEN", "OLLAMA_API_KEY"):
        monkeypatch.setenv(name, smollm2_server.key)
    opener = urllib.request.build_opener()
    opener.addheaders = [("Authorization", f"Bearer {smollm2_server.key}")]
    monkeypatch.setattr(urllib.request, "_opener", opener)
    assert ADDRESS in program
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(program.replace(ADDRESS, f"127.0.0.1:{smollm2_server.port}"), "docs", "exec"), names)
    huggingface_hub.close_session()  # its clients share one
    close = getattr(names.get("client"), "close", None)
    if close is not None:
        close()
    assert said.getvalue().strip()
