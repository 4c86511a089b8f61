"""Every example of the pages on protocols, as it stands there, against a server process with a real model."""

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

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("protocol-anthropic.md", "protocol-responses.md")
ADDRESS = "127.0.0.1:8000"


def blocks(language: str) -> list[Any]:
    """The examples in one language, each with a name."""
    found = []
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        examples = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        assert examples, f"{page} has no example in {language}"
        found += [pytest.param(e, id=f"{page}-{n}") for n, e in enumerate(examples)]
    return found


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("script", blocks("bash"))
def test_shell(script: str, smollm2_server: LiveServer, tmp_path: Path) -> None:
    assert ADDRESS in script
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
    lines = [line for line in done.stdout.split("\n") if line and not line.startswith("event: ")]
    values = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert values, done.stdout
    assert not any(value.get("error") or value.get("type") == "error" for value in values), values


@pytest.mark.parametrize("program", blocks("python"))
def test_python(program: str, smollm2_server: LiveServer) -> None:
    there = program.replace(ADDRESS, f"127.0.0.1:{smollm2_server.port}")
    there = there.replace('"any"', repr(smollm2_server.key))
    assert there != program
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(there, "docs", "exec"), names)
    names["client"].close()
    assert said.getvalue().strip()
