"""Every example of docs/serving.md, as it stands there, against a server process with a real model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.live_server import LiveServer
from tests.support.page_examples import examples, run_program, run_shell

PAGE = "serving.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("script", examples("bash", PAGE))
def test_shell(script: str, smollm2_server: LiveServer, tmp_path: Path) -> None:
    said = run_shell(script, smollm2_server, tmp_path)
    values = _values(said)
    assert values, said
    assert not any("error" in value for value in values), values


def _values(output: str) -> list[dict[str, Any]]:
    """The JSON of an answer, or of each event of a stream."""
    if not output.startswith("data: "):
        return [json.loads(output)]
    events = [line.removeprefix("data: ") for line in output.split("\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


@pytest.mark.parametrize("program", examples("python", PAGE))
def test_python(program: str, smollm2_server: LiveServer) -> None:
    run_program(program, smollm2_server)["client"].close()
