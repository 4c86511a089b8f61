"""Every example of the pages on protocols, as it stands there, against a server process with a real model."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path

import huggingface_hub
import pytest

from tests.support.live_server import LiveServer
from tests.support.page_examples import examples, run_program, run_shell

PAGES = tuple(f"protocol-{name}.md" for name in ("anthropic", "responses", "tgi", "vllm-demo", "ollama"))
"""DashScope's page starts a server of its own, and has a test of its own."""


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("script", examples("bash", *PAGES))
def test_shell(script: str, smollm2_server: LiveServer, tmp_path: Path) -> None:
    said = run_shell(script, smollm2_server, tmp_path)
    lines = [line for line in said.split("\n") if line and not line.startswith("event: ")]
    values = [json.loads(line.removeprefix("data:")) for line in lines]
    assert values, said
    assert not any(value.get("error") or value.get("type") == "error" for value in values), values


@pytest.mark.parametrize("program", examples("python", *PAGES))
def test_python(program: str, smollm2_server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # where clients look for a key, so that the example stays as it is
    for name in ("HF_TOKEN", "OLLAMA_API_KEY"):
        monkeypatch.setenv(name, smollm2_server.key)
    opener = urllib.request.build_opener()
    opener.addheaders = [("Authorization", f"Bearer {smollm2_server.key}")]
    monkeypatch.setattr(urllib.request, "_opener", opener)
    names = run_program(program, smollm2_server)
    huggingface_hub.close_session()  # its clients share one
    close = getattr(names.get("client"), "close", None)
    if close is not None:
        close()
